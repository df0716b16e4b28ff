"""What a paper may say: values looked up by name in the runs that its lock file pins.

A name is `<alias>:<metric>`; the lock maps the alias to one or more runs. Where the runs have per-item outcomes, the
value is computed from them, all trainings of all runs together, with an interval over items and trainings.
"""

import difflib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from llamax import statistics
from llamax.errors import LlamaxError, PaperError
from llamax.papers.source import repeated
from llamax.runs.keys import few
from llamax.runs.records import Record
from llamax.runs.store import Store


class Table(NamedTuple):
    """Outcomes [trainings, items], the name of each item and its cluster."""

    outcomes: np.ndarray
    items: list[str]
    clusters: list[str]


RECORDED_TO = 1e-6  # a record and its items may differ by this share: parquet keeps float64, figures come from float32
SAME_BASE = 1e-3  # the base model's outcomes in two runs may differ by this share: right and wrong (1, 0) may not
NOT_OVERALL = ("text_loss", "truthfulqa_mc1")  # as directions record it: no loss, and TruthfulQA once, by MC2


class Value(NamedTuple):
    """A number with its uncertainty; `seeds` trainings, `p_value` two-sided against zero, None where unknown."""

    name: str
    value: float
    n: int | None = None
    standard_error: float | None = None
    low: float | None = None
    high: float | None = None
    unit: str = ""
    p_value: float | None = None
    seeds: int = 1


class Evidence:
    """The pinned runs of one paper, read from the store when they are first asked for."""

    def __init__(self, runs: dict[str, list[str]], store: Store | None = None):
        self.runs, self.store = runs, store or Store()
        self._kept: dict[tuple, Any] = {}

    def value(self, name: str) -> Value:
        """The value of `<alias>:<metric>`. Raises: PaperError: unknown alias or metric, or a record that is wrong."""
        return self._once(("value", name), lambda: self._value(name))

    def metrics(self, alias: str) -> list[Value]:
        """Every metric that all runs of `alias` recorded, named without the alias, for a figure to draw."""
        first, *others = self.records(alias)
        shared = [name for name in first.metrics if all(name in other.metrics for other in others)]
        return [self.value(f"{alias}:{name}")._replace(name=name) for name in shared]

    def compare(self, alias: str, after: str, before: str | None = None, level: float = 0.95) -> Value:
        """Mean outcome of `after`, or its paired difference from `before`, over the items of `alias`.

        `after` and `before` are `<method>[.<protocol>].<task>`; the task `overall` is all but NOT_OVERALL,
        weighted equally.

        Raises: PaperError: no such outcomes, or two that do not share their items or trainings.
        """
        parts = self._paired(alias, after, before)
        is_score = before is None and not after.endswith(".text_loss")
        combine = statistics.combine_scores if is_score else statistics.combine_strata
        found = combine([table.outcomes for table in parts], [table.clusters for table in parts], level)
        limits = (None if np.isnan(x) else x for x in (found.standard_error, found.low, found.high, found.p_value))
        error, low, high, p_value = limits
        return Value(f"{alias}:{after}", found.value, found.n, error, low, high, "", p_value, found.seeds)

    def fact(self, name: str) -> Any:
        """`<alias>:parameters.<dotted name>`, `cost.…`, `notes.…`, `provenance.…` or `runs`: of the runs, not measured.

        Costs are averaged over the runs; anything else must be the same in all of them. Raises: PaperError.
        """
        alias, _, path = name.partition(":")
        if path == "runs":
            return len(self.records(alias))
        found = [_walk(record.model_dump(mode="json"), path, name) for record in self.records(alias)]
        if path.startswith("cost.") and not isinstance(found[0], str):
            return sum(found) / len(found)
        if any(value != found[0] for value in found):
            raise PaperError(f"{name!r} differs between the runs: {', '.join(map(str, found))}")
        return found[0]

    def records(self, alias: str) -> list[Record]:
        """The records behind `alias`. Raises: PaperError: not in the lock, no runs pinned, or not in results/."""
        if not self.runs.get(alias):
            fault = "pins no runs for" if alias in self.runs else "has no runs named"
            raise PaperError(f"lock.json {fault} {alias!r}: it has {', '.join(k for k, v in self.runs.items() if v)}")
        if run := repeated(self.runs[alias]):  # it would count as a further, independent training
            raise PaperError(f"lock.json pins run {run} twice for {alias!r}")
        return self._once(("records", alias), lambda: [_quietly(self.store.load, run) for run in self.runs[alias]])

    def items(self, alias: str) -> pd.DataFrame:
        """Outcomes of all runs of `alias`; `replicate` counts the trainings of a method on, from run to run.

        The base model is the same in every run and is kept once, as the mean of what the runs saw of it: machines
        differ in the last digits of a loss. Raises: PaperError: it is not the same, to SAME_BASE.
        """
        return self._once(("items", alias), lambda: self._pool(alias))

    def series(self, alias: str, name: str) -> pd.DataFrame:
        """The series `name` of all runs of `alias`, its `replicate` counted on as in `items`."""
        records = self.records(alias)
        return _count_on([_quietly(self.store.series, record, name) for record in records])

    def stale(self) -> list[str]:
        """One line for each pinned run whose inputs are no longer what they were."""
        code: dict[str, dict[str, str]] = {}
        lines = []
        for alias in self.runs:
            for record in self.records(alias):
                if changed := self.store.changed(record, code):
                    lines.append(f"run {record.run} ({alias}) is stale: changed: {few(changed)}")
        return lines

    def _value(self, name: str) -> Value:
        alias, _, metric = name.partition(":")
        records = self.records(alias)
        if missing := [record for record in records if metric not in record.metrics]:
            near = difflib.get_close_matches(metric, missing[0].metrics, n=3, cutoff=0) or ["none"]
            raise PaperError(f"unknown name {name!r}: run {missing[0].run} has the metrics {', '.join(near)}, …")
        recorded = [record.metrics[metric] for record in records]
        selection = selected(metric) if all("items.parquet" in record.files for record in records) else None
        if selection is None or not self._outcomes(alias, selection[0]):
            return spread_of_runs(name, recorded)
        found = self.compare(alias, *selection)._replace(name=name, unit=recorded[0].unit)
        average = np.mean([metric.value for metric in recorded])
        if not np.isclose(found.value, average, rtol=RECORDED_TO, atol=RECORDED_TO):
            raise PaperError(f"{name!r} is {average:.6g} in the records, but {found.value:.6g} by their items")
        return found

    def _pool(self, alias: str) -> pd.DataFrame:
        frames = [_quietly(self.store.items, record) for record in self.records(alias)]
        for record, frame in zip(self.records(alias), frames, strict=True):
            if lacking := sorted({*KEYS, "replicate", "outcome", "cluster"} - set(frame.columns)):
                raise PaperError(f"run {record.run}: its items have no column {lacking[0]!r}, by which papers select")
        bases = [frame[frame.method == "base"].sort_values(KEYS).reset_index(drop=True) for frame in frames]
        for record, base in zip(self.records(alias), bases, strict=True):
            same = base[KEYS].equals(bases[0][KEYS])
            if not same or not np.allclose(base.outcome, bases[0].outcome, SAME_BASE, atol=0, equal_nan=True):
                raise PaperError(
                    f"the runs of {alias!r} do not share their base model's outcomes ({record.run} differs)"
                )
        trained = _count_on([frame[frame.method != "base"] for frame in frames])
        base = bases[0].assign(outcome=np.mean([base.outcome for base in bases], axis=0))
        return pd.concat([base, trained], ignore_index=True)

    def _outcomes(self, alias: str, selection: str) -> dict[str, Table]:
        """Task -> outcome table of `<method>[.<protocol>].<task>`; empty when there is no such row."""
        if "." not in selection:
            raise PaperError(f"{selection!r} names no task: give <method>[.<protocol>].<task>, such as full.overall")
        method, *protocol, task = selection.split(".")
        found: dict[str, Table] = {}
        for (of_method, of_protocol, of_task), table in self._once(
            ("tables", alias), lambda: self._tables(alias)
        ).items():
            wanted = of_task == task or (task == "overall" and of_task not in NOT_OVERALL)
            if of_method == method and wanted and (not protocol or [of_protocol] == protocol):
                if of_task in found:
                    raise PaperError(f"{selection!r} is not one set of outcomes: name the protocol as well")
                found[of_task] = table
        return found

    def _tables(self, alias: str) -> dict[tuple[str, str, str], Table]:
        """(method, protocol, task) -> outcome table."""
        groups = self.items(alias).groupby(["method", "protocol", "task"], sort=False)
        return {key: _table(group, ".".join(key)) for key, group in groups}

    def _paired(self, alias: str, after: str, before: str | None) -> list[Table]:
        """Per task of `after`: its outcome table, less that of `before`."""
        left = self._outcomes(alias, after)
        right = self._outcomes(alias, before) if before else {}
        for name, found in ((after, left), (before, right)):
            if name and not found:
                raise PaperError(f"the items of {alias!r} hold no outcomes of {name!r}")
        if before and left.keys() != right.keys():
            raise PaperError(f"{after!r} and {before!r} of {alias!r} do not share their tasks")
        parts = []
        for task, table in left.items():
            other = right[task] if before else table._replace(outcomes=np.zeros((1, 1)))
            if other.items != table.items or len({1, len(other.outcomes), len(table.outcomes)}) > 2:
                raise PaperError(f"{after!r} and {before!r} of {alias!r} do not share their items and trainings")
            parts.append(table._replace(outcomes=table.outcomes - other.outcomes))
        return parts

    def _once(self, key: tuple, compute: Callable[[], Any]) -> Any:
        if key not in self._kept:
            self._kept[key] = compute()
        return self._kept[key]


KEYS = ["method", "protocol", "task", "item"]


def selected(metric: str) -> tuple[str, str | None] | None:
    """What a metric's name says about items: the outcomes meant, and those they are compared with.

    `X.accuracy` is the mean of X, `<method>.rest.gain` its difference from `base.rest`, `<method>.text_loss` the mean
    of the task text_loss and `<method>.forgetting` its difference from the base model's. Any other name: None.
    """
    head, _, last = metric.rpartition(".")
    rest = head.partition(".")[2]
    if last == "accuracy" and rest:
        return head, None
    if last == "gain" and rest:
        return head, f"base.{rest}"
    if last == "text_loss" and head:
        return metric, None
    if last == "forgetting" and head:
        return f"{head}.text_loss", "base.text_loss"
    return None


def spread_of_runs(name: str, recorded: list) -> Value:
    """A metric without items: its own interval for one run; for several, their mean and the spread between them.

    The noise that each run reports is taken as shared by all runs (they answer the same items) and added in full:
    variance = s²/J + mean of the runs' own, degrees of freedom after Satterthwaite (1946).
    """
    first, values = recorded[0], np.array([metric.value for metric in recorded])
    if len(recorded) == 1:
        return Value(name, first.value, first.n, first.standard_error, first.low, first.high, first.unit)
    between = values.var(ddof=1) / len(values)
    within = float(np.mean([(metric.standard_error or 0.0) ** 2 for metric in recorded]))
    error = np.sqrt(between + within)
    freedom = (len(values) - 1) * ((between + within) / between) ** 2 if between else np.inf
    half = stats.t.isf(0.025, freedom) * error
    mean = float(values.mean())
    p_value = float(2 * stats.t.sf(abs(mean) / error, freedom)) if error else None
    return Value(name, mean, first.n, float(error), mean - half, mean + half, first.unit, p_value, len(values))


def _table(group: pd.DataFrame, selection: str) -> Table:
    """Outcomes [trainings, items], items in sorted order. Raises: PaperError: a training lacks an item."""
    table = group.pivot(index="replicate", columns="item", values="outcome")
    if table.isna().to_numpy().any():
        raise PaperError(f"the trainings behind {selection!r} do not share their items")
    clusters = group.drop_duplicates("item").set_index("item").cluster.reindex(table.columns)
    return Table(table.to_numpy(dtype=float), table.columns.tolist(), clusters.astype(str).tolist())


def _count_on(frames: list[pd.DataFrame]) -> pd.DataFrame:
    """One frame of several, `replicate` of the later ones counted on so that no two runs share a number."""
    parts, used = [], 0
    for frame in frames:
        if "replicate" in frame and len(frame):
            frame = frame.assign(replicate=frame.replicate + used)
            used = int(frame.replicate.max()) + 1
        parts.append(frame)
    return pd.concat(parts, ignore_index=True)


def _walk(values: Any, path: str, name: str) -> Any:
    for part in path.split("."):
        if not isinstance(values, dict) or part not in values:
            raise PaperError(f"unknown name {name!r}: no {part!r} among {', '.join(map(str, values)) or 'nothing'}")
        values = values[part]
    if isinstance(values, dict | list) or values is None:
        raise PaperError(f"{name!r} is not a single value")
    return values


def _quietly(read: Callable, *arguments: Any) -> Any:
    """Call the store; its errors become the paper's."""
    try:
        return read(*arguments)
    except LlamaxError as error:
        raise PaperError(str(error)) from None
