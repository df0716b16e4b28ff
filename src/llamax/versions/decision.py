"""What the gate decides by: paired gains per benchmark, three answers, and what an open question still needs.

A benchmark *passes* when its measured gain is more than one point and "the true gain is at most 0" is refused by a
one-sided, paired, clustered t test at 5%. It is *ruled out* when "the true gain is at least one point" is refused.

- **accept**: every required benchmark passes. The claim is "better on all of them", its opposite "not better on some":
  an intersection-union test (Berger 1982, Technometrics 24). A candidate that is no better on one benchmark is
  accepted with a chance of at most 5%, however many benchmarks there are: no correction is needed.
- **reject**: at least one benchmark is ruled out. Here one of k benchmarks is enough, so each is tested at 5% / k
  (Bonferroni): a candidate that gains a point everywhere is rejected with a chance of at most 5%.
- **undecided**: neither. What is missing is information, and each open benchmark says how much.

Items that leaked into training data: the test is made on all items and on the clean ones, and both must pass. On all
items, because which are dropped must not decide; on the clean ones, because a gain on leaked items is memory.

A gain that is looked at again after more items were asked has had two chances: the verdict keeps what came before.
"""

import functools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy import stats

from llamax.config import Config
from llamax.errors import GateError
from llamax.statistics import (
    SamplingParts,
    minimum_detectable_gain,
    needed,
    one_sided_p,
    paired_difference,
    sampling_parts,
)
from llamax.versions.ladder import Benchmark, Rule
from llamax.versions.measured import Measured
from llamax.versions.sides import Outcomes, Side, read_outcomes

Answer = Literal["accept", "reject", "undecided"]
NEAREST = 0.1
"""Points: a gain nearer than this to the requirement is planned for as if it were this far."""


class Comparison(Config):
    """Candidate against current on one set of items; everything but the p-values and counts is in points.

    `p_gain`: of "the true gain is at most 0". `p_requirement`: of the stronger "at most one point". `p_below`: of "at
    least one point". `low`, `high`: 95% interval. `detectable`: the true gain that the test of `p_gain` shows with 80%
    power. `passes_at`: the true gain with which the benchmark passes, more than a point included, with 80%.
    """

    items: int
    clusters: int
    candidate: float
    current: float
    gain: float
    standard_error: float
    low: float
    high: float
    p_gain: float
    p_requirement: float
    p_below: float
    detectable: float
    passes_at: float


class Needs(Config):
    """What an open benchmark still needs.

    `items`: in all, `more`: of them beyond those asked. `exist`: whether the benchmark has so many. `samples`: answers
    per problem that would do on the same problems, where that is possible.
    """

    items: int
    more: int
    exist: bool
    samples: int | None = None
    words: str


class Evidence(Config):
    """One benchmark: how both sides ran it, the comparison on all items, and on the clean ones where some leaked."""

    benchmark: str
    title: str
    candidate: Measured
    current: Measured
    full: Comparison
    clean: Comparison | None = None
    contaminated: int = 0
    passes: bool
    ruled_out: bool
    needs: Needs | None = None

    def sets(self) -> list[Comparison]:
        """The comparisons that must all hold."""
        return [self.full, *([self.clean] if self.clean else [])]


def decide(benchmarks: Sequence[Evidence]) -> Answer:
    """The answer that follows from the benchmarks."""
    if all(one.passes for one in benchmarks):
        return "accept"
    return "reject" if any(one.ruled_out for one in benchmarks) else "undecided"


def passes(comparison: Comparison, rule: Rule) -> bool:
    """Whether a gain is large enough and significant."""
    return comparison.gain > rule.gain and comparison.p_gain < rule.level


def ruled_out(comparison: Comparison, rule: Rule, looks: int) -> bool:
    """Whether a gain is significantly below the requirement, as one of `looks` comparisons."""
    return comparison.p_below < rule.level / looks


def weigh(candidate: Side, current: Side, required: Sequence[Benchmark], rule: Rule) -> tuple[Evidence, ...]:
    """The evidence on each required benchmark. Raises: GateError: clusters that differ, or too few of them."""
    pairs = [(read_outcomes(candidate, one.name), read_outcomes(current, one.name)) for one in required]
    leaks = [after.contaminated | before.contaminated for after, before in pairs]
    looks = sum(2 if leaked.any() else 1 for leaked in leaks)
    found = []
    for one, (after, before), leaked in zip(required, pairs, leaks, strict=True):
        check_clusters(one.name, after, before)
        said = (candidate.measured[one.name], current.measured[one.name])
        found.append(_evidence(one, said, after, before, leaked, rule, looks))
    return tuple(found)


def check_clusters(name: str, after: Outcomes, before: Outcomes) -> None:
    """Raises: GateError: an item belongs to different clusters on the two sides."""
    differ = np.flatnonzero(after.clusters != before.clusters)
    if len(differ):
        at = differ[0]
        clusters = f"candidate {str(after.clusters[at])!r}, current {str(before.clusters[at])!r}"
        raise GateError(f"{name}: clusters of item {after.items[at]!r} differ: {clusters}")


def _evidence(
    one: Benchmark,
    said: tuple[Measured, Measured],
    after: Outcomes,
    before: Outcomes,
    leaked: np.ndarray,
    rule: Rule,
    looks: int,
) -> Evidence:
    """Compare on all items and on the clean ones; say what is needed where that decides nothing."""
    everything = np.ones(len(leaked), dtype=bool)
    chosen = [everything, ~leaked] if leaked.any() else [everything]
    sets = [compare(one.name, after, before, keep, rule) for keep in chosen]
    held = [passes(comparison, rule) for comparison in sets]
    out = any(ruled_out(comparison, rule, looks) for comparison in sets)
    open_one = held.index(False) if False in held and not out else None
    needs = None if open_one is None else plan(said, after, before, chosen[open_one], sets[open_one], rule, looks)
    return Evidence(
        benchmark=one.name,
        title=one.title,
        candidate=said[0],
        current=said[1],
        full=sets[0],
        clean=sets[1] if leaked.any() else None,
        contaminated=int(leaked.sum()),
        passes=all(held),
        ruled_out=out,
        needs=needs,
    )


def compare(name: str, after: Outcomes, before: Outcomes, keep: np.ndarray, rule: Rule) -> Comparison:
    """Compare the means over samples of the items `keep` [items]. Raises: GateError: fewer than two clusters."""
    new, old, clusters = after.table[keep].mean(axis=1), before.table[keep].mean(axis=1), after.clusters[keep]
    count = len(np.unique(clusters))
    if not len(new):
        raise GateError(f"{name}: all {len(keep)} items leaked into training data: no clean one is left to decide by")
    if count < 2:
        raise GateError(f"{name}: {len(new)} items in one cluster: no spread can be known from fewer than two")
    found = paired_difference(new, old, clusters)
    margin = rule.gain / 100
    error = planning_error(found.standard_error, found.n, margin)
    detectable = error * errors_shown(count - 1, rule.level, rule.power)
    return Comparison(
        items=found.n,
        clusters=count,
        candidate=100 * float(new.mean()),
        current=100 * float(old.mean()),
        gain=100 * found.value,
        standard_error=100 * found.standard_error,
        low=100 * found.low,
        high=100 * found.high,
        p_gain=one_sided_p(new, old, clusters),
        p_requirement=one_sided_p(new, old, clusters, margin=margin),
        p_below=p_at_least(found.value, found.standard_error, found.n, count - 1, margin),
        detectable=100 * detectable,
        passes_at=100 * max(detectable, margin + float(stats.norm.ppf(rule.power)) * error),
    )


@functools.cache
def errors_shown(freedom: int, level: float, power: float) -> float:
    """How many standard errors a true gain has to measure for the test of "gain <= 0" to show it with this power."""
    return minimum_detectable_gain(1.0, freedom, level=level, power=power)


def p_at_least(value: float, error: float, items: int, freedom: int, margin: float) -> float:
    """The p of "the true gain is at least `margin`", by a t test with a wider standard error.

    To error^2 comes margin * (1 - margin) / items: what a gain of `margin` without a single loss would add by itself.
    Two models that differ on none of 164 items show a spread of 0, but a true gain of one point does the same to 164
    items in one of five cases. On thousands of items the term vanishes.
    """
    return float(stats.t.sf((margin - value) / wide_error(error, items, margin), freedom))


def wide_error(error: float, items: int, margin: float) -> float:
    """The standard error of `p_at_least`."""
    return math.sqrt(error**2 + margin * (1 - margin) / items)


def planning_error(error: float, items: int, margin: float) -> float:
    """The standard error to plan with: at least that of a gain of `margin` without a loss."""
    return max(error, math.sqrt(margin * (1 - margin) / items))


def plan(
    said: tuple[Measured, Measured],
    after: Outcomes,
    before: Outcomes,
    keep: np.ndarray,
    found: Comparison,
    rule: Rule,
    looks: int,
) -> Needs:
    """What a benchmark that neither passes nor is ruled out still needs.

    Items are planned for the requirement, not for the gain that happened to be measured: as many as tell one point from
    none with 80% power. A benchmark that has these and still is open lies close to the requirement; then it is the
    distance to it that has to be shown.
    """
    able = found.detectable <= rule.gain
    distance = max(abs(rule.gain - found.gain), NEAREST) if able else rule.gain
    error, margin = found.standard_error / 100, rule.gain / 100
    error = wide_error(error, found.items, margin) if able else planning_error(error, found.items, margin)
    wanted = {"gain": distance / 100, "level": rule.level / looks if able else rule.level, "power": rule.power}
    asked, total = said[0].items, said[0].total
    more = _more(found, error, wanted, asked)
    goal = f"tell {found.gain:.2f} from {rule.gain:g} point" if able else f"show a gain of {rule.gain:g} point"
    words = f"to {goal}, {more:,} more items are needed"
    if found.gain > rule.gain:
        lucky = _more(found, error, wanted | {"gain": found.gain / 100}, asked)
        words += f" ({lucky:,} if its true gain is the measured {found.gain:.1f})"
    if more <= total - asked:
        return Needs(items=asked + more, more=more, exist=True, words=words)
    samples, help_ = sampling(said, after.table[keep], before.table[keep], after.clusters[keep], found, wanted)
    left = f"only {total - asked:,} are left" if total > asked else "the benchmark has no more"
    words += f", but {left}. The {found.items:,} that were asked show gains from {found.detectable:.1f} points on"
    return Needs(items=asked + more, more=more, exist=False, samples=samples, words=f"{words}. {help_}".rstrip(". "))


def _more(found: Comparison, error: float, wanted: dict[str, float], asked: int) -> int:
    """Items beyond the `asked` that show the `wanted` gain, when `error` is today's standard error.

    Of all items asked only those in `found` count, the clean ones say; of new items the same share will.
    """
    spread = SamplingParts(found.gain, error, error, 0.0, found.items, found.clusters, (1, 1))
    return max(1, math.ceil(needed(spread, **wanted).items * asked / found.items) - asked)


def sampling(
    said: tuple[Measured, Measured],
    new: np.ndarray,
    old: np.ndarray,
    clusters: np.ndarray,
    found: Comparison,
    wanted: dict[str, float],
) -> tuple[int | None, str]:
    """How many answers per problem would do instead of more items, and in words how far they help."""
    if said[0].max_new_tokens is None:  # choices by likelihood: nothing is sampled
        return None, ""
    if min(new.shape[1], old.shape[1]) < 2 or found.standard_error == 0:
        return None, "More samples per problem would help as far as sampling blurs the gain, which these do not tell"
    parts = sampling_parts(new, old, clusters)
    limit = 100 * parts.floor * errors_shown(found.clusters - 1, wanted["level"], wanted["power"])
    k = needed(parts, **wanted).samples
    if k is None:
        return None, f"More samples per problem would not do: even endless ones show gains from {limit:.1f} points on"
    return k, f"Or ask {k:,} samples per problem instead of {min(parts.samples)}"
