"""A paper builds in three formats, twice the same; whatever it says wrongly stops the build with file and line."""

import json
import re
import shutil

import pytest

from llamax.errors import PaperError
from llamax.files import repository
from llamax.papers import build
from llamax.papers.evidence import Evidence
from llamax.runs import records


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
