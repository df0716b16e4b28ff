"""`llamax compare`: its figures are those of the tests they name, and its sentence says what they show."""

import gzip
import json
import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from typer.testing import CliRunner

from llamax import cli
from llamax.errors import DataError, ParameterError
from llamax.statistics import comparison, minimum_detectable_gain, paired_bootstrap, paired_difference
from llamax.statistics.comparison import compare_outcomes, conclusion

runner = CliRunner()


def outcomes(gain=0.1, n=300, seed=0):
    rng = np.random.default_rng(seed)
    a = (rng.random(n) < 0.4).astype(float)
    b = np.where(rng.random(n) < 0.3, (rng.random(n) < 0.4 + gain / 0.3).astype(float), a)
    return a, b, np.repeat(np.arange(n // 10), 10)


def test_every_figure_is_the_one_of_its_test():
    a, b, clusters = outcomes()
    found = compare_outcomes(a, b, clusters, margin=1.0)
    golden = stats.ttest_rel(b, a)
    assert (found.unit, found.n, found.clusters) == ("points", 300, 30)
    assert (found.mean_a, found.mean_b) == pytest.approx((100 * a.mean(), 100 * b.mean()))
    assert found.difference == pytest.approx(found.mean_b - found.mean_a)
    assert found.plain_standard_error == pytest.approx(found.difference / golden.statistic)
    clustered = paired_difference(b, a, clusters)
    assert found.standard_error == pytest.approx(100 * clustered.standard_error)
    assert (found.low, found.high) == pytest.approx((100 * clustered.low, 100 * clustered.high))
    assert found.p_value == clustered.p_value
    table = [[5, int(np.sum(b > a))], [int(np.sum(a > b)), 5]]
    assert (found.only_b, found.only_a) == (table[0][1], table[1][0])
    assert found.mcnemar_p == pytest.approx(mcnemar(table, exact=True).pvalue)
    resampled = paired_bootstrap(b, a, clusters)
    assert (found.bootstrap_low, found.bootstrap_high) == pytest.approx((100 * resampled.low, 100 * resampled.high))
    t = (found.difference - 1) / found.standard_error
    assert found.margin_p == pytest.approx(stats.t.sf(t, 29))
    assert found.minimum_detectable_gain == pytest.approx(minimum_detectable_gain(found.standard_error, 29, margin=1))
    assert found.standard_error_floor is None


def test_without_clusters_every_item_is_its_own():
    a, b, _ = outcomes()
    found = compare_outcomes(a, b)
    assert (found.clusters, found.standard_error) == (300, found.plain_standard_error)


def test_outcomes_beyond_0_to_1_keep_their_unit_and_have_no_mcnemar():
    a, b, _ = outcomes()
    found = compare_outcomes(a, 5 * b)
    assert (found.unit, found.mcnemar_p, found.items_for_one_more) == ("units", None, None)
    assert found.mean_b == pytest.approx(5 * b.mean())
    assert compare_outcomes(a / 2, b).mcnemar_p is None
    assert compare_outcomes(a / 2, b).unit == "points"


def test_several_samples_show_what_more_of_them_cannot_cure():
    rng = np.random.default_rng(1)
    chances = rng.random(200)
    a, b = ((rng.random((200, 4)) < (chances + shift)[:, None]).astype(float) for shift in (0, 0.05))
    found = compare_outcomes(a, b)
    assert 0 <= found.standard_error_floor < 0.6 * found.standard_error
    assert found.mean_a == pytest.approx(100 * a.mean())
    assert "of it not from sampling" in comparison.as_table(found, ("a", "b"))
    assert compare_outcomes(a, b.mean(1)).standard_error_floor is None


def test_what_sampling_leaves_is_clustered_as_the_standard_error_is():
    """Whole clusters shift together: more samples cure none of that, so nearly all of the error stays."""
    rng, clusters = np.random.default_rng(2), np.repeat(np.arange(20), 10)
    shift = np.repeat(rng.choice([0.0, 0.4], 20), 10)
    a, b = ((rng.random((200, 8)) < (0.3 + move)[:, None]).astype(float) for move in (0 * shift, shift))
    found, plain = compare_outcomes(a, b, clusters), compare_outcomes(a, b)
    assert found.standard_error_floor > 0.9 * found.standard_error
    assert found.standard_error_floor > 1.5 * plain.standard_error_floor


@pytest.mark.parametrize(
    ("gain", "n", "margin", "starts", "holds"),
    [
        (0.15, 600, 0.0, "B is better than A by ", "95% interval +"),
        (-0.1, 600, 0.0, "B is worse than A by ", " to −"),
        (0.15, 600, 1.0, "B is better than A by ", "A gain of more than 1 point is shown (one-sided p < 0.0001)."),
        (0.0, 300, 0.0, "No difference is shown (95% interval −", "To show a gain of 1 point takes about "),
        (0.0, 300, 1.5, "No difference is shown", "A gain of more than 1.5 points is not shown (one-sided p = 0."),
        (0.0, 8, 0.0, "", "With 8 items the standard error is itself a rough guess."),
    ],
)
def test_the_sentence_says_what_the_figures_show(gain, n, margin, starts, holds):
    a, b, _ = outcomes(gain, n)
    said = conclusion(compare_outcomes(a, b, margin=margin))
    assert said.startswith(starts)
    assert holds in said


def test_what_never_differs_is_not_called_certain():
    for a, b, value in (([1, 0, 1], [1, 0, 1], "+0.00"), ([0, 0], [1, 1], "+100.00")):
        found = compare_outcomes(a, b)
        assert conclusion(found).startswith(f"B − A is {value} points on every one of {len(a)} items: without spread")
        assert math.isnan(found.minimum_detectable_gain)
        assert "minimum detectable gain" in comparison.as_table(found, ("a", "b"))
        assert "unknown" in comparison.as_table(found, ("a", "b"))
        assert comparison.as_json(found, ("a", "b"))["minimum_detectable_gain"] is None


def test_the_plan_it_prints_is_enough():
    a, b, _ = outcomes(0.0, 400)
    found = compare_outcomes(a, b, margin=1.0)
    error = found.standard_error * math.sqrt(400 / found.items_for_one_more)
    assert minimum_detectable_gain(error, found.items_for_one_more - 1, margin=1.0) == pytest.approx(2.0, rel=1e-3)


def test_swapping_the_systems_turns_the_signs():
    a, b, clusters = outcomes()
    one, two = compare_outcomes(a, b, clusters), compare_outcomes(b, a, clusters)
    assert (one.difference, one.low, one.high) == pytest.approx((-two.difference, -two.high, -two.low))
    assert (one.mcnemar_p, one.only_a, one.only_b) == (two.mcnemar_p, two.only_b, two.only_a)
    assert one.margin_p == pytest.approx(1 - two.margin_p)
    assert one.minimum_detectable_gain == pytest.approx(two.minimum_detectable_gain)


def test_bad_input():
    with pytest.raises(DataError, match="there is only one item: the spread between clusters cannot be known"):
        compare_outcomes(np.ones((1, 1)), np.zeros((1, 1)), None)
    with pytest.raises(DataError, match="all 2 items are one cluster"):
        compare_outcomes([0, 1], [1, 0], ["a", "a"])
    with pytest.raises(ParameterError, match="margin is a finite number"):
        compare_outcomes([0, 1], [1, 0], margin=math.nan)


@pytest.fixture
def scores(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    a, b, clusters = outcomes()
    for name, side in (("old.csv", a), ("new.csv", b)):
        rows = [f"{n},{bool(x)},s{c}" for n, (x, c) in enumerate(zip(side, clusters, strict=True))]
        (tmp_path / name).write_text("\n".join(["item,outcome,subject", *rows]) + "\n")
    return tmp_path


def test_the_command_prints_a_table_and_a_sentence(scores):
    shown = runner.invoke(cli.app, ["compare", "old.csv", "new.csv", "--cluster", "subject"]).stdout.splitlines()
    a, b, clusters = outcomes()
    found = compare_outcomes(a, b, clusters)
    assert shown[0].split() == ["A", f"{found.mean_a:.2f}", "old.csv"]
    assert shown[2].split() == ["B", "−", "A", f"+{found.difference:.2f}", "points,", "300", "items"]
    assert "by subject (30 clusters)" in shown[4]
    assert f"only B right: {found.only_b}, only A right: {found.only_a}, clusters ignored" in shown[7]
    assert shown[-2:] == ["", conclusion(found)]
    assert max(map(len, shown[:-1])) <= 100


def test_the_command_as_json(scores):
    said = json.loads(runner.invoke(cli.app, ["compare", "old.csv", "new.csv", "--margin", "1", "--json"]).stdout)
    a, b, _ = outcomes()
    found = compare_outcomes(a, b, margin=1.0)
    assert said.items() >= found._asdict().items()
    assert (said["a"], said["b"], said["conclusion"]) == ("old.csv", "new.csv", conclusion(found))


def test_the_command_with_items_of_one_side_only(scores):
    lines = (scores / "old.csv").read_text().splitlines()
    (scores / "part.csv").write_text("\n".join(lines[:101]) + "\n")
    refused = runner.invoke(cli.app, ["compare", "part.csv", "new.csv"]).exception
    assert "200 only in new.csv (100, 101, 102 and 197 more)" in str(refused)
    shown = runner.invoke(cli.app, ["compare", "part.csv", "new.csv", "--common"])
    assert "left out: 0 items only in part.csv, 200 only in new.csv" in shown.stderr
    assert "points, 100 items" in shown.stdout
    assert (
        json.loads(runner.invoke(cli.app, ["compare", "part.csv", "new.csv", "--common", "--json"]).stdout)["n"] == 100
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--cluster", "topic"], "--cluster topic: neither old.csv nor new.csv has such a column"),
        (["--where", "subject"], "--where 'subject': write NAME=VALUE"),
        (["--where", "subject=a", "--where", "subject=b"], "--where subject: given twice"),
        (["--metric", "acc"], "old.csv: line 2 has no column 'metric'"),
        (["--where", "subject=x"], "none of 300 rows has subject=x; there are subject: s0, s1"),
    ],
)
def test_the_command_refuses_in_one_line(scores, options, says):
    assert says in str(runner.invoke(cli.app, ["compare", "old.csv", "new.csv", *options]).exception)


def test_four_real_systems_on_gsm8k(shared_data, tmp_path, monkeypatch):
    """Cobbe et al. 2021, appendix: outcomes of four systems on the 1,319 test problems."""
    monkeypatch.chdir(tmp_path)
    with gzip.open(shared_data / "per_item_runs" / "gsm8k_openai_4systems.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    for name in ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"):
        lines = [json.dumps({"item": row["i"], "outcome": row[name]["is_correct"]}) + "\n" for row in rows]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))

    def compared(a, b):
        return json.loads(runner.invoke(cli.app, ["compare", f"{a}.jsonl", f"{b}.jsonl", "--json"]).stdout)

    found = compared("6b_verification", "175b_finetuning")
    wins = sum(r["175b_finetuning"]["is_correct"] > r["6b_verification"]["is_correct"] for r in rows)
    losses = sum(r["175b_finetuning"]["is_correct"] < r["6b_verification"]["is_correct"] for r in rows)
    assert found["mcnemar_p"] == pytest.approx(stats.binomtest(wins, wins + losses).pvalue)
    # The paper: 6B verification slightly outperforms 175B fine-tuning.
    assert found["conclusion"].startswith("B is worse than A by 4.32 points (95% interval −7.14 to −1.50)")
    assert 0.25 < (wins + losses) / 1319 < 0.28
    assert 3.3 < found["minimum_detectable_gain"] < 3.7
