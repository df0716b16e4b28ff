"""Means and paired differences with intervals that count clusters, and gains that cover items and seeds alike."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from llamax.errors import ParameterError


class Estimate(NamedTuple):
    """A mean of `n` items, its standard error, and the interval [`low`, `high`].

    With a single cluster the spread is unknown: `standard_error`, `low` and `high` are NaN.
    """

    value: float
    standard_error: float
    low: float
    high: float
    n: int


class Difference(NamedTuple):
    """A mean paired difference (after minus before) over `n` items; `p_value` is two-sided against zero."""

    value: float
    standard_error: float
    low: float
    high: float
    n: int
    p_value: float


class Combined(NamedTuple):
    """A mean over `n` items and `seeds` training runs; `p_value` is two-sided against zero."""

    value: float
    standard_error: float
    low: float
    high: float
    n: int
    p_value: float
    seeds: int
    degrees_of_freedom: float


def mean(outcomes: Sequence[float], clusters: Sequence | None = None, level: float = 0.95) -> Estimate:
    """Mean of `outcomes` [items] with a cluster-robust t interval.

    The variance of the mean is C/(C-1) * sum_c (sum of the residuals in c)^2 / n^2 over the C clusters, with C-1
    degrees of freedom (Liang & Zeger 1986, with the usual small-sample correction). Without `clusters` every item is
    its own and this is the textbook standard error s/sqrt(n).

    Raises: ParameterError: no item, an outcome that is not finite, a cluster list of another length, or a bad level.
    """
    values, codes = checked(outcomes, clusters)
    sums = np.bincount(codes, values - values.mean())
    count = len(sums)
    error = np.sqrt(count / (count - 1) * np.sum(sums**2)) / len(values) if count > 1 else np.nan
    low, high, _ = t_interval(values.mean(), error, count - 1, level)
    return Estimate(float(values.mean()), float(error), low, high, len(values))


def paired_difference(
    after: Sequence[float], before: Sequence[float], clusters: Sequence | None = None, level: float = 0.95
) -> Difference:
    """Mean of `after - before` [items], item by item, with the interval of `mean` and the t test that belongs to it.

    Raises: ParameterError: as `mean`, or two lists of different lengths.
    """
    if len(after) != len(before):
        raise ParameterError(
            f"a paired difference needs the same items twice: {len(after)} after, {len(before)} before"
        )
    differences = np.asarray(after, dtype=float) - np.asarray(before, dtype=float)
    values, codes = checked(differences, clusters)
    found = mean(values, codes, level)
    return Difference(*found, t_interval(found.value, found.standard_error, codes.max(), level)[2])


def combine(outcomes: np.ndarray, clusters: Sequence | None = None, level: float = 0.95) -> Combined:
    """Mean of `outcomes` [seeds, items] with an interval for new items *and* new training seeds.

    Crossed random effects, y = mu + item + seed + interaction: the variance of the grand mean is estimated without bias
    by (MS_items + MS_seeds - MS_interaction) / (seeds * items) (Searle, Casella & McCulloch 1992, ch. 4), here on
    cluster totals so that items of one cluster may depend on each other, and never below what either factor alone
    gives. Degrees of freedom after Satterthwaite (1946): few seeds that disagree make the interval wide.
    For a gain pass the differences after - before. With one seed this is `mean`: seed noise is then not covered.

    Raises: ParameterError: as `mean`, or an array that is not two-dimensional.
    """
    table = np.asarray(outcomes, dtype=float)
    if table.ndim != 2:
        raise ParameterError(f"combine needs outcomes [seeds, items], found {table.ndim} dimension(s)")
    if len(table) == 1:
        single = paired_difference(table[0], np.zeros(table.shape[1]), clusters, level)
        return Combined(*single, 1, float(checked(table[0], clusters)[1].max()))
    _, codes = checked(table.mean(axis=0), clusters)
    grand, (seeds, n) = float(table.mean()), table.shape
    if not np.isfinite(grand):
        raise ParameterError("an outcome is not a finite number")
    totals = np.stack([np.bincount(codes, row - grand) for row in table])  # [seeds, clusters]
    error, freedom = crossed_error(totals, n)
    low, high, p_value = t_interval(grand, error, freedom, level)
    return Combined(grand, float(error), low, high, n, p_value, seeds, float(freedom))


def combine_strata(
    tables: Sequence[np.ndarray], clusters: Sequence[Sequence] | None = None, level: float = 0.95
) -> Combined:
    """Mean of the means of several strata [seeds, items of the stratum], with the interval of `combine`.

    Strata are fixed (the tasks of a suite): each weighs the same whatever its number of items, and the spread between
    their means is no noise (stratified sampling, Cochran 1977, ch. 5). Training seeds are shared by all strata,
    clusters are not. With one stratum this is `combine`.

    Raises: ParameterError: as `combine`.
    """
    total = sum(table.shape[1] for table in tables)
    value = float(np.mean([table.mean() for table in tables]))
    parts = [(table - table.mean()) * total / (len(tables) * table.shape[1]) for table in tables]
    names = clusters or [range(table.shape[1]) for table in tables]
    unique = [f"{number}/{name}" for number, group in enumerate(names) for name in group]
    return combine(value + np.concatenate(parts, axis=1), unique, level)


def crossed_error(totals: np.ndarray, items: int) -> tuple[float, float]:
    """Standard error of the grand mean and its degrees of freedom, from residual totals [seeds, clusters]."""
    seeds, count = totals.shape
    if count < 2:
        return np.nan, np.nan
    scale = seeds * count / (seeds * items) ** 2
    of_items, of_seeds = totals.mean(axis=0), totals.mean(axis=1)
    interaction = totals - of_items - of_seeds[:, None] + totals.mean()
    parts = scale * np.array(
        [
            seeds * np.sum(of_items**2) / (count - 1),
            count * np.sum(of_seeds**2) / (seeds - 1),
            np.sum(interaction**2) / ((count - 1) * (seeds - 1)),
        ]
    )
    freedom = np.array([count - 1, seeds - 1, (count - 1) * (seeds - 1)])
    variance = max(parts[0] + parts[1] - parts[2], parts[0], parts[1])
    spread = np.sum(parts**2 / freedom)
    return np.sqrt(variance), np.clip(variance**2 / spread, 1, count - 1) if spread > 0 else count - 1


def wilson(successes: int, n: int, level: float = 0.95) -> Estimate:
    """A proportion with Wilson's score interval (1927), which behaves at 0 and at n.

    Raises: ParameterError: n < 1, or successes outside 0..n.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ParameterError(f"a proportion needs 0 <= successes <= n and n >= 1, found {successes} of {n}")
    z, share = stats.norm.isf((1 - level) / 2), successes / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    low = 0.0 if successes == 0 else float(centre - half)
    high = 1.0 if successes == n else float(centre + half)
    return Estimate(share, float(np.sqrt(share * (1 - share) / n)), low, high, n)


def t_interval(value: float, error: float, freedom: float, level: float) -> tuple[float, float, float]:
    """Low, high, and two-sided p against zero of an estimate with `freedom` degrees of freedom."""
    if not 0 < level < 1:
        raise ParameterError(f"a level lies between 0 and 1, found {level}")
    if not freedom > 0 or np.isnan(error):
        return np.nan, np.nan, np.nan
    if error == 0:
        return float(value), float(value), float(value == 0)
    half = stats.t.isf((1 - level) / 2, freedom) * error
    return float(value - half), float(value + half), float(2 * stats.t.sf(abs(value) / error, freedom))


def checked(outcomes: Sequence[float], clusters: Sequence | None) -> tuple[np.ndarray, np.ndarray]:
    """Outcomes as float64 [items] and cluster numbers 0..C-1 [items]; raises ParameterError."""
    values = np.asarray(outcomes, dtype=float)
    if values.ndim != 1 or not len(values):
        raise ParameterError(f"statistics need at least one outcome in a flat list, found shape {list(values.shape)}")
    if not np.isfinite(values).all():
        raise ParameterError(f"outcome {int(np.argmin(np.isfinite(values)))} is not a finite number")
    if clusters is None:
        return values, np.arange(len(values))
    if len(clusters) != len(values):
        raise ParameterError(f"{len(values)} outcomes but {len(clusters)} clusters: give one cluster per outcome")
    return values, np.unique(np.asarray(clusters), return_inverse=True)[1].reshape(-1)
