"""A paper builds in three formats, twice the same; whatever it says wrongly stops the build with file and line."""

import contextlib
import errno
import json
import re
import shutil
import tempfile
from pathlib import Path

import pytest

from llamax.errors import DiskFullError, PaperError
from llamax.files import repository
from llamax.papers import build, pandoc
from llamax.papers.bind import bind
from llamax.papers.evidence import Evidence
from llamax.papers.source import Source
from llamax.runs import Store, records


def edit(path, old: str, new: str) -> int:
    """Replace `old` in a file by `new`; the line on which `new` begins."""
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{old!r} must occur once"
    path.write_text(text.replace(old, new), encoding="utf-8")
    return text[: text.index(old)].count("\n") + 1


def fails(line: int, message: str, file: str = "paper.md", **options) -> None:
    """Checking the paper raises one line that names file, line and fault."""
    with pytest.raises(PaperError) as error:
        build.check_paper("9.9.9", **options)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"papers/9.9.9/{file}:{line}: "), str(error.value)
    assert re.search(message, str(error.value)), str(error.value)


def test_three_formats_twice_the_same_bytes(paper):
    first = build.build_paper("9.9.9")
    contents = {path: path.read_bytes() for path in [*first, paper / "build/figures/gains.pdf"]}
    assert build.build_paper("9.9.9") == first
    assert contents == {path: path.read_bytes() for path in contents}
    assert first.pdf.read_bytes().startswith(b"%PDF-1.7")


def test_every_format_says_the_same_values(paper, tmp_path):
    built = build.build_paper("9.9.9", out=tmp_path / "elsewhere")
    assert built.html.parent == tmp_path / "elsewhere"
    html, tex = built.html.read_text(), built.tex.read_text()
    gain = Evidence(json.loads((paper / "lock.json").read_text())["runs"]).value("nano:full.chat.overall.gain")
    shown = f"+{100 * gain.value:.1f}\N{NO-BREAK SPACE}[+{100 * gain.low:.1f},\N{NO-BREAK SPACE}+{100 * gain.high:.1f}]"
    assert shown in html
    assert shown.replace("\N{NO-BREAK SPACE}", "~").replace("[", "{[}").replace("]", "{]}") in tex
    for text in ("5 × 10⁻⁴", "Not supported:", "Tuning buys accuracy (+", "0.4412", "quoted from", "nats per token"):
        assert text in html.replace("\N{NO-BREAK SPACE}", " "), text
    assert "Table 1." in html and "Figure 1." in html and "Section" in html
    assert "<script" not in html and 'src="http' not in html and "data:image/svg+xml" in html
    assert r"\includegraphics" in tex and "figures/gains.pdf" in tex and r"\section{Results}" in tex
    assert "[nano:" not in html + tex and ".value" not in tex


def test_a_failed_build_leaves_what_was_built(paper):
    built = build.build_paper("9.9.9")
    before = {path: path.read_bytes() for path in (paper / "build").rglob("*") if path.is_file()}
    edit(paper / "paper.md", "Gains.\n", "Gains of 漢.\n")
    with pytest.raises(PaperError):
        build.build_paper("9.9.9")
    assert before == {path: path.read_bytes() for path in (paper / "build").rglob("*") if path.is_file()}
    assert set(built) < set(before)


def test_a_full_disk_leaves_what_was_built(paper, monkeypatch):
    build.build_paper("9.9.9")
    before = {path: path.read_bytes() for path in (paper / "build").rglob("*") if path.is_file()}
    edit(paper / "paper.md", "caption: Gains.", "caption: Other gains.")
    copied, copy = [], shutil.copyfile

    def copyfile(source, target):
        if Path(target).is_relative_to(paper):
            if copied:
                raise OSError(errno.ENOSPC, "No space left on device", str(target))
            copied.append(target)
        return copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", copyfile)
    with pytest.raises(DiskFullError, match="no disk space to write"):
        build.build_paper("9.9.9")
    assert copied
    assert before == {path: path.read_bytes() for path in (paper / "build").rglob("*") if path.is_file()}
    assert not list(paper.glob(".build*"))


def test_a_full_folder_for_temporary_files(paper, monkeypatch, tmp_path):
    def mkdtemp(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(tempfile, "mkdtemp", mkdtemp)
    for make in (build.check_paper, build.build_paper):
        with pytest.raises(DiskFullError, match=f"no disk space to write {tmp_path}"):
            make("9.9.9")


def test_a_build_replaces_nothing_but_a_build(paper, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.doc").write_text("years of work")
    with pytest.raises(PaperError, match=r"holds 'thesis.doc', which no build wrote"):
        build.build_paper("9.9.9", out=tmp_path / "mine")
    with pytest.raises(PaperError, match="is a file: give a folder"):
        build.build_paper("9.9.9", out=tmp_path / "mine" / "thesis.doc")
    (paper / "build" / "figures").mkdir(parents=True)
    (paper / "build" / "figures" / "stale.pdf").write_text("of an older version")
    build.build_paper("9.9.9", out=paper / "build")
    assert sorted(path.name for path in (paper / "build" / "figures").iterdir()) == ["gains.pdf"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("The loss is", "The loss is 2.4 or", "hand-typed number '2.4'"),
        ("Still among", "Still +12 among", r"hand-typed number '\+12'"),
        ("A footnote about", "A footnote on 45% and", "hand-typed number '45%'"),
        ("We gain", "We gain 3", "hand-typed number '3'"),
        ("$x_1 + y^2$", "$x_1 = 0.7$", "hand-typed number in the formula"),
        ("before tuning", "`0.25` before", "hand-typed number '0.25'"),
        ("Still among", "**7.5** among", "hand-typed number '7.5'"),
        ("Still among", "Still [@cited2020, 45.2 points] among", "hand-typed number '45.2'"),
        ("Still among", "Still [beating 45.2 of @cited2020] among", "hand-typed number '45.2'"),
        ("Still among", "Still [@fig:gains, 45.2 points] among", "hand-typed number '45.2'"),
        ("Still among", "Still table 45.2 among", "hand-typed number '45.2'"),
        ("Still among", "Still 12k among", "hand-typed number '12k'"),
        ("title: A small paper", "title: A paper of 45.2 points", "hand-typed number '45.2'"),
        (
            "[nano:base.text_loss]{.value ",
            "[nano:base.text_loss]{.valeu ",
            "unknown class .valeu: valid here: .value",
        ),
        ("[buys]{.claim}", "[buys]", "'buys' would be printed as it is"),
        ("[other.mmlu]{.quoted}", "[other.mmlu]{}", r"\[other.mmlu\] has no class"),
        ("Still among", "Still [nano:base.text_loss] among", "'nano:base.text_loss' would be printed as it is"),
        ("Still among", "Still nano:base.text_loss. Among", "'nano:base.text_loss' would be printed as it is"),
        ("title: A small paper", 'title: "A [nano:runs] paper"', "'nano:runs' would be printed as it is"),
        ("## Deeper", "## Deeper {.result}", "unknown class .result: valid here: .results"),
        ("## Deeper", "#### Deeper", "heading 'Deeper': three levels are numbered; add .unnumbered"),
        ("::: {.claims}", "::: {.clams}", "unknown class .clams: valid here: .claims"),
        ("::: {.claims}", "::: {.claims", "unknown class .{.claims"),
        ("::: {.claims}", "::: {.claims} all", "a div that pandoc does not read"),
        ("show=se digits=2", "digits=-1", "digits=-1 of 'nano:base.text_loss': give a whole number"),
        ("show=se digits=2", "digits=99", "digits=99 of 'nano:base.text_loss': give a whole number"),
        ("cite @cited2020", "cite [@cited2020; @sec:results]", "brackets of their own"),
        ("nano:base.text_loss", "nano:base.text_lose", "unknown name 'nano:base.text_lose'.*base.text_loss"),
        ("nano:base.text_loss", "mano:base.text_loss", "has no runs named 'mano': it has nano, smol"),
        ("nano:runs", "nano:parameters.oops", "unknown name 'nano:parameters.oops': no 'oops' among"),
        ("show=se", "show=sigma", "unknown show=sigma: valid: value, ci, se, p, n, seeds"),
        ("show=se", "shw=se", "unknown option 'shw'"),
        ("digits=2", "digits=two", "digits=two of .*: give a whole number from 0 to 15"),
        ("cite @cited2020", "cite @uncited2020", "missing citation @uncited2020"),
        ("see @sec:results", "see @sec:result", "unknown reference @sec:result"),
        ("[other.mmlu]", "[other.mmlux]", "unknown quoted number 'other.mmlux': quoted.yaml has other.mmlu"),
        ("[buys]", "[bys]", "unknown claim 'bys'"),
        ("Still among", "Still `x`{=latex} among", "raw code"),
        ("Still among", "Still ![x](y.png) among", "not drawn from results"),
        ("Here 99.9%", "Here 漢 and 99.9%", "no font has the glyph '漢' .U.6F22."),
    ],
)
def test_a_fault_in_the_text_names_its_line(paper, old, new, message):
    fails(edit(paper / "paper.md", old, new), message)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Scores in percent.", "Scores of 12.5 percent.", "hand-typed number '12.5'"),
        ("{knowledge: Knowledge, code: Code}", "{knowledg: Knowledge}", "unknown name .*knowledg.accuracy"),
        ("head: Task\n", "hed: Task\n", "unknown parameter 'hed': did you mean 'head'"),
        ("head: Task\n", "head: [Task\n", "is not YAML"),
    ],
)
def test_a_fault_in_a_table_names_its_block(paper, old, new, message):
    edit(paper / "paper.md", old, new)
    fails(_line(paper, "caption: Scores"), message)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("draw: bars", "draw: bras", "figures.py has no function 'bras'"),
        ("{runs: nano}", "{runs: nona}", "has no runs named 'nona'"),
        ("{runs: nano}", "{rusn: nano}", "unexpected keyword argument 'rusn'"),
        ("alt: Bars of gains.\n", "", "alt"),
        ("#fig:gains}", "#tbl:gains}", "needs a label such as #fig:name"),
    ],
)
def test_a_fault_in_a_figure_names_its_block(paper, old, new, message):
    edit(paper / "paper.md", old, new)
    fails(_line(paper, "draw: "), message)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("alt: Bars of gains.", "alt: Bars of 45.2 points.", "hand-typed number '45.2'"),
        ("caption: Gains.", "caption: Gains of 45.2 points.", "hand-typed number '45.2'"),
        ("alt: Bars of gains.", 'alt: "[nano:base.text_loss]{.value}"', "would be printed as it is"),
        ("alt: Bars of gains.", "alt: Bars\nalt: Bars of gains.", "'alt' is given twice"),
        ("with: {runs: nano}", "with: {1: nano}", "parameter 'with.1"),
        ("#fig:gains}", "#fig:../gains}", "a .figure block that pandoc does not read"),
        ("{.figure #fig:gains}", "{.figur #fig:gains}", "a block #fig:gains that is neither .table nor .figure"),
    ],
)
def test_what_else_a_figure_may_not_hold(paper, old, new, message):
    edit(paper / "paper.md", old, new)
    source = Source("9.9.9")
    with contextlib.suppress(PaperError):
        bind(source, Evidence(source.lock.runs), paper / "work")
    assert any(message in fault and "paper.md:" in fault for fault in source.faults), source.faults


FIGURE = "    figure, axes = plt.subplots(figsize=(3, 2))\n"


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        ("1 = 2", r"figures.py:10: 'bars' failed: SyntaxError: cannot assign"),
        ("import no_such_module", r"figures.py:10: 'bars' failed: ModuleNotFoundError"),
        ("raise Exception('two\\nlines')", r"figures.py:10: 'bars' failed: Exception: two lines"),
        ("raise SystemExit(3)", r"figures.py:10: 'bars' failed: SystemExit: 3"),
        ("bars(evidence, runs)", r"figures.py:\d+: 'bars' failed: RecursionError"),
        ("return None", r"figures.py:\d+: 'bars' failed: AttributeError"),
        ("runs = 'mano'", "has no runs named 'mano'"),
        ("f, axes = plt.subplots(); axes.axhline(0); axes.axvline(0); axes.plot([], []); return f", "drew no data"),
        ("f, axes = plt.subplots(); axes.plot([1]); axes.set_title('漢'); return f", "Glyph 28450"),
        ("f, axes = plt.subplots(); axes.plot([1]); axes.set_title('$漢$'); return f", "not have a glyph"),
    ],
)
def test_a_figure_that_fails_in_any_way_is_one_line(paper, draw, message):
    edit(paper / "figures.py", FIGURE, f"    {draw}\n{FIGURE}")
    fails(_line(paper, "draw: "), message)


def test_a_figure_without_the_style_that_is_none(paper):
    edit(paper / "figures.py", "@styled\n", "")
    edit(paper / "figures.py", "return figure", "return")
    fails(_line(paper, "draw: "), "'bars' returned NoneType, not a matplotlib Figure")


def test_points_alone_are_data(paper):
    edit(paper / "figures.py", "    axes.bar(", "    axes.scatter([1], [2]); return figure\n    axes.bar(")
    build.check_paper("9.9.9")


def test_a_bar_in_a_name_does_not_end_its_cell(paper):
    edit(paper / "paper.md", "{knowledge: Knowledge,", "{knowledge: 'Know | ledge $|x|$',")
    edit(paper / "paper.md", "{head: Base,", "{head: 'Base | untuned',")
    html = build.build_paper("9.9.9").html.read_text()
    assert "Know | ledge" in html and "Base | untuned" in html and "<mi>x</mi>" in html
    for row in ("knowledge", "code"):
        assert f'title="nano:base.chat.{row}.accuracy"' in html and f'title="nano:full.chat.{row}.gain"' in html


def test_a_place_is_not_numbered_by_the_next_paragraph(paper):
    edit(paper / "paper.md", "Still among", "In the Table\n\n45 among")
    fails(_line(paper, "45 among"), "hand-typed number '45'")


def test_a_list_among_results_begins_with_one(paper):
    edit(paper / "paper.md", "Still among", "45. first\n46. second\n\nStill among")
    fails(_line(paper, "45. first"), "hand-typed number 45: a list among results begins with 1")


@pytest.mark.parametrize(
    ("file", "content", "line", "message"),
    [
        ("claims.yaml", "5", 1, "not a list of claims"),
        ("claims.yaml", "- 5", 1, "claim 1: "),
        ("claims.yaml", "a: [\n", 2, "expected the node content"),
        ("claims.yaml", "- {a: 1,\n   a: 2}", 2, "'a' is given twice"),
        ("claims.yaml", "[" * 5000, 1, "nested too deeply"),
        ("quoted.yaml", "[1]", 1, "not a mapping"),
        ("quoted.yaml", "5: {value: 1, source: cited2020, what: x}", 1, "5 is not a name"),
        ("quoted.yaml", "a: {}\na: {}", 2, "'a' is given twice"),
        ("quoted.yaml", "? [a]\n: b", 1, ""),
        ("lock.json", '{"version": 1,\n "version": 2}', 1, "'version' is given twice"),
        ("lock.json", "[" * 100000, 1, "nested too deeply"),
        ("paper.md", "---\ntitle: [\n---\n", 1, "pandoc: "),
        ("paper.md", "no front matter", 1, "gives no title"),
    ],
)
def test_a_file_that_is_not_what_it_should_be(paper, file, content, line, message):
    (paper / file).write_text(content)
    fails(line, re.escape(message), file)


@pytest.mark.parametrize("file", ["paper.md", "lock.json", "claims.yaml", "quoted.yaml", "refs.bib"])
def test_a_file_that_is_not_utf_8(paper, file):
    (paper / file).write_bytes(b"- a\nb\xff\n")
    fails(2, "not UTF-8: byte 0xff", file)


def test_deep_nesting_is_one_line(paper):
    line = edit(paper / "paper.md", "Still among", "> " * 800 + "deep")
    fails(line, "nested too deeply")


def test_an_author_without_a_name(paper):
    edit(paper / "paper.md", "name: Somebody, ", "")
    fails(3, "an author has no name")


def test_a_footnote_may_cite_and_is_watched_there_too(paper):
    edit(paper / "paper.md", "A footnote about nothing.", "A footnote [see @cited2020].")
    html = re.sub(r"<[^>]*>", "", build.build_paper("9.9.9").html.read_text())
    assert re.search(r"A footnote \(see\sDoe 2020\)", html), html[-400:]
    line = edit(paper / "paper.md", "[see @cited2020]", "[@cited2020, 45.2 points]")
    fails(line, "hand-typed number '45.2'")


def test_what_pandoc_refuses_is_one_line(paper, monkeypatch):
    edit(paper / "paper.md", "title: A small paper", "csl: none.csl\ntitle: A small paper")
    fails(0, "pandoc: File none.csl not found")
    monkeypatch.setattr(pandoc, "PATIENCE", 1e-3)
    fails(1, "pandoc: not done after 0.001 s")


def test_a_missing_title_or_abstract(paper):
    edit(paper / "paper.md", "title: A small paper", "titel: A small paper")
    fails(1, "gives no title")
    edit(paper / "paper.md", "titel: A small paper", "title: A small paper")
    edit(paper / "paper.md", "abstract: |\n  We gain [nano:full.chat.overall.gain]{.value} points.\n", "")
    fails(1, "gives no abstract")


def test_an_author_may_be_one_name(paper):
    edit(paper / "paper.md", "author:\n  - {name: Somebody, affiliation: Somewhere}", "author: Some Body")
    assert build.build_paper("9.9.9").html.read_text().count('class="author"') == 1


def test_a_claim_given_twice(paper):
    line = edit(paper / "claims.yaml", "- id: loses", "- id: buys")
    fails(line, "claim 'buys' is given twice", "claims.yaml")


def test_a_claim_without_a_task(paper):
    edit(paper / "claims.yaml", "of: base.chat.knowledge", "of: base")
    fails(_line(paper, "::: {.claims}"), "'base' names no task")


def test_a_lock_that_pins_a_run_twice_or_is_of_another_version_or_time(paper):
    lock = json.loads((paper / "lock.json").read_text())
    for change, message in (
        ({"runs": {**lock["runs"], "nano": lock["runs"]["nano"][:1] * 2}}, "'nano' pins run nano-s0-00000000 twice"),
        ({"version": "9.9.8"}, "version '9.9.8' is not that of its folder"),
    ):
        (paper / "lock.json").write_text(json.dumps({**lock, **change}))
        fails(1, message, "lock.json")
    (paper / "lock.json").write_text(json.dumps({**lock, "timestamp": "0001-01-01T00:00:00+14:00"}))
    with pytest.raises(PaperError, match=r"papers/9.9.9/lock.json: parameter 'timestamp'"):
        build.check_paper("9.9.9")


def _line(paper, start: str) -> int:
    return 1 + (paper / "paper.md").read_text().split(start)[0].count("\n")


def test_a_false_claim_quotes_its_sentence(paper):
    edit(paper / "claims.yaml", "of: full.chat.overall\n  minus: base", "of: base.chat.overall\n  minus: full")
    fails(_line(paper, "[buys]"), "claim 'buys' no longer holds: “Tuning buys accuracy.” .found −")


def test_a_claim_said_not_to_hold_that_holds(paper):
    edit(paper / "claims.yaml", "threshold: 0.9\n", "threshold: 0.01\n")
    fails(_line(paper, "::: {.claims}"), "claim 'wrong' is said not to hold, but holds")


def test_a_typed_number_in_a_claim(paper):
    line = edit(paper / "claims.yaml", "Tuning buys accuracy.", "Tuning buys 5 points.") - 1
    fails(line, "hand-typed number '5'", "claims.yaml")


def test_a_claim_without_outcomes_or_with_a_wrong_field(paper):
    edit(paper / "claims.yaml", "of: base.chat.knowledge", "of: base.chat.knowhow")
    fails(_line(paper, "::: {.claims}"), "hold no outcomes of 'base.chat.knowhow'")
    edit(paper / "claims.yaml", "threshold: 0.9", "threshold: 0.9\n  treshold: 1")
    with pytest.raises(
        PaperError, match=r"claims\.yaml:17: claim 3: unknown parameter 'treshold': did you mean 'threshold'"
    ):
        build.check_paper("9.9.9")


def test_a_quoted_number_needs_a_source_in_the_references(paper):
    edit(paper / "quoted.yaml", "cited2020", "nobody1999")
    fails(1, "source 'nobody1999' is not in refs.bib", "quoted.yaml")


def test_a_stale_run_fails_only_when_strict(paper):
    build.check_paper("9.9.9")
    fails(4, r"run nano-s0-00000000 \(nano\) is stale: changed: ", "lock.json", strict=True)


def test_of_what_a_run_is_stale_by_the_first_few_are_named(paper, monkeypatch):
    monkeypatch.setattr(Store, "changed", lambda *_: list("abcde"))
    fails(4, r"run nano-s0-00000000 \(nano\) is stale: changed: a, b, c and 2 more", "lock.json", strict=True)


def test_a_run_that_is_not_there_or_not_pinned(paper):
    lock = json.loads((paper / "lock.json").read_text())
    lock["runs"]["nano"] = ["nano-s7-01234567"]
    (paper / "lock.json").write_text(json.dumps(lock))
    with pytest.raises(PaperError, match=r"paper\.md:.*no complete run 'nano-s7-01234567'"):
        build.check_paper("9.9.9")
    lock["runs"]["nano"] = []
    (paper / "lock.json").write_text(json.dumps(lock))
    with pytest.raises(PaperError, match=r"paper\.md:.*lock.json pins no runs for 'nano'"):
        build.check_paper("9.9.9")


def test_items_that_were_altered_or_do_not_say_what_the_record_says(paper, tmp_path):
    results = tmp_path / "results"
    real = results.resolve()
    results.unlink()
    shutil.copytree(real, results)
    folder = results / "instruction_tuning" / "nano-s0-00000000"
    record = records.read(folder / "result.json")
    name = "full.chat.overall.gain"
    lied = record.metrics[name].model_copy(update={"value": 0.9})
    records.write(record.replace(metrics={**record.metrics, name: lied}), folder)
    with pytest.raises(PaperError, match=f"'nano:{name}' is 0.5.* in the records, but 0.2.* by their items"):
        build.check_paper("9.9.9")
    (folder / "items.parquet").write_bytes(b"not what was recorded")
    with pytest.raises(PaperError, match=r"items\.parquet was altered after the run"):
        build.check_paper("9.9.9")


def test_an_unknown_version_and_a_missing_file(paper):
    with pytest.raises(PaperError, match=r"no paper '9.9.8' in papers/: there are 9.9.9"):
        build.check_paper("9.9.8")
    (paper / "refs.bib").unlink()
    with pytest.raises(PaperError, match=r"papers/9.9.9/refs.bib is missing"):
        build.check_paper("9.9.9")


def test_the_published_paper_holds():
    folder = repository() / "papers" / "3.0.1"
    runs = [run for pinned in json.loads((folder / "lock.json").read_text())["runs"].values() for run in pinned]
    if not runs:
        pytest.skip("papers/3.0.1 pins no runs yet")
    build.check_paper("3.0.1")
