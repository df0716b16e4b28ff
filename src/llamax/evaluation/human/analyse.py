"""What the votes say: win rates that count prompts and raters, not votes; agreement; position bias; a ranking.

A vote scores 1 for the candidate, 0 for the other, 1/2 for a tie; "both bad" is a tie that is also counted apart. New
prompts *and* new raters are meant: the interval covers both (`crossed_mean`), and beside it stands the narrower one
that holds for these raters only.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from llamax.config import Config
from llamax.evaluation.human.store import Sheet
from llamax.statistics import mean
from llamax.statistics.estimates import checked, t_interval

FILE = "analysis.json"
LEVEL = 0.95
COLUMNS = ["rater", "prompt", "left", "right", "choice"]


class Crossed(NamedTuple):
    """A mean with the interval for new prompts and new raters; `freedom` in degrees of a t distribution."""

    value: float
    standard_error: float
    low: float
    high: float
    freedom: float


class Comparison(Config):
    """One pair of models. `low` and `high` bound the win rate of `candidate`, 95%; `p_value` is against 1/2."""

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
    wins: int
    losses: int
    ties: int
    both_bad: int
    low_these_raters: float | None
    high_these_raters: float | None
    prompts_won: int
    prompts_lost: int
    sign_test_p: float


class Analysis(Config):
    """What `analysis.json` holds: the first pair of the plan in front, and everything beside it."""

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
    comparisons: tuple[Comparison, ...]
    alpha: float | None
    alpha_units: int
    left_share: float | None
    left_p: float | None
    decided: int
    strengths: dict[str, tuple[float, float, float]]


def crossed_mean(outcomes: Sequence[float], prompts: Sequence, raters: Sequence, level: float = LEVEL) -> Crossed:
    """Mean of `outcomes` [votes] with an interval for new prompts and new raters, whoever rated what.

    Variance after Cameron, Gelbach & Miller (2011): clustered by prompt, plus clustered by rater, minus by vote, and
    never below either of the first two. Degrees of freedom after Satterthwaite (1946), as in `statistics.combine`, of
    which this is the form for tables with holes: few raters that differ make the interval wide. With one rater there
    is nothing to say of others: the interval is for new prompts only.

    Raises: ParameterError: no vote, an outcome that is not finite, or lists of different lengths.
    """
    values, by_prompt = checked(outcomes, prompts)
    _, by_rater = checked(outcomes, raters)
    _, by_vote = checked(outcomes, [f"{p}/{r}" for p, r in zip(by_prompt, by_rater, strict=True)])
    away = values - values.mean()
    parts, freedom = zip(*(_clustered(away, codes) for codes in (by_prompt, by_rater, by_vote)), strict=True)
    if freedom[0] == 0 or freedom[1] == 0:
        found = mean(values, by_prompt, level)
        return Crossed(*found[:4], float(freedom[0]))
    variance = max(parts[0] + parts[1] - parts[2], parts[0], parts[1])
    degrees = np.array([freedom[0], freedom[1], freedom[0] * freedom[1]])
    spread = np.sum(np.square(parts) / degrees)
    df = float(np.clip(variance**2 / spread, 1, freedom[0])) if spread > 0 else float(freedom[0])
    low, high, _ = t_interval(values.mean(), np.sqrt(variance), df, level)
    return Crossed(float(values.mean()), float(np.sqrt(variance)), low, high, df)


def _clustered(away: np.ndarray, codes: np.ndarray) -> tuple[float, int]:
    """Variance of a mean whose residuals are `away`, by clusters, and its degrees of freedom."""
    sums = np.bincount(codes, away)
    count = len(sums)
    return (count / (count - 1) * float(np.sum(sums**2)) / len(away) ** 2 if count > 1 else 0.0), count - 1


def votes_of(sheets: Sequence[Sheet]) -> pd.DataFrame:
    """One row per item that was voted on, the last vote on it: COLUMNS."""
    rows = [(s.rater, v.prompt, v.left, v.right, v.choice) for s in sheets for _, v in sorted(s.votes.items())]
    return pd.DataFrame(rows, columns=COLUMNS)
