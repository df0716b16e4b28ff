"""The paired bootstrap over clusters, for statistics whose t interval is in doubt."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from llamax.errors import ParameterError
from llamax.statistics.estimates import Difference, checked

CHUNK = 4_000_000  # resampled counts held at once, 32 MB


def paired_bootstrap(
    after: Sequence[float],
    before: Sequence[float],
    clusters: Sequence | None = None,
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Difference:
    """Mean of `after - before` [items] with a BCa interval (Efron 1987); whole clusters are resampled.

    `p_value` is the level at which the BCa interval just touches zero, never below 2/(resamples+1).

    Raises: ParameterError: as `mean`, or two lists of different lengths.
    """
    if len(after) != len(before):
        raise ParameterError(f"a paired bootstrap needs the same items twice: {len(after)} after, {len(before)} before")
    values, codes = checked(np.asarray(after, dtype=float) - np.asarray(before, dtype=float), clusters)
    sums, sizes, value = np.bincount(codes, values), np.bincount(codes), float(values.mean())
    if len(sums) == 1:
        return Difference(value, np.nan, np.nan, np.nan, len(values), np.nan)
    if np.ptp(sums / sizes) == 0:
        return Difference(value, 0.0, value, value, len(values), float(value == 0))
    means = resampled_means(sums, sizes, resamples, np.random.default_rng(seed))
    shift = stats.norm.ppf(fraction_below(means, value))
    bend = acceleration(sums, sizes)
    low, high = np.quantile(means, bca_levels(shift, bend, level))
    z = stats.norm.ppf(fraction_below(means, 0.0)) - shift
    tail = stats.norm.cdf(z / (1 + bend * z) - shift)
    p_value = max(2 * min(tail, 1 - tail), 2 / (resamples + 1))
    return Difference(value, float(means.std(ddof=1)), float(low), float(high), len(values), float(min(p_value, 1)))


def resampled_means(sums: np.ndarray, sizes: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Means of the items in `resamples` draws of C clusters with replacement, from cluster sums and sizes [C]."""
    count, means = len(sums), []
    for start in range(0, resamples, step := max(1, CHUNK // count)):
        drawn = rng.integers(count, size=(min(step, resamples - start), count))
        means.append(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    return np.concatenate(means)


def fraction_below(means: np.ndarray, value: float) -> float:
    """Share of the resampled means below `value`, ties counted half, kept away from 0 and 1."""
    share = (np.mean(means < value) + np.mean(means <= value)) / 2
    return float(np.clip(share, 0.5 / len(means), 1 - 0.5 / len(means)))


def acceleration(sums: np.ndarray, sizes: np.ndarray) -> float:
    """Efron's acceleration from the jackknife that leaves one cluster out."""
    left = (sums.sum() - sums) / (sizes.sum() - sizes)
    away = left.mean() - left
    away = away / np.abs(away).max()  # the unit does not count, and cubes of very large or small numbers are none
    return float(np.sum(away**3) / (6 * np.sum(away**2) ** 1.5))


def bca_levels(shift: float, bend: float, level: float) -> np.ndarray:
    """The two quantiles of the bootstrap distribution that bound a BCa interval."""
    z = shift + stats.norm.ppf([(1 - level) / 2, (1 + level) / 2])
    return stats.norm.cdf(shift + z / (1 - bend * z))
