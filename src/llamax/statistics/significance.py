"""Tests of significance for paired yes/no outcomes and for many claims at once."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from llamax.errors import ParameterError


def exact_mcnemar(b: int, c: int) -> float:
    """Two-sided exact p of McNemar's test: `b` items only the one got right, `c` only the other (binomial, p = 1/2).

    Raises: ParameterError: a negative count.
    """
    if b < 0 or c < 0:
        raise ParameterError(f"discordant counts cannot be negative, found {b} and {c}")
    return float(min(1.0, 2 * stats.binom.cdf(min(b, c), b + c, 0.5)))


def holm(pvalues: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p-values, in the order given; compare each with the family's level.

    Raises: ParameterError: a p-value outside 0..1.
    """
    p = np.asarray(pvalues, dtype=float)
    if not ((p >= 0) & (p <= 1)).all():
        raise ParameterError(f"p-values lie between 0 and 1, found {list(pvalues)}")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted.tolist()
