"""A test of significance for paired yes/no outcomes."""

from scipy import stats

from llamax.errors import ParameterError


def exact_mcnemar(b: int, c: int) -> float:
    """Two-sided exact p of McNemar's test: `b` items only the one got right, `c` only the other (binomial, p = 1/2).

    Raises: ParameterError: a negative count.
    """
    if b < 0 or c < 0:
        raise ParameterError(f"discordant counts cannot be negative, found {b} and {c}")
    return float(min(1.0, 2 * stats.binom.cdf(min(b, c), b + c, 0.5)))
