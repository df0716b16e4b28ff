"""What the votes say: win rates that count prompts and raters, not votes; agreement; position bias; a ranking.

A vote scores 1 for the candidate, 0 for the other, 1/2 for a tie; "both bad" is a tie that is also counted apart. New
prompts *and* new raters are meant: the interval covers both, and beside it stands the narrower one that holds for these
raters only. A single rater has only the latter. The statistics are those of `llamax.statistics`.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from llamax.config import Config
from llamax.errors import DataError, ParameterError
from llamax.evaluation.human.plan import counted, read_plan
from llamax.evaluation.human.store import Sheet, read_sheets
from llamax.files import locate, write_atomic
from llamax.statistics import wilson
from llamax.statistics.agreement import krippendorff_alpha
from llamax.statistics.estimates import Difference
from llamax.statistics.preferences import bradley_terry, position_bias, sign_test, win_rate

FILE = "analysis.json"
COLUMNS = ["rater", "prompt", "left", "right", "choice"]
SCORES = {"left": 1.0, "right": 0.0, "tie": 0.5, "both_bad": 0.5}
WEAK_PRIOR = 0.1  # of the strengths, where a model never lost


class Interval(Config):
    """A figure with its 95% interval; `n` of what it was counted over."""

    value: float
    low: float | None
    high: float | None
    n: int


class Comparison(Config):
    """One pair of models: how often the first is preferred, ties half.

    `low` and `high` bound it, 95%, for new prompts and new raters; `these_raters`: for new prompts only. `p_value`:
    against 1/2, one- or two-sided as planned. All three are None with a single rater or prompt. `sign_test_p` counts
    each prompt once, by the majority of its votes: like `these_raters` it says nothing of other people.
    """

    candidate: str
    current: str
    win_rate: float
    low: float | None
    high: float | None
    p_value: float | None
    these_raters: Interval
    prompts: int
    raters: int
    votes: int
    wins: int
    losses: int
    ties: int
    both_bad: int
    prompts_won: int
    prompts_lost: int
    sign_test_p: float


class Strength(Config):
    """A model's Bradley-Terry strength in log odds; all of them sum to 0."""

    model: str
    strength: Interval


class Analysis(Config):
    """What `analysis.json` holds: the plan's first pair in front, which the gate reads, and everything beside it."""

    version: int = 1
    plan: str
    candidate: str
    current: str
    win_rate: float
    low: float | None
    high: float | None
    p_value: float | None
    sides: int
    prompts: int
    raters: int
    votes: int
    votes_planned: int
    votes_missing: int = 0
    comparisons: tuple[Comparison, ...]
    agreement: Interval | None
    left_share: Interval | None
    ranking: tuple[Strength, ...] = ()
    ranking_prior: float = 0.0


def analyse(folder: Path | str) -> Analysis:
    """The analysis of a study. Raises: DataError: no votes on the plan's first pair, or a damaged file, by its line."""
    folder = locate(folder)
    plan = read_plan(folder)
    sheets = read_sheets(folder, plan)
    votes, each = votes_of(sheets), plan.design.raters_per_prompt
    found = analyse_votes(votes, plan.names, plan.design.sides, plan.digest)
    pair = [frozenset(names) for names in zip(votes.left, votes.right, strict=True)]
    had = votes.groupby([votes.prompt, pd.Series(pair, votes.index)]).size().clip(upper=each).sum()
    planned = each * len(plan.prompts) * len(plan.pairs)
    return found.model_copy(update={"votes_planned": planned, "votes_missing": planned - int(had)})


def votes_of(sheets: Sequence[Sheet]) -> pd.DataFrame:
    """One row per item that was voted on, the last vote on it: COLUMNS."""
    rows = [(s.rater, v.prompt, v.left, v.right, v.choice) for s in sheets for _, v in sorted(s.votes.items())]
    return pd.DataFrame(rows, columns=COLUMNS)


def analyse_votes(votes: pd.DataFrame, models: Sequence[str], sides: int, plan: str = "") -> Analysis:
    """The analysis of votes (COLUMNS) on pairs of `models`, of which the first two are candidate and current.

    Raises: DataError: no vote on the first two.
    """
    order = {name: place for place, name in enumerate(models)}
    turned = votes.left.map(order) > votes.right.map(order)
    score = votes.choice.map(SCORES)
    votes = votes.assign(
        one=votes.left.where(~turned, votes.right), other=votes.right.where(~turned, votes.left),
        score=score.where(~turned, 1 - score),
    )  # fmt: skip
    pairs = [(a, b) for a in models for b in models if order[a] < order[b]]
    grouped = {(a, b): votes[(votes.one == a) & (votes.other == b)] for a, b in pairs}
    if not len(grouped[pairs[0]]):
        raise DataError(f"no vote yet on {pairs[0][0]!r} against {pairs[0][1]!r}, which the plan puts first")
    comparisons = tuple(compare(group, *pair, sides) for pair, group in grouped.items() if len(group))
    ranking, prior = _ranking(votes) if len(models) > 2 else ((), 0.0)
    first = comparisons[0]
    return Analysis(
        plan=plan, candidate=first.candidate, current=first.current, win_rate=first.win_rate, low=first.low,
        high=first.high, p_value=first.p_value, sides=sides, prompts=first.prompts, raters=first.raters,
        votes=len(votes), votes_planned=len(votes), comparisons=comparisons, agreement=_agreement(votes),
        left_share=_left_share(votes), ranking=ranking, ranking_prior=prior,
    )  # fmt: skip


def compare(votes: pd.DataFrame, candidate: str, current: str, sides: int) -> Comparison:
    """One pair, from its votes with `score` 1 for the candidate."""
    score, raters = votes.score.to_numpy(), votes.rater.nunique()
    majority = np.sign(votes.score.sub(0.5).groupby(votes.prompt).sum())
    won, lost = int((majority > 0).sum()), int((majority < 0).sum())
    sign_p = sign_test(won, lost, len(majority) - won - lost, one_sided=sides == 1)
    found, here = (_alike(win_rate(score, *by), len(majority)) for by in ((votes.prompt, votes.rater), (votes.prompt,)))
    value, low, high, p_value = found.value, found.low, found.high, found.p_value
    if found.standard_error == 0:
        p_value = sign_p
    elif sides == 1:
        p_value = p_value / 2 if value > 0.5 else 1 - p_value / 2
    return Comparison(
        candidate=candidate, current=current, win_rate=value, low=_known(low), high=_known(high),
        p_value=_known(p_value),
        these_raters=Interval(value=here.value, low=_known(here.low), high=_known(here.high), n=len(majority)),
        prompts=len(majority), raters=raters, votes=len(votes), wins=int((score == 1).sum()),
        losses=int((score == 0).sum()), ties=int((votes.choice == "tie").sum()),
        both_bad=int((votes.choice == "both_bad").sum()), prompts_won=won, prompts_lost=lost, sign_test_p=sign_p,
    )  # fmt: skip


def _alike(found: Difference, prompts: int) -> Difference:
    """`found`, with Wilson's interval where all votes are alike: a t sees no spread, and three wins are no proof."""
    if found.standard_error != 0:
        return found
    exact = wilson(int(found.value * prompts), prompts)
    return found._replace(low=min(exact.low, found.value), high=max(exact.high, found.value))


def _known(figure: float) -> float | None:
    return None if np.isnan(figure) else float(figure)


def _agreement(votes: pd.DataFrame) -> Interval | None:
    """Krippendorff's alpha, ordinal (loss, tie, win), over pairs of answers that several raters judged, if any."""
    units = votes.prompt + "\n" + votes.one + "\n" + votes.other
    table = votes.assign(unit=units).pivot_table(index="rater", columns="unit", values="score", aggfunc="last")
    try:
        alpha = krippendorff_alpha(table.to_numpy(), "ordinal")
    except DataError:  # nothing was judged twice, or all votes are alike
        return None
    return Interval(value=alpha.value, low=alpha.low, high=alpha.high, n=alpha.n)


def _left_share(votes: pd.DataFrame) -> Interval | None:
    """How often the left answer won where one did; sides were drawn, so 1/2 unless places matter.

    A single rater's is of that rater, by vote.
    """
    left = votes.choice.map(SCORES)
    try:
        several = min(votes.prompt.nunique(), votes.rater.nunique()) > 1
        share = position_bias(left, votes.prompt, votes.rater) if several else position_bias(left)
    except ParameterError:  # nothing but ties
        return None
    return Interval(value=share.value, low=_known(share.low), high=_known(share.high), n=int((left != 0.5).sum()))


def _ranking(votes: pd.DataFrame) -> tuple[tuple[Strength, ...], float]:
    """Bradley-Terry strengths, strongest first, and the prior that they took: one where a model never lost."""
    lists = votes.one.tolist(), votes.other.tolist(), votes.score.tolist(), votes.prompt.tolist(), votes.rater.tolist()
    prior = 0.0
    try:
        found = bradley_terry(*lists)
    except DataError:
        prior = WEAK_PRIOR
        try:
            found = bradley_terry(*lists, prior=prior)
        except DataError:  # models that no chain of votes links yet
            return (), 0.0
    judged = votes.one.value_counts().add(votes.other.value_counts(), fill_value=0)
    interval = lambda s: Interval(value=s.value, low=s.low, high=s.high, n=int(judged[s.name]))  # noqa: E731
    return tuple(Strength(model=s.name, strength=interval(s)) for s in found.strengths), prior


def write(folder: Path | str, analysis: Analysis) -> Path:
    """Write `analysis.json` into the study's folder, complete or not at all."""
    return write_atomic(locate(folder) / FILE, analysis.model_dump_json(indent=1) + "\n")


def report(found: Analysis) -> str:
    """The analysis as text."""
    lines = [line for pair in found.comparisons for line in _pair_lines(pair, found.sides)]
    if found.votes_missing:
        lines.append(
            f"not complete: {found.votes_missing} of {found.votes_planned} planned votes are missing; a p-value that "
            "is looked at before the end, to stop when it suits, is too small"
        )
    if found.ranking:
        lines.append("strengths (Bradley-Terry, log odds)" + (", with a weak prior:" if found.ranking_prior else ":"))
        lines += [f"  {one.model}: {one.strength.value:+.2f} {_span(one.strength, '+.2f')}" for one in found.ranking]
    if found.agreement:
        lines.append(
            f"agreement: Krippendorff's alpha {found.agreement.value:.2f} {_span(found.agreement, '.2f')} over "
            f"{found.agreement.n} pairs of answers that several raters judged"
        )
    if share := found.left_share:
        clear = share.low is not None and not share.low <= 0.5 <= share.high
        lines.append(
            f"position: the left answer won {share.value:.1%} {_span(share, '.1%')} of {share.n} decided votes"
            + (": raters lean to one side; sides were balanced, so no model gained by it" if clear else "")
        )
    return "\n".join(lines)


def _pair_lines(pair: Comparison, sides: int) -> list[str]:
    """A pair of models in three lines."""
    both = Interval(value=pair.win_rate, low=pair.low, high=pair.high, n=pair.votes)
    sure = f"{_span(both, '.1%')}, p = {pair.p_value:.3g} ({sides}-sided)" if pair.p_value is not None else "[unknown]"
    if pair.raters == 1:
        sure = "by one rater: what other people prefer is unknown, so no interval and no p"
    people = "this rater" if pair.raters == 1 else "these raters"
    level = pair.prompts - pair.prompts_won - pair.prompts_lost
    return [
        f"{pair.candidate} against {pair.current}: win rate {pair.win_rate:.1%} {sure}; "
        f"{pair.votes} votes on {pair.prompts} prompts by {counted(pair.raters, 'rater')}",
        f"  {pair.wins} wins, {pair.losses} losses, {pair.ties} ties, {pair.both_bad} both bad (ties count half); "
        f"for {people} alone {_span(pair.these_raters, '.1%')}",
        f"  by prompt, for {people} alone: {pair.prompts_won} won, {pair.prompts_lost} lost, {level} level; "
        f"sign test p = {pair.sign_test_p:.3g}",
    ]


def _span(figure: Interval, form: str) -> str:
    return "[unknown]" if figure.low is None else f"[{figure.low:{form}}, {figure.high:{form}}]"
