"""Scores of other models, quoted from their sources, and where scores of ours stand among them.

A set of reference scores belongs to one protocol. LLaMA-7B has 25.1 on MMLU in one and 35.1 in another: what differs is
the prompt. So a score is placed among those of its own protocol, or not at all.
"""

import functools
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, field_validator, model_validator

from llamax.config import Config
from llamax.errors import GateError
from llamax.versions.ladder import Rung, ladder

Unit = Literal["percent", "fraction"]
PER_UNIT = {"percent": 1.0, "fraction": 100.0}
"""Points in one unit of a score."""


class Scores(Config):
    """What one model scored under one protocol: title of a benchmark -> score in `unit`; `settings`: how each was run.

    A file of such scores is YAML with these names.
    """

    model: str
    protocol: str
    scores: dict[str, float] = Field(min_length=1)
    unit: Unit = "percent"
    settings: dict[str, str] = Field(default_factory=dict)
    source: str = ""

    @field_validator("scores", mode="before")
    @classmethod
    def _are_numbers(cls, value: Any) -> Any:
        for title, score in value.items() if isinstance(value, dict) else ():
            if isinstance(score, bool):
                raise ValueError(f"{title} should be a number; YAML reads yes and no as true and false")
        return value

    @model_validator(mode="after")
    def _are_scores(self) -> Self:
        top = 100 / PER_UNIT[self.unit]
        for title, score in self.scores.items():
            if not 0 <= score <= top:
                raise ValueError(f"{title} = {score}: a score in {self.unit} lies from 0 to {top:g}")
        return self


class ReferenceSet(Config):
    """Scores of several models under one protocol, quoted: row (a model) -> column (a benchmark) -> score in `unit`.

    `baselines`: baseline of the ladder -> row. `seen`: how the figures were read. `unverified`: row -> columns of which
    nobody has looked at the original.
    """

    name: str
    protocol: str
    unit: Unit
    source: str
    seen: str
    settings: dict[str, str] = Field(default_factory=dict)
    baselines: dict[str, str] = Field(default_factory=dict)
    scores: dict[str, dict[str, float]]
    unverified: dict[str, tuple[str, ...]] = Field(default_factory=dict)

    def quote(self, row: str, column: str) -> str:
        """A figure as it is shown: in quotation marks, and marked where it is unverified."""
        value = self.scores[row][column]
        figure = f"\u201c{value:.1f}\u201d" if value == round(value, 1) else f"\u201c{value:g}\u201d"
        return f"{figure} (unverified)" if column in self.unverified.get(row, ()) else figure


class Step(Config):
    """Where scores stand to one rung, in points: `mean` of the model, `target` it needs; `met` whether it has it.

    `unverified`: some of the figures behind the target are.
    """

    version: str
    requirement: str
    target: float
    mean: float
    met: bool
    unverified: bool


class Position(Config):
    """Where scores stand on the ladder. `left`: the share of the gap between 3.5.0's baseline and GPT-4 that is left.

    Averages only: others' outcomes per item are not at hand, so nothing here is a test.
    """

    model: str
    protocol: str
    references: str
    benchmarks: tuple[str, ...]
    mean: float
    left: float
    steps: tuple[Step, ...]

    def reached(self) -> str | None:
        """The highest rung whose target is met, with all below it."""
        found = None
        for step in self.steps:
            if not step.met:
                break
            found = step.version
        return found


@functools.cache
def references() -> tuple[ReferenceSet, ...]:
    """The sets that ship with the package."""
    values = yaml.safe_load((Path(__file__).parent / "references.yaml").read_text())
    return tuple(ReferenceSet.parse(one, "references.yaml") for one in values)


def reference_set(name: str, sets: tuple[ReferenceSet, ...] | None = None) -> ReferenceSet:
    """The set called `name`. Raises: GateError: there is none."""
    sets = sets or references()
    found = next((one for one in sets if one.name == name), None)
    if found is None:
        raise GateError(f"no reference scores called {name!r}: there are {', '.join(one.name for one in sets)}")
    return found


def read_file(path: Path, model: type[Config], what: str) -> Any:
    """A YAML or JSON file as a `model`. Raises: GateError: not there, or not YAML. ParameterError: a field is wrong."""
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise GateError(f"{path}: no {what}: {reason}") from None
    if not isinstance(values, dict):
        raise GateError(f"{path}: {what} should be a mapping of {', '.join(model.model_fields)}")
    return model.parse(values, str(path))


def matching(scores: Scores, sets: tuple[ReferenceSet, ...] | None = None) -> ReferenceSet | None:
    """The set of the protocol of `scores` that has the ladder's baselines, if there is one."""
    return next((one for one in sets or references() if one.baselines and one.protocol == scores.protocol), None)


def place(scores: Scores, among: ReferenceSet) -> Position:
    """Where `scores` stand on the ladder by the baselines of `among`, on all Type-A benchmarks.

    Raises: GateError: two protocols, another setting of a benchmark, or a benchmark that one of them lacks.
    """
    check_protocol(scores, among)
    titles = tuple(benchmark.title for benchmark in ladder().benchmarks["A"])
    if missing := [title for title in titles if title not in scores.scores]:
        raise GateError(f"{scores.model}: no score for {', '.join(missing)}: the average is over all of Type A")
    mean = PER_UNIT[scores.unit] * sum(scores.scores[title] for title in titles) / len(titles)
    steps = []
    for rung in ladder().rungs:
        target = target_of(rung, among)
        met = mean > target if rung.aim == "outperform" else mean >= target
        told = {
            "version": rung.version,
            "requirement": rung.requirement(),
            "unverified": _unverified(rung, among, titles),
        }
        steps.append(Step(**told, target=target, mean=mean, met=met))
    start, end = _ends(among)
    return Position(
        model=scores.model,
        protocol=scores.protocol,
        references=among.name,
        benchmarks=titles,
        mean=mean,
        left=(end - mean) / (end - start),
        steps=tuple(steps),
    )


def check_protocol(scores: Scores, among: ReferenceSet) -> None:
    """Raises: GateError: the two are not of one protocol, or a benchmark was run differently."""
    if scores.protocol != among.protocol:
        raise GateError(
            f"{scores.model} was measured under protocol {scores.protocol!r}, the scores of {among.name} under "
            f"{among.protocol!r}: scores of two protocols are never placed side by side"
        )
    for title, setting in scores.settings.items():
        if setting != (known := among.settings.get(title)):
            raise GateError(f"{title}: {scores.model} was run with {setting!r}, {among.name} with {known!r}")


def target_of(rung: Rung, among: ReferenceSet) -> float:
    """The mean of the Type-A benchmarks, in points, that a rung asks for under the protocol of `among`.

    For a share s of the gap: mean(GPT-4) - s * (mean(GPT-4) - mean(3.5.0's baseline)).
    """
    if rung.gap is None:
        return baseline_mean(among, rung.baseline)
    start, end = _ends(among)
    return end - rung.gap * (end - start)


def baseline_mean(among: ReferenceSet, baseline: str) -> float:
    """Mean of a baseline's Type-A scores, in points. Raises: GateError: the set lacks it, or one of its scores."""
    titles = [benchmark.title for benchmark in ladder().benchmarks["A"]]
    row = among.scores.get(among.baselines.get(baseline, ""), {})
    if missing := [title for title in titles if title not in row]:
        raise GateError(f"reference scores {among.name} have no {', '.join(missing)} of {baseline}")
    return PER_UNIT[among.unit] * sum(row[title] for title in titles) / len(titles)


def _ends(among: ReferenceSet) -> tuple[float, float]:
    """Means of what the gap lies between: the baseline of the last rung without a share, and that of the last."""
    rungs = ladder().rungs
    start = [rung for rung in rungs if rung.gap is None][-1]
    return baseline_mean(among, start.baseline), baseline_mean(among, rungs[-1].baseline)


def _unverified(rung: Rung, among: ReferenceSet, titles: tuple[str, ...]) -> bool:
    row = among.baselines[rung.baseline]
    return any(title in among.unverified.get(row, ()) for title in titles)
