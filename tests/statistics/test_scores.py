"""Intervals of scores: inside 0..1, as often right as they say, and otherwise those of `mean`."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.proportion import proportion_confint

from llamax.errors import ParameterError
from llamax.statistics import combine, combine_scores, combine_strata, mean, paired_difference, score, wilson

OUTCOME = st.sampled_from([0.0, 1.0]) | st.floats(0, 1)


@pytest.mark.parametrize(
    ("right", "n", "level"), [(0, 4, 0.95), (1, 3, 0.95), (3, 4, 0.9), (9, 10, 0.99), (8, 8, 0.95)]
)
def test_right_or_wrong_has_wilsons_interval(right, n, level):
    found = score([1.0] * right + [0.0] * (n - right), level=level)
    assert (found.low, found.high) == pytest.approx(proportion_confint(right, n, 1 - level, method="wilson"), abs=1e-12)
    assert found.n == n


@given(st.lists(st.tuples(OUTCOME, st.integers(0, 3)), min_size=1, max_size=12))
@settings(deadline=None)
def test_an_interval_stays_inside_and_holds_its_score(rows):
    outcomes, clusters = zip(*rows, strict=True)
    for found in (score(outcomes), score(outcomes, clusters), combine_scores([np.array([outcomes, outcomes[::-1]])])):
        if not np.isnan(found.low):
            assert 0 <= found.low <= found.value <= found.high <= 1


def test_value_and_standard_error_are_those_of_mean():
    outcomes, clusters = [1.0, 1.0, 0.0, 1.0, 0.3], list("aabbc")
    for groups in (None, clusters):
        found, plain = score(outcomes, groups), mean(outcomes, groups)
        assert found[:2] == plain[:2]
        assert found[2:4] != plain[2:4]
    assert paired_difference(outcomes, [0.0] * 5, clusters)[:5] == mean(outcomes, clusters)


def test_clusters_count_not_items():
    """Ten passages of five questions that are right or wrong together say what ten questions say."""
    found = score([1.0] * 40 + [0.0] * 10, np.repeat(range(10), 5))
    assert found.high - found.low > wilson(8, 10).high - wilson(8, 10).low
    alike = score([1.0] * 50, np.repeat(range(10), 5))
    assert alike.low < wilson(10, 10).low < wilson(50, 50).low
    assert np.isnan(score([1.0, 0.0], ["a", "a"]).low)


def test_many_items_have_the_interval_of_mean():
    outcomes = np.random.default_rng(0).random(5000)
    assert score(outcomes)[2:4] == pytest.approx(mean(outcomes)[2:4], abs=1e-4)


def test_scores_of_several_seeds():
    table = np.array([[1.0, 1.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    found, plain = combine_scores([table]), combine(table)
    assert found._replace(low=0, high=0) == plain._replace(low=0, high=0)
    assert plain.high > 1 >= found.high
    assert combine_scores([table[:1]])[2:4] == score(table[0])[2:4]
    strata = combine_scores([table, table[:, :2]])
    assert strata._replace(low=0, high=0) == combine_strata([table, table[:, :2]])._replace(low=0, high=0)
    assert strata.high <= 1
    alike = combine_scores([np.ones((2, 6))], [list("aabbcc")])  # three clusters, as one seed of them would
    assert (alike.low, alike.high) == score(np.ones(6), list("aabbcc"))[2:4]


@pytest.mark.parametrize("outcomes", [[0.5, 1.1], [-0.1, 0.5]])
def test_what_is_no_score_is_refused(outcomes):
    with pytest.raises(ParameterError, match=r"outcome [01] is (1.1|-0.1), a score's lie in 0..1"):
        score(outcomes)


def test_coverage():
    """How many of 2,000 intervals at 95% hold the truth, and in parentheses how many of `mean`'s: of 10 items, right
    with 10%, 93.4% (63.8%); of 4 clusters of 10 items, correlated by 0.1 and right with 5%, 98.5% (76.6%); of 10
    clusters of 5, by 0.4 and with 90%, 97.9% (83.6%). Wilson's own for 2 and fewer of 10 hold 10%: 93.0%, exactly."""
    rng = np.random.default_rng(3)
    for p, count, size, rho in ((0.1, 10, 1, 0.0), (0.05, 4, 10, 0.1), (0.9, 10, 5, 0.4)):
        clusters, held = np.repeat(range(count), size), []
        for _ in range(2000):
            share = rng.beta(p * (1 - rho) / rho, (1 - p) * (1 - rho) / rho, count) if rho else np.full(count, p)
            found = score((rng.random(count * size) < np.repeat(share, size)).astype(float), clusters)
            held.append(found.low <= p <= found.high)
        assert 0.915 <= np.mean(held) <= 0.995
