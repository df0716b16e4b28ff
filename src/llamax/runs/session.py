"""A run, from the inside: what a notebook records while it computes, and how it ends.

However the notebook ends, the record tells: `complete()` makes it complete; an exception in a cell (or in a script)
makes it failed, with the exception's last line; Ctrl-C, or an end without `complete()`, makes it interrupted. Where the
process is killed outright the store finds the lock free and reads it as interrupted.
"""

import atexit
import contextlib
import datetime
import json
import math
import os
import re
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from llamax import files
from llamax.config import Config, explain
from llamax.errors import DiskFullError, LlamaxError, RunError
from llamax.runs import records
from llamax.runs.keys import Key, run_key
from llamax.runs.locks import hold, is_held
from llamax.runs.parameters import differences, parse_parameters
from llamax.runs.provenance import device_and_memory, provenance
from llamax.runs.records import Metric, Record
from llamax.runs.store import UNRECORDED, Store
from llamax.training.preflight import check_trainings, rehearsing

if TYPE_CHECKING:
    import pandas as pd
    from filelock import FileLock
    from matplotlib.figure import Figure

NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
LONGEST_LABEL = 120
"""Characters of a label among the items; what is longer is a text, and a benchmark's texts are not ours to publish."""
KEPT_BY_FORCE = {"run.lock", "execute.lock", "notebook.ipynb", "force", "verify"}
RESERVE = "reserve"
"""A file of some KiB beside an open run's record: spent so that a full disk does not keep the record from telling."""
_open: dict[Path, "Run"] = {}


def begin(direction: str, config: Config, *, store: Store | None = None) -> "Run":
    """Begin the run of `direction` with `config`, or return the one that is there (`reused` is True).

    Checkpoints that an earlier, unfinished attempt of the same key left in `scratch` stay, for training to resume from;
    at profile `test`, and after `llamax run --force` or `--verify`, the run starts from nothing.

    Raises: RunError: the same run is being computed by another process. LlamaxError: an input is missing.
    """
    store = store or Store()
    key = run_key(direction, config)
    run = run_name(config, key)
    scratch = store.scratch(direction, run)
    verifies = is_marked(scratch, "verify")
    anew = verifies or is_marked(scratch, "force") or config.profile == UNRECORDED
    found = None if anew else store.find(key.digest)
    if found:
        return Run(store, found, config, None)
    check_trainings(config)
    if scratch in _open:
        _open[scratch].fail("begun again in the same process")
    lock = hold(scratch / "run.lock")
    if lock is None:
        raise RunError(busy(direction, run))
    if not anew and (found := store.find(key.digest)):  # published while we waited
        lock.release()
        return Run(store, found, config, None)
    _clear(scratch, everything=anew)
    record = new_record(direction, config, key)
    records.write(record, scratch)
    files.write_atomic(scratch / RESERVE, bytes(65536))
    published = not (verifies or rehearsing() or config.profile == UNRECORDED)
    return Run(store, record, config, lock, publishes=published)


class Run:
    """A run that is open, or a complete one read back.

    Attributes: `direction`, `config`, `key` (hex), `folder` (where it is published), `scratch` (for checkpoints and
    whatever is too big to publish), `reused`, `record`.
    """

    def __init__(
        self, store: Store, record: Record, config: Config, lock: "FileLock | None", *, publishes: bool = True
    ) -> None:
        self.store, self.config, self.record = store, config, record
        self.direction, self.key = record.direction, record.key
        self.folder = store.folder(record.direction, record.run)
        self.scratch = store.scratch(record.direction, record.run)
        self.reused = lock is None
        self._lock, self._pid, self._start = lock, os.getpid(), time.perf_counter()
        self._publishes = publishes
        if lock is not None:
            (self.scratch / "record").mkdir(exist_ok=True)
            _open[self.scratch] = self
            atexit.register(self._at_exit)
            _watch_cells(self._after_cell, "register")

    def __repr__(self) -> str:
        return f"<run {self.direction}/{self.record.run}: {'reused, ' if self.reused else ''}{self.record.status}>"

    def metric(
        self,
        name: str,
        value: float,
        *,
        n: int | None = None,
        standard_error: float | None = None,
        low: float | None = None,
        high: float | None = None,
        unit: str = "",
    ) -> None:
        """Record a number with its uncertainty. Raises: RunError: a bad name, or a value that is not finite."""
        self._must_be_open(f"metric {name!r}")
        _check_name(name, "metric")
        numbers = {"value": value, "standard_error": standard_error, "low": low, "high": high}
        bad = next((key for key, number in numbers.items() if number is not None and not math.isfinite(number)), None)
        if bad:
            raise RunError(f"metric {name!r}: {bad} = {numbers[bad]} is not a finite number")
        metric = Metric(name=name, n=n, unit=unit, **numbers)
        self.record = self.record.replace(metrics={**self.record.metrics, name: metric})

    def items(self, frame: "pd.DataFrame") -> None:
        """Record per-item outcomes: columns `item`, `outcome`, `metric` or `task`, any labels. Further calls append.

        Raises: RunError: a column is missing, an outcome is not finite, a row occurs twice, or a column but `answer`
        (what the model wrote) holds texts: only ids and outcomes of a benchmark are published.
        """
        import pandas as pd

        self._must_be_open("items")
        if "items.parquet" in self.record.files:
            earlier = pd.read_parquet(self.scratch / "record" / "items.parquet")
            frame = pd.concat([earlier, frame], ignore_index=True)
        _check_items(frame)
        self._keep("items.parquet", lambda path: frame.to_parquet(path, index=False))

    def series(self, name: str, frame: "pd.DataFrame") -> None:
        """Record a curve, such as the loss at each step."""
        self._must_be_open(f"series {name!r}")
        _check_name(name, "series")
        if name == "items":
            raise RunError("series 'items': that name is taken by the per-item outcomes; call run.items(frame)")
        self._keep(f"{name}.parquet", lambda path: frame.to_parquet(path, index=False))

    def figure(self, name: str, figure: "Figure") -> None:
        """Record a matplotlib figure as SVG and PDF, byte for byte the same each time, and show it in the notebook.

        On a reused run it is only shown: the notebook may draw again what is already there.
        """
        if _shell() is not None:
            from IPython.display import display

            display(figure)
        if self.reused:
            return
        import matplotlib

        self._must_be_open(f"figure {name!r}")
        _check_name(name, "figure")
        with matplotlib.rc_context({"svg.hashsalt": "llamax", "svg.fonttype": "path", "pdf.fonttype": 42}):
            svg, pdf = {"Date": None}, {"CreationDate": None}
            self._keep(f"{name}.svg", lambda path: figure.savefig(path, metadata=svg))
            self._keep(f"{name}.pdf", lambda path: figure.savefig(path, metadata=pdf))

    def note(self, key: str, value: Any) -> None:
        """Record any JSON value under `key`."""
        self._must_be_open(f"note {key!r}")
        try:
            value = json.loads(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise RunError(f"note {key!r}: {error}") from None
        self.record = self.record.replace(notes={**self.record.notes, key: value})

    def cost(self, *, tokens: int = 0, flops: float = 0.0, seconds: float = 0.0) -> None:
        """Add to what the run has cost: tokens processed, floating-point operations, and the wall time of parts that an
        earlier, interrupted attempt computed and this one reads back."""
        self._must_be_open("cost")
        cost = self.record.cost
        total = {"tokens": cost.tokens + int(tokens), "flops": cost.flops + float(flops)}
        total["wall_seconds"] = cost.wall_seconds + float(seconds)
        self.record = self.record.replace(cost=cost.model_copy(update=total))

    def summary(self) -> "pd.DataFrame":
        """The metrics as a table, one row each: value, standard_error, low, high, n, unit."""
        import pandas as pd

        columns = ["value", "standard_error", "low", "high", "n", "unit"]
        rows = [metric.model_dump(include=set(columns)) for metric in self.record.metrics.values()]
        return pd.DataFrame(rows, columns=columns, index=pd.Index(self.record.metrics, name="metric"))

    def load_items(self) -> "pd.DataFrame":
        """The per-item outcomes of a complete run."""
        return self.store.items(self.record)

    def load_series(self, name: str) -> "pd.DataFrame":
        """A curve of a complete run."""
        return self.store.series(self.record, name)

    def complete(self) -> Record:
        """End the run and publish it; on a reused run nothing happens. Raises: RunError: failed, or without a metric.

        A run at profile `test`, or one that verifies a published one, is complete where it worked, but not published.
        """
        if self.reused:
            return self.record
        self._must_be_open("complete")
        if not self.record.metrics:
            raise RunError(f"run {self.record.run} has no metric: call run.metric(...) before run.complete()")
        device, memory = device_and_memory()
        seconds = round(self.record.cost.wall_seconds + time.perf_counter() - self._start, 3)
        cost = self.record.cost.model_copy(
            update={"wall_seconds": seconds, "device": device, "peak_memory": memory},
        )
        done = self.record.replace(status="complete", finished=now(), cost=cost)
        if self._publishes:
            self.store.publish(done)
        self._close(done)
        return done

    def fail(self, error: BaseException | str) -> None:
        """End the run as failed, or as interrupted for a KeyboardInterrupt. A failed run cannot be completed."""
        if self._lock is None:
            return
        stopped = isinstance(error, KeyboardInterrupt)
        line = "KeyboardInterrupt" if stopped else last_line(error)
        self._close(self.record.replace(status="interrupted" if stopped else "failed", error=line, finished=now()))

    def _keep(self, name: str, write: Any) -> None:
        """Have `write` make the file `name` beside the record, and note its hash."""
        path = self.scratch / "record" / name
        with files.clear_disk_errors(path):
            write(path)
        self.record = self.record.replace(files={**self.record.files, name: files.sha256_file(path)})

    def _must_be_open(self, what: str) -> None:
        if self.reused:
            raise RunError(f"{what}: this run is read back from the store; compute only `if not run.reused`")
        if self._lock is None:
            how = f"{self.record.status}{': ' + self.record.error if self.record.error else ''}"
            raise RunError(f"{what}: the run is over ({how}); start again from runs.begin")

    def _close(self, record: Record) -> None:
        self.record = record
        try:
            write_last(record, self.scratch)
        finally:
            atexit.unregister(self._at_exit)
            _watch_cells(self._after_cell, "unregister")
            _open.pop(self.scratch, None)
            lock, self._lock = self._lock, None
            lock.release()

    def _after_cell(self, result: Any) -> None:
        """IPython calls this after each cell."""
        error = result.error_before_exec or result.error_in_exec
        if error is not None:
            with contextlib.suppress(DiskFullError):  # then whoever started the kernel tells, or the free lock does
                self.fail(error)

    def _at_exit(self) -> None:
        # A forked child runs its parent's exit handlers too, but the run is not its own.
        if os.getpid() != self._pid or self._lock is None:
            return
        error = getattr(sys, "last_value", None)
        if error is not None and _shell() is None:  # In a notebook it may be an earlier cell's; _after_cell saw ours.
            self.fail(error)
            return
        over = self.record.replace(status="interrupted", error="ended without run.complete()", finished=now())
        self._close(over)


def run_name(config: Config, key: Key) -> str:
    """`<profile>-s<seed>-<first eight digits of the key>`."""
    return f"{config.profile}-s{config.seed}-{key.digest[:8]}"


def busy(direction: str, run: str) -> str:
    """What to say when another process holds the run's lock."""
    return f"run {direction}/{run} is being computed by another process: wait for it, or end it first"


def is_marked(scratch: Path, what: str) -> bool:
    """Whether the process that executes this run wants it computed although it is there: `force` or `verify`.

    The mark is a file; it counts only while its process lives, which is as long as `execute.lock` is held.
    """
    return (scratch / what).exists() and is_held(scratch / "execute.lock")


def write_last(record: Record, scratch: Path) -> None:
    """Write how a run ended, on a full disk too: then the reserve is spent first."""
    reserve = scratch / RESERVE
    try:
        records.write(record, scratch)
    except DiskFullError:
        if not reserve.exists():
            raise
        reserve.unlink()
        records.write(record, scratch)
    reserve.unlink(missing_ok=True)


def new_record(direction: str, config: Config, key: Key) -> Record:
    """A record of a run that begins now."""
    try:
        plain = parse_parameters(direction, config.profile, config.seed)
        overrides = differences(plain, config)
    except LlamaxError:  # A config made without a profile: everything in it was chosen.
        overrides = config.model_dump(mode="json", exclude={"profile", "seed"})
    try:
        return Record(
            direction=direction,
            run=run_name(config, key),
            profile=config.profile,
            seed=config.seed,
            key=key.digest,
            parts=key.parts,
            parameters=config.model_dump(mode="json"),
            overrides=overrides,
            status="running",
            provenance=provenance(),
            started=now(),
        )
    except ValidationError as error:
        raise RunError(f"{direction}: {explain(error, Record)}") from None


def now() -> str:
    """The time, UTC, to the millisecond, in a form that sorts."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def last_line(error: BaseException | str) -> str:
    """The last line of `error`'s message (which ends with the cause where it has several), its type in front."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, str):
        return lines[-1] if lines else "unknown error"
    return ": ".join([type(error).__name__, *lines[-1:]])


def _clear(scratch: Path, *, everything: bool) -> None:
    """Remove what an earlier attempt recorded; with `everything`, its checkpoints too."""
    for path in scratch.iterdir():
        if path.name in KEPT_BY_FORCE or not (everything or path.name in ("record", "result.json")):
            continue
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _check_name(name: str, what: str) -> None:
    if not NAME.fullmatch(name):
        raise RunError(f"{what} {name!r}: use letters, digits, '_', '.', '-', starting with a letter or digit")


def _check_items(frame: "pd.DataFrame") -> None:
    for choices in (("item",), ("metric", "task"), ("outcome",)):
        if not any(name in frame.columns for name in choices):
            raise RunError(f"items: no column {' or '.join(choices)} among {', '.join(map(str, frame.columns))}")
    bad = frame[~frame["outcome"].astype(float).map(math.isfinite)]
    if len(bad):
        raise RunError(f"items: outcome of item {bad.iloc[0]['item']!r} is not a finite number ({len(bad)} such rows)")
    labels = [name for name in frame.columns if name not in ("outcome", "answer")]
    twice = frame[frame.duplicated(subset=labels)]
    if len(twice):
        raise RunError(f"items: {len(twice)} rows occur twice, first {twice.iloc[0][labels].to_dict()}")
    for name in labels:
        if not frame.empty and frame[name].astype(str).str.len().max() > LONGEST_LABEL:
            raise RunError(f"items: column {name!r} holds texts: record only ids and outcomes")


def _watch_cells(callback: Any, action: str) -> None:
    """Register or unregister `callback` to be called after each cell, where there are cells."""
    shell = _shell()
    if shell is not None:
        getattr(shell.events, action)("post_run_cell", callback)


def _shell() -> Any:
    """The IPython shell that this code runs in, if any."""
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython else None
