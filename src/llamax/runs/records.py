"""The result record: `result.json`, the only thing that says what a run found and whether it may be used."""

import json
import math
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError

from llamax import files
from llamax.config import Config, explain
from llamax.errors import RunError

SCHEMA_VERSION = 1
Status = Literal["running", "complete", "failed", "interrupted"]


class Metric(Config, allow_inf_nan=False):
    """One number with its uncertainty: `value` in `unit`, over `n` items, 95% interval [`low`, `high`].

    Numpy's scalars become Python's.
    """

    name: str
    value: float
    n: int | None = None
    standard_error: float | None = None
    low: float | None = None
    high: float | None = None
    unit: str = ""

    @classmethod
    def of(cls, name: str, estimate: Any, unit: str) -> Self:
        """From an estimate's `value`, `n`, `standard_error`, `low`, `high`; NaN, as of one item alone, is not known."""
        sure = {key: getattr(estimate, key) for key in ("standard_error", "low", "high")}
        known = {key: None if math.isnan(number) else number for key, number in sure.items()}
        return cls(name=name, value=estimate.value, n=estimate.n, unit=unit, **known)


class Cost(Config):
    """What the run took, parts of an interrupted attempt that it read back included.

    `peak_memory` in bytes: of the accelerator where there is one, else of the process.
    """

    wall_seconds: float = 0.0
    device: str = ""
    tokens: int = 0
    flops: float = 0.0
    peak_memory: int = 0


class Provenance(Config):
    """What the run was computed with. Never a host's name or a path: records are public."""

    commit: str | None = None
    dirty: bool | None = None
    packages: dict[str, str] = Field(default_factory=dict)
    hardware: dict[str, Any] = Field(default_factory=dict)
    python: str = ""
    platform: str = ""


class Record(Config):
    """One run. Only a record whose status is `complete`, in `results/`, is a result."""

    schema_version: Literal[1] = SCHEMA_VERSION
    direction: str
    run: str
    profile: str
    seed: int
    key: str
    parts: dict[str, str]
    parameters: dict[str, Any]
    overrides: dict[str, Any] = Field(default_factory=dict)
    status: Status
    metrics: dict[str, Metric] = Field(default_factory=dict)
    cost: Cost = Cost()
    provenance: Provenance = Provenance()
    notes: dict[str, Any] = Field(default_factory=dict)
    files: dict[str, str] = Field(default_factory=dict)
    """Name -> sha256 of the files beside the record (items, series, figures)."""
    error: str | None = None
    started: str
    finished: str | None = None

    def replace(self, **values: Any) -> "Record":
        """A copy with other values, validated."""
        return Record.model_validate({**self.model_dump(), **values})


def write(record: Record, folder: Path) -> None:
    """Write `folder/result.json` atomically; sorted keys, so that git shows what changed.

    `seal`, the sha256 of everything else in it, tells a later edit by hand from what the run wrote.
    """
    values = record.model_dump(mode="json")
    text = json.dumps(values | {"seal": files.sha256_json(values)}, indent=1, sort_keys=True, allow_nan=False)
    files.write_atomic(folder / "result.json", text + "\n")


def read(path: Path) -> Record:
    """Read a `result.json`. Raises: RunError: damaged, or of a schema that this version does not know."""
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError, IsADirectoryError) as error:
        raise RunError(f"{shown(path)}: damaged record: {error}") from None
    version = values.get("schema_version") if isinstance(values, dict) else None
    if version != SCHEMA_VERSION:
        raise RunError(f"{shown(path)}: record of schema version {version!r}, this llamax reads {SCHEMA_VERSION}")
    if values.pop("seal", None) != files.sha256_json(values):
        raise RunError(
            f"{shown(path)}: was edited after the run wrote it: restore it from git, or run again with --force"
        )
    try:
        return Record.model_validate(values)
    except ValidationError as error:
        raise RunError(f"{shown(path)}: damaged record: {explain(error, Record)}") from None


def shown(path: Path) -> str:
    """`path` as messages and records show it: relative to the repository where it lies inside."""
    root = files.repository()
    return str(path.relative_to(root) if path.is_relative_to(root) else path)
