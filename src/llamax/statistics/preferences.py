"""Which answer do people prefer: win rates, the sign test with ties, Bradley-Terry strengths, position bias.

A comparison's outcome is 1 when the first of two systems was preferred, 0 when the second was, 0.5 for a tie.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats
from scipy.sparse import csgraph

from llamax.errors import DataError, ParameterError
from llamax.statistics.estimates import Difference, Estimate, checked, mean, t_interval, wilson

CHUNK = 4_000_000  # weights of resampled comparisons held at once, 32 MB
FAINT_PRIOR = 0.01
STEPS = 200


class Strength(NamedTuple):
    """A system's strength in log odds, of which all systems' sum is 0, with its standard error and interval."""

    name: str
    value: float
    standard_error: float
    low: float
    high: float


class Ranking(NamedTuple):
    """Strengths, strongest first, from `n` comparisons.

    `tie` is Davidson's nu: two equally strong systems tie with odds nu / 2; 0 where nobody ever did.
    `draws` [resamples, systems]: the resampled strengths, columns in the order of `strengths`.
    """

    strengths: list[Strength]
    tie: float
    n: int
    draws: np.ndarray

    def probabilities(self, one: str, other: str) -> tuple[float, float, float]:
        """How often `one` wins, ties with and loses to `other`."""
        names = [strength.name for strength in self.strengths]
        half = (self.strengths[names.index(one)].value - self.strengths[names.index(other)].value) / 2
        weights = np.array([math.exp(half), self.tie, math.exp(-half)])
        win, tie, lose = (weights / weights.sum()).tolist()
        return win, tie, lose

    def confidence(self, one: str, other: str) -> float:
        """Share of the resamples in which `one` is stronger than `other`."""
        names = [strength.name for strength in self.strengths]
        away = self.draws[:, names.index(one)] - self.draws[:, names.index(other)]
        return float(np.mean(away > 0) + np.mean(away == 0) / 2)


def sign_test(
    wins: int, losses: int, ties: int = 0, *, treat: Literal["drop", "half", "keep"] = "drop", one_sided: bool = False
) -> float:
    """Exact p of "both systems are preferred equally often"; one-sided against "wins are no more frequent".

    `drop`: among those who had a preference, as many on each side: binomial, ties tell nothing (Dixon & Mood 1946).
    `half`: half of the ties to each side, an odd one to the side that is behind, then binomial: many ties make the
    systems more alike. `keep`: the trinomial test of wins minus losses, the probability of a tie as observed (Bian,
    McAleer & Wong 2011).

    Counts are taken as independent: give each prompt one vote, such as its raters' majority. The answer is then for
    these raters; `win_rate` is about others too.

    Raises: ParameterError: a negative count, or another treatment.
    """
    if min(wins, losses, ties) < 0:
        raise ParameterError(f"counts cannot be negative, found {wins} wins, {losses} losses, {ties} ties")
    if treat not in ("drop", "half", "keep"):
        raise ParameterError(f"ties are treated as drop, half or keep, found {treat!r}")
    if treat == "keep":
        tail = _trinomial_tail(wins - losses if one_sided else abs(wins - losses), wins + losses + ties, ties)
        return float(min(1.0, tail if one_sided else 2 * tail))
    shared = ties if treat == "half" else 0
    low, high = sorted((wins, losses))
    low, high = low + shared - shared // 2, high + shared // 2
    n = low + high
    if not one_sided:
        return float(min(1.0, 2 * stats.binom.cdf(min(low, high), n, 0.5)))
    ahead = high if wins > losses else low
    return float(stats.binom.sf(ahead - 1, n, 0.5))


def _trinomial_tail(away: int, n: int, ties: int) -> float:
    """P(wins - losses >= away) when both are as likely and each of `n` comparisons ties with probability ties/n."""
    if n == 0:
        return 1.0
    decisive = np.arange(n + 1)
    tails = stats.binom.sf(np.ceil((decisive + away) / 2) - 1, decisive, 0.5)
    return float(np.sum(stats.binom.pmf(decisive, n, 1 - ties / n) * tails))


def win_rate(
    outcomes: Sequence[float], prompts: Sequence | None = None, raters: Sequence | None = None, level: float = 0.95
) -> Difference:
    """Mean of `outcomes` [comparisons], ties half a win, with an interval that counts prompts and raters alike.

    With both: the variance by prompt + by rater - by their pairs (Cameron, Gelbach & Miller 2011) and the degrees of
    freedom of `crossed_variance`. With one of them: as `mean`. A single rater, or a single prompt, says nothing of
    others: standard error, interval and p are then NaN; leave `raters` out for an interval that speaks of that rater
    only. `p_value` is against 0.5, two-sided.

    Raises: ParameterError: as `mean`, or an outcome other than 0, 0.5 and 1.
    """
    values = _preferences(outcomes)
    error, freedom = _spread(values, [checked(values, names)[1] for names in (prompts, raters) if names is not None])
    share = float(values.mean())
    low, high, p_value = t_interval(share - 0.5, error, freedom, level)
    if not math.isnan(low):
        low, high = max(0.0, low + 0.5), min(1.0, high + 0.5)
    return Difference(share, error, low, high, len(values), p_value)


def crossed_variance(parts: Sequence, clusters: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Variance of a mean over crossed prompts and raters, and its degrees of freedom.

    `parts`: variances of the mean (numbers or arrays) by prompt, by rater and by pairs of both; `clusters`: how many
    there are of each. Dependence within a prompt or a rater only adds to the variance, so a part by prompt or by rater
    that comes out below that by pairs does so by chance and counts as equal to it. Degrees of freedom are
    Satterthwaite's (1946) of the sum, not fewer than the scarcer factor has alone.

    By simulation (2 to 10 raters, 40 to 500 prompts, ties or none, some prompts with one rater, uneven shares) 95%
    intervals cover 92.5% or more where votes of one rater correlate by at most 0.02, and 90% or more up to 0.3.
    Without the floor two raters who agree by luck look sure (87%); the scarcer factor's degrees of freedom alone make
    intervals of two raters up to three times as wide; those by prompt alone cover down to 44%, and 11% up to 0.3.
    """
    by_prompt, by_rater, alone = (np.asarray(part, dtype=float) for part in parts)
    terms = [np.maximum(by_prompt, alone), np.maximum(by_rater, alone), alone]
    variance = terms[0] + terms[1] - alone
    spread = sum(term**2 / (count - 1) for term, count in zip(terms, clusters, strict=True))
    low, high = sorted(clusters[:2])
    # Where all outcomes are alike both are 0.
    return variance, np.clip(variance**2 / np.maximum(spread, np.finfo(float).tiny), low - 1, high - 1)


def _spread(values: np.ndarray, codes: list[np.ndarray]) -> tuple[float, float]:
    """Standard error of the mean and its degrees of freedom, given no, one or two groupings of the comparisons."""
    if len(codes) < 2:
        groups = codes[0] if codes else np.arange(len(values))
        return mean(values, groups).standard_error, int(groups.max())
    if min(group.max() for group in codes) == 0:
        return math.nan, math.nan
    pairs = codes[0] * (codes[1].max() + 1) + codes[1]
    parts, clusters = zip(*(_part(values - values.mean(), group) for group in (*codes, pairs)), strict=True)
    variance, freedom = crossed_variance(parts, clusters)
    return math.sqrt(variance), float(freedom)


def _part(residuals: np.ndarray, codes: np.ndarray) -> tuple[float, float]:
    """Cluster-robust variance of the mean, and the effective number of clusters, (sum of sizes)^2 / sum of sizes^2.

    Clusters of one size count fully. Of uneven ones the big ones decide, and their number alone promises too much
    (Kish 1965; Carter, Schnepel & Steigerwald 2017).
    """
    sizes, n = np.bincount(codes), len(codes)
    clusters = n**2 / float(np.sum(sizes**2))
    return clusters / (clusters - 1) * float(np.sum(np.bincount(codes, residuals) ** 2)) / n**2, clusters


def position_bias(
    outcomes: Sequence[float], prompts: Sequence | None = None, raters: Sequence | None = None, level: float = 0.95
) -> Estimate:
    """How often the first place, the left one, wins among comparisons that are no tie; 0.5 where places do not matter.

    `outcomes` [comparisons] is 1 where the left answer was preferred. The interval of `win_rate`; Wilson's without
    prompts and raters, and where one side always won. Sides must have been drawn at random.

    Raises: ParameterError: an outcome other than 0, 0.5 and 1, or nothing but ties.
    """
    values = _preferences(outcomes)
    decisive = values != 0.5
    if not decisive.any():
        raise ParameterError(f"all {len(values)} comparisons are ties: they tell nothing of the places")
    kept = values[decisive]
    if (prompts is None and raters is None) or len(set(kept)) == 1:
        return wilson(int(kept.sum()), len(kept), level)
    groups = [None if names is None else checked(values, names)[1][decisive] for names in (prompts, raters)]
    return Estimate(*win_rate(kept, *groups, level)[:5])


def bradley_terry(
    first: Sequence[str],
    second: Sequence[str],
    outcomes: Sequence[float],
    prompts: Sequence | None = None,
    raters: Sequence | None = None,
    *,
    prior: float = 0.0,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Ranking:
    """Strengths of systems from comparisons [comparisons], ties by Davidson's model (1970), by maximum likelihood.

    P(i beats j) : P(tie) : P(j beats i) = e^i : nu * e^((i+j)/2) : e^j, which without ties is Bradley & Terry's (1952).
    Intervals are percentiles of a bootstrap over whole prompts and whole raters: a comparison counts as often as its
    prompt times its rater was drawn (pigeonhole bootstrap, Owen 2007: a little too wide rather than too narrow).
    `prior` > 0 adds -prior/2 * strength^2 to the log likelihood, and the same for log nu. Resamples always have at
    least 0.01 of it, because in some of them a system may never lose.

    Raises: ParameterError: lists of different lengths, a system against itself, another outcome; DataError: systems
        that no chain of comparisons links, or, without a prior, one that never loses or never wins.
    """
    values, names, pairs = _comparisons(first, second, outcomes)
    if prior < 0 or resamples < 1:
        raise ParameterError(f"wants a prior from 0 and at least one resample, found {prior} and {resamples}")
    table = _tally(np.ones((1, len(values))), pairs, values, len(names))
    _check_connected(table[0], names, prior)
    fitted = _davidson(table, prior)[0]
    rng, draws = np.random.default_rng(seed), []
    clusters = [checked(values, group)[1] for group in (prompts, raters) if group is not None]
    for start in range(0, resamples, step := max(1, CHUNK // len(values))):
        weights = _pigeonhole(clusters or [np.arange(len(values))], min(step, resamples - start), rng)
        draws.append(_davidson(_tally(weights, pairs, values, len(names)), max(prior, FAINT_PRIOR))[:, :-1])
    drawn = np.concatenate(draws)
    order = sorted(range(len(names)), key=lambda i: (-fitted[i], names[i]))
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    spread = drawn.std(axis=0, ddof=1) if resamples > 1 else np.full(len(names), np.nan)
    columns = [array.tolist() for array in (fitted[:-1], spread, low, high)]
    strengths = [Strength(names[i], *(column[i] for column in columns)) for i in order]
    tie = math.exp(fitted[-1]) if (values == 0.5).any() else 0.0
    return Ranking(strengths, tie, len(values), drawn[:, order])


def _preferences(outcomes: Sequence[float]) -> np.ndarray:
    """Outcomes [comparisons], each 0, 0.5 or 1."""
    values = checked(outcomes, None)[0]
    strange = ~np.isin(values, [0.0, 0.5, 1.0])
    if strange.any():
        where = int(np.argmax(strange))
        raise ParameterError(f"comparison {where}: outcome {values[where]:g}, should be 0, 0.5 or 1")
    return values


def _comparisons(
    first: Sequence[str], second: Sequence[str], outcomes: Sequence[float]
) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Outcomes [comparisons], the systems' names, and who was compared [comparisons, 2]."""
    values = _preferences(outcomes)
    if not len(first) == len(second) == len(values):
        raise ParameterError(f"{len(first)} first, {len(second)} second, {len(values)} outcomes: give one of each")
    same = [n for n, (one, other) in enumerate(zip(first, second, strict=True)) if one == other]
    if same:
        raise ParameterError(f"comparison {same[0]}: {first[same[0]]!r} is compared with itself")
    names = sorted({*first, *second})
    number = {name: n for n, name in enumerate(names)}
    return values, names, np.array([[number[name] for name in side] for side in (first, second)]).T


def _tally(weights: np.ndarray, pairs: np.ndarray, values: np.ndarray, systems: int) -> np.ndarray:
    """Weighted counts [resamples, 2, systems, systems] from weights [resamples, comparisons].

    [:, 0, i, j]: how often i beat j; [:, 1, i, j] and [:, 1, j, i]: half of their ties each.
    """
    tables = np.zeros((len(weights), 2, systems, systems))
    for i, j in np.unique(pairs, axis=0):
        here = (pairs == (i, j)).all(axis=1)
        tables[:, 0, i, j] += weights[:, here & (values == 1)].sum(axis=1)
        tables[:, 0, j, i] += weights[:, here & (values == 0)].sum(axis=1)
        ties = weights[:, here & (values == 0.5)].sum(axis=1) / 2
        tables[:, 1, i, j] += ties
        tables[:, 1, j, i] += ties
    return tables


def _pigeonhole(clusters: list[np.ndarray], resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Weights [resamples, comparisons]: the product of how often each of a comparison's clusters was drawn."""
    weights = np.ones((resamples, len(clusters[0])))
    for codes in clusters:
        count = int(codes.max()) + 1
        weights *= rng.multinomial(count, np.full(count, 1 / count), size=resamples)[:, codes]
    return weights


def _davidson(tables: np.ndarray, prior: float) -> np.ndarray:
    """Maximum-likelihood strengths, sum 0, and log nu: [resamples, systems + 1], by Newton's method.

    The likelihood is concave, so that steps of bounded length lead to the only maximum. Without a tie log nu is left at
    minus infinity.
    """
    resamples, _, systems, _ = tables.shape
    wins, ties = tables[:, 0], tables[:, 1]
    n = wins + ties + (wins + ties).swapaxes(1, 2)  # comparisons of each pair
    tied = ties.any()
    found = np.zeros((resamples, systems + 1))
    found[:, -1] = 0.0 if tied else -np.inf
    for _ in range(STEPS):
        gradient, curvature = _slope(found, wins, ties, n, prior, tied)
        step = np.linalg.solve(curvature, gradient[..., None])[..., 0]
        step /= np.maximum(1, np.abs(step).max(axis=1, keepdims=True) / 2)
        found[:, :systems] += step[:, :systems]
        if tied:
            found[:, -1] += step[:, -1]
        if np.abs(step).max() < 1e-10:
            break
    found[:, :systems] -= found[:, :systems].mean(axis=1, keepdims=True)
    return found


def _slope(
    found: np.ndarray, wins: np.ndarray, ties: np.ndarray, n: np.ndarray, prior: float, tied: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Gradient [resamples, systems + 1] and minus the Hessian of the penalised log likelihood."""
    systems = wins.shape[1]
    half = (found[:, :systems, None] - found[:, None, :systems]) / 2
    nu = np.exp(found[:, -1])[:, None, None]
    total = np.exp(half) + nu + np.exp(-half)
    win, tie = np.exp(half) / total, nu / total
    score = win + tie / 2  # expected wins of the row, ties half
    spread = n * (win + tie / 4 - score**2)
    with_nu = (n * tie * (0.5 - score)).sum(axis=2)
    gradient = np.zeros_like(found)
    gradient[:, :systems] = (wins + ties - n * score).sum(axis=2) - prior * found[:, :systems]
    curvature = np.zeros((len(found), systems + 1, systems + 1))
    # The 1 everywhere fixes the sum, which the data leave free: the gradient never points there.
    curvature[:, :systems, :systems] = np.eye(systems) * (spread.sum(axis=2)[:, None] + prior) - spread + 1
    if tied:
        gradient[:, -1] = ties.sum(axis=(1, 2)) - (n * tie).sum(axis=(1, 2)) / 2 - prior * found[:, -1]
        curvature[:, -1, :systems] = curvature[:, :systems, -1] = with_nu
        curvature[:, -1, -1] = (n * tie * (1 - tie)).sum(axis=(1, 2)) / 2 + prior
    else:
        curvature[:, -1, -1] = 1
    return gradient, curvature


def _check_connected(table: np.ndarray, names: list[str], prior: float) -> None:
    """Raise `DataError` where strengths are not determined (Ford 1957), given counts [2, systems, systems]."""
    beaten = table.sum(axis=0) > 0  # row has beaten or tied with column
    parts, part = csgraph.connected_components(beaten, directed=False)
    if parts > 1:
        few = [name for name, p in zip(names, part, strict=True) if p == np.argmin(np.bincount(part))]
        raise DataError(f"{', '.join(few)}: no chain of comparisons links them to the other systems")
    if prior > 0:
        return
    if not table[0].any():
        raise DataError("every comparison is a tie: strengths cannot be told; give a prior, such as 0.1")
    parts, part = csgraph.connected_components(beaten, connection="strong")
    ends = []
    for inside in (part == number for number in range(parts if parts > 1 else 0)):
        ends += [(int(inside.sum()), "lost to", inside)] if not beaten[~inside][:, inside].any() else []
        ends += [(int(inside.sum()), "won against", inside)] if not beaten[inside][:, ~inside].any() else []
    if ends:
        _, did, inside = min(ends, key=lambda end: end[:2])
        group = ", ".join(name for name, here in zip(names, inside, strict=True) if here)
        why = f"never {did} or tied with another system, so that the strength is infinite"
        raise DataError(f"{group}: {why}; compare more, or give a prior, such as 0.1")
