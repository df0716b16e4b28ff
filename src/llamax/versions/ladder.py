"""The ladder: what each version is measured by, and how far the programme has come, read off the verdicts."""

import functools
import re
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, field_validator

from llamax.config import Config
from llamax.errors import GateError

Kind = Literal["A", "B", "nano"]
PART = r"(0|[1-9][0-9]*)"
VERSION = re.compile(rf"{PART}\.{PART}\.{PART}")  # one way to write each: versions are compared as strings too


class Rule(Config):
    """The numbers of the check-in rule; see `ladder.yaml`. `gain` is in points, the rest are shares."""

    gain: float
    level: float
    power: float
    human: float
    raters: int


class Benchmark(Config):
    """`name` is what evaluation runs call it, `title` what reference scores call it."""

    name: str
    title: str


class Rung(Config):
    """A version that is measured by another model, `baseline`.

    `gap`: the share of the average gap between 3.5.0's baseline and GPT-4 that may be left.
    """

    version: str
    title: str = ""
    baseline: str
    aim: Literal["outperform", "comparable", "gap"]
    gap: float | None = None

    def requirement(self) -> str:
        """What the rung asks for, in words."""
        if self.gap is None:
            verb = "better than" if self.aim == "outperform" else "as good as"
            return f"on average {verb} {self.baseline}"
        left = (
            f"{self.gap:.0%} of the average gap to {self.baseline} left" if self.gap else f"no gap to {self.baseline}"
        )
        return f"{left}{', at most' if self.gap else ''}"


class Ladder(Config):
    """`ladder.yaml`, read."""

    rule: Rule
    type_b_from: str
    benchmarks: dict[Kind, tuple[Benchmark, ...]]
    rungs: tuple[Rung, ...] = Field(min_length=1)

    @field_validator("rungs")
    @classmethod
    def _upwards(cls, rungs: tuple[Rung, ...]) -> tuple[Rung, ...]:
        numbers = [number(rung.version) for rung in rungs]
        if numbers != sorted(set(numbers)):
            raise ValueError("rungs should be in the order of their versions, each once")
        return rungs

    @property
    def base(self) -> str:
        """The version that is given: LLaMA."""
        return self.rungs[0].version

    def rung(self, version: str) -> Rung | None:
        """The rung of this version, if it is one."""
        return next((rung for rung in self.rungs if rung.version == version), None)

    def reached(self, version: str) -> Rung | None:
        """The highest rung that a candidate for `version` has to be on: a version between two is measured by the lower
        one. None below the first after LLaMA."""
        return next((rung for rung in reversed(self.rungs[1:]) if number(rung.version) <= number(version)), None)

    def required(self, version: str | None) -> tuple[Benchmark, ...]:
        """The benchmarks on all of which a candidate for `version` has to be better: Type A, and B from 3.6.0 on."""
        later = version is not None and number(version) >= number(self.type_b_from)
        return self.benchmarks["A"] + (self.benchmarks["B"] if later else ())

    def check(self, version: str) -> str:
        """`version`, if a candidate can have it. Raises: GateError: no version number, or outside of the ladder."""
        first, last = self.rungs[0].version, self.rungs[-1].version
        if not number(first) < number(version) <= number(last):
            raise GateError(
                f"version {version}: a candidate's lies above {first}, which is given, and is {last} at most"
            )
        return version


def number(version: str) -> tuple[int, int, int]:
    """A version as numbers that sort. Raises: GateError: it is not three numbers with dots."""
    found = VERSION.fullmatch(version)
    if not found:
        raise GateError(f"version {version!r}: write three numbers, such as 3.0.1")
    major, minor, patch = map(int, found.groups())
    return major, minor, patch


@functools.cache
def ladder() -> Ladder:
    """The ladder of this checkout."""
    return Ladder.parse(yaml.safe_load((Path(__file__).parent / "ladder.yaml").read_text()), "ladder.yaml")
