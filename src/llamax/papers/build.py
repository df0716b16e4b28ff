"""From `papers/<version>/` to PDF (pandoc and Typst), one HTML file, and LaTeX: no TeX, no network, equal bytes."""

import contextlib
import functools
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import typst

from llamax import files
from llamax.errors import LlamaxError, PaperError
from llamax.papers.bind import bind
from llamax.papers.evidence import Evidence
from llamax.papers.expand import figure_file
from llamax.papers.pandoc import Node, pandoc, plain, rewrite, words
from llamax.papers.source import Source
from llamax.papers.style import STYLE

LATEX = ["-V", "documentclass=article", "-V", "papersize=letter", "-V", "geometry:textwidth=5.5in", "-V", "colorlinks"]
GLYPH = re.compile(r"the text `\"(.+?)\"` could not be displayed")


class PaperFiles(NamedTuple):
    """The paper in its three formats."""

    pdf: Path
    html: Path
    tex: Path


def build_paper(version: str, *, strict: bool = False, out: Path | str | None = None) -> PaperFiles:
    """Build `papers/<version>` into `out` (its own folder `build` unless told otherwise), which is replaced whole.

    Raises: PaperError: one line with file and line of what is wrong. DiskFullError. What was built before is then left
    as it is.
    """
    folder = Path(out) if out else files.repository() / "papers" / version / "build"
    with one_line(version), tempfile.TemporaryDirectory() as name:
        work = Path(name)
        if out:
            refuse_strangers(folder)
        make(version, strict, work)
        with files.atomic_folder(folder) as stage:
            for path in [*sorted(work.rglob("*.pdf")), work / "paper.html", work / "paper.tex"]:
                target = stage / path.relative_to(work)
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(path, target)
    return PaperFiles(folder / "paper.pdf", folder / "paper.html", folder / "paper.tex")


def check_paper(version: str, *, strict: bool = False) -> None:
    """Do all that `build_paper` does, and write nothing. Raises: PaperError, DiskFullError, as there."""
    with one_line(version), tempfile.TemporaryDirectory() as name:
        make(version, strict, Path(name))


@contextlib.contextmanager
def one_line(version: str) -> Iterator[None]:
    """Whatever goes wrong with a paper, as one line. Raises: PaperError, DiskFullError."""
    where = f"papers/{version}/paper.md"
    try:
        with files.clear_disk_errors(Path(tempfile.gettempdir())):
            yield
    except LlamaxError as error:
        if str(error).startswith(("pandoc: ", "typst: ")):  # said about the whole paper, after it was bound
            raise PaperError(f"{where}:0: {error}") from None
        raise
    except OSError as error:
        raise PaperError(f"papers/{version}: cannot read or write: {error}") from error
    except RecursionError:
        raise PaperError(f"{where}:{deepest_line(version)}: nested too deeply") from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        said = " ".join(str(error).split())
        raise PaperError(f"{where}:0: not understood: {type(error).__name__}: {said}") from error


def deepest_line(version: str) -> int:
    """The line of paper.md with the most characters that open something."""
    lines = (files.repository() / "papers" / version / "paper.md").read_text(encoding="utf-8").splitlines() or [""]
    depths = [len(re.findall(r"[\[>({*_^~]|^ +", line)) for line in lines]
    return depths.index(max(depths)) + 1


def refuse_strangers(folder: Path) -> None:
    """Raise PaperError when `folder`, which a build replaces, holds what no build wrote."""
    if folder.exists() and not folder.is_dir():
        raise PaperError(f"{folder} is a file: give a folder to build into")
    written = {*(f"paper.{suffix}" for suffix in PaperFiles._fields), "figures"}
    if others := sorted({path.name for path in folder.glob("*")} - written):
        raise PaperError(f"{folder} holds {others[0]!r}, which no build wrote: give an empty folder or a new one")


def make(version: str, strict: bool, work: Path) -> None:
    """Bind, check and render the paper into `work`: paper.pdf, paper.html, paper.tex, figures/."""
    source = Source(version)
    evidence = Evidence(source.lock.runs)
    shutil.copyfile(source.folder / "refs.bib", work / "refs.bib")
    tree = bind(source, evidence, work)
    if strict:
        for line in evidence.stale():
            source.fault(source.line('"runs"', "lock.json"), line, "lock.json")
    source.raise_faults()
    tree = with_metadata(tree, source)
    write_pdf(tree, source, work)
    write_html(tree, work)
    write_latex(tree, work)


def with_metadata(tree: Node, source: Source) -> Node:
    """The tree with what the formats need besides the text: bibliography, date, heading of the references."""
    date = source.timestamp.strftime("%-d %B %Y")
    added = {"date": date, "bibliography": "refs.bib", "reference-section-title": "References", "lang": "en"}
    meta = {key: {"t": "MetaInlines", "c": words(value)} for key, value in added.items()}
    meta["link-citations"] = {"t": "MetaBool", "c": True}
    return {**tree, "meta": {**tree["meta"], **meta}}


def convert(tree: Node, work: Path, *options: str) -> str:
    """The tree through pandoc with resolved citations, run in `work`."""
    return pandoc(json.dumps(tree), "-f", "json", "--citeproc", "--standalone", *options, folder=work)


def write_pdf(tree: Node, source: Source, work: Path) -> None:
    """`paper.pdf`, PDF/A-2b. Raises: PaperError: no font has a glyph, with the line it stands on."""
    text = convert(tree, work, "-t", "typst", "--template", str(STYLE / "paper.typ"))
    for label, alt in alternative_texts(tree).items():
        quoted = json.dumps(alt, ensure_ascii=False)
        text = text.replace(f'image("{figure_file(label)}"', f'image("{figure_file(label)}", alt: {quoted}')
    (work / "paper.typ").write_text(text, encoding="utf-8")
    try:
        pdf = typst.compile(
            str(work / "paper.typ"),
            root=str(work),
            timestamp=int(source.timestamp.timestamp()),
            ignore_system_fonts=True,
            pdf_standards=["a-2b"],
        )
    except typst.TypstError as error:
        glyph = GLYPH.search(error.message)
        raise PaperError(missing_glyph(glyph[1], source) if glyph else f"typst: {error.message}") from None
    (work / "paper.pdf").write_bytes(pdf)


def missing_glyph(glyph: str, source: Source) -> str:
    """The line that names a glyph which no font has, and where it stands in the paper's files."""
    code = " ".join(f"U+{ord(character):04X}" for character in glyph)
    for file in ("paper.md", "claims.yaml", "quoted.yaml", "refs.bib"):
        if line := source.line(glyph, file):
            return f"papers/{source.version}/{file}:{line}: no font has the glyph {glyph!r} ({code})"
    return f"papers/{source.version}/paper.md:0: no font has the glyph {glyph!r} ({code}), which comes from a result"


def write_html(tree: Node, work: Path) -> None:
    """`paper.html`: one file, with its figures, formulas as MathML, and captions numbered as in the PDF."""
    shutil.copyfile(STYLE / "paper.css", work / "paper.css")
    numbered = {**tree, "meta": names_only(tree["meta"]), "blocks": with_caption_numbers(tree["blocks"])}
    options = ("--embed-resources", "--mathml", "--number-sections", "--css", "paper.css")
    (work / "paper.html").write_text(convert(numbered, work, "-t", "html5", *options), encoding="utf-8")


def write_latex(tree: Node, work: Path) -> None:
    """`paper.tex`: a plain article, its figures as PDF beside it."""

    def as_pdf(node: Node) -> list[Node] | None:
        if node["t"] != "Image":
            return None
        attributes, alt, (path, title) = node["c"]
        return [{"t": "Image", "c": [attributes, alt, [str(Path(path).with_suffix(".pdf").as_posix()), title]]}]

    plainer = {**tree, "meta": names_only(tree["meta"]), "blocks": rewrite(tree["blocks"], as_pdf)}
    (work / "paper.tex").write_text(convert(plainer, work, "-t", "latex", "--number-sections", *LATEX), "utf-8")


def names_only(meta: dict) -> dict:
    """Metadata whose authors are names, each once, as pandoc's own HTML and LaTeX templates want them."""
    author = meta.get("author", {"t": "MetaList", "c": []})
    authors = author["c"] if author["t"] == "MetaList" else [author]
    names = [author["c"]["name"] if author["t"] == "MetaMap" else author for author in authors]
    return {**meta, "author": {"t": "MetaList", "c": list({plain(name): name for name in names}.values())}}


def with_caption_numbers(blocks: list[Node]) -> list[Node]:
    """Figures and tables whose captions begin with their number (HTML has no counters of its own)."""
    counts = {"Figure": 0, "Table": 0}

    def prefix(node: Node) -> list[Node] | None:
        if node["t"] not in counts:
            return None
        counts[node["t"]] += 1
        attributes, (short, caption), *rest = node["c"]
        label = {"t": "Strong", "c": words(f"{node['t']} {counts[node['t']]}.")}
        first = {**caption[0], "c": [label, {"t": "Space"}, *caption[0]["c"]]} if caption else None
        return [{**node, "c": [attributes, [short, [first, *caption[1:]] if first else []], *rest]}]

    return rewrite(blocks, prefix)


def alternative_texts(tree: Node) -> dict[str, str]:
    """Label -> alternative text of each figure; pandoc's Typst writer leaves them out."""
    found: dict[str, str] = {}

    def note(node: Node, label: str = "") -> None:
        if node["t"] == "Figure":
            rewrite(node["c"], functools.partial(note, label=node["c"][0][0]))
        elif node["t"] == "Image" and label:
            found[label] = plain(node["c"][1])

    rewrite(tree["blocks"], note)
    return found
