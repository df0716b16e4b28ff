"""Start a training job where it belongs, in this process or on ranks of its own. Needs no torch itself."""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from llamax.errors import LaunchError
from llamax.files import sweep, write_atomic
from llamax.training.config import Job
from llamax.training.history import History, StepMetrics
from llamax.training.preflight import placed
from llamax.training.ranks import first_failure, new_lines, place, run_ranks

OnStep = Callable[[StepMetrics], None]


def train(job: Job, *, on_step: OnStep | None = None) -> History:
    """Run a job where it belongs: engine `torch` in this process, `deepspeed` on ranks of its own.

    Raises: LaunchError: another process trains into the same folder.
    """
    with _alone_in(Path(job.out)):
        if job.train.engine == "deepspeed":
            return launch(job, on_step=on_step)
        from llamax.training.worker import run_job

        return run_job(job, on_step=on_step)


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Hold `folder`: two trainings in one would delete each other's half-written checkpoints. Raises: LaunchError."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "train.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise LaunchError(f"{folder}: another process trains there; wait for it, or choose another folder") from None
    try:
        yield
    finally:
        lock.release()


def launch(job: Job, *, on_step: OnStep | None = None) -> History:
    """Run a job with DeepSpeed's launcher; call `on_step` here for every step that rank 0 finishes.

    The output of all ranks goes to `out/ranks/log.txt`. Interrupted, or with this process gone, no rank lives on.
    Raises: LaunchError: the port is taken, or a rank failed; then it ends with the traceback of the rank that failed
    first.
    """
    job = job.model_copy(update={"train": placed(job.train)})
    where = place(job.train.ranks, job.hostfile, job.port)
    folder = Path(job.out).resolve() / "ranks"
    shutil.rmtree(folder, ignore_errors=True)
    write_atomic(folder / "job.json", job.model_copy(update={"out": str(folder.parent)}).model_dump_json())
    lines = new_lines(folder / "steps.jsonl")

    def follow() -> None:
        for line in next(lines):
            if on_step:
                on_step(StepMetrics(*json.loads(line)))

    status = run_ranks("llamax.training.worker", folder / "job.json", where, follow)
    if status or not (folder / "history.json").exists():
        sweep(folder.parent / "checkpoints" / "step")  # half a checkpoint may be all that was left of the disk
        raise LaunchError(first_failure(folder, status, where.ranks))
    return History.from_json((folder / "history.json").read_text())
