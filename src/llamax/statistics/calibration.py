"""Is a model right as often as it is confident: reliability table, expected calibration error, Brier score."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from llamax.errors import ParameterError
from llamax.statistics.estimates import Estimate, checked, wilson
from llamax.statistics.scores import score

Binning = Literal["width", "mass"]


class Bin(NamedTuple):
    """Items whose confidence lies in `low`..`high`: mean confidence, accuracy and its 95% Wilson interval."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float
    accuracy_low: float
    accuracy_high: float


class Calibration(NamedTuple):
    """Expected calibration error with its interval, and the table behind it.

    `chance`: the error that a perfectly calibrated model with the same confidences would show on average, for the only
    reason that n is finite; an error near it is no evidence of miscalibration.
    """

    error: Estimate
    chance: float
    table: list[Bin]


def expected_calibration_error(
    confidence: Sequence[float],
    correct: Sequence[float],
    clusters: Sequence | None = None,
    *,
    bins: int = 15,
    by: Binning = "width",
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Calibration:
    """Mean over items of |accuracy - confidence| of an item's bin (Naeini et al. 2015; Guo et al. 2017, equation 3).

    `confidence` [items] in 0..1, `correct` [items] 0 or 1. Bins have equal width, closed above, or equal mass (as many
    items each; equal confidences stay together).

    The error is biased upwards, and resampling adds as much again. So the interval runs from the lower end of the
    reflected to the upper end of the percentile bootstrap interval, over items or whole `clusters` in the same bins,
    and from 0 where a calibrated model shows such an error by chance; in simulation it covers about as often as `level`
    says.

    Raises: ParameterError: lists of different lengths, a confidence outside 0..1, an outcome other than 0 and 1.
    """
    p, y = _checked_pairs(confidence, correct)
    codes = checked(p, clusters)[1]
    if bins < 1 or resamples < 2 or not 0 < level < 1:
        raise ParameterError(f"wants bins from 1, two resamples and a level in 0..1, not {bins}, {resamples}, {level}")
    if by not in ("width", "mass"):
        raise ParameterError(f"bins have equal width or equal mass, found {by!r}")
    inner = np.arange(1, bins) / bins
    edges = np.unique([0, *(inner if by == "width" else np.quantile(p, inner)), 1])
    place = np.clip(np.searchsorted(edges, p, side="left") - 1, 0, len(edges) - 2)
    rng, count = np.random.default_rng(seed), int(codes.max()) + 1
    gaps = np.zeros((count, len(edges) - 1))  # summed accuracy - confidence, by cluster and bin
    np.add.at(gaps, (codes, place), y - p)
    error = np.abs(gaps.sum(axis=0)).sum() / len(p)
    sizes = np.bincount(codes)
    weights = rng.multinomial(count, np.full(count, 1 / count), size=resamples)
    drawn = np.abs(weights @ gaps).sum(axis=1) / (weights @ sizes)
    high = float(np.quantile(drawn, (1 + level) / 2))
    by_chance = _by_chance(p, place, resamples, rng)
    explained = error <= np.quantile(by_chance, (1 + level) / 2)
    low = 0.0 if explained else max(0.0, float(2 * error - high))
    estimate = Estimate(float(error), float(drawn.std(ddof=1)), low, high, len(p))
    return Calibration(estimate, float(by_chance.mean()), _table(p, y, place, edges))


def brier_score(
    confidence: Sequence[float], correct: Sequence[float], clusters: Sequence | None = None, level: float = 0.95
) -> Estimate:
    """Mean of (confidence - correct)^2 [items] with the interval of `score` (Brier 1950, for one event).

    Raises: ParameterError: as `expected_calibration_error`.
    """
    p, y = _checked_pairs(confidence, correct)
    return score((p - y) ** 2, clusters, level)


def _by_chance(p: np.ndarray, place: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Errors [resamples] of outcomes that are drawn with the confidences p [items] as their probabilities."""
    gaps = (np.bincount(place, (rng.random(len(p)) < p) - p) for _ in range(resamples))
    return np.array([np.abs(gap).sum() / len(p) for gap in gaps])


def _table(p: np.ndarray, y: np.ndarray, place: np.ndarray, edges: np.ndarray) -> list[Bin]:
    """The bins that hold an item."""
    rows = []
    for number in np.unique(place):
        here = place == number
        share = wilson(int(y[here].sum()), int(here.sum()))
        low, high = float(edges[number]), float(edges[number + 1])
        rows.append(Bin(low, high, share.n, float(p[here].mean()), share.value, share.low, share.high))
    return rows


def _checked_pairs(confidence: Sequence[float], correct: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    if len(confidence) != len(correct):
        raise ParameterError(f"{len(confidence)} confidences but {len(correct)} outcomes: give one of each per item")
    p, y = checked(confidence, None)[0], checked(correct, None)[0]
    if not ((p >= 0) & (p <= 1)).all():
        where = int(np.argmin((p >= 0) & (p <= 1)))
        raise ParameterError(f"item {where}: confidence {p[where]:g}, should lie in 0..1")
    if not np.isin(y, [0, 1]).all():
        where = int(np.argmin(np.isin(y, [0, 1])))
        raise ParameterError(f"item {where}: outcome {y[where]:g}, should be 0 or 1")
    return p, y
