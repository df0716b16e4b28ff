"""Means, paired differences and gains over seeds: golden values from statsmodels, properties, simulated coverage."""

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from llamax.errors import ParameterError
from llamax.statistics import combine, combine_strata, mean, paired_difference, wilson

outcomes = st.lists(st.floats(-100, 100).map(lambda x: round(x, 3)), min_size=2, max_size=40)


def grouped(seed=0, groups=15):
    """Outcomes with a shared part per cluster, clusters of unequal size."""
    rng = np.random.default_rng(seed)
    clusters = np.repeat(np.arange(groups), rng.integers(1, 9, groups))
    return rng.normal(size=groups)[clusters] + rng.normal(size=len(clusters)), clusters


def test_mean_without_clusters_is_the_one_sample_t_interval():
    values, _ = grouped()
    found, golden = mean(values, level=0.9), stats.ttest_1samp(values, 0)
    low, high = golden.confidence_interval(0.9)
    assert found[:4] == pytest.approx((values.mean(), stats.sem(values), low, high), rel=1e-12)


def test_clustered_mean_equals_the_regression_with_cluster_robust_errors():
    values, clusters = grouped()
    fit = sm.OLS(values, np.ones(len(values))).fit(
        cov_type="cluster", cov_kwds={"groups": clusters, "use_correction": True, "df_correction": True}, use_t=True
    )
    found = mean(values, [f"passage {c}" for c in clusters])
    assert found.standard_error == pytest.approx(fit.bse[0], rel=1e-12)
    assert (found.low, found.high) == pytest.approx(tuple(fit.conf_int()[0]), rel=1e-12)


def test_paired_difference_is_the_paired_t_test():
    after, before = grouped(1)[0], grouped(1)[0] ** 2
    golden = stats.ttest_rel(after, before)
    found = paired_difference(after, before)
    assert found.p_value == pytest.approx(golden.pvalue, rel=1e-10)
    assert (found.low, found.high) == pytest.approx(tuple(golden.confidence_interval()), rel=1e-10)


@given(outcomes, st.data())
def test_swapping_after_and_before_turns_the_sign_and_nothing_else(after, data):
    n = len(after)
    before = data.draw(st.lists(st.floats(-9, 9), min_size=n, max_size=n))
    clusters = data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))
    one, two = paired_difference(after, before, clusters), paired_difference(before, after, clusters)
    assert (one.value, one.low, one.high) == pytest.approx((-two.value, -two.high, -two.low), nan_ok=True)
    assert one.p_value == pytest.approx(two.p_value, nan_ok=True, rel=1e-6, abs=1e-9)


@given(outcomes, st.floats(0.1, 50), st.floats(-50, 50), st.randoms())
def test_scale_shift_and_order(values, scale, shift, random):
    found, moved = mean(values), mean([scale * v + shift for v in values])
    assert moved.standard_error == pytest.approx(scale * found.standard_error, rel=1e-6, abs=1e-9)
    assert moved.low == pytest.approx(scale * found.low + shift, rel=1e-6, abs=1e-6)
    pairs = [(v, i // 2) for i, v in enumerate(values)]
    shuffled = random.sample(pairs, len(pairs))
    assert mean(*zip(*shuffled, strict=True)) == pytest.approx(mean(*zip(*pairs, strict=True)), nan_ok=True, abs=1e-9)


@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=3, max_size=30).filter(lambda v: len(set(v)) > 1))
def test_more_of_the_same_items_narrow_the_interval_unless_they_share_a_cluster(values):
    one, four = mean(values), mean(values * 4)
    assert four.high - four.low < one.high - one.low
    copied = mean(values * 4, list(range(len(values))) * 4)
    assert copied[1:4] == pytest.approx(one[1:4], abs=1e-12)


@pytest.mark.parametrize(("hits", "n", "level"), [(0, 10, 0.95), (10, 10, 0.95), (7, 30, 0.9), (499, 1000, 0.99)])
def test_wilson_golden(hits, n, level):
    golden = proportion_confint(hits, n, alpha=1 - level, method="wilson")
    assert wilson(hits, n, level)[2:4] == pytest.approx(golden, abs=1e-12)


def crossed(rng, seeds, items, seed_sd, item_sd=1.0, noise_sd=1.0):
    return (
        item_sd * rng.normal(size=items)
        + seed_sd * rng.normal(size=(seeds, 1))
        + noise_sd * rng.normal(size=(seeds, items))
    )


def test_combine_equals_the_two_way_analysis_of_variance():
    table = crossed(np.random.default_rng(3), 4, 12, seed_sd=1.0)
    seeds, items = np.indices(table.shape)
    dummies = np.column_stack([np.eye(4)[seeds.ravel()][:, 1:], np.eye(12)[items.ravel()][:, 1:], np.ones(table.size)])
    full = sm.OLS(table.ravel(), dummies).fit()
    no_seed = sm.OLS(table.ravel(), dummies[:, 3:]).fit()
    no_item = sm.OLS(table.ravel(), np.delete(dummies, range(3, 14), axis=1)).fit()
    of_seeds, of_items = (no_seed.ssr - full.ssr) / 3, (no_item.ssr - full.ssr) / 11
    golden = (of_items + of_seeds - full.mse_resid) / table.size
    assert combine(table).standard_error ** 2 == pytest.approx(golden, rel=1e-10)


@pytest.mark.parametrize(("seeds", "seed_sd"), [(3, 0.0), (3, 0.3), (5, 1.0)])
def test_combined_interval_covers_the_truth_where_an_interval_over_items_alone_does_not(seeds, seed_sd):
    rng = np.random.default_rng(7)
    tables = [crossed(rng, seeds, 60, seed_sd) for _ in range(800)]
    found = [combine(table) for table in tables]
    assert 0.93 <= np.mean([e.low <= 0 <= e.high for e in found]) <= 0.995
    if seed_sd == 1.0:
        naive = [mean(table.mean(axis=0)) for table in tables]
        assert np.mean([e.low <= 0 <= e.high for e in naive]) < 0.7


def test_combine_with_clusters_covers_where_ignoring_them_does_not():
    rng, hits, naive = np.random.default_rng(11), [], []
    clusters = np.repeat(np.arange(30), 4)
    for _ in range(600):
        table = crossed(rng, 3, 30, 0.1, noise_sd=0.3)[:, clusters] + 0.3 * rng.normal(size=(3, 120))
        hits.append(combine(table, clusters).low <= 0 <= combine(table, clusters).high)
        naive.append(combine(table).low <= 0 <= combine(table).high)
    assert 0.92 <= np.mean(hits) <= 0.99
    assert np.mean(naive) < 0.85


def test_clustered_mean_covers():
    rng, clusters = np.random.default_rng(5), np.repeat(np.arange(25), 6)
    found = [mean(rng.normal(size=25)[clusters] + rng.normal(size=150), clusters) for _ in range(1000)]
    assert 0.93 <= np.mean([e.low <= 0 <= e.high for e in found]) <= 0.97


def test_combine_of_one_seed_is_the_paired_difference_and_equal_seeds_add_nothing():
    values, clusters = grouped(2)
    single = paired_difference(values, np.zeros(len(values)), clusters)
    assert combine(values[None], clusters)[:6] == pytest.approx(single)
    same = combine(np.stack([values] * 3), clusters)
    assert same[:2] == pytest.approx(single[:2])
    assert (same.low, same.high, same.seeds) == pytest.approx((single.low, single.high, 3))


def test_strata_weigh_the_same_and_the_spread_between_them_is_no_noise():
    rng = np.random.default_rng(4)
    easy, hard = 1 + rng.normal(size=(1, 40)), rng.normal(size=(1, 160))
    found = combine_strata([easy, hard])
    assert found.value == pytest.approx((easy.mean() + hard.mean()) / 2)
    # Cochran 1977, eq. 5.7: the variance of a stratified mean is the sum of weight² times each stratum's own
    golden = np.sqrt((stats.sem(easy[0]) ** 2 + stats.sem(hard[0]) ** 2) / 4)
    assert found.standard_error == pytest.approx(golden, rel=0.02)
    assert combine_strata([easy + 50, hard]).standard_error == pytest.approx(found.standard_error)
    table, clusters = crossed(rng, 3, 20, 0.5), list(np.arange(20) // 2)
    assert combine_strata([table], [clusters]) == pytest.approx(combine(table, clusters))


@given(st.integers(0, 1000), st.randoms())
def test_combine_does_not_care_for_the_order_of_seeds_and_items(seed, random):
    table = crossed(np.random.default_rng(seed), 3, 9, 0.5)
    rows, columns = random.sample(range(3), 3), random.sample(range(9), 9)
    assert combine(table[rows][:, columns]) == pytest.approx(combine(table))
    assert combine(-table).low == pytest.approx(-combine(table).high)


def test_one_cluster_has_no_known_spread_and_no_spread_has_a_point_interval():
    assert np.isnan(mean([1, 2, 3], [0, 0, 0])[1:4]).all()
    assert np.isnan(combine([[1, 2, 3], [2, 3, 4]], [0, 0, 0]).low)
    assert paired_difference([1, 1], [0, 0])[:6] == (1, 0, 1, 1, 2, 0)
    assert paired_difference([1, 1], [1, 1]).p_value == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean([]), "at least one outcome"),
        (lambda: mean([1.0, float("nan")]), "outcome 1 is not a finite"),
        (lambda: mean([1, 2], [0]), "2 outcomes but 1 clusters"),
        (lambda: mean([1, 2], level=95), "level lies between 0 and 1"),
        (lambda: paired_difference([1, 2], [1]), "2 after, 1 before"),
        (lambda: combine([1, 2, 3]), r"\[seeds, items\]"),
        (lambda: combine([[1, 2], [1, float("inf")]]), "not a finite"),
        (lambda: wilson(3, 2), "3 of 2"),
    ],
)
def test_bad_input_is_one_clear_line(call, message):
    with pytest.raises(ParameterError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
