"""Direction 08: its parameters, its numbers, and a study that goes on where it was."""

import json

import numpy as np
import pandas as pd
import pytest
from recorder import Recorder

from llamax import statistics
from llamax.errors import ModelError, ParameterError
from llamax.evaluation import analysis, benchmarks, definitions, figures
from llamax.evaluation.config import CANDIDATE, CURRENT, EvaluationConfig, card_of
from llamax.evaluation.study import Study
from llamax.models.fingerprint import fingerprint
from llamax.models.load import load
from llamax.runs.parameters import parse_parameters
from llamax.versions.measured import ITEM_COLUMNS, MODELS, Measured, item_set

TRAIN = {"learning_rate": 1e-3, "max_steps": 1, "batch_size": 2, "micro_batch": 2}
SMALL = {
    "tune": {"max_examples": 8, "length": 128, "train": TRAIN},
    "limits": {"knowledge": 5, "open_qa": 4},
    "training_data": ["nano"],
    "variance": {"limits": {"knowledge": 4}, "wordings": ["as defined", "bare"], "seeds": 0},
}  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    config = EvaluationConfig(profile="test", **SMALL)
    study = Study(config, Recorder(tmp_path_factory.mktemp("run")))
    study.run_all()
    return study


def test_what_the_tuning_cost_is_told(study):
    assert study.run.tokens == study.run.frames["curve"].tokens.sum() > 0
    assert study.run.flops == 6 * load("nano").model.num_parameters() * study.run.tokens


def test_every_benchmark_has_the_data_card_that_enters_the_run_key():
    for name in definitions.names():
        config = next(iter(definitions.configs(definitions.find(name)).values()))
        assert benchmarks.card_of(config["dataset_path"]).name == card_of(name)


def test_items_are_those_that_the_gate_reads(study):
    assert list(study.items.columns) == ITEM_COLUMNS
    assert study.items.groupby(["model", "benchmark"]).item.nunique().to_dict() == {
        (model, name): count for model in (CURRENT, CANDIDATE) for name, count in {"knowledge": 5, "open_qa": 4}.items()
    }
    for model in (CURRENT, CANDIDATE):
        said = study.measured[model]["knowledge"]
        assert (said.items, said.total, said.protocol, said.contamination) == (5, 200, "nano", "checked")
        assert said.item_set == item_set(study.items[study.items.benchmark == "knowledge"].item)


def test_the_record_has_every_number_and_its_interval(study):
    study.conclude()
    run = study.run
    assert run.completed and json.dumps(run.notes)
    hashes = run.notes[MODELS]
    assert hashes == {label: fingerprint(spec) for label, spec in study.models.items()}
    assert list(hashes) == [CURRENT, CANDIDATE] and hashes[CURRENT] != hashes[CANDIDATE]
    rows = study.items[(study.items.model == CURRENT) & (study.items.benchmark == "knowledge")]
    assert run.metrics["current.knowledge.acc"] == pytest.approx(rows.outcome.mean())
    both = study.items[study.items.benchmark == "knowledge"].pivot(index="item", columns="model", values="outcome")
    gain = statistics.paired_difference(both[CANDIDATE], both[CURRENT])
    assert run.metrics["gain.knowledge"] == pytest.approx(gain.value)
    assert {"candidate.knowledge.ece", "spread.current.knowledge.wording", "detectable.open_qa"} <= set(run.metrics)
    assert set(run.frames) == {"items", "confidence", "variance", "leaks", "curve"}


def test_what_is_done_is_not_done_again(study, monkeypatch):
    again = Study(study.config, Recorder(study.run.scratch))
    monkeypatch.setattr("llamax.evaluation.study.train", lambda *_, **__: pytest.fail("trained again"))
    monkeypatch.setattr("llamax.evaluation.study.load", lambda *_, **__: pytest.fail("loaded again"))
    pd.testing.assert_frame_equal(again.run_all(), study.items)
    pd.testing.assert_frame_equal(again.variance, study.variance)


def test_the_gate_is_told_what_was_asked(study):
    table = analysis.gate_table(study)
    assert list(table.index) == ["knowledge", "open_qa"]
    assert analysis.verdict(study).endswith("This is a rehearsal: it says nothing about a version.")


def test_what_a_benchmark_could_show_is_told_with_one_model_too(study):
    table = analysis.resolution(study)
    assert table.loc["knowledge", "gain at 10%"] == pytest.approx(100 * statistics.mcnemar_gain(200, 0.1), abs=1e-3)
    both = study.items[study.items.benchmark == "knowledge"].pivot(index="item", columns="model", values="outcome")
    assert table.loc["knowledge", "differ"] == pytest.approx((both[CANDIDATE] != both[CURRENT]).mean(), abs=1e-3)
    alone = made(outcomes(CURRENT, "knowledge", [1.0, 0.0]))
    alone.models = {CURRENT: "nano"}
    assert "differ" not in analysis.resolution(alone)


def test_every_figure_draws(study):
    for draw in (figures.scores, figures.reliability, figures.spread, figures.gains):
        assert draw(study).axes
    labels = figures.subjects(study, "knowledge").axes[0].get_yticklabels()
    assert len(labels) == (analysis.by_cluster(study).benchmark == "knowledge").sum()


def outcomes(model, benchmark, values, clusters=None):
    items = [f"{benchmark}/{n}" for n in range(len(values))]
    frame = {"model": model, "benchmark": benchmark, "metric": "acc", "item": items, "sample": 0, "outcome": values}
    return pd.DataFrame(frame | {"cluster": clusters or items, "contaminated": [n == 0 for n in range(len(values))]})


def made(items, variance=None):
    """A study whose answers are given."""
    study = Study(EvaluationConfig(profile="test", candidate="smol"), Recorder(None))
    study.items = items
    study.measured = {
        model: {
            name: Measured(
                benchmark=name, metric="acc", protocol="nano", prompts="", shots=0, items=len(rows), total=len(rows),
                item_set=item_set(rows.item),
            )
            for name, rows in of_model.groupby("benchmark", sort=False)
        }
        for model, of_model in items.groupby("model")
    }  # fmt: skip
    study.variance = variance if variance is not None else pd.DataFrame(columns=["model", *analysis.VARIANCE])
    study.confidence = pd.DataFrame(columns=["model", *analysis.CONFIDENCE])
    return study


def test_scores_count_clusters_and_leave_out_what_leaked():
    values, clusters = [1.0, 0.0, 1.0, 1.0], ["a", "a", "b", "b"]
    (row,) = analysis.scores(made(outcomes(CURRENT, "knowledge", values, clusters))).itertuples()
    expected = statistics.mean(values, clusters)
    assert (row.value, row.standard_error, row.n, row.of) == (expected.value, expected.standard_error, 4, 4)
    assert row.clean == pytest.approx(2 / 3)


def test_several_samples_of_an_item_count_once():
    twice = pd.concat([outcomes(CURRENT, "code", [1.0, 0.0]), outcomes(CURRENT, "code", [0.0, 0.0]).assign(sample=1)])
    (row,) = analysis.scores(made(twice)).itertuples()
    assert (row.value, row.n) == (0.25, 2)


def test_names_of_metrics_are_names_of_the_record():
    asked = outcomes(CURRENT, "code", [1.0, 0.0]).assign(metric="pass@1")
    cut = outcomes(CURRENT, "gsm8k", [1.0, 0.0]).assign(metric="exact_match,flexible-extract")
    study = made(pd.concat([asked, cut]))
    study.models = {CURRENT: "nano"}
    assert [one.name for one in analysis.metrics(study)] == [
        "current.code.pass_at_1",
        "current.gsm8k.exact_match-flexible-extract",
    ]


def test_spread_is_over_settings_on_the_same_items():
    rows = [
        ("knowledge", "wording", setting, f"i{n}", float(n < right), f"i{n}")
        for setting, right in (("a", 2), ("b", 4))
        for n in range(8)
    ]
    variance = pd.DataFrame(rows, columns=analysis.VARIANCE).assign(model=CURRENT)
    (row,) = analysis.spread(made(outcomes(CURRENT, "knowledge", [1.0, 0.0]), variance)).itertuples()
    assert (row.lowest, row.highest, row.settings, row.items) == (0.25, 0.5, 2, 8)
    assert row.deviation == pytest.approx(np.std([0.25, 0.5], ddof=1))
    assert row.error == pytest.approx(statistics.mean([1.0, 1.0] + [0.0] * 6).standard_error)
    variance["cluster"] = variance.item.replace({"i1": "i0"})
    (row,) = analysis.spread(made(outcomes(CURRENT, "knowledge", [1.0, 0.0]), variance)).itertuples()
    expected = statistics.mean([1.0, 1.0] + [0.0] * 6, [0, 0, 1, 2, 3, 4, 5, 6])
    assert row.error == pytest.approx(expected.standard_error)


def test_the_gain_is_the_candidates_over_the_current_models():
    right = [1.0] * 6 + [0.0] * 4
    items = pd.concat(
        [outcomes(CURRENT, "knowledge", right), outcomes(CANDIDATE, "knowledge", [*right[:6], 1.0, 0, 0, 0])]
    )
    table = analysis.gate_table(made(items))
    assert table.loc["knowledge", "gain"] == pytest.approx(10.0)


def test_subjects_are_shown_from_five_items_on():
    clusters = ["five"] * 5 + ["four"] * 4
    table = analysis.by_cluster(
        made(outcomes(CURRENT, "mmlu", [1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0], clusters))
    )
    (row,) = table.itertuples()
    wanted = statistics.wilson(3, 5)
    assert (row.benchmark, row.cluster, row.n) == ("mmlu", "five", 5)
    assert (row.value, row.low, row.high) == (wanted.value, wanted.low, wanted.high)


def test_a_problem_that_is_answered_often_is_no_subject():
    often = [outcomes(CURRENT, "humaneval", [1.0, 0.0]).assign(sample=n) for n in range(6)]
    assert analysis.by_cluster(made(pd.concat(often))).empty


def test_subjects_are_judged_by_the_deciding_metric_alone():
    right = outcomes(CURRENT, "mmlu", [1.0] * 6, ["a"] * 6)
    study = made(pd.concat([right, right.assign(metric="acc_norm", outcome=0.0)]))
    (row,) = analysis.by_cluster(study).itertuples()
    assert (row.value, row.n) == (1.0, 6)


def test_calibration_is_told_in_ten_bins_and_by_model():
    rng = np.random.default_rng(0)
    study = made(outcomes(CURRENT, "mmlu", [1.0, 0.0]))
    frames = []
    for model, shift in ((CURRENT, 0.0), (CANDIDATE, 0.3)):
        confidence = rng.uniform(0.1, 0.7, 300)
        right = (rng.random(300) < confidence + shift).astype(float)
        frame = pd.DataFrame({"model": model, "benchmark": "mmlu", "confidence": confidence, "outcome": right})
        frame["cluster"] = frame.index
        frames.append(frame)
    study.confidence = pd.concat(frames)
    for row, frame in zip(analysis.calibration(study).itertuples(), frames, strict=True):
        bins = np.ceil(frame.confidence * 10)
        gaps = (frame.outcome - frame.confidence).groupby(bins).sum().abs()
        assert (row.model, row.n) == (frame.model.iloc[0], 300)
        assert row.value == pytest.approx(gaps.sum() / 300)
    alone = analysis.calibration(study)
    study.confidence = pd.concat(3 * [study.confidence])  # thrice the same items, which clusters know
    again = analysis.calibration(study)
    assert (again.high - again.low).to_numpy() == pytest.approx((alone.high - alone.low).to_numpy(), rel=0.1)


def test_of_the_real_suite_both_types_of_the_gates_benchmarks_are_weighed():
    study = made(pd.concat([outcomes(CURRENT, name, [1.0, 0.0, 1.0]) for name in ("mmlu", "leetcode", "gsm8k_cot")]))
    study.config = study.config.model_copy(update={"suite": "real"})
    assert [one.name for one in analysis.required(study)] == ["mmlu", "leetcode"]
    study.items.loc[study.items.benchmark == "mmlu", "contaminated"] = True  # of none nothing can be told
    assert [one.name for one in analysis.required(study)] == ["leetcode"]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"candidate": "smol"}, "the candidate is given, or made by tuning; not both"),
        ({"limits": {"mmlu": 3}}, "the suite 'nano' has no task 'mmlu'"),
        ({"shots": 3}, "shots has no effect on the suite 'nano'"),
        ({"training_data": ["alpaca"]}, "training_data: should have 'nano' too, which the candidate is tuned on"),
        ({"suite": "real", "limits": {}}, "name the benchmarks to run"),
        (
            {"suite": "real", "limits": {"mmlu": 3}, "variance": {"limits": {}, "wordings": []}, "samples": 4},
            "several answers need a temperature",
        ),
        ({"suite": "real", "limits": {"mmlu": 0}}, "greater than 0"),
        (
            {"suite": "real", "limits": {"mmlu": 3}, "variance": {"limits": {"gsm8k": 4}}},
            "limits: mmlu, without 'gsm8k', which variance.limits has: add it, or give variance.limits too",
        ),
        (
            {"suite": "real", "limits": {"mmluu": 3}, "variance": {"limits": {"mmlu": 3}}},
            "limits: unknown benchmark 'mmluu': did you mean 'mmlu'?",
        ),
        (
            {"suite": "real", "limits": {"mmmlu_zz": 3}, "variance": {"limits": {"mmlu": 3}}},
            "limits: unknown benchmark",
        ),
        ({"suite": "real", "limits": {"nope": 3}, "variance": {"limits": {}}}, "limits: unknown benchmark 'nope'"),
        (
            {"suite": "real", "limits": {"mmlu": 3}, "variance": {"limits": {"mmluu": 3}}},
            "variance.limits: unknown benchmark 'mmluu': did you mean 'mmlu'?",
        ),
        ({"variance": {"wordings": ["nope"]}}, "unknown wording 'nope': valid are as defined, short, bare, polite"),
        ({"variance": {"wordings": ["short", "short"]}}, "variance.wordings: 'short' is there twice"),
        ({"tune": None, "candidate": "nano"}, "candidate: it is the model itself"),
        ({"tune": None, "candidate": ""}, "candidate: should name a model, or be null"),
    ],
)
def test_bad_parameters_are_one_clear_line(overrides, says):
    with pytest.raises(ParameterError, match=says):
        parse_parameters("evaluation", "nano", 0, overrides)


@pytest.fixture
def real(local_data, tmp_path, tiny_model, tiny_tokenizer):
    """A config over little benchmarks and a tiny model on disk whose window holds their prompts."""
    from llamax.models.save import save

    tiny_model.config.max_position_embeddings = 2048
    spec = str(save(tiny_model, tiny_tokenizer, tmp_path / "tiny"))
    values = {"suite": "real", "model": spec, "limits": {"mmlu_anatomy": None, "gsm8k": None}, "max_new_tokens": 8}
    variance = {"limits": {"mmlu_anatomy": 3, "gsm8k": 2}, "wordings": ["as defined", "no description"], "seeds": 2}
    return EvaluationConfig(profile="test", **values, variance=variance)


def test_real_benchmarks_by_one_process_and_by_two_are_the_same(real, tmp_path, monkeypatch):
    studies = []
    for count in ("1", "2"):
        monkeypatch.setenv("LLAMAX_RANKS", count)
        studies.append(Study(real, Recorder(tmp_path / f"run-{count}")))
        studies[-1].run_all()
    one, two = studies
    pd.testing.assert_frame_equal(one.items, two.items)
    pd.testing.assert_frame_equal(one.confidence, two.confidence, atol=1e-5)
    pd.testing.assert_frame_equal(one.variance, two.variance)
    assert one.measured == two.measured
    (tmp_path / "run-2" / CURRENT / "answers" / "measured.json").unlink()  # killed just before the end: one goes on
    monkeypatch.setenv("LLAMAX_RANKS", "1")
    monkeypatch.setattr("llamax.evaluation.engines.generate", lambda *_, **__: pytest.fail("asked again"))
    monkeypatch.setattr("llamax.evaluation.engines.score_choices", lambda *_, **__: pytest.fail("asked again"))
    again = Study(real, Recorder(tmp_path / "run-2"))
    pd.testing.assert_frame_equal(again.run_all(), two.items)
    assert one.measured[CURRENT]["mmlu_anatomy"].shots == 5


def test_seeds_are_asked_where_examples_are_drawn(real, tmp_path):
    study = Study(real, Recorder(tmp_path / "run"))
    study.run_all()
    kinds = study.variance.groupby(["benchmark", "kind"]).setting.nunique().to_dict()
    assert kinds == {("mmlu_anatomy", "wording"): 2, ("gsm8k", "wording"): 2, ("gsm8k", "seed"): 2}


def test_a_benchmark_that_does_not_exist_is_told_before_anything_is_trained(real, tmp_path, monkeypatch):
    monkeypatch.setattr(Study, "_look_for_leaks", lambda self: pytest.fail("the work has begun"))
    study = Study(real.model_copy(update={"limits": {"mmmlu_klingon": 3}}), Recorder(tmp_path / "run"))
    with pytest.raises(ParameterError, match="unknown benchmark 'mmmlu_klingon'"):
        study.run_all()


def test_a_window_that_cuts_a_prompt_is_an_error_that_names_the_items(real, tmp_path):
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(real.model)
    config.max_position_embeddings = 128
    config.save_pretrained(real.model)
    (tmp_path / "tiny" / "llamax.json").unlink()  # the notes, which would say that config.json was changed
    with pytest.raises(ModelError, match=r"items need more tokens than the model's window of 128: mmlu_anatomy/0"):
        Study(real, Recorder(tmp_path / "run")).run_all()


def test_a_number_of_ranks_that_is_none_is_one_clear_line(real, tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMAX_RANKS", "0")
    with pytest.raises(ParameterError, match="LLAMAX_RANKS=0: want a number of processes from 1"):
        Study(real, Recorder(tmp_path / "run")).run_all()
