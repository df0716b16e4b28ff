"""The verdict: the record of one gating, with its evidence, in `results/versions/<version or name>/verdict.json`."""

import json
from pathlib import Path
from typing import Literal

from filelock import FileLock
from pydantic import ConfigDict, Field, ValidationError, model_validator

from llamax import files
from llamax.config import Config, explain
from llamax.errors import GateError, RunError
from llamax.runs import records
from llamax.runs.store import Store
from llamax.versions.decision import Answer, Evidence, decide, passes, ruled_out
from llamax.versions.ladder import Rule, number
from llamax.versions.references import Position

SCHEMA_VERSION = 1
NAME = "verdict.json"
State = Literal["rehearsal", "rejected", "undecided", "accepted", "eligible", "released"]


class Party(Config):
    """One side: `<direction>/<run>`, the model in it, and the hashes that pin both."""

    run: str
    model: str
    key: str
    items: str = Field(description="sha256 of items.parquet")
    model_hash: str | None = None

    @property
    def name(self) -> str:
        """`<direction>/<run>:<model>`: the model's own name says little, being the same in many runs."""
        return f"{self.run}:{self.model}"

    def same_model(self, other: "Party") -> bool:
        """Whether both are one model: by its hash where both have one, else by run and name."""
        if self.model_hash and other.model_hash:
            return self.model_hash == other.model_hash
        return (self.run, self.model) == (other.run, other.model)


class Human(Config):
    """A human evaluation's outcome, as `llamax human-eval analyse` writes it: `win_rate` of the candidate, ties counted
    half, with its 95% interval for new prompts and raters; None where that is unknown. `votes_planned`: as many as the
    study was planned for, of which `votes_missing` are not there; one that is cut short, or drawn out, until it looks
    good is no test.
    """

    model_config = ConfigDict(extra="ignore")  # the analysis says more than the gate needs

    candidate: str
    current: str
    win_rate: float = Field(ge=0, le=1)
    low: float | None
    high: float | None
    p_value: float | None
    prompts: int = Field(ge=1)
    raters: int = Field(ge=1)
    votes: int
    votes_planned: int
    votes_missing: int

    @model_validator(mode="after")
    def _ordered(self) -> "Human":
        if None not in (self.low, self.high) and not self.low <= self.win_rate <= self.high:
            raise ValueError(f"win_rate {self.win_rate} should lie in its interval, {self.low} to {self.high}")
        return self


class Attempt(Config):
    """An earlier verdict under the same name."""

    candidate: str
    current: str
    answer: Answer
    decided: str


class Verdict(Config):
    """What the gate said, and on what grounds.

    `missing`: what stands between an accepted version and its release. `earlier`: verdicts that this one replaced, of
    other candidates or other items: each was a chance of its own.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    name: str
    version: str | None
    rehearsal: bool
    candidate: Party
    current: Party
    rule: Rule
    statement: str
    benchmarks: tuple[Evidence, ...] = Field(min_length=1)
    answer: Answer
    missing: tuple[str, ...] = ()
    sentence: str
    human: Human | None = None
    position: Position | None = None
    earlier: tuple[Attempt, ...] = ()
    llamax: str
    commit: str | None = None
    dirty: bool | None = None
    decided: str

    @model_validator(mode="after")
    def _follows(self) -> "Verdict":
        looks = sum(len(one.sets()) for one in self.benchmarks)
        for one in self.benchmarks:
            passed = all(passes(found, self.rule) for found in one.sets())
            out = any(ruled_out(found, self.rule, looks) for found in one.sets())
            if (one.passes, one.ruled_out) != (passed, out):
                raise ValueError(f"{one.benchmark}: what is said of it does not follow from its figures")
        if self.answer != decide(self.benchmarks):
            raise ValueError(f"the answer {self.answer} does not follow from the benchmarks")
        if self.rehearsal and self.version:
            raise ValueError("a rehearsal is of no version")
        return self

    @property
    def state(self) -> State:
        """How the version stands by this verdict."""
        if self.rehearsal:
            return "rehearsal"
        if self.answer != "accept":
            return "rejected" if self.answer == "reject" else "undecided"
        if self.version is None:
            return "accepted"
        return "eligible" if self.missing else "released"


def folder(store: Store) -> Path:
    """Where verdicts are kept."""
    return store.root / "results" / "versions"


def write(verdict: Verdict, store: Store) -> Verdict:
    """Publish a verdict, atomically; one that was there under the same name is remembered among `earlier`.

    Raises: GateError: a released version would be replaced by one that is not, or by another candidate.
    """
    path = folder(store) / verdict.name / NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(store.root / "results" / ".lock"):
        old = read(path) if path.exists() else None
        if old and old.state == "released" and not (verdict.state == "released" and _same(old, verdict)):
            raise GateError(
                f"version {old.version} is released ({records.shown(path)}): a verdict does not take that back"
            )
        if old:
            verdict = verdict.model_copy(update={"earlier": _earlier(old, verdict)})
        values = verdict.model_dump(mode="json")
        text = json.dumps(values | {"seal": files.sha256_json(values)}, indent=1, sort_keys=True, allow_nan=False)
        files.write_atomic(path, text + "\n")
    return verdict


def read(path: Path) -> Verdict:
    """Read a verdict. Raises: GateError: damaged, edited, or saying what does not follow from its evidence."""
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError, OSError) as error:
        raise GateError(f"{records.shown(path)}: damaged verdict: {error}") from None
    version = values.get("schema_version") if isinstance(values, dict) else None
    if version != SCHEMA_VERSION:
        raise GateError(
            f"{records.shown(path)}: verdict of schema version {version!r}, this llamax reads {SCHEMA_VERSION}"
        )
    if values.pop("seal", None) != files.sha256_json(values):
        raise GateError(f"{records.shown(path)}: was edited after the gate wrote it: restore it from git, or delete it")
    try:
        verdict = Verdict.model_validate(values)
    except ValidationError as error:
        raise GateError(f"{records.shown(path)}: damaged verdict: {explain(error, Verdict)}") from None
    if verdict.name != path.parent.name:
        raise GateError(f"{records.shown(path)}: is the verdict of {verdict.name}, in another's folder")
    return verdict


def paths(store: Store) -> list[Path]:
    """Files of all verdicts."""
    return sorted(folder(store).glob(f"[!.]*/{NAME}"))


def verdicts(store: Store) -> list[Verdict]:
    """All verdicts, by version; those without one last, by name. Raises: GateError: one is damaged."""
    found = [read(path) for path in paths(store)]
    return sorted(found, key=lambda one: (one.version is None, number(one.version or "0.0.0"), one.name))


def released(store: Store) -> list[Verdict]:
    """Verdicts of released versions, upwards."""
    return [one for one in verdicts(store) if one.state == "released"]


def unsupported(verdict: Verdict, store: Store) -> str:
    """Why a verdict no longer stands on its records, which are gone or others now; empty if it does."""
    for party in (verdict.candidate, verdict.current):
        try:
            record = records.read(store.root / "results" / party.run / "result.json")
            store.file(record, "items.parquet")
        except FileNotFoundError:
            return f"results/{party.run} is gone"
        except RunError as error:
            return str(error)
        if (record.key, record.files["items.parquet"]) != (party.key, party.items):
            return f"results/{party.run} was computed again since"
    return ""


def _same(old: Verdict, new: Verdict) -> bool:
    """Whether two verdicts are on the same outcomes."""
    return (old.candidate, old.current) == (new.candidate, new.current)


def _earlier(old: Verdict, new: Verdict) -> tuple[Attempt, ...]:
    """What `new` has to remember: all that `old` did, and `old` itself unless it looked at the same outcomes."""
    if _same(old, new):
        return old.earlier
    sides = {"candidate": old.candidate.name, "current": old.current.name}
    return (*old.earlier, Attempt(**sides, answer=old.answer, decided=old.decided))
