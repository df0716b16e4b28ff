"""The store of results: small, committed, and complete.

`results/<direction>/<run>/` holds complete records and nothing else. A run works in
`runs/<direction>/<run>/` (ignored by git): its record, with status `running`, `failed` or `interrupted`, its
checkpoints and its executed notebook lie there, and what is to be published gathers in `record/` below it. When the run
completes, that folder appears under `results/` in one rename. So a result is there and whole, or not there.

A run that was killed leaves a record that says `running`, but no longer holds `run.lock`, which a living run does:
it is read as `interrupted`.

A run's name is `<profile>-s<seed>-<first eight digits of its key>`.
"""

import contextlib
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from filelock import FileLock

from llamax import files
from llamax.errors import LlamaxError, RunError
from llamax.runs import keys, records
from llamax.runs.directions import directions
from llamax.runs.locks import is_held
from llamax.runs.parameters import parse_parameters
from llamax.runs.records import Record
from llamax.training.preflight import rehearsing

if TYPE_CHECKING:
    import pandas as pd

UNRECORDED = "test"
"""The profile whose runs are never published."""
DEFAULT_PROFILE = "nano"
RUN_NAME = re.compile(r"(.+)-s(\d+)-[0-9a-f]{8}")
GONE = "killed: its process is gone"


class Freshness(NamedTuple):
    """How a run stands; `why` says what changed or went wrong.

    `state`: fresh, stale, damaged, failed, interrupted, running or missing.
    """

    direction: str
    run: str
    profile: str
    seed: int
    state: str
    why: str
    finished: str | None


class Store:
    """Records below `root`, which is the repository unless told otherwise."""

    def __init__(self, root: Path | str | None = None) -> None:
        self.root = Path(root).resolve() if root else files.repository()

    def folder(self, direction: str, run: str) -> Path:
        """Where a complete run is published."""
        return self.root / "results" / direction / run

    def scratch(self, direction: str, run: str) -> Path:
        """Where a run works."""
        return self.root / _works() / direction / run

    def records(self) -> list[Record]:
        """All complete records, oldest first. Raises: RunError that names a damaged one."""
        found = (records.read(path) for path in self._paths("results"))
        return sorted((r for r in found if r.status == "complete"), key=lambda r: (r.started, r.run))

    def attempts(self, direction: str = "*") -> list[Record]:
        """What runs last wrote where they work, whatever their status, oldest first.

        One that another process is replacing just now, or that is damaged, is left out: it is nobody's result.
        """
        found = []
        for path in self._paths(_works(), direction):
            with contextlib.suppress(FileNotFoundError, RunError):
                found.append(self._settled(records.read(path), path.parent))
        return sorted(found, key=lambda r: (r.started, r.run))

    def unfinished(self) -> list[Record]:
        """Records of runs that are running, failed or were interrupted, oldest first."""
        return [record for record in self.attempts() if record.status != "complete"]

    def find(self, key: str) -> Record | None:
        """The complete record with this key, if there is one. Raises: RunError: it is damaged or a file is missing."""
        for path in sorted((self.root / "results").glob(f"[!.]*/[!.]*-{key[:8]}/result.json")):
            record = records.read(path)
            if record.key == key and record.status == "complete":
                for name in record.files:
                    self.file(record, name)
                return record
        return None

    def load(self, run: str) -> Record:
        """The complete record of the run named `run`, or `<direction>/<run>`. Raises: RunError when there is none."""
        direction, _, name = run.rpartition("/")
        found = [r for r in self.records() if r.run == name and direction in ("", r.direction)]
        if len(found) != 1:
            known = ", ".join(f"{r.direction}/{r.run}" for r in found or self.records()) or "none"
            hint = f"; runs of profile {UNRECORDED} are never results" if name.startswith(f"{UNRECORDED}-") else ""
            raise RunError(f"{'no' if not found else 'more than one'} complete run {run!r}: there are {known}{hint}")
        return found[0]

    def file(self, record: Record, name: str) -> Path:
        """Path of a file beside a record. Raises: RunError: the record has none, or it was altered."""
        if name not in record.files:
            raise RunError(f"run {record.run} has no {name}: it has {', '.join(record.files) or 'no files'}")
        published = self.folder(record.direction, record.run)
        path = (published if record.profile != UNRECORDED else self._gathered(record)) / name
        if not path.is_file() or files.sha256_file(path) != record.files[name]:
            fault = "was altered after the run" if path.is_file() else "is missing"
            raise RunError(f"{records.shown(path)} {fault}: restore it from git, or run again with --force")
        return path

    def items(self, record: Record) -> "pd.DataFrame":
        """Per-item outcomes of a run: one row per test item."""
        return self._parquet(record, "items.parquet")

    def series(self, record: Record, name: str) -> "pd.DataFrame":
        """A curve that a run recorded under `name`."""
        return self._parquet(record, f"{name}.parquet")

    def publish(self, record: Record) -> None:
        """Put a complete record and the files it gathered into `results/`, in one rename."""
        source = self._gathered(record)
        folder = self.folder(record.direction, record.run)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.root / "results" / ".lock"):
            files.sweep(folder)
            with files.atomic_folder(folder) as work:
                for name in record.files:
                    shutil.copyfile(source / name, work / name)
                records.write(record, work)

    def results(
        self,
        direction: str | None = None,
        profile: str | None = None,
        metric: str | None = None,
        status: str | None = None,
        *,
        superseded: bool = False,
    ) -> "pd.DataFrame":
        """One row per metric of each complete run, or of the runs with another `status`.

        Of runs with the same direction and parameters only one counts, unless `superseded` is true: of complete ones
        the fresh one where there is one (code that went back to an earlier state has its old record), else the newest.
        Columns: direction, run, profile, seed, metric, value, standard_error, low, high, n, unit, status, finished.
        """
        import pandas as pd

        chosen = self.records() if status in (None, "complete") else self.unfinished()
        if not superseded:
            chosen = self._current(chosen)
        rows = [
            {"direction": r.direction, "run": r.run, "profile": r.profile, "seed": r.seed, "metric": m.name}
            | {"value": m.value, "standard_error": m.standard_error, "low": m.low, "high": m.high, "n": m.n}
            | {"unit": m.unit, "status": r.status, "finished": r.finished}
            for r in chosen
            if direction in (None, r.direction) and profile in (None, r.profile) and status in (None, r.status)
            for m in r.metrics.values()
            if metric in (None, m.name)
        ]
        columns = ["direction", "run", "profile", "seed", "metric", "value", "standard_error", "low", "high"]
        return pd.DataFrame(rows, columns=[*columns, "n", "unit", "status", "finished"])

    def status(self) -> list[Freshness]:
        """How every run stands, and which direction has no complete run at the default profile at all."""
        complete, rows = self._whole_and_damaged()
        code: dict[str, dict[str, str]] = {}
        rows += [self._freshness(record, complete, code) for record in complete]
        for record in self.unfinished():
            if record.status == "running" or not any(_supersedes(done, record) for done in complete):
                rows.append(_row(record, record.status, self._trouble(record, complete)))
        for direction in directions():
            if not any(row.direction == direction and row.profile == DEFAULT_PROFILE for row in rows):
                why = f"llamax run {direction} --profile {DEFAULT_PROFILE}"
                rows.append(Freshness(direction, "", DEFAULT_PROFILE, 0, "missing", why, None))
        return sorted(rows, key=lambda row: (row.direction, row.profile, row.seed, row.finished or ""))

    def _current(self, chosen: list[Record]) -> list[Record]:
        """One record per direction and parameters: the newest, but before stale complete ones the newest fresh one."""
        code: dict[str, dict[str, str]] = {}
        questions: dict[tuple[str, str], list[Record]] = {}
        for record in chosen:
            questions.setdefault((record.direction, files.sha256_json(record.parameters)), []).append(record)
        found = []
        for same in questions.values():
            ranked = [record for record in reversed(same) if record.status == "complete"] if len(same) > 1 else []
            found.append(next((record for record in ranked if not self.changed(record, code)), same[-1]))
        return found

    def changed(self, record: Record, code: dict[str, dict[str, str]] | None = None) -> list[str]:
        """Names of the inputs of `record` that are no longer what they were; empty when it is fresh.

        `code` remembers the code parts of a direction between calls.
        """
        code = {} if code is None else code
        try:
            if record.direction not in code:
                code[record.direction] = keys.code_parts(record.direction)
            config = parse_parameters(record.direction, record.profile, record.seed, record.overrides)
            inputs = keys.input_parts(config, lenient=True)
        except LlamaxError as error:
            return [str(error)]
        current = code[record.direction] | keys.parameter_part(config) | inputs
        names = keys.changed(record.parts, current)
        if "parameters" in names:
            differ = _changed_parameters(record.parameters, config.model_dump(mode="json"))
            names[names.index("parameters")] = f"parameters ({differ})"
        return names

    def _whole_and_damaged(self) -> tuple[list[Record], list[Freshness]]:
        """Complete records whose files are all as they were recorded, and a row for each that is not."""
        whole, damaged = [], []
        for path in self._paths("results"):
            run = path.parent.name
            named = RUN_NAME.fullmatch(run)
            profile, seed = named.groups() if named else (run, "0")
            try:
                record = records.read(path)
                for name in record.files:
                    self.file(record, name)
                whole += [record] if record.status == "complete" else []
            except RunError as error:
                damaged.append(Freshness(path.parent.parent.name, run, profile, int(seed), "damaged", str(error), None))
        return whole, damaged

    def _freshness(self, record: Record, complete: list[Record], code: dict[str, dict[str, str]]) -> Freshness:
        names = self.changed(record, code)
        if not names:
            return _row(record, "fresh", "")
        why = f"changed: {', '.join(names)}"
        if any(_same_question(record, other) and other.started > record.started for other in complete):
            why += "; superseded by a newer run"
        return _row(record, "stale", why)

    def _trouble(self, record: Record, complete: list[Record]) -> str:
        """What went wrong in an unfinished run, and how to be rid of it where its question has an answer by now."""
        if record.status == "running" or not any(_same_question(record, done) for done in complete):
            return record.error or ""
        where = records.shown(self.scratch(record.direction, record.run))
        return (
            f"{record.error or record.status}; the same parameters have a complete run: to forget this, delete {where}"
        )

    def _settled(self, record: Record, folder: Path) -> Record:
        """`record`, read as interrupted when it says running but its process is gone."""
        if record.status != "running" or is_held(folder / "run.lock"):
            return record
        return record.replace(status="interrupted", error=GONE)

    def _gathered(self, record: Record) -> Path:
        return self.scratch(record.direction, record.run) / "record"

    def _paths(self, below: str, direction: str = "*") -> list[Path]:
        folders = (self.root / below).glob(f"{direction}/[!.]*/result.json")
        return sorted(path for path in folders if not path.parent.parent.name.startswith("."))

    def _parquet(self, record: Record, name: str) -> "pd.DataFrame":
        import pandas as pd

        return pd.read_parquet(self.file(record, name))


def _works() -> str:
    """Folder that runs work in; rehearsals have one of their own, where nobody looks for results."""
    return "runs/rehearsals" if rehearsing() else "runs"


def _row(record: Record, state: str, why: str) -> Freshness:
    return Freshness(record.direction, record.run, record.profile, record.seed, state, why, record.finished)


def _same_question(one: Record, other: Record) -> bool:
    return one.direction == other.direction and one.parameters == other.parameters


def _supersedes(done: Record, unfinished: Record) -> bool:
    """Whether an unfinished run is forgotten: the same run, by its key, is complete.

    A complete run of other code or data says nothing about why this one failed.
    """
    return done.key == unfinished.key


def _changed_parameters(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Which resolved parameters differ: dotted name, old and new value."""
    before, after = _flat(old), _flat(new)
    names = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return ", ".join(f"{name} {before.get(name)!r} -> {after.get(name)!r}" for name in names)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found
