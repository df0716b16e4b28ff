"""One-sided tests, power before and after, and sampling variance: statsmodels, G*Power, scipy and simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.power import TTestPower

from llamax.errors import ParameterError
from llamax.statistics import (
    mcnemar_gain,
    mcnemar_items,
    mcnemar_power,
    mean,
    minimum_detectable_gain,
    needed,
    one_sided_p,
    paired_difference,
    required_items,
    sampling_parts,
)


def answers(rng, items, discordance, gain):
    """Outcomes 0 and 1 of two models [items] that differ on a share `discordance` of the items, by `gain` in all."""
    u = rng.random(items)
    wins, losses = u < (discordance + gain) / 2, u > 1 - (discordance - gain) / 2
    both = rng.random(items) < 0.5
    return np.where(wins, 1, np.where(losses, 0, both)), np.where(wins, 0, np.where(losses, 1, both))


def test_one_sided_p_is_the_one_sided_paired_t_test():
    rng = np.random.default_rng(0)
    after, before = rng.normal(0.3, 1, 40), rng.normal(0, 1, 40)
    golden = stats.ttest_rel(after, before, alternative="greater").pvalue
    assert one_sided_p(after, before) == pytest.approx(golden, rel=1e-12)
    golden = stats.ttest_1samp(after - before, 0.2, alternative="greater").pvalue
    assert one_sided_p(after, before, margin=0.2) == pytest.approx(golden, rel=1e-12)


def test_one_sided_p_counts_clusters_and_halves_the_two_sided_p():
    rng = np.random.default_rng(1)
    after, before, clusters = rng.normal(0.4, 1, 60), np.zeros(60), np.repeat(np.arange(12), 5)
    found = paired_difference(after, before, clusters)
    assert one_sided_p(after, before, clusters) == pytest.approx(found.p_value / 2)
    assert one_sided_p(before, after, clusters) == pytest.approx(1 - found.p_value / 2)


def test_few_items_that_agree_are_no_proof():
    assert one_sided_p([1, 1, 1], [0, 0, 0]) == 1 / 8
    assert one_sided_p([1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 1, 1]) == 1 / 4
    assert one_sided_p([0.3, 0.3], [0.2, 0.2], margin=0.1) == 1
    assert one_sided_p([1, 0], [1, 0]) == 1
    assert math.isnan(one_sided_p([1, 0], [0, 0], [5, 5]))


@pytest.mark.parametrize("margin", [0.0, 0.01])
def test_at_the_null_it_rejects_as_often_as_the_level_says_and_no_more(margin):
    rng, runs = np.random.default_rng(2), 2000
    pvalues = [one_sided_p(*answers(rng, 500, 0.25, margin), margin=margin) for _ in range(runs)]
    assert np.mean(np.array(pvalues) <= 0.05) == pytest.approx(0.05, abs=3 * math.sqrt(0.05 * 0.95 / runs))


def test_ignored_clusters_reject_too_often_and_counted_ones_do_not():
    rng, clusters, honest, naive = np.random.default_rng(3), np.repeat(np.arange(30), 10), [], []
    for _ in range(1000):
        gains = (rng.normal(size=30)[clusters] + rng.normal(size=300)).round(3)
        honest.append(one_sided_p(gains, np.zeros(300), clusters) <= 0.05)
        naive.append(one_sided_p(gains, np.zeros(300)) <= 0.05)
    assert np.mean(honest) == pytest.approx(0.05, abs=0.021)
    assert np.mean(naive) > 0.15


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=3, max_size=30), st.randoms(), st.floats(-0.5, 0.5))
def test_order_labels_and_sides(after, random, margin):
    before, clusters = random.choices([0.0, 1.0], k=len(after)), random.choices("abcd", k=len(after))
    p = one_sided_p(after, before, clusters, margin=margin)
    order = random.sample(range(len(after)), len(after))
    renamed = [{"a": 9, "b": 3, "c": 7, "d": 1}[clusters[i]] for i in order]
    moved = one_sided_p([after[i] for i in order], [before[i] for i in order], renamed, margin=margin)
    assert moved == pytest.approx(p, nan_ok=True, abs=1e-9)
    swapped = one_sided_p(before, after, clusters, margin=-margin)
    gains = np.subtract(after, before)
    if np.ptp([gains[np.equal(clusters, name)].mean() for name in set(clusters)]) > 1e-9:
        assert swapped == pytest.approx(1 - p, nan_ok=True, abs=1e-9)


@pytest.mark.parametrize(("n", "level", "power"), [(4, 0.05, 0.8), (30, 0.05, 0.8), (57, 0.01, 0.9), (400, 0.05, 0.5)])
def test_detectable_gain_golden(n, level, power):
    gain = minimum_detectable_gain(1 / math.sqrt(n), n - 1, level=level, power=power)
    assert TTestPower().power(gain, n, level, alternative="larger") == pytest.approx(power, abs=1e-6)


def test_detectable_gain_with_a_known_standard_error():
    z = stats.norm.isf(0.05) + stats.norm.isf(0.2)
    assert minimum_detectable_gain(0.02) == pytest.approx(0.02 * z)
    assert minimum_detectable_gain(0.02, margin=0.01) == pytest.approx(0.01 + 0.02 * z)
    assert minimum_detectable_gain(0.02, 99_000) == pytest.approx(0.02 * z, rel=1e-4)
    assert minimum_detectable_gain(0.02, 101_000) == pytest.approx(0.02 * z, rel=1e-12)
    assert minimum_detectable_gain(0.0, 5) == 0
    assert math.isnan(minimum_detectable_gain(math.nan, 5))


def test_what_is_detectable_is_detected_with_the_power_promised():
    rng, runs = np.random.default_rng(4), 1500
    spread = np.array([answers(rng, 100_000, 0.2, 0.0)])
    error = float(np.std(spread[0, 0] - spread[0, 1])) / math.sqrt(400)
    gain = minimum_detectable_gain(error, 399)
    shown = [one_sided_p(*answers(rng, 400, 0.2, gain)) <= 0.05 for _ in range(runs)]
    assert np.mean(shown) == pytest.approx(0.8, abs=3.5 * math.sqrt(0.16 / runs))


@pytest.mark.parametrize("margin", [0.0, 0.01])
def test_required_items_are_required_and_enough(margin):
    rng = np.random.default_rng(5)
    after, before = answers(rng, 2000, 0.15, 0.02)
    items = required_items(after, before, gain=0.04, margin=margin)
    spread = float(np.std(after - before, ddof=1))

    def power(n):
        return TTestPower().power((0.04 - margin) / spread, n, 0.05, alternative="larger")

    assert power(items - 1) < 0.8 <= power(items) + 1e-9


def test_required_items_grow_with_the_clusters():
    rng = np.random.default_rng(6)
    clusters = np.repeat(np.arange(40), 10)
    gains = rng.normal(size=40)[clusters] + rng.normal(size=400)
    items = required_items(gains, np.zeros(400), clusters, gain=0.3)
    error = mean(gains, clusters).standard_error * math.sqrt(400 / items)
    assert minimum_detectable_gain(error, items / 10 - 1) <= 0.3
    error = mean(gains, clusters).standard_error * math.sqrt(400 / (items - 1))
    assert minimum_detectable_gain(error, (items - 1) / 10 - 1) > 0.3
    assert items > 3 * required_items(gains, np.zeros(400), gain=0.3)


def test_models_that_do_not_differ_yet_still_need_items():
    same = [1, 0] * 50
    assert required_items(same, same, gain=0.01) == pytest.approx(stats.norm.isf([0.05, 0.2]).sum() ** 2 * 99, rel=0.02)
    with pytest.raises(ParameterError, match="all equal"):
        required_items([0.5] * 9, [0.4] * 9, gain=0.01)


# What a gain must be to show on a benchmark of n items at a known discordance, one-sided 5%, power 80%; the shares of
# MMLU (10%) and GSM8K (25%) were measured on pairs of models, the others follow from the gains quoted for them.
BENCHMARKS = [(14042, 0.10, 0.0066), (1319, 0.25, 0.034), (164, 0.15, 0.075), (817, 0.15, 0.034), (3610, 0.12, 0.014)]


@pytest.mark.parametrize(("items", "discordance", "gain"), BENCHMARKS)
def test_what_a_benchmark_can_show(items, discordance, gain):
    assert mcnemar_gain(items, discordance) == pytest.approx(gain, rel=0.025)
    found = mcnemar_gain(items, discordance)
    assert mcnemar_items(discordance, found) == pytest.approx(items, abs=1)
    assert 0.76 < mcnemar_power(items, discordance, found) < 0.8  # the exact test is a little conservative
    assert minimum_detectable_gain(math.sqrt(discordance / items)) == pytest.approx(found, rel=0.015)


def test_mcnemar_power_is_the_sum_over_all_tables_that_reject():
    """The plan of O'Brien (2002, p. 161): 50 pairs, 40% discordant, odds of 4 to 1, one-sided 5%."""
    total = 0.0
    for wins in range(51):
        losses = np.arange(51 - wins)
        weights = stats.multinomial.pmf([[wins, loss, 50 - wins - loss] for loss in losses], 50, [0.32, 0.08, 0.6])
        pvalues = [stats.binomtest(wins, wins + n, alternative="greater").pvalue if wins + n else 1 for n in losses]
        total += weights[np.array(pvalues) <= 0.05].sum()
    assert mcnemar_power(50, 0.4, 0.24) == pytest.approx(total, abs=1e-10)


def test_mcnemar_power_by_simulation_and_at_the_null():
    rng = np.random.default_rng(7)
    cells = rng.multinomial(80, [0.2, 0.08, 0.72], size=20_000)
    pvalues = stats.binom.sf(cells[:, 0] - 1, cells[:, 0] + cells[:, 1], 0.5)
    assert mcnemar_power(80, 0.28, 0.12) == pytest.approx(np.mean(pvalues <= 0.05), abs=0.01)
    assert 0.02 < mcnemar_power(200, 0.3, 0.0) <= 0.05
    assert mcnemar_power(200, 0.3, -0.1) < 1e-4
    assert mcnemar_power(50, 0.0, 0.0) == 0
    assert mcnemar_gain(5, 0.1) == math.inf


def test_a_large_gain_needs_fewer_items_than_its_discordance_alone_says():
    # By hand: ((1.6449 * sqrt(0.4) + 0.8416 * sqrt(0.4 - 0.38^2)) / 0.38)^2 = 14.9, against 17.1 without the 0.38^2
    assert mcnemar_items(0.4, 0.38) == 15


def sampled(rng, items, samples, gain=0.0, twice=False):
    """Outcomes [items, samples] of two models whose chance on a problem differs from problem to problem."""
    after = rng.beta(1, 1, items)
    before = np.clip(after + rng.normal(-gain, 0.15, items), 0, 1)
    draws = [(rng.random((items, samples)) < side[:, None]).astype(float) for side in (after, before)]
    return (*draws, after - before) if twice else tuple(draws)


def test_sampling_parts_equal_the_analysis_of_variance_and_the_truth():
    rng = np.random.default_rng(8)
    after, before = sampled(rng, 4000, 5)
    parts = sampling_parts(after, before)
    assert parts[:2] == pytest.approx(paired_difference(after.mean(1), before.mean(1))[:2])
    residual = sum(((side - side.mean(1, keepdims=True)) ** 2).sum() / (4000 * 4) for side in (after, before))
    assert parts.sampling == pytest.approx(residual)
    assert parts.error_with(5) == pytest.approx(parts.standard_error)
    assert parts.error_with(1e12) == pytest.approx(parts.floor)


def test_the_floor_is_the_spread_of_the_true_differences():
    rng, floors, truths = np.random.default_rng(13), [], []
    for _ in range(100):
        after, before, truth = sampled(rng, 1000, 5, twice=True)
        floors.append(sampling_parts(after, before).floor ** 2)
        truths.append(truth.var() / 1000)
    assert np.mean(floors) == pytest.approx(np.mean(truths), rel=0.08)


def test_the_standard_error_with_more_samples_is_the_one_that_more_samples_give():
    rng = np.random.default_rng(9)
    after, before = sampled(rng, 6000, 40)
    few = sampling_parts(after[:, :4], before[:, :4])
    assert few.error_with(40) == pytest.approx(sampling_parts(after, before).standard_error, rel=0.03)


def test_samples_that_are_needed_are_enough_or_no_number_is():
    rng = np.random.default_rng(10)
    parts = sampling_parts(*sampled(rng, 300, 2))
    plan = needed(parts, gain=0.04)
    assert plan.samples > 2
    gain_of = [minimum_detectable_gain(parts.error_with(k), 299) for k in (plan.samples, plan.samples - 1)]
    assert gain_of[0] <= 0.04 < gain_of[1]
    none = needed(parts, gain=0.01)
    assert none.samples is None
    assert none.items > none.items_at_floor > 300
    assert minimum_detectable_gain(parts.floor * math.sqrt(300 / none.items_at_floor), none.items_at_floor - 1) <= 0.01
    assert needed(parts, gain=0.011, margin=0.01).items > none.items


def test_sampling_that_is_all_there_is_has_no_floor():
    rng = np.random.default_rng(11)
    draws = (rng.random((2, 50, 3)) < 0.5).astype(float)
    means = [sampling_parts(*(rng.random((2, 50, 3)) < 0.5).astype(float)).floor ** 2 for _ in range(300)]
    assert np.mean(np.array(means) == 0) > 0.3
    same = sampling_parts(draws[0], draws[0])
    assert (same.standard_error, same.floor) == (0, 0)


def test_sampling_parts_count_clusters():
    rng = np.random.default_rng(12)
    after, before = sampled(rng, 60, 4)
    shift = np.repeat(rng.normal(0, 0.3, 12), 5)[:, None]
    plain, grouped = (sampling_parts(after + shift, before, c) for c in (None, np.repeat(np.arange(12), 5)))
    assert (plain.sampling, plain.clusters, grouped.clusters) == (pytest.approx(grouped.sampling), 60, 12)
    assert grouped.floor > 1.3 * plain.floor


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: one_sided_p([1], [1, 2]), "1 after, 2 before"),
        (lambda: minimum_detectable_gain(0.1, 0), "degrees of freedom"),
        (lambda: minimum_detectable_gain(-0.1), "standard error from 0"),
        (lambda: minimum_detectable_gain(0.1, power=80), "power lies between"),
        (lambda: minimum_detectable_gain(0.1, level=5), "level of a one-sided test"),
        (lambda: required_items([1, 0, 1], [0, 1, 1], gain=0.01, margin=0.01), "not above the margin"),
        (lambda: required_items([1, 0], [0, 1], [0, 0], gain=0.01), "one cluster"),
        (lambda: required_items([1, 0], [0, 1], gain=1e-9), "too close to the margin"),
        (lambda: mcnemar_power(10, 0.1, 0.2), "beyond the discordance"),
        (lambda: mcnemar_power(0, 0.1, 0.0), "at least one item"),
        (lambda: mcnemar_gain(10, 12), "discordance is a share"),
        (lambda: mcnemar_items(0.1, 0.0), "above 0"),
        (lambda: sampling_parts([1, 0], [1, 0]), r"after has shape \[2\]"),
        (lambda: sampling_parts([[1, 0]], [[1], [0]]), "before has shape"),
        (lambda: needed(sampling_parts([[1, 1]], [[0, 0]]), gain=0.1), "one cluster"),
    ],
)
def test_bad_input_is_one_clear_line(call, message):
    with pytest.raises(ParameterError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
