"""Sign tests, win rates and Bradley-Terry: published fits, statsmodels, enumeration, simulation, real raters."""

import math
from itertools import product

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from llamax.errors import DataError, ParameterError
from llamax.statistics import (
    bradley_terry,
    crossed_variance,
    krippendorff_alpha,
    mean,
    position_bias,
    sign_test,
    wilson,
    win_rate,
)

# Home and away games of the American League's East, 1987 (Agresti 2002, table 10.10): rows beat columns.
TEAMS = ["Milwaukee", "Detroit", "Toronto", "New York", "Boston", "Cleveland", "Baltimore"]
GAMES = [
    [0, 7, 9, 7, 7, 9, 11],
    [6, 0, 7, 5, 11, 9, 9],
    [4, 6, 0, 7, 7, 8, 12],
    [6, 8, 6, 0, 6, 7, 10],
    [6, 2, 6, 7, 0, 7, 12],
    [4, 4, 5, 6, 6, 0, 6],
    [2, 4, 1, 3, 1, 7, 0],
]


def listed(wins, ties=None, names=TEAMS):
    """Comparisons (first, second, outcomes) of a table of wins and a table of ties above its diagonal."""
    n = range(len(wins))
    rows = [(names[i], names[j], 1.0) for i in n for j in n for _ in range(wins[i][j])]
    if ties is not None:
        cells = [(i, j) for i in n for j in range(i)]
        rows += [(names[i], names[j], 0.5) for i, j in cells for _ in range(ties[j][i])]
    return tuple(zip(*rows, strict=True))


def compared(rng, strengths, nu, n):
    """`n` random comparisons of systems with these strengths by Davidson's model."""
    names = list(strengths)
    first = rng.integers(len(names), size=n)
    second = (first + rng.integers(1, len(names), size=n)) % len(names)
    values = np.array(list(strengths.values()))
    win, lose = np.exp(values[first]), np.exp(values[second])
    tie, u = nu * np.sqrt(win * lose), rng.random(n) * (win + lose + nu * np.sqrt(win * lose))
    outcomes = np.where(u < win, 1.0, np.where(u < win + tie, 0.5, 0.0))
    return [names[i] for i in first], [names[i] for i in second], outcomes


def test_bradley_terry_golden():
    # The fit that the vignette of R's package BradleyTerry2 prints for these games, with Baltimore at 0
    golden = [1.5814, 1.4364, 1.2945, 1.2476, 1.1077, 0.6839, 0.0]
    found = bradley_terry(*listed(GAMES))
    values = {strength.name: strength.value for strength in found.strengths}
    assert [values[name] - values["Baltimore"] for name in TEAMS] == pytest.approx(golden, abs=5e-5)
    assert [strength.name for strength in found.strengths] == TEAMS
    assert (sum(values.values()), found.tie, found.n) == (pytest.approx(0, abs=1e-9), 0, 273)
    win, tie, lose = found.probabilities("Milwaukee", "Baltimore")
    assert (win, tie, lose) == (pytest.approx(1 / (1 + math.exp(-1.5814)), abs=1e-5), 0, pytest.approx(1 - win))


def test_davidsons_model_is_a_log_linear_one():
    """Fienberg & Larntz 1976: the same likelihood as a Poisson regression with one intercept a pair."""
    wins, ties = [[0, 9, 4], [3, 0, 8], [6, 5, 0]], [[0, 6, 3], [0, 0, 7], [0, 0, 0]]
    counts, rows = [], []
    for number, (i, j) in enumerate([(0, 1), (0, 2), (1, 2)]):
        for count, share_i, tie in ((wins[i][j], 1, 0), (ties[i][j], 0.5, 1), (wins[j][i], 0, 0)):
            row = np.zeros(7)  # three pairs, strengths of systems 1 and 2 against that of 0, log nu
            row[number] = 1
            for system, share in ((i, share_i), (j, 1 - share_i)):
                if system:
                    row[2 + system] += share
            row[5] = tie
            counts.append(count)
            rows.append(row[:6])
    golden = sm.GLM(counts, np.array(rows), family=sm.families.Poisson()).fit(tol=1e-12).params
    found = bradley_terry(*listed(wins, ties, ["a", "b", "c"]))
    values = {strength.name: strength.value for strength in found.strengths}
    assert [values["b"] - values["a"], values["c"] - values["a"]] == pytest.approx(golden[3:5], abs=1e-6)
    assert math.log(found.tie) == pytest.approx(golden[5], abs=1e-6)


def test_swapping_sides_and_order_changes_nothing():
    first, second, outcomes = compared(np.random.default_rng(0), {"a": 0.5, "b": 0.0, "c": -0.4}, 0.8, 200)
    found = bradley_terry(first, second, outcomes)
    flipped = bradley_terry(second, first, 1 - outcomes)
    assert [s[:2] for s in found.strengths] == [(s.name, pytest.approx(s.value)) for s in flipped.strengths]
    order = np.random.default_rng(1).permutation(200)
    moved = bradley_terry([first[i] for i in order], [second[i] for i in order], outcomes[order])
    assert [s.value for s in moved.strengths] == pytest.approx([s.value for s in found.strengths])
    losses = bradley_terry(first, second, 1 - outcomes)
    assert [s.value for s in losses.strengths] == pytest.approx([-s.value for s in found.strengths[::-1]])


def test_intervals_of_strengths_cover():
    rng, truth, hits, spreads = np.random.default_rng(2), {"a": 0.4, "b": 0.0, "c": -0.4}, [], []
    values = []
    for _ in range(150):
        found = bradley_terry(*compared(rng, truth, 0.7, 240), resamples=200)
        best = {s.name: s for s in found.strengths}["a"]
        hits.append(best.low <= 0.4 <= best.high)
        spreads.append(best.standard_error)
        values.append(best.value)
    assert 0.88 <= np.mean(hits) <= 0.99
    assert np.mean(spreads) == pytest.approx(np.std(values), rel=0.2)


def clustered(rng, raters, prompts, taste):
    """Outcomes of a against b by every rater on every prompt; raters and prompts each lean to one side."""
    lean = taste * rng.normal(size=(raters, 1)) + taste * rng.normal(size=(1, prompts))
    u = rng.random((raters, prompts))
    outcomes = np.where(u < 1 / (1 + np.exp(-lean)), 1.0, 0.0)
    rater, prompt = (index.ravel() for index in np.indices(outcomes.shape))
    return outcomes.ravel(), prompt, rater


def test_intervals_count_prompts_and_raters_and_those_of_comparisons_alone_are_too_narrow():
    rng, counted, naive, rates = np.random.default_rng(3), [], [], []
    for _ in range(120):
        outcomes, prompt, rater = clustered(rng, 12, 20, 0.8)
        names = ["a"] * 240, ["b"] * 240
        for clusters, hits in (((prompt, rater), counted), ((None, None), naive)):
            found = bradley_terry(*names, outcomes, *clusters, resamples=200)
            best = {s.name: s for s in found.strengths}["a"]
            hits.append(best.low <= 0 <= best.high)
        rate = win_rate(outcomes, prompt, rater)
        rates.append(rate.low <= 0.5 <= rate.high)
    assert np.mean(counted) >= 0.9
    assert np.mean(rates) >= 0.9
    assert np.mean(naive) < 0.75


def test_confidence_is_the_share_of_resamples():
    found = bradley_terry(*listed([[0, 30], [10, 0]], names=["good", "bad"]))
    assert found.confidence("good", "bad") > 0.99
    assert found.confidence("bad", "good") == pytest.approx(1 - found.confidence("good", "bad"))
    assert found.strengths[0].low > 0


def test_strengths_that_the_data_do_not_tell():
    with pytest.raises(DataError, match="a: never lost to or tied with another system, so that the"):
        bradley_terry(["a", "b", "c"], ["b", "c", "b"], [1, 1, 1])
    with pytest.raises(DataError, match="c: never won against or tied with another system"):
        bradley_terry(["a", "b", "a"], ["b", "a", "c"], [1, 1, 1])
    with pytest.raises(DataError, match="c, d: no chain of comparisons links them"):
        bradley_terry(["a", "b", "e", "c", "d"], ["b", "e", "a", "d", "c"], [1, 1, 1, 1, 1])
    with pytest.raises(DataError, match="every comparison is a tie"):
        bradley_terry(["a", "a"], ["b", "b"], [0.5, 0.5])
    found = bradley_terry(["a", "b", "c"], ["b", "c", "b"], [1, 1, 1], prior=0.5)
    assert found.strengths[0].name == "a"
    # Two systems, three wins, ridge 1: 3 / (1 + e^2x) = x, for strengths x and -x
    one = bradley_terry(["a"] * 3, ["b"] * 3, [1, 1, 1], prior=1.0).strengths[0].value
    assert 3 / (1 + math.exp(2 * one)) == pytest.approx(one)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 40))
def test_sign_test_golden(wins, losses, ties):
    dropped = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1
    assert sign_test(wins, losses, ties) == pytest.approx(dropped, rel=1e-9)
    greater = stats.binomtest(wins, wins + losses, alternative="greater").pvalue if wins + losses else 1
    assert sign_test(wins, losses, ties, one_sided=True) == pytest.approx(greater, rel=1e-9)
    even = 2 * (ties // 2)
    halved = stats.binomtest(wins + even // 2, wins + losses + even).pvalue if wins + losses + even else 1
    assert sign_test(wins, losses, even, treat="half") == pytest.approx(halved, rel=1e-9)
    for treat in ("drop", "half", "keep"):
        p = sign_test(wins, losses, ties, treat=treat)
        assert p == pytest.approx(sign_test(losses, wins, ties, treat=treat))
        one = sign_test(wins, losses, ties, treat=treat, one_sided=True)
        other = sign_test(losses, wins, ties, treat=treat, one_sided=True)
        assert p == pytest.approx(min(1, 2 * min(one, other)), rel=1e-9)


def test_an_odd_tie_goes_to_the_side_that_is_behind():
    assert sign_test(5, 2, 1, treat="half") == pytest.approx(stats.binomtest(5, 8).pvalue)
    assert sign_test(5, 2, 1, treat="half", one_sided=True) == pytest.approx(
        stats.binomtest(5, 8, alternative="greater").pvalue
    )


@pytest.mark.parametrize(("wins", "losses", "ties"), [(4, 1, 3), (3, 3, 2), (5, 0, 2), (0, 4, 1), (2, 1, 0)])
def test_the_trinomial_test_by_enumeration(wins, losses, ties):
    n = wins + losses + ties
    chance = {0: ties / n, 1: (1 - ties / n) / 2, -1: (1 - ties / n) / 2}
    cases = [(sum(case), math.prod(chance[one] for one in case)) for case in product((-1, 0, 1), repeat=n)]
    golden = min(1.0, 2 * sum(p for total, p in cases if total >= abs(wins - losses)))
    assert sign_test(wins, losses, ties, treat="keep") == pytest.approx(golden)
    greater = sum(p for total, p in cases if total >= wins - losses)
    assert sign_test(wins, losses, ties, treat="keep", one_sided=True) == pytest.approx(greater)


@pytest.mark.parametrize("treat", ["drop", "half", "keep"])
def test_sign_tests_reject_a_true_null_at_most_as_often_as_they_say(treat):
    rng = np.random.default_rng(4)
    cells = rng.multinomial(60, [0.35, 0.35, 0.3], size=3000)
    rejected = np.mean([sign_test(*map(int, cell), treat=treat) <= 0.05 for cell in cells])
    assert rejected <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 3000)
    assert rejected > 0.005


def test_win_rate_golden():
    outcomes, prompt, rater = clustered(np.random.default_rng(5), 9, 15, 1.0)
    outcomes[::7] = 0.5
    found = win_rate(outcomes, prompt, rater)
    fit = sm.OLS(outcomes, np.ones(len(outcomes))).fit(
        cov_type="cluster", cov_kwds={"groups": np.stack([prompt, rater], axis=1), "use_correction": True}
    )
    assert found[:2] == pytest.approx((outcomes.mean(), fit.bse[0]))
    one_way = [
        sm.OLS(outcomes, np.ones(135)).fit(cov_type="cluster", cov_kwds={"groups": groups}).bse[0] ** 2
        for groups in (prompt, rater, np.arange(135))
    ]
    freedom = fit.bse[0] ** 4 / sum(part**2 / n for part, n in zip(one_way, (14, 8, 134), strict=True))
    assert 8 < freedom < 14
    half = stats.t.isf(0.025, freedom) * fit.bse[0]
    assert (found.low, found.high) == pytest.approx((outcomes.mean() - half, outcomes.mean() + half))
    assert found.p_value == pytest.approx(2 * stats.t.sf(abs(outcomes.mean() - 0.5) / fit.bse[0], freedom))
    assert win_rate(outcomes, prompt)[:4] == pytest.approx(mean(outcomes, prompt)[:4])
    assert win_rate(outcomes)[:4] == pytest.approx(mean(outcomes)[:4])
    assert win_rate(outcomes).p_value == pytest.approx(stats.ttest_1samp(outcomes, 0.5).pvalue)


def test_degrees_of_freedom_are_those_of_welch_where_pairs_vary_not_at_all():
    """Two independent variances in one standard error: what Welch's t test does too, and scipy computes."""
    one, other = [10.0, 40.0, 20.0, 70.0, 30.0], [2.0, 9.0, 41.0, 1.0, 8.0, 3.0, 6.0, 17.0]
    parts = [np.var(sample, ddof=1) / len(sample) for sample in (one, other)]
    variance, freedom = crossed_variance((*parts, 0.0), (5, 8, 40))
    welch = stats.ttest_ind(one, other, equal_var=False).df
    assert 4 < welch < 7
    assert (variance, freedom) == pytest.approx((sum(parts), welch))
    assert crossed_variance((1.0, 1.0, 0.0), (5, 8, 40))[1] == 7  # never more than the more numerous factor has


def test_raters_who_agree_by_luck_leave_the_interval_as_wide_as_unrelated_votes_do():
    lucky, unrelated = (crossed_variance((1.3, by_rater, 1.0), (100, 2, 200)) for by_rater in (0.0, 1.0))
    assert lucky == unrelated
    assert lucky[0] == pytest.approx(1.3) and lucky[1] == pytest.approx(1.3**2 / (1.3**2 / 99 + 1 + 1 / 199))
    more = crossed_variance((1.3, np.array([1.5, 3.0, 30.0]), 1.0), (100, 2, 200))
    assert (np.diff([lucky[1], *more[1]]) < 0)[1:].all() and more[1][-1] == pytest.approx(1, abs=0.05)
    assert crossed_variance((0.5, 0.5, 1.0), (9, 9, 81))[0] == 1


def leaning(rng, prompts, raters, taste, shares=None):
    """Votes on which prompts agree by 0.25 or so and raters by `taste`, a third of them ties; the truth is 0.5.

    Two raters a prompt, drawn by `shares`; all alike if None.
    """
    chosen = [rng.choice(raters, size=min(2, raters), replace=False, p=shares) for _ in range(prompts)]
    prompt, rater = np.repeat(np.arange(prompts), 2), np.concatenate(chosen)
    lean = np.sqrt([0.3, taste, 0.7 - taste])
    opinion = lean @ [rng.normal(size=prompts)[prompt], rng.normal(size=raters)[rater], rng.normal(size=2 * prompts)]
    return np.where(np.abs(opinion) < 0.43, 0.5, opinion > 0), prompt, rater


@pytest.mark.parametrize(("raters", "taste", "times"), [(2, 0.01, 1.5), (2, 0.08, 0), (3, 0.01, 1.2), (6, 0.05, 0)])
def test_intervals_of_few_raters_cover_and_those_of_prompts_alone_do_not(raters, taste, times):
    rng, runs, cover, alone, widths = np.random.default_rng(6), 400, 0, 0, []
    for _ in range(runs):
        outcomes, prompt, rater = leaning(rng, 100, raters, taste)
        found, narrow = win_rate(outcomes, prompt, rater), win_rate(outcomes, prompt)
        cover += found.low <= 0.5 <= found.high
        alone += narrow.low <= 0.5 <= narrow.high
        widths.append(stats.t.isf(0.025, raters - 1) * found.standard_error / max(found.high - found.value, 1e-9))
    assert cover / runs > 0.925
    assert alone / runs < 0.9
    assert np.median(widths) > times  # how much wider the scarcer factor's degrees of freedom would make it


def test_a_rater_with_many_votes_is_not_made_surer_by_others_with_few():
    rng, runs, cover = np.random.default_rng(7), 300, 0
    for _ in range(runs):
        found = win_rate(*leaning(rng, 100, 8, 0.15, [0.4, 0.3, *[0.05] * 6]))
        cover += found.low <= 0.5 <= found.high
    assert cover / runs > 0.92
    outcomes = [1.0] * 60 + [0.0] * 40
    prompts, raters = [*range(99), 0], ["ann"] * 99 + ["bob"]
    assert win_rate(outcomes, prompts, raters)[2:4] == (0.0, 1.0)


def test_one_rater_says_nothing_of_others():
    outcomes = [1.0, 0.0, 1.0, 1.0]
    assert np.isnan(win_rate(outcomes, [1, 2, 3, 4], ["ann"] * 4)[1:4]).all()
    assert np.isnan(win_rate(outcomes, ["p"] * 4, [1, 2, 3, 4]).p_value)
    assert win_rate(outcomes, [1, 2, 3, 4]).low >= 0


def test_outcomes_that_are_all_alike_have_no_spread():
    assert win_rate([1.0] * 4, [1, 1, 2, 2], [1, 2, 1, 2])[:4] == (1, 0, 1, 1)


def test_win_rate_is_never_surer_than_one_way():
    """Raters who all prefer alike: by rater there is less spread than by comparison, and the sum would come out low."""
    outcomes = np.array([[1, 0, 1, 0], [0, 1, 0, 1], [1, 1, 1, 1], [0, 0, 0, 0]], dtype=float).ravel()
    prompt, rater = (index.ravel() for index in np.indices((4, 4)))
    by_prompt, by_rater, alone = (mean(outcomes, groups).standard_error for groups in (prompt, rater, None))
    assert by_rater < alone < by_prompt
    assert win_rate(outcomes, prompt, rater).standard_error == pytest.approx(by_prompt)


def test_position_bias():
    outcomes = [1] * 30 + [0.5] * 9 + [0] * 20
    assert position_bias(outcomes) == wilson(30, 50)
    prompts, raters = [n // 2 for n in range(59)], [n % 6 for n in range(59)]
    kept = [row for row in zip(outcomes, prompts, raters, strict=True) if row[0] != 0.5]
    assert position_bias(outcomes, prompts, raters) == win_rate(*zip(*kept, strict=True))[:5]
    decided, _, kept_raters = zip(*kept, strict=True)
    assert position_bias(outcomes, raters=raters)[:4] == pytest.approx(mean(decided, kept_raters)[:4])
    assert position_bias([1, 1, 0.5], [1, 2, 3], [1, 2, 1]) == wilson(2, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sign_test(-1, 2), "counts cannot be negative"),
        (lambda: sign_test(1, 2, 3, treat="split"), "drop, half or keep"),
        (lambda: win_rate([1, 0.3]), "comparison 1: outcome 0.3"),
        (lambda: position_bias([0.5]), "all 1 comparisons are ties"),
        (lambda: bradley_terry(["a"], ["b", "c"], [1]), "1 first, 2 second, 1 outcomes"),
        (lambda: bradley_terry(["a", "b"], ["b", "b"], [1, 0]), "comparison 1: 'b' is compared with itself"),
        (lambda: bradley_terry(["a", "b"], ["b", "a"], [1, 1], [1]), "2 outcomes but 1 clusters"),
        (lambda: bradley_terry(["a", "b"], ["b", "a"], [1, 1], prior=-1), "prior from 0"),
    ],
)
def test_bad_input_is_one_clear_line(call, message):
    with pytest.raises(ParameterError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.fixture
def tulu(shared_data):
    """Wang et al. 2023: blind comparisons of Tulu 65B with three systems, without a rater's second thoughts."""
    table = pd.read_csv(shared_data / "tulu_human_eval" / "eval_annotations_tulu_1.csv.gz")
    assert (len(table), table.evaluator.nunique(), table.instance_id.nunique()) == (1150, 16, 332)
    table = table.sort_values("timestamp").drop_duplicates(["instance_index", "evaluator"], keep="last")
    side = {"a-is-better": 1, "a-is-slightly-better": 1, "tie": 0.5, "b-is-slightly-better": 0, "b-is-better": 0}
    table["outcome"] = table.preference.map(side)
    table["tulu"] = np.where(table.model_a == "tulu_65B", table.outcome, 1 - table.outcome)
    table["other"] = np.where(table.model_a == "tulu_65B", table.model_b, table.model_a)
    return table


def test_real_raters(tulu):
    """All against one: in Davidson's fit each pair's expected wins are those counted, so that it must repeat them."""
    found = bradley_terry(
        list(tulu.model_a), list(tulu.model_b), tulu.outcome, list(tulu.instance_id), list(tulu.evaluator)
    )
    assert [s.name for s in found.strengths] == ["chatgpt", "tulu_65B", "tulu_7B", "tulu_human_only_65B"]
    for other, rows in tulu.groupby("other"):
        win, tie, _ = found.probabilities("tulu_65B", other)
        assert win + tie / 2 == pytest.approx(rows.tulu.mean(), abs=1e-6)
    assert 0.02 <= found.confidence("tulu_65B", "chatgpt") <= 0.05
    # As the authors count, the first annotation of each prompt: 27.7% won, 33.1% tied, 39.2% lost
    first = tulu[tulu.other == "chatgpt"].groupby("instance_id").first().tulu
    assert [np.mean(first == value).round(3) for value in (1, 0.5, 0)] == [0.277, 0.331, 0.392]
    rows = tulu[tulu.other == "chatgpt"]
    wins, losses, ties = (int((rows.tulu == value).sum()) for value in (1, 0, 0.5))
    assert sign_test(wins, losses, ties) == pytest.approx(stats.binomtest(wins, wins + losses).pvalue)
    interval = win_rate(rows.tulu, list(rows.instance_id), list(rows.evaluator))
    assert interval.low < interval.value < interval.high < 0.5
    left = position_bias(tulu.outcome)
    crossed = position_bias(tulu.outcome, list(tulu.instance_id), list(tulu.evaluator))
    assert crossed.low < left.low and crossed.value == left.value
    assert left.low > 0.5  # raters of that study preferred the first answer a little


def test_real_raters_agree_a_little(tulu):
    krippendorff = pytest.importorskip("krippendorff")
    rows = tulu[tulu.other == "tulu_7B"].pivot(index="evaluator", columns="instance_id", values="tulu")
    found = krippendorff_alpha(rows.to_numpy(), "ordinal")
    golden = krippendorff.alpha(reliability_data=rows.to_numpy(), level_of_measurement="ordinal")
    assert found.value == pytest.approx(golden, abs=1e-9)
    assert (found.n, found.low > 0, found.high < 0.6) == (56, True, True)
