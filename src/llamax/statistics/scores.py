"""Intervals of scores: means of outcomes in 0..1, whose interval stays in there, however few the items."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from scipy import stats

from llamax.errors import ParameterError
from llamax.statistics.estimates import Combined, Estimate, checked, combine_strata, mean, wilson

Mean = TypeVar("Mean", Estimate, Combined)


def score(outcomes: Sequence[float], clusters: Sequence | None = None, level: float = 0.95) -> Estimate:
    """`mean` of `outcomes` [items] in 0..1, its value and standard error, with an interval inside 0..1.

    Outcomes 0 and 1 of independent items have Wilson's interval (1927), all others that of `bounded`.

    Raises: ParameterError: as `mean`, or an outcome outside 0..1.
    """
    values, codes = checked(outcomes, clusters)
    outside = (values < 0) | (values > 1)
    if outside.any():
        raise ParameterError(f"outcome {int(np.argmax(outside))} is {values[outside][0]:g}, a score's lie in 0..1")
    found, count = mean(values, codes, level), int(codes.max()) + 1
    if count == len(values) and np.isin(values, (0, 1)).all():
        return found._replace(**_limits(wilson(int(values.sum()), count, level)))
    return bounded(found, count - 1, count, level)


def combine_scores(
    tables: Sequence[np.ndarray], clusters: Sequence[Sequence] | None = None, level: float = 0.95
) -> Combined:
    """`combine_strata` of outcomes [seeds, items of the stratum] in 0..1, with an interval as that of `score`.

    Raises: ParameterError: as `combine_strata` and `score`.
    """
    found = combine_strata(tables, clusters, level)
    names = [None] * len(tables) if clusters is None else clusters
    alone = [score(np.mean(table, axis=0), group, level) for table, group in zip(tables, names, strict=True)]
    if len(tables) == 1 and len(tables[0]) == 1:
        return found._replace(**_limits(alone[0]))
    count = sum(
        table.shape[1] if group is None else len(set(group)) for table, group in zip(tables, names, strict=True)
    )
    return bounded(found, found.degrees_of_freedom, count, level)


def bounded(found: Mean, freedom: float, clusters: int, level: float = 0.95) -> Mean:
    """`found`, a mean p of outcomes in 0..1, with Wilson's interval for as many items as its standard error is worth.

    The effective number of items is p(1 - p) / standard_error^2, and the quantile that of t with `freedom` degrees of
    freedom: the modified Wilson interval of clustered surveys, of which Dean & Pagano (2015, Journal of Survey
    Statistics and Methodology 3) and Franco, Little, Louis & Slud (2019, same journal 7) found the coverage good where
    a t interval's is not: few items, scores near 0 or 1. Outcomes that are all alike count as one item per cluster.
    """
    p, error = found.value, found.standard_error
    if np.isnan(error) or not freedom > 0:
        return found
    n = p * (1 - p) / error**2 if error > 0 else clusters
    square = stats.t.isf((1 - level) / 2, freedom) ** 2
    centre, scale = p + square / (2 * n), 1 + square / n
    half = np.sqrt(square * (p * (1 - p) / n + square / (4 * n**2)))
    low, high = np.clip([(centre - half) / scale, (centre + half) / scale], 0, 1)
    return found._replace(low=float(min(low, p)), high=float(max(high, p)))


def _limits(found: Estimate) -> dict[str, float]:
    return {"low": found.low, "high": found.high}
