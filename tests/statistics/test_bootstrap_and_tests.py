"""The BCa bootstrap against scipy's, McNemar against statsmodels, Holm against the closed test."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar

from llamax.errors import ParameterError
from llamax.statistics import exact_mcnemar, mean, paired_bootstrap


def skewed(n=60, seed=0):
    return np.random.default_rng(seed).exponential(size=n) ** 2


def test_bca_agrees_with_scipy():
    values = skewed()
    golden = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="BCa", rng=1)
    found = paired_bootstrap(values, np.zeros(60), resamples=20_000)
    assert found[1:4] == pytest.approx((golden.standard_error, *golden.confidence_interval), rel=0.03)


def test_the_seed_decides_and_the_p_value_agrees_with_the_interval():
    after, before = skewed(80, 1), skewed(80, 2)
    assert paired_bootstrap(after, before, seed=3) == paired_bootstrap(after, before, seed=3)
    assert paired_bootstrap(after, before, seed=3) != paired_bootstrap(after, before, seed=4)
    for shift in np.linspace(-1.5, 1.5, 13):
        found = paired_bootstrap(after + shift, before, seed=3, resamples=4000)
        at_p = paired_bootstrap(after + shift, before, seed=3, resamples=4000, level=1 - found.p_value)
        if 0.01 < found.p_value < 0.99:
            assert min(abs(at_p.low), abs(at_p.high)) < 0.01


def test_clusters_are_resampled_whole():
    values, clusters = np.repeat(skewed(40), 5), np.repeat(np.arange(40), 5)
    found = paired_bootstrap(values, np.zeros(200), clusters)
    assert found.standard_error == pytest.approx(mean(values, clusters).standard_error, rel=0.05)
    assert found.standard_error > 1.8 * paired_bootstrap(values, np.zeros(200)).standard_error


def test_swap_turns_the_sign():
    after, before = skewed(50, 1), skewed(50, 2)
    one, two = paired_bootstrap(after, before), paired_bootstrap(before, after)
    assert (one.low, one.high, one.p_value) == pytest.approx((-two.high, -two.low, two.p_value), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("unit", [1e50, 1e-120])
def test_the_unit_of_outcomes_does_not_count(unit):
    plain, found = (np.array(paired_bootstrap(skewed() * scale, np.ones(60) * scale)) for scale in (1, unit))
    assert found[:4] / unit == pytest.approx(plain[:4])
    assert found[5] == pytest.approx(plain[5])


def test_no_spread_and_one_cluster():
    assert paired_bootstrap([1, 1, 1], [0, 0, 0])[:4] == (1, 0, 1, 1)
    assert np.isnan(paired_bootstrap([1, 0], [0, 0], [7, 7]).low)
    with pytest.raises(ParameterError, match="1 after, 2 before"):
        paired_bootstrap([1], [0, 1])


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_golden(b, c):
    golden = mcnemar([[5, b], [c, 5]], exact=True).pvalue
    assert exact_mcnemar(b, c) == pytest.approx(golden, rel=1e-9)


def test_bad_input():
    with pytest.raises(ParameterError, match="negative"):
        exact_mcnemar(-1, 2)
