"""One-sided tests of a gain, what gain a comparison can show at all, and how many items or samples it takes.

Everything is in the unit of the outcomes: for outcomes 0 and 1 a gain of 0.01 is one point.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize, stats

from llamax.errors import ParameterError
from llamax.statistics.estimates import checked, paired_difference

LEVEL, POWER = 0.05, 0.8
MOST_ITEMS = 10**12  # beyond it nobody counts


class SamplingParts(NamedTuple):
    """A paired difference over problems that were sampled several times, and where its variance comes from.

    `floor`: the standard error that endless samples of the same `items` problems would leave.
    `sampling`: what one sample a side adds to the variance of one problem's difference; k samples add `sampling`/k.
    """

    value: float
    standard_error: float
    floor: float
    sampling: float
    items: int
    clusters: int
    samples: tuple[int, int]  # after, before

    def error_with(self, samples: float) -> float:
        """The standard error that `samples` answers a side to the same problems would give."""
        return math.sqrt(self.floor**2 + self.sampling / samples / self.items)


class Needed(NamedTuple):
    """What would show a gain: so many `samples` a side of the problems that there are, or so many problems.

    `samples` is None where no number of samples suffices. `items`: problems in all at today's number of samples;
    `items_at_floor`: problems in all even with endless samples of each.
    """

    samples: int | None
    items: int
    items_at_floor: int


def one_sided_p(
    after: Sequence[float], before: Sequence[float], clusters: Sequence | None = None, *, margin: float = 0.0
) -> float:
    """The p-value of "the gain, the mean of `after - before` [items], is at most `margin`".

    The t test that belongs to the standard error of `paired_difference`, with C-1 degrees of freedom for C clusters.
    Where all differences are equal the t test has no answer and the sign test of the clusters gives 2^-C or 1: two
    lucky items are no proof. NaN with a single cluster.

    Raises: ParameterError: as `paired_difference`.
    """
    found = paired_difference(after, before, clusters)
    count = int(checked(after, clusters)[1].max()) + 1
    away = found.value - margin
    if found.standard_error <= 1e-12 * (abs(found.value) + abs(margin)):  # equal up to rounding
        return 0.5**count if away > 1e-12 else 1.0
    return float(stats.t.sf(away / found.standard_error, count - 1))


def minimum_detectable_gain(
    standard_error: float,
    freedom: float = math.inf,
    *,
    level: float = LEVEL,
    power: float = POWER,
    margin: float = 0.0,
) -> float:
    """The true gain that a one-sided test of "gain <= `margin`" at `level` shows with probability `power`.

    margin + standard_error * d, where a noncentral t with `freedom` degrees of freedom and noncentrality d exceeds the
    critical t with probability `power`; d = z(1 - level) + z(power) when the standard error is known (Cohen 1988).
    NaN where the standard error is.

    Raises: ParameterError: a level, power, standard error or number of degrees of freedom out of range.
    """
    _check_level_and_power(level, power)
    if standard_error < 0 or not math.isfinite(margin):
        raise ParameterError(f"wants a standard error from 0 and a finite margin, found {standard_error} and {margin}")
    if math.isnan(standard_error):
        return math.nan
    return margin + _noncentrality(freedom, level, power) * standard_error


def required_items(
    after: Sequence[float],
    before: Sequence[float],
    clusters: Sequence | None = None,
    *,
    gain: float,
    margin: float = 0.0,
    level: float = LEVEL,
    power: float = POWER,
) -> int:
    """How many items such as these, in all, show a true gain of `gain` against "gain <= `margin`" with this power.

    The standard error found is scaled by the root of the number of items, and the clusters grow along. For outcomes 0
    and 1 the variance is taken to be at least that of a gain without a loss: two models that differ nowhere so far
    say nothing on how they differ.

    Raises: ParameterError: as `paired_difference`, a gain not above the margin, or differences without spread.
    """
    found = paired_difference(after, before, clusters)
    count = int(checked(after, clusters)[1].max()) + 1
    error = found.standard_error
    if set(np.unique([after, before])) <= {0, 1}:
        error = max(error, math.sqrt(max(0.0, gain * (1 - gain)) / found.n))  # NaN, of one cluster, stays
    if not error > 0:
        why = "one cluster" if math.isnan(error) else "differences that are all equal"
        raise ParameterError(f"the number of items cannot be planned from {why}: the spread is not known")
    return _items(error, found.n, count, gain, margin, level, power)


def mcnemar_power(n: int, discordance: float, gain: float, *, level: float = LEVEL) -> float:
    """Probability that the one-sided exact McNemar test shows a gain on `n` items, by summation.

    `discordance` is the share of items that exactly one of the two models gets right, `gain` the true difference of
    accuracy: the better one wins (discordance + gain) / 2 of all items (Miettinen 1968; Connor 1987).

    Raises: ParameterError: no item, a discordance outside 0..1, a gain beyond the discordance.
    """
    _check_discordance(n, discordance, gain)
    _check_level_and_power(level, POWER)
    if discordance == 0:
        return 0.0
    low, high = stats.binom.ppf([1e-13, 1 - 1e-13], n, discordance)
    discordant = np.arange(low, high + 1)
    wins = stats.binom.isf(level, discordant, 0.5) + 1  # the fewest whose tail is at most the level
    share = (discordance + gain) / (2 * discordance)
    shown = stats.binom.sf(wins - 1, discordant, share)
    return float(np.sum(stats.binom.pmf(discordant, n, discordance) * shown))


def mcnemar_items(discordance: float, gain: float, *, level: float = LEVEL, power: float = POWER) -> int:
    """Items that a one-sided McNemar test needs to show `gain` at this `discordance` (Connor 1987, equation 3).

    ((z(1 - level) * sqrt(discordance) + z(power) * sqrt(discordance - gain^2)) / gain)^2, rounded up.

    Raises: ParameterError: as `mcnemar_power`, or a gain that is not above 0.
    """
    _check_discordance(1, discordance, gain)
    _check_level_and_power(level, power)
    if not gain > 0:
        raise ParameterError(f"a gain to show is above 0, found {gain}")
    return max(1, math.ceil((_connor(discordance, gain, level, power) / gain) ** 2))


def mcnemar_gain(n: int, discordance: float, *, level: float = LEVEL, power: float = POWER) -> float:
    """The smallest gain that `n` items show at this `discordance`: `mcnemar_items` solved for the gain.

    Infinite where not even a gain without a loss, which is as large as the discordance, can be shown.

    Raises: ParameterError: as `mcnemar_power`.
    """
    _check_discordance(n, discordance, 0.0)
    _check_level_and_power(level, power)

    def excess(gain: float) -> float:
        return gain * math.sqrt(n) - _connor(discordance, gain, level, power)

    if discordance == 0 or excess(discordance) < 0:
        return math.inf
    return float(optimize.brentq(excess, 0.0, discordance, xtol=1e-12))


def sampling_parts(
    after: np.ndarray | Sequence[Sequence[float]],
    before: np.ndarray | Sequence[Sequence[float]],
    clusters: Sequence | None = None,
) -> SamplingParts:
    """Split the variance of a paired difference of outcomes [items, samples] into problems and sampling.

    A problem's difference is that of its two means; the differences, clustered if asked, give the standard error as in
    `paired_difference`. The sampling part of its square is (s2_after / k_after + s2_before / k_before) / items, with s2
    the mean over problems of the variance of the samples of one problem (one-way random effects, Searle, Casella &
    McCulloch 1992, ch. 3; Miller 2024, section 3). The rest is `floor` squared, at least 0.

    Raises: ParameterError: as `paired_difference`, or fewer than two samples of a side (one cannot be split).
    """
    tables = [np.asarray(side, dtype=float) for side in (after, before)]
    for name, table in zip(("after", "before"), tables, strict=True):
        if table.ndim != 2 or table.shape[1] < 2:
            wanted = "outcomes [items, samples] with at least two samples"
            raise ParameterError(f"sampling variance needs {wanted}; {name} has shape {list(table.shape)}")
    averages = [table.mean(axis=1) for table in tables]
    found = paired_difference(*averages, clusters)
    within = [float(table.var(axis=1, ddof=1).mean()) for table in tables]
    samples = (tables[0].shape[1], tables[1].shape[1])
    sampled = sum(part / k for part, k in zip(within, samples, strict=True)) / found.n
    floor = math.sqrt(max(0.0, found.standard_error**2 - sampled))
    count = int(checked(averages[0], clusters)[1].max()) + 1
    return SamplingParts(found.value, found.standard_error, floor, sum(within), found.n, count, samples)


def needed(
    parts: SamplingParts, *, gain: float, margin: float = 0.0, level: float = LEVEL, power: float = POWER
) -> Needed:
    """How many samples a side, or else how many problems, show a true gain of `gain` against "gain <= `margin`".

    Raises: ParameterError: a gain not above the margin, a level or power out of range, or a spread that is not known.
    """
    if not parts.standard_error > 0:
        raise ParameterError("what is needed cannot be planned from one cluster, or from differences all equal")
    if not gain > margin:
        raise ParameterError(f"a gain of {gain} is not above the margin {margin}: no number of items shows it")
    freedom = parts.clusters - 1
    largest = (gain - margin) / _noncentrality(freedom, level, power)  # the largest standard error that will do
    room = largest**2 - parts.floor**2
    samples = max(1, math.ceil(parts.sampling / parts.items / room - 1e-9)) if room > 0 else None
    plan = (parts.items, parts.clusters, gain, margin, level, power)
    at_floor = _items(parts.floor, *plan) if parts.floor > 0 else 1
    return Needed(samples, _items(parts.standard_error, *plan), at_floor)


def _items(error: float, n: int, count: int, gain: float, margin: float, level: float, power: float) -> int:
    """The fewest items with enough power, from a standard error `error` found on `n` items in `count` clusters."""
    _check_level_and_power(level, power)
    if not gain > margin:
        raise ParameterError(f"a gain of {gain} is not above the margin {margin}: no number of items shows it")

    def enough(items: int) -> bool:
        freedom = items * count / n - 1
        if freedom < 1:
            return False
        scaled = error * math.sqrt(n / items)
        return minimum_detectable_gain(scaled, freedom, level=level, power=power, margin=margin) <= gain

    return _smallest(enough)


def _smallest(enough: Callable[[int], bool]) -> int:
    """The smallest whole number for which `enough`, which stays true once it is, holds."""
    high = 2
    while not enough(high):
        high *= 2
        if high > MOST_ITEMS:
            raise ParameterError(
                f"more than {MOST_ITEMS:.0e} items would be needed: the gain is too close to the margin"
            )
    low = high // 2
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _noncentrality(freedom: float, level: float, power: float) -> float:
    """The gain over the margin, in standard errors, that the one-sided test shows with probability `power`."""
    _check_level_and_power(level, power)
    if not freedom > 0:
        raise ParameterError(f"degrees of freedom are above 0, found {freedom}: one cluster shows nothing")
    known = float(stats.norm.isf(level) + stats.norm.ppf(power))
    if freedom > 1e5:  # where t and normal agree to five digits and the noncentral t is slow
        return known
    critical = stats.t.isf(level, freedom)
    # With few degrees of freedom it is far above the normal's: the bracket grows until it holds the answer.
    high = max(2 * known, 1.0)
    while stats.nct.sf(critical, freedom, high) < power:
        high *= 2
    return float(optimize.brentq(lambda d: stats.nct.sf(critical, freedom, d) - power, 0.0, high, xtol=1e-10))


def _connor(discordance: float, gain: float, level: float, power: float) -> float:
    """The numerator of Connor's formula."""
    spread = max(0.0, discordance - gain**2)
    return float(stats.norm.isf(level) * math.sqrt(discordance) + stats.norm.ppf(power) * math.sqrt(spread))


def _check_level_and_power(level: float, power: float) -> None:
    if not 0 < level < 0.5:
        raise ParameterError(f"the level of a one-sided test lies between 0 and 0.5, found {level}")
    if not level < power < 1:
        raise ParameterError(f"a power lies between the level, {level}, and 1; found {power}")


def _check_discordance(n: int, discordance: float, gain: float) -> None:
    if n < 1:
        raise ParameterError(f"a comparison needs at least one item, found {n}")
    if not 0 <= discordance <= 1:
        raise ParameterError(f"discordance is a share of the items, 0 to 1, found {discordance}")
    if not abs(gain) <= discordance:
        raise ParameterError(f"a gain of {gain} is beyond the discordance {discordance}: the models differ on no more")
