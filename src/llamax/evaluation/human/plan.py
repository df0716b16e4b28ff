"""How many prompts and raters a study needs, and the sealed plan that the page and the analysis keep to.

One vote scores 1 when the candidate wins, 0 when it loses, 1/2 for a tie; the win rate w is the mean score. With a
share t of ties a vote's variance is w - t/4 - w^2. Votes on one prompt, and votes of one rater, resemble each other:
with k raters per prompt and m votes per rater the variance of the mean over n votes is multiplied by the design effect

    1 + (k - 1) rho_prompt + (m - 1) rho_rater

(Kish 1965, ch. 5, for two crossed groupings). The analysis tests w by a t that is as sure as the raters are many and
agree (`statistics.preferences.crossed_variance`), so a handful of raters costs power here as it does there, by the same
rule; a simulation in the tests holds the two together. The defaults for t and the two correlations are what the 1,150
blind votes of Wang et al. (2023, the Tulu study) show: 33% ties, 0.25 within a prompt, 0.00 to 0.02 within a rater.
"""

import itertools
import json
import math
import os
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from pydantic import Field, PositiveInt, model_validator
from scipy import optimize, stats

from llamax.config import Config, Parameters
from llamax.errors import DataError, ParameterError
from llamax.evaluation.human.answers import Answers, read_answers
from llamax.evaluation.human.prompts import Prompt, prompts_hash, read_prompts
from llamax.files import locate, sha256_file, sha256_json, write_atomic
from llamax.statistics.preferences import crossed_variance

FILE = "plan.json"
RATERS = "raters"
MOST_PROMPTS = 2**20  # beyond it nobody rates
QUANTILES = 200
GATE_LEVEL = 0.05  # of a 95% interval


class Design(Parameters):
    """What the study should be able to show, and what is assumed about votes."""

    win_rate: float = Field(0.55, gt=0.5, lt=1, description="to be told from 1/2")
    power: float = Field(0.8, gt=0, lt=1)
    level: float = Field(0.05, gt=0, lt=0.5)
    sides: Literal[1, 2] = Field(1, description="1: is the candidate better; 2: do they differ")
    ties: float = Field(0.33, ge=0, lt=1, description="share of votes for neither")
    raters_per_prompt: PositiveInt = 2
    prompt_correlation: float = Field(0.25, ge=0, le=1, description="of two votes on one prompt")
    rater_correlation: float = Field(0.01, ge=0, lt=1, description="of two votes of one rater")
    votes_per_rater: PositiveInt = Field(100, description="how many a person is asked for; used where `raters` is not")
    raters: PositiveInt | None = Field(None, description="how many people there are")

    @model_validator(mode="after")
    def _can_be(self) -> Self:
        if self.ties >= 2 * (1 - self.win_rate):
            raise ValueError(
                f"ties = {self.ties}: a win rate of {self.win_rate} leaves room for less than "
                f"{2 * (1 - self.win_rate):.2f}"
            )
        if self.raters is not None and self.raters < self.raters_per_prompt:
            raise ValueError(f"raters = {self.raters}: fewer than raters_per_prompt = {self.raters_per_prompt}")
        return self


class Size(NamedTuple):
    """A study's size: votes are per pair of models, prompts are shared by all pairs."""

    prompts: int
    raters: int
    votes: int


class Model(Config):
    """One model of the study: its name, and its answers."""

    name: str = Field(min_length=1)
    answers: str = Field(description="file, relative to the study's folder")
    sha256: str


class Plan(Config):
    """What `plan.json` holds. The first model is the candidate, the second the current one."""

    version: Literal[1] = 1
    seed: int
    models: tuple[Model, ...] = Field(min_length=2)
    source: str = Field(description="of the prompts, as `read_prompts` knows it")
    turns: PositiveInt
    prompts: tuple[str, ...] = Field(description="ids, in the order in which raters share them out")
    prompts_sha256: str
    design: Design
    needed: int | None = Field(description="prompts that have the power asked for; None where no number has it")
    raters: PositiveInt
    digest: str = Field("", description="sha256 of all the rest")

    def sealed(self) -> Self:
        """The same with the digest that belongs to it."""
        return self.model_copy(update={"digest": sha256_json(self.model_dump(mode="json", exclude={"digest"}))})

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(model.name for model in self.models)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        return list(itertools.combinations(self.names, 2))


class Study(NamedTuple):
    """A plan and what it refers to, found to be what it was when the plan was made."""

    folder: Path
    plan: Plan
    prompts: dict[str, Prompt]
    answers: dict[str, Answers]  # by the model's name


def variance(win_rate: float, ties: float) -> float:
    """Variance of one vote's score, of 1, 1/2 or 0."""
    return win_rate - ties / 4 - win_rate**2


def power(design: Design, prompts: int, raters: int, win_rate: float | None = None) -> float:
    """Power to tell `win_rate` (the design's, if None) from 1/2 with `prompts` prompts and `raters` raters.

    The mean over what the raters' spread may come out as, which with few of them decides how wide the interval is: a
    share of a mean square's variation, beta distributed. The prompts' spread is taken as known. The test is that of
    `statistics.win_rate`. One rater cannot be told from the models' merit: the power is 0. Simulated studies of 10 to
    20 prompts that show very unequal models have up to 0.09 less power than this says, those of 30 about 0.02 less.
    """
    d, w = design, design.win_rate if win_rate is None else win_rate
    votes = prompts * d.raters_per_prompt
    raters = min(raters, votes)
    if min(prompts, raters) < 2:
        return 0.0
    by_prompt = 1 + (d.raters_per_prompt - 1) * d.prompt_correlation
    by_rater = 1 + (votes / raters - 1) * d.rater_correlation
    seen = by_rater * _mean_squares(raters, votes)
    spread, freedom = crossed_variance((by_prompt, seen, 1.0), (prompts, raters, votes))
    alone = math.sqrt(variance(w, min(d.ties, 2 * (1 - w))) / votes)
    if alone == 0:
        return 1.0
    least = stats.t.isf(d.level / d.sides, freedom) * np.sqrt(spread)
    return float(np.mean(stats.norm.sf((least - (w - 0.5) / alone) / math.sqrt(by_prompt + by_rater - 1))))


def _mean_squares(groups: int, n: int) -> np.ndarray:
    """Quantiles [QUANTILES] of the mean square between `groups` groups of `n` unrelated values, over that of all."""
    if groups == n:
        return np.ones(1)
    shares = stats.beta.ppf((np.arange(QUANTILES) + 0.5) / QUANTILES, (groups - 1) / 2, (n - groups) / 2)
    return shares * (n - 1) / (groups - 1)


def needed(design: Design, models: int = 2) -> Size:
    """The smallest study of `models` models that shows `design.win_rate` in any one pair with the power asked for.

    Raises: ParameterError: so few raters that no number of prompts would do.
    """
    enough = lambda prompts: power(design, prompts, _raters(design, prompts, models)) >= design.power  # noqa: E731
    most = 2
    while not enough(most):
        most *= 2
        if most > MOST_PROMPTS:
            raise ParameterError(_too_few_raters(design))
    least = most // 2
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (least, middle) if enough(middle) else (middle, most)
    return Size(most, _raters(design, most, models), most * design.raters_per_prompt)


def _raters(design: Design, prompts: int, models: int) -> int:
    """How many raters share the prompts: those that there are, or as many as keep to `votes_per_rater` each."""
    if design.raters is not None:
        return design.raters
    votes = prompts * design.raters_per_prompt * models * (models - 1) // 2
    return max(2, design.raters_per_prompt, math.ceil(votes / design.votes_per_rater))


def _too_few_raters(design: Design) -> str:
    """Why no number of prompts will do, and how many raters would."""
    few = design.raters or design.raters_per_prompt
    doing = (n for n in range(few, 10_000) if power(design, MOST_PROMPTS, n) >= design.power)
    alike = f"votes of one rater resemble each other (rater_correlation = {design.rater_correlation})"
    why = alike if few > 1 else "one rater says nothing of what other people prefer"
    least = next(doing, 10_000)
    return f"parameter 'raters' = {few}: no number of prompts will do, since {why}; it takes at least {least} raters"


def detectable(design: Design, prompts: int, raters: int) -> float | None:
    """The smallest win rate that a study of this size shows with the design's power; None where none is."""
    short = lambda w: power(design, prompts, raters, w) - design.power  # noqa: E731
    top = 1 - 1e-6
    return float(optimize.brentq(short, 0.5 + 1e-6, top)) if short(top) > 0 else None


def make_plan(
    folder: Path | str,
    answers: Sequence[tuple[str, Path | str]],
    *,
    source: str = "nano",
    turns: int = 1,
    limit: int | None = None,
    design: Design | None = None,
    seed: int = 0,
) -> Study:
    """Draw the prompts, check that every model answered them all, and write the sealed `plan.json`.

    answers: (name, file) of each model; the first is the candidate, the second the current one.
    Raises: DataError: a file without an answer to a drawn prompt, one model twice, or a study that has votes.
    """
    design, folder = design or Design(), locate(folder)
    if folder.is_file():
        raise DataError(f"{folder}: is a file; name a folder for the study")
    if voted := sorted((folder / RATERS).glob("*.jsonl")):
        raise DataError(
            f"{folder}: {counted(len(voted), 'rater')} voted by the plan that is there; choose another folder"
        )
    _check_models(answers)
    pool = read_prompts(source, turns=turns, limit=limit)
    enough = _enough(design, len(answers))
    wanted = enough or design.raters * design.votes_per_rater // (design.raters_per_prompt * math.comb(len(answers), 2))
    drawn = random.Random(f"{seed}/prompts").sample(pool, min(max(wanted, 1), len(pool)))
    found = {name: read_answers(file, drawn) for name, file in answers}
    _check_contents(answers, found)
    models = tuple(
        Model(name=name, answers=os.path.relpath(locate(file), folder), sha256=sha256_file(locate(file)))
        for name, file in answers
    )
    plan = Plan(
        seed=seed, models=models, source=source, turns=turns, prompts=tuple(prompt.id for prompt in drawn),
        prompts_sha256=prompts_hash(drawn), design=design, needed=enough, 
        raters=_raters(design, len(drawn), len(models)),
    ).sealed()  # fmt: skip
    write_atomic(folder / FILE, plan.model_dump_json(indent=1) + "\n")
    return Study(folder, plan, {prompt.id: prompt for prompt in drawn}, found)


def _enough(design: Design, models: int) -> int | None:
    """Prompts that a study needs, or None where its raters are too few: it can be run, and says what it can show."""
    try:
        return needed(design, models).prompts
    except ParameterError:
        if design.raters is None:
            raise
        return None


def _check_models(answers: Sequence[tuple[str, Path | str]]) -> None:
    """Raise `DataError` unless there are two models or more, all different."""
    if len(answers) < 2:
        raise DataError(f"a comparison needs the answers of two models, found {len(answers)}")
    names: set[str] = set()
    for name, file in answers:
        if not name.strip():
            raise DataError(f"{file}: answers of a model without a name; write NAME=FILE")
        if not locate(file).is_file():
            raise DataError(f"{file}: no such file of answers (of {name!r})")
        if name.casefold() in names:
            raise DataError(f"model {name!r} is given twice; a comparison needs different models")
        names.add(name.casefold())


def _check_contents(answers: Sequence[tuple[str, Path | str]], found: dict[str, Answers]) -> None:
    """Raise `DataError` where two models say the same to every prompt, however their files are written."""
    for (name, file), (other, _) in itertools.combinations(reversed(answers), 2):
        if found[name] == found[other]:
            same = f"are the same to all {len(found[name])} prompts"
            raise DataError(f"{file}: the answers of {name!r} and of {other!r} {same}; give two models")


def read_plan(folder: Path | str) -> Plan:
    """The plan of a study. Raises: DataError: there is none, or it was edited since it was made."""
    path = locate(folder) / FILE
    if not path.is_file():
        raise DataError(f"{path}: no plan there; make one with `llamax human-eval plan`")
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({str(error).splitlines()[0]}); make the plan again") from None
    try:
        plan = Plan.parse(values, str(path))
    except ParameterError as error:
        raise DataError(str(error)) from None
    if plan.digest != plan.sealed().digest:
        raise DataError(f"{path}: was edited after it was made; restore it, or make a new plan in another folder")
    return plan


def read_study(folder: Path | str) -> Study:
    """A plan with its prompts and answers. Raises: DataError: as `read_plan`, or they are not what they were."""
    folder = locate(folder)
    plan = read_plan(folder)
    by_id = {prompt.id: prompt for prompt in read_prompts(plan.source, turns=plan.turns)}
    if gone := [name for name in plan.prompts if name not in by_id]:
        raise DataError(f"{folder / FILE}: prompt {gone[0]!r} is no longer in {plan.source}; make a new plan")
    prompts = [by_id[name] for name in plan.prompts]
    if prompts_hash(prompts) != plan.prompts_sha256:
        raise DataError(f"{folder / FILE}: the prompts of {plan.source} are not those of the plan; restore them")
    for model in plan.models:
        file = folder / model.answers
        if not file.is_file():
            raise DataError(f"{file}: no such file; the plan compares the answers of {model.name!r} in it")
        if sha256_file(file) != model.sha256:
            raise DataError(f"{file}: not the answers of {model.name!r} that the plan was made with; restore them")
    answers = {model.name: read_answers(folder / model.answers, prompts) for model in plan.models}
    return Study(folder, plan, {prompt.id: prompt for prompt in prompts}, answers)


def counted(n: int, what: str) -> str:
    """`1 rater`, `2 raters`."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def describe(design: Design, models: int = 2) -> list[str]:
    """What a study by `design` needs, in lines of text."""
    size, d = needed(design, models), design
    return [
        *_asked(d),
        f"  {size.prompts} prompts x {counted(d.raters_per_prompt, 'rater')} each = {size.votes} votes"
        + (" per pair of models" if models > 2 else "")
        + f", by {size.raters} raters",
        *_for_the_gate(d, size.prompts, size.raters),
    ]


def _asked(d: Design) -> list[str]:
    """What the study should show, and what is assumed, in lines of text."""
    return [
        f"to show a win rate of {d.win_rate:.1%} with power {d.power:.0%} at the {d.sides}-sided {d.level:.0%} level,",
        f"assuming {d.ties:.0%} ties and correlations of {d.prompt_correlation} within a prompt and "
        f"{d.rater_correlation} within a rater:",
    ]


def _for_the_gate(design: Design, prompts: int, raters: int) -> list[str]:
    """The power for what the gate asks of a human evaluation, where the design is about something easier."""
    strict = design.model_copy(update={"sides": 2, "level": GATE_LEVEL})
    if design.sides == 2 and design.level <= GATE_LEVEL:
        return []
    shown = power(strict, prompts, raters)
    hint = "" if shown >= design.power else "; plan for it by --sides 2 --level 0.05"
    return [f"  the gate wants the 95% interval above 50%, for which the power is {shown:.0%}{hint}"]


def describe_plan(study: Study) -> list[str]:
    """What this plan does, what it can show, and what a reader should know before rating begins."""
    plan, d = study.plan, study.plan.design
    count, pairs = len(plan.prompts), len(plan.pairs)
    share = math.ceil(count * d.raters_per_prompt / plan.raters) * pairs
    lines = describe(d, len(plan.models)) if plan.needed else [*_asked(d), f"  {_too_few_raters(d)}"]
    lines.append(
        f"this plan: {count} prompts of {plan.source}, {counted(plan.raters, 'rater')}, about {share} votes from each"
    )
    if plan.needed is None or count < plan.needed:
        least = detectable(d, count, plan.raters)
        shown = f"the smallest win rate shown with {d.power:.0%} is {least:.1%}" if least else "nothing is shown"
        lines.append(f"  too few to show {d.win_rate:.1%}: the power is {power(d, count, plan.raters):.0%}; {shown}")
        lines += _for_the_gate(d, count, plan.raters)
    same = sum(study.answers[a][p] == study.answers[b][p] for a, b in plan.pairs for p in plan.prompts)
    if same:
        lines.append(f"  {same} of {count * pairs} pairs hold the same answer twice: sure ties")
    if named := _named(study):
        lines.append(f"  {named} answers hold the name of a model; the page shows […] in its place")
    return lines


def names_in(plan: Plan) -> re.Pattern:
    """Finds the models' names as words of a text, in upper or lower case."""
    names = sorted(plan.names, key=len, reverse=True)
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, names))})(?!\w)", re.IGNORECASE)


def _named(study: Study) -> int:
    """How many answers give a model away."""
    pattern = names_in(study.plan)
    return sum(any(map(pattern.search, texts)) for said in study.answers.values() for texts in said.values())
