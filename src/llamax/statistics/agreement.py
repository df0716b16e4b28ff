"""Do raters agree: Krippendorff's alpha, with missing ratings and a bootstrap interval."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from llamax.errors import DataError, ParameterError
from llamax.statistics.estimates import Estimate

Level = Literal["nominal", "ordinal", "interval"]


def krippendorff_alpha(
    ratings: Sequence[Sequence[float]] | np.ndarray,
    level: Level = "nominal",
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """1 - observed / expected disagreement of `ratings` [raters, units], NaN where a rater gave none.

    Krippendorff 2019, ch. 12: 1 is perfect agreement, 0 that of chance. `level`: what a disagreement weighs; `nominal`
    the same for any two categories (numbers stand for names), `ordinal` by the ratings in between, `interval` by the
    squared difference. Units with fewer than two ratings say nothing and are not counted in `n`. The interval is that
    of the bootstrap over units; resamples in which all ratings are equal count as perfect agreement.

    Raises: ParameterError: another shape or level; DataError: no unit with two ratings, or all ratings equal.
    """
    table = np.asarray(ratings, dtype=float)
    if table.ndim != 2:
        raise ParameterError(f"agreement needs ratings [raters, units], found {table.ndim} dimension(s)")
    if level not in ("nominal", "ordinal", "interval"):
        raise ParameterError(f"the level of measurement is nominal, ordinal or interval, found {level!r}")
    if not 0 < confidence < 1 or resamples < 2:
        raise ParameterError(f"wants a confidence in 0..1 and two resamples, found {confidence} and {resamples}")
    table = table[:, np.sum(~np.isnan(table), axis=0) > 1]
    values = np.unique(table[~np.isnan(table)])
    if not np.isfinite(values).all():
        raise ParameterError("a rating is infinite")
    if len(values) < 2:
        why = f"all ratings are {values[0]:g}, so that chance agrees too" if len(values) else "no unit has two ratings"
        raise DataError(f"agreement is not defined: {why}")
    counts = np.stack([np.sum(table == value, axis=0) for value in values], axis=1).astype(float)  # [units, values]
    units, rng = len(counts), np.random.default_rng(seed)
    weights = rng.multinomial(units, np.full(units, 1 / units), size=resamples)
    drawn = [_alpha(counts, weight, values, level) for weight in weights]
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    alpha = _alpha(counts, np.ones(units), values, level)
    return Estimate(alpha, float(np.std(drawn, ddof=1)), float(low), float(high), units)


def _alpha(counts: np.ndarray, weights: np.ndarray, values: np.ndarray, level: Level) -> float:
    """Alpha from counts [units, values] of units that weigh `weights` [units]."""
    shares = counts * (weights / (counts.sum(axis=1) - 1))[:, None]
    coincidences = shares.T @ counts - np.diag(shares.sum(axis=0))  # ordered pairs of ratings of one unit
    totals = coincidences.sum(axis=1)
    distances = _distances(totals, values, level)
    expected = (np.outer(totals, totals) * distances).sum() / (totals.sum() - 1)
    if expected == 0:
        return 1.0
    return float(1 - (coincidences * distances).sum() / expected)


def _distances(totals: np.ndarray, values: np.ndarray, level: Level) -> np.ndarray:
    """Squared differences [values, values] of the level of measurement."""
    if level == "nominal":
        return 1.0 - np.eye(len(values))
    if level == "ordinal":  # the ratings between two values, half of those at them
        ranks = np.cumsum(totals) - totals / 2
        return (ranks[:, None] - ranks) ** 2
    return (values[:, None] - values) ** 2
