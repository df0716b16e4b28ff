"""Running a direction's notebook headless, with papermill as a library.

papermill says what happened to cells; it does not say what happened to the run (after a kernel dies, its notebook
calls every cell completed). So the outcome is read from the record, which the kernel writes and this module settles
when the kernel no longer can.
"""

import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llamax.config import Config
from llamax.errors import LlamaxError, RunError
from llamax.runs import records
from llamax.runs.directions import notebook_of
from llamax.runs.keys import Key, run_key
from llamax.runs.locks import hold
from llamax.runs.parameters import parse_parameters
from llamax.runs.records import Record
from llamax.runs.session import busy, last_line, new_record, now, run_name, write_last
from llamax.runs.store import GONE, Store
from llamax.training.preflight import check_trainings

QUIET = ["--log-level=40"]
"""For the kernel: errors only. Its warning that it listens on an unencrypted local port concerns shared machines."""
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def execute(
    direction: str,
    profile: str = "nano",
    overrides: dict[str, Any] | None = None,
    seed: int = 0,
    *,
    force: bool = False,
    verify: bool = False,
    store: Store | None = None,
    progress: Callable[[str], None] = lambda text: print(text, end="", file=sys.stderr, flush=True),
) -> Record:
    """Run the notebook of `direction` and return its record; if the same run is complete already, return that.

    `force` computes it again and publishes it in the place of what is there. `verify` computes it again, leaves what is
    published as it is, and returns the new record for `compare`; where nothing is published yet it changes nothing.

    What the notebook prints goes to `progress` as it comes. The executed notebook stays in `runs/`, however it ended.

    Raises: ParameterError: before a kernel starts. RunError: the run is going on elsewhere; or a cell failed (with the
    last line of its traceback), the kernel died, or the notebook never completed its run. KeyboardInterrupt: the run
    is recorded as interrupted.
    """
    store = store or Store()
    config = parse_parameters(direction, profile, seed, overrides)
    try:
        key = run_key(direction, config)
    except LlamaxError:
        check_trainings(config)  # that there is no GPU says more than that there is no hub
        raise
    found = None if force else store.find(key.digest)
    if found and not verify:
        return found
    check_trainings(config)
    scratch, earlier = store.scratch(direction, run_name(config, key)), store.attempts(direction)
    with _alone(scratch, direction), _settling(store, direction, config, key, earlier):
        with _marked(scratch, "force" if force else "verify" if found else ""):
            progress(f"{notebook_of(direction).name}: profile {profile}, seed {seed} -> {records.shown(scratch)}\n")
            _papermill(
                notebook_of(direction),
                scratch / "notebook.ipynb",
                {"profile": profile, "seed": seed, "overrides": overrides or {}},
                progress,
            )
        record = _recorded(store, direction, config, earlier) or store.find(run_key(direction, config).digest)
        if record is None or record.status != "complete":
            raise RunError(f"{notebook_of(direction).name} ended without run.complete()")
    return record


def _recorded(store: Store, direction: str, config: Config, earlier: list[Record]) -> Record | None:
    """The newest record that the notebook wrote, which is none of the `earlier` attempts.

    It is not looked up by key: the kernel computes its own, and code may have been edited before it did.
    """
    parameters = config.model_dump(mode="json")
    known = {(record.run, record.started) for record in earlier}
    fresh = [r for r in store.attempts(direction) if (r.run, r.started) not in known and r.parameters == parameters]
    return fresh[-1] if fresh else None


def _papermill(notebook: Path, out: Path, parameters: dict[str, Any], progress: Callable[[str], None]) -> None:
    """Run `notebook` into `out`. Raises: RunError: one line that says which cell failed and how."""
    # Imported here, once per process: it takes seconds, and a run that is there already needs none of it.
    import papermill
    from nbclient.exceptions import DeadKernelError

    cell_now = 0
    stream = _Stream(progress)

    def on_cell_execute(cell: dict, cell_index: int) -> None:
        nonlocal cell_now
        cell_now += 1

    def attempt() -> None:
        papermill.execute_notebook(
            notebook,
            out,
            parameters,
            kernel_name="python3",
            progress_bar=False,
            stdout_file=stream,
            stderr_file=stream,
            on_cell_execute=on_cell_execute,
            extra_arguments=QUIET,
        )

    try:
        try:
            attempt()
        except RuntimeError as error:
            # Two kernels that start at once can pick the same port; the loser dies before its first cell.
            if cell_now or isinstance(error, DeadKernelError):
                raise
            progress(f"the kernel did not start ({last_line(error)}); trying once more\n")
            attempt()
    except papermill.PapermillExecutionError as error:
        where = f"{notebook.name}, In [{error.exec_count}]"
        raise RunError(f"{where}: {_traceback_line(error)} (see {records.shown(out)})") from None
    except DeadKernelError:
        raise RunError(
            f"{notebook.name}, In [{cell_now}]: the kernel died (killed, or out of memory?) (see {records.shown(out)})"
        ) from None
    except RuntimeError as error:
        raise RunError(f"{notebook.name}: the kernel did not start: {last_line(error)}") from None


class _Stream:
    """The file that papermill writes a notebook's output to."""

    def __init__(self, progress: Callable[[str], None]) -> None:
        self.write = progress

    def flush(self) -> None:
        """`progress` does not buffer."""


def _traceback_line(error: Any) -> str:
    """The last line of the notebook's own traceback, with the type of the error."""
    line = COLOURS.sub("", last_line("\n".join(error.traceback) or f"{error.ename}: {error.evalue}"))
    return line if line.startswith(error.ename) else f"{error.ename}: {line}"


@contextlib.contextmanager
def _alone(scratch: Path, direction: str) -> Iterator[None]:
    """Hold `execute.lock`. Raises: RunError: another process is executing the same run."""
    lock = hold(scratch / "execute.lock")
    if lock is None:
        raise RunError(busy(direction, scratch.name))
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _marked(scratch: Path, what: str) -> Iterator[None]:
    """Leave the mark `what`, if any, for the kernel's `begin` while the block runs; marks of the dead are removed."""
    for mark in ("force", "verify"):
        (scratch / mark).unlink(missing_ok=True)
    if what:
        (scratch / what).touch()
    try:
        yield
    finally:
        if what:
            (scratch / what).unlink(missing_ok=True)


@contextlib.contextmanager
def _settling(store: Store, direction: str, config: Config, key: Key, earlier: list[Record]) -> Iterator[None]:
    """When the block raises, see to it that the record tells, although the kernel may not have lived to write it."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        stopped = isinstance(error, KeyboardInterrupt)
        record = _recorded(store, direction, config, earlier)
        scratch = store.scratch(direction, record.run if record else run_name(config, key))
        lock = hold(scratch / "run.lock")
        if lock is None:  # The run belongs to a kernel elsewhere, which will tell itself.
            raise
        try:
            record = record or new_record(direction, config, key)
            told = record.status in ("failed", "interrupted") and not stopped
            # A record that was running reads as interrupted here: its kernel is gone.
            if not told or record.error == GONE:
                status = "interrupted" if stopped else "failed"
                line = "KeyboardInterrupt" if stopped else last_line(str(error))
                write_last(record.replace(status=status, error=line, finished=now()), scratch)
        finally:
            lock.release()
        raise
