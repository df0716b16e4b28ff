import json

import pytest
import yaml

from llamax.errors import GateError, ParameterError
from llamax.versions.ladder import ladder
from llamax.versions.references import (
    ReferenceSet,
    Scores,
    baseline_mean,
    matching,
    place,
    read_file,
    reference_set,
    references,
    target_of,
)

TITLES = ["MMLU", "HumanEval", "GSM8K", "NaturalQuestions", "TruthfulQA"]
FATHOM = reference_set("gpt-fathom")


def of_row(row: str, **changes) -> Scores:
    return Scores(**{"model": "ours", "protocol": "gpt-fathom", "scores": FATHOM.scores[row]} | changes)


def test_the_targets_of_the_gap_are_the_published_ones():
    """62.1, 65.1, 68.1 and 71.0 are those of turbo-0301 and gpt-4-0314; turbo-0613 has 64.8 as its own mean."""
    targets = {rung.version: target_of(rung, FATHOM) for rung in ladder().rungs}
    shown = {version: f"{target:.1f}" for version, target in targets.items()}
    assert [shown[v] for v in ("3.6.0", "3.7.0", "3.8.0", "3.9.0")] == ["62.1", "65.1", "68.1", "71.0"]
    assert targets["3.5.0"] == pytest.approx((66.6 + 53.9 + 78.2 + 39.6 + 57.4) / 5)
    assert targets["4.0.0"] == pytest.approx((83.7 + 66.3 + 92.1 + 48.4 + 79.5) / 5)
    assert sum(FATHOM.scores["gpt-3.5-turbo-0613"].values()) / 5 == pytest.approx(64.78)


def test_every_figure_is_that_of_the_shared_file(shared_data):
    known = json.loads((shared_data / "reference_scores.json").read_text())
    assert FATHOM.scores == {
        row: dict(zip(TITLES, cells, strict=True)) for row, cells in known["gpt_fathom"]["rows"].items()
    }
    report, ours = known["gpt4_technical_report_table2"], reference_set("gpt-4-report").scores
    for row in ("GPT-4", "GPT-3.5"):
        assert sorted(ours[row].values()) == sorted(report[row].values())
    readme, ours = known["llama_x_readme"]["rows"], reference_set("llama-x-readme").scores
    assert {row: list(cells.values()) for row, cells in ours.items()} == readme
    flags, ours = known["gsm8k_openai_2021"], reference_set("gsm8k-2021").scores
    assert [cells["GSM8K"] for cells in ours.values()] == [
        flags[name] for name in ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
    ]


def test_the_llama_papers_figures_and_which_of_them_nobody_has_checked(shared_data):
    known = json.loads((shared_data / "reference_scores.json").read_text())["llama_papers"]
    ours = reference_set("llama-papers")
    for row, cells in known.items():
        values, unverified = [], []
        for cell in cells.values():
            several = cell["v"] if isinstance(cell["v"], list) else [cell["v"]]
            values += several + [cell[name] for name in cell if name not in ("v", "seen")]
            unverified += several if "UNVERIFIED" in cell["seen"] else []
        if row == "LLaMA-7B":
            values, unverified = [*values, 27.42], [*unverified, 27.42]  # stands in a remark on Llama 2's figure
        assert sorted(ours.scores[row].values()) == sorted(values)
        assert sorted(ours.scores[row][column] for column in ours.unverified[row]) == sorted(unverified)


def test_figures_are_quoted_and_marked():
    papers = reference_set("llama-papers")
    assert papers.quote("LLaMA-7B", "MMLU 5-shot") == "“35.1”"
    assert papers.quote("LLaMA-7B", "HumanEval pass@1") == "“10.5” (unverified)"
    assert FATHOM.quote("davinci (GPT-3)", "HumanEval") == "“0.0”"
    assert reference_set("llama-x-readme").quote("Llama-X 3.0.1 (7B)", "MMLU") == "“0.4412”"


@pytest.mark.parametrize("one", references(), ids=lambda one: one.name)
def test_a_set_is_one_protocol_with_a_source_and_marks_only_what_it_has(one):
    assert [other.name for other in references() if other.protocol == one.protocol] == [one.name]
    assert one.source
    assert one.seen
    for row, columns in one.unverified.items():
        assert set(columns) <= one.scores[row].keys()
    assert set(one.baselines.values()) <= one.scores.keys()


class TestPlace:
    def test_a_reference_row_stands_at_its_own_rung(self):
        for row, version, left in [
            ("gpt-3.5-turbo-0301", "3.5.0", 1.0),
            ("gpt-4-0314", "4.0.0", 0.0),
            ("davinci (GPT-3)", None, (74.0 - 17.12) / (74.0 - 59.14)),  # 3.0.0 has to outperform it
            ("LLaMA-7B", "3.0.0", (74.0 - 20.24) / (74.0 - 59.14)),
        ]:
            found = place(of_row(row), FATHOM)
            assert found.reached() == version
            assert found.left == pytest.approx(left)

    def test_halfway_leaves_half_and_reaches_3_7_0(self):
        start, end = baseline_mean(FATHOM, "gpt-35-turbo"), baseline_mean(FATHOM, "GPT-4")
        found = place(of_row("gpt-4-0314", scores=dict.fromkeys(TITLES, (start + end) / 2)), FATHOM)
        assert found.left == pytest.approx(0.5)
        assert found.reached() == "3.7.0"
        assert [step.met for step in found.steps] == [True] * 7 + [False] * 3

    def test_fractions_are_percents_too(self):
        percent = place(of_row("LLaMA-65B"), FATHOM)
        fraction = {title: value / 100 for title, value in FATHOM.scores["LLaMA-65B"].items()}
        assert place(of_row("LLaMA-65B", scores=fraction, unit="fraction"), FATHOM).mean == pytest.approx(percent.mean)

    def test_scores_of_another_protocol_are_refused(self):
        with pytest.raises(GateError, match="under protocol 'lm-eval', the scores of gpt-fathom under 'gpt-fathom'"):
            place(of_row("LLaMA-7B", protocol="lm-eval"), FATHOM)

    def test_another_setting_of_a_benchmark_is_refused_and_so_is_an_unknown_one(self):
        with pytest.raises(GateError, match="MMLU: ours was run with '0-shot', gpt-fathom with '5-shot"):
            place(of_row("LLaMA-7B", settings={"MMLU": "0-shot"}), FATHOM)
        bare = FATHOM.model_copy(update={"settings": {}})
        with pytest.raises(GateError, match="gpt-fathom with None"):
            place(of_row("LLaMA-7B", settings={"MMLU": "0-shot"}), bare)

    def test_a_benchmark_that_is_missing_on_either_side_is_named(self):
        with pytest.raises(GateError, match="ours: no score for GSM8K: the average is over all of Type A"):
            place(of_row("LLaMA-7B", scores={title: 1.0 for title in TITLES if title != "GSM8K"}), FATHOM)
        rows = {row: {t: v for t, v in cells.items() if t != "GSM8K"} for row, cells in FATHOM.scores.items()}
        with pytest.raises(GateError, match="reference scores gpt-fathom have no GSM8K of GPT-3"):
            place(of_row("LLaMA-7B"), FATHOM.model_copy(update={"scores": rows}))

    def test_a_target_from_unverified_figures_says_so(self):
        marked = FATHOM.model_copy(update={"unverified": {"gpt-4-0314": ("MMLU",)}})
        found = [step.version for step in place(of_row("LLaMA-7B"), marked).steps if step.unverified]
        assert found == ["3.6.0", "3.7.0", "3.8.0", "3.9.0", "4.0.0"]


def test_no_set_matches_a_protocol_of_ours():
    assert matching(of_row("LLaMA-7B")).name == "gpt-fathom"
    assert matching(of_row("LLaMA-7B", protocol="lm-eval")) is None
    assert matching(of_row("LLaMA-7B", protocol="llama-papers")) is None  # it has no baselines
    with pytest.raises(GateError, match="no reference scores called 'fathom': there are gpt-fathom, "):
        reference_set("fathom")


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        (None, GateError, "no scores: No such file"),
        ("a: [", GateError, "no scores: "),
        ("- 1", GateError, "should be a mapping of model, protocol, scores"),
        ("{model: m, protocol: p, scores: {MMLU: high}}", ParameterError, "scores.MMLU"),
        ("{model: m, protocol: p, scores: {}}", ParameterError, "scores"),
        ("{model: m, protocol: p, scores: {MMLU: 1}, unit: permille}", ParameterError, "unit"),
        ("{model: m, protocol: p, scores: {MMLU: 1}, row: x}", ParameterError, "unknown parameter 'row'"),
        (
            "{model: m, protocol: p, scores: {MMLU: 4500}}",
            ParameterError,
            "MMLU = 4500.0: a score in percent lies",
        ),
        ("{model: m, protocol: p, scores: {MMLU: -1}}", ParameterError, "MMLU = -1.0: a score in percent lies from 0"),
        ("{model: m, protocol: p, scores: {MMLU: 45}, unit: fraction}", ParameterError, "lies from 0 to 1"),
        ("{model: m, protocol: p, scores: {MMLU: yes}}", ParameterError, "MMLU should be a number; YAML reads yes"),
    ],
)
def test_a_bad_file_of_scores_is_one_clear_line(tmp_path, text, error, says):
    path = tmp_path / "scores.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(error, match=r"scores\.yaml") as found:
        read_file(path, Scores, "scores")
    assert says in str(found.value)
    assert "\n" not in str(found.value)


def test_a_file_of_reference_scores_is_read(tmp_path):
    path = tmp_path / "more.yaml"
    path.write_text(yaml.safe_dump(FATHOM.model_dump(mode="json") | {"name": "more", "protocol": "lm-eval"}))
    assert read_file(path, ReferenceSet, "reference scores").protocol == "lm-eval"
