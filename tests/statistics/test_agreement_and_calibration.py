"""Krippendorff's alpha against his example and the package of that name; calibration against its definition."""

import krippendorff
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamax.errors import DataError, ParameterError
from llamax.statistics import brier_score, expected_calibration_error, krippendorff_alpha, mean, score, wilson

NAN = float("nan")
# Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", example C: four observers, twelve units
OBSERVERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
    [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
]


@pytest.mark.parametrize(("level", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_golden(level, alpha):
    found = krippendorff_alpha(OBSERVERS, level)
    assert found.value == pytest.approx(alpha, abs=5e-4)
    assert found.n == 11
    assert found.low < found.value < found.high


@given(st.integers(0, 10_000), st.sampled_from(["nominal", "ordinal", "interval"]), st.floats(0, 0.6))
def test_alpha_is_that_of_the_package(seed, level, missing):
    rng = np.random.default_rng(seed)
    ratings = np.clip(rng.integers(1, 5, 15) + rng.integers(-1, 2, (4, 15)), 1, 5).astype(float)
    ratings[rng.random(ratings.shape) < missing] = NAN
    several = np.sum(~np.isnan(ratings), axis=0) > 1
    if len(np.unique(ratings[:, several][~np.isnan(ratings[:, several])])) < 2:
        return
    golden = krippendorff.alpha(reliability_data=ratings, level_of_measurement=level)
    found = krippendorff_alpha(ratings, level, resamples=2)
    assert found.value == pytest.approx(golden, abs=1e-9)
    order, raters = rng.permutation(15), rng.permutation(4)
    assert krippendorff_alpha(ratings[raters][:, order], level, resamples=2).value == pytest.approx(golden, abs=1e-9)
    if level == "nominal":
        assert krippendorff_alpha((7 * ratings) % 11, resamples=2).value == pytest.approx(golden, abs=1e-9)


def test_alpha_by_simulation():
    """Two raters who see the truth with noise: for interval data alpha is the share of variance that is truth."""
    rng, found = np.random.default_rng(0), []
    for _ in range(100):
        ratings = rng.normal(size=80) + 0.5 * rng.normal(size=(2, 80))
        found.append(krippendorff_alpha(ratings.round(1), "interval", resamples=100))
    assert np.mean([alpha.value for alpha in found]) == pytest.approx(0.8, abs=0.015)
    assert 0.86 <= np.mean([alpha.low <= 0.8 <= alpha.high for alpha in found]) <= 0.99
    noise = krippendorff_alpha(rng.integers(0, 2, (3, 400)))
    assert noise.low < 0 < noise.high
    assert krippendorff_alpha([[1, 2, 3], [1, 2, 3]]).value == 1


def test_the_interval_of_alpha_is_as_wide_as_its_confidence_says():
    ratings = np.random.default_rng(7).integers(0, 2, (3, 400))
    for confidence, errors in ((0.95, 1.960), (0.5, 0.674)):
        found = krippendorff_alpha(ratings, confidence=confidence)
        assert (found.high - found.low) / (2 * found.standard_error) == pytest.approx(errors, rel=0.1)


def test_alpha_of_bad_input():
    with pytest.raises(ParameterError, match="ratings \\[raters, units\\], found 1 dim"):
        krippendorff_alpha([1, 2])
    with pytest.raises(ParameterError, match="nominal, ordinal or interval, found 'ratio'"):
        krippendorff_alpha(OBSERVERS, "ratio")
    with pytest.raises(ParameterError, match="infinite"):
        krippendorff_alpha([[1, float("inf")], [2, 3]])
    with pytest.raises(DataError, match="no unit has two ratings"):
        krippendorff_alpha([[1, NAN], [NAN, 2]])
    with pytest.raises(DataError, match="all ratings are 1"):
        krippendorff_alpha([[1, 1], [1, 1]])


def scored(rng, n, shift=0.0):
    """Confidences, and outcomes that are right more often by `shift`."""
    confidence = rng.uniform(0.2, 0.8, n)
    return confidence, (rng.random(n) < confidence + shift).astype(float)


def test_ece_by_its_definition():
    confidence, correct = scored(np.random.default_rng(1), 500, 0.1)
    confidence[:4] = [0.0, 0.1, 0.9, 1.0]
    found = expected_calibration_error(confidence, correct, bins=10)
    total = 0.0
    for m in range(1, 11):  # Guo et al. 2017: bin m holds the confidences in ((m - 1) / M, m / M]
        here = [n for n, p in enumerate(confidence) if (m - 1) / 10 < p <= m / 10 or (m == 1 and p == 0)]
        if here:
            total += len(here) / 500 * abs(np.mean(correct[here]) - np.mean(confidence[here]))
    assert found.error.value == pytest.approx(total)
    assert sum(row.n for row in found.table) == 500
    assert all(row.low <= row.confidence <= row.high for row in found.table)
    row = found.table[4]
    right = round(row.accuracy * row.n)
    assert (row.accuracy, row.accuracy_low, row.accuracy_high) == pytest.approx(
        (right / row.n, *wilson(right, row.n)[2:4])
    )


def test_bins_of_equal_mass():
    confidence, correct = scored(np.random.default_rng(2), 400)
    found = expected_calibration_error(confidence**4, correct, bins=8, by="mass")
    assert [row.n for row in found.table] == [50] * 8
    same = expected_calibration_error([0.5] * 9 + [0.9], [1, 0, 1, 0, 1, 1, 1, 1, 1, 0], bins=5, by="mass")
    assert [row.n for row in same.table] == [9, 1]
    assert same.error.value == pytest.approx(0.9 * abs(7 / 9 - 0.5) + 0.1 * 0.9)


def test_a_calibrated_model_errs_by_chance_and_another_more():
    rng = np.random.default_rng(3)
    found = [expected_calibration_error(*scored(rng, 300), resamples=200) for _ in range(60)]
    assert np.mean([one.error.value for one in found]) == pytest.approx(np.mean([one.chance for one in found]), rel=0.1)
    off = expected_calibration_error(*scored(rng, 300, 0.2))
    assert off.error.low > 1.2 * off.chance
    assert np.mean([one.error.low == 0 for one in found]) > 0.9


@pytest.mark.parametrize(("shift", "bins"), [(0.0, 15), (0.05, 15), (0.1, 6), (0.2, 6)])
def test_the_interval_of_ece_covers(shift, bins):
    """Every bin is off by the same `shift`, so that the error of endless items is `shift`."""
    rng = np.random.default_rng(4)
    found = [expected_calibration_error(*scored(rng, 300, shift), bins=bins, resamples=100).error for _ in range(200)]
    assert np.mean([one.low <= shift <= one.high for one in found]) >= 0.92
    assert np.mean([one.high - one.low for one in found]) < 0.15


def test_clusters_widen_the_interval():
    confidence, correct = scored(np.random.default_rng(5), 60, 0.15)
    thrice, clusters = [np.tile(side, 3) for side in (confidence, correct)], np.tile(np.arange(60), 3)
    plain, grouped = expected_calibration_error(*thrice), expected_calibration_error(*thrice, clusters)
    assert grouped.error.standard_error > 1.3 * plain.error.standard_error
    assert grouped.error.value == plain.error.value


def test_clusters_of_unequal_size_weigh_by_their_items():
    """One bin and a model that is always too sure: the error is a mean, and so is its standard error."""
    rng = np.random.default_rng(8)
    clusters = np.repeat(np.arange(40), np.tile([1, 30], 20))
    confidence = np.full(len(clusters), 0.9)
    correct = (rng.random(len(clusters)) < 0.4).astype(float)
    found = expected_calibration_error(confidence, correct, clusters, bins=1)
    golden = mean(confidence - correct, clusters)
    assert found.error.value == pytest.approx(golden.value)
    assert found.error.standard_error == pytest.approx(golden.standard_error, rel=0.15)


def test_brier_score():
    confidence, correct = scored(np.random.default_rng(6), 200)
    sklearn = pytest.importorskip("sklearn.metrics")
    assert brier_score(confidence, correct).value == pytest.approx(sklearn.brier_score_loss(correct, confidence))
    clusters = np.arange(200) // 4
    assert brier_score(confidence, correct, clusters) == score((confidence - correct) ** 2, clusters)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: expected_calibration_error([0.5], [1, 0]), "1 confidences but 2 outcomes"),
        (lambda: expected_calibration_error([0.5, 50], [1, 0]), "item 1: confidence 50"),
        (lambda: expected_calibration_error([0.5, NAN], [1, 0]), "outcome 1 is not a finite"),
        (lambda: expected_calibration_error([0.5, 0.5], [1, 0.5]), "item 1: outcome 0.5, should be 0 or 1"),
        (lambda: expected_calibration_error([0.5], [1], by="size"), "equal width or equal mass"),
        (lambda: expected_calibration_error([0.5], [1], bins=0), "bins from 1"),
        (lambda: brier_score([0.5], [2]), "should be 0 or 1"),
        (lambda: brier_score([], []), "at least one outcome"),
    ],
)
def test_bad_input_is_one_clear_line(call, message):
    with pytest.raises(ParameterError, match=message):
        call()
