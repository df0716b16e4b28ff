"""The two sides of a comparison: read from records that can be trusted, and refused where comparing is not fair."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from llamax.errors import GateError
from llamax.runs.keys import few
from llamax.runs.records import Record
from llamax.runs.store import UNRECORDED, Store
from llamax.versions.measured import ITEM_COLUMNS, MODELS, NOTE, Measured, item_set, read_note

if TYPE_CHECKING:
    import pandas as pd

SAME = {
    "protocol": "protocols",
    "metric": "metrics",
    "prompts": "prompts (sha256)",
    "shots": "shots",
    "temperature": "temperatures",
    "max_new_tokens": "limits of new tokens",
    "precision": "precisions",
    "total": "sizes of the benchmark",
    "items": "numbers of items asked",
    "item_set": "item sets (sha256)",
    "contamination": "contamination statuses",
}
"""Fields of `Measured` that must agree, in the order in which they are looked at, and how a message calls them."""


class Side(NamedTuple):
    """One model of one complete run: how each of its benchmarks was run, and its rows of the items."""

    name: str
    record: Record
    model: str
    measured: dict[str, Measured]
    items: "pd.DataFrame"

    @property
    def model_hash(self) -> str | None:
        """Hash of the model's weights, config and tokenizer, where the run noted it."""
        return self.record.notes.get(MODELS, {}).get(self.model)


class Outcomes(NamedTuple):
    """A benchmark's outcomes: `table` [items, samples] in 0..1, and of each item its cluster and whether it leaked."""

    items: tuple[str, ...]
    table: np.ndarray
    clusters: np.ndarray
    contaminated: np.ndarray


def read_side(name: str, store: Store, *, stale: bool = False) -> Side:
    """The model that `name` means, `<direction>/<run>` or `<direction>/<run>:<model>`.

    Raises: GateError: the run is stale (unless `stale` is allowed), of profile test, measured nothing, or has several
    models. RunError: no such run, or its record or items are damaged or were edited.
    """
    run, _, model = name.partition(":")
    record = store.load(run)
    if record.profile == UNRECORDED:
        raise GateError(f"{run} is of profile {UNRECORDED}, which is for tests: no result stands on it")
    if NOTE not in record.notes:
        raise GateError(f"{run} measured no benchmark: the gate compares runs that evaluate models")
    if not stale and (names := store.changed(record)):
        raise GateError(f"{run} is stale (changed: {few(names)}): run it again")
    measured = read_note(record.notes[NOTE], run)
    if model not in measured and (model or len(measured) != 1):
        fault = f"has no model {model!r}" if model else "evaluated several models"
        raise GateError(f"{run} {fault}: write one of {', '.join(f'{run}:{known}' for known in measured)}")
    model = model or next(iter(measured))
    frame = store.items(record)
    if absent := [column for column in ITEM_COLUMNS if column not in frame.columns]:
        raise GateError(f"{run}: items.parquet has no column {', '.join(absent)}")
    return Side(name, record, model, measured[model], frame[frame["model"] == model])


def read_outcomes(side: Side, benchmark: str) -> Outcomes:
    """The outcomes of one benchmark by its deciding metric, items sorted by id, checked against what the run noted.

    Raises: GateError: rows that are missing, double, or outside 0..1, or other items than the note says.
    """
    said = side.measured[benchmark]
    where = f"{side.name}: {benchmark}"
    rows = side.items[(side.items["benchmark"] == benchmark) & (side.items["metric"] == said.metric)]
    if rows.empty or rows["item"].nunique() != said.items or item_set(rows["item"]) != said.item_set:
        found = rows["item"].nunique()
        raise GateError(
            f"{where}: the note says {said.items} items of one set, items.parquet has {found} others or less"
        )
    if (twice := rows.duplicated(["item", "sample"])).any():
        raise GateError(f"{where}: item {rows[twice].iloc[0]['item']!r} has the same sample twice")
    table = rows.pivot(index="item", columns="sample", values="outcome").sort_index()
    if list(table.columns) != list(range(said.samples)) or table.isna().any(axis=None):
        raise GateError(f"{where}: every item should have samples 0 to {said.samples - 1}, as the note says")
    values = table.to_numpy(dtype=float)
    if not ((values >= 0) & (values <= 1)).all():
        raise GateError(f"{where}: an outcome lies outside 0..1: gains are counted in points of 100")
    by_item = rows.drop_duplicates("item").set_index("item").loc[table.index]
    leaked = rows["contaminated"].eq(True).groupby(rows["item"]).any().loc[table.index].to_numpy()
    return Outcomes(tuple(table.index), values, by_item["cluster"].to_numpy(dtype=str), leaked)


def check_sides(candidate: Side, current: Side, names: list[str], *, rehearse: bool) -> None:
    """Refuse what cannot be compared fairly on the benchmarks `names`.

    Raises: GateError: the same model twice, a benchmark that is missing or was run differently, or only part of a
    benchmark without `rehearse`. The line names the benchmark and both values.
    """
    same_run = (candidate.record.key, candidate.model) == (current.record.key, current.model)
    if same_run or (candidate.model_hash is not None and candidate.model_hash == current.model_hash):
        what = "the same run and model" if same_run else f"the same model, {candidate.model}"
        raise GateError(
            f"candidate {candidate.name} and current {current.name} are {what}: there is nothing to compare"
        )
    for who, side in (("candidate", candidate), ("current", current)):
        if missing := [name for name in names if name not in side.measured]:
            has = ", ".join(side.measured) or "none"
            raise GateError(f"{who} {side.name} lacks the required {', '.join(missing)}: it has {has}")
    for name in names:
        _check_measured(name, candidate.measured[name], current.measured[name], rehearse)


def _check_measured(name: str, candidate: Measured, current: Measured, rehearse: bool) -> None:
    """Raises: GateError: the two ways in which a benchmark was run differ, or it is only a part of it."""
    for field, words in SAME.items():
        one, other = getattr(candidate, field), getattr(current, field)
        if one != other:
            raise GateError(f"{name}: {words} differ: candidate {_short(one)}, current {_short(other)}")
    if candidate.items < candidate.total and not rehearse:
        asked = f"{candidate.items} of {candidate.total} items were asked"
        raise GateError(f"{name}: {asked}: a version is decided on all of them; --rehearse tries the gate on a part")


def _short(value: object) -> str:
    """A value as a message shows it: of a hash the first digits."""
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)
