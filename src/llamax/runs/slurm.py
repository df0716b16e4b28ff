"""What Slurm says about jobs, asked once and briefly, and the forms in which it wants to be told things."""

import contextlib
import math
import re
import subprocess
import time
from collections.abc import Collection
from typing import NamedTuple

from llamax.errors import ParameterError, RunError

PATIENCE = 2.0
"""Seconds that Slurm is given to answer, all questions together."""
FIELDS = "ArrayJobID:20,ArrayTaskID:20,State:24,RestartCnt:12,Reason:60"
TIMES = re.compile(r"(?:(?P<days>\d+)-(?P<clock>\d+(?::\d+){0,2})|(?P<plain>\d+(?::\d+){0,2}))")
WAITING = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT"}
AT_WORK = {"RUNNING", "CONFIGURING", "COMPLETING", "STAGE_OUT", "SIGNALING", "STOPPED", "SUSPENDED", "RESIZING"}


class JobState(NamedTuple):
    """Slurm's word for a job's state (`PENDING`, `RUNNING`, `CANCELLED`, ...), its reason, how often it was requeued.

    `restarts` is None where only the accounting remembers the job.
    """

    state: str
    reason: str = ""
    restarts: int | None = None

    @property
    def over(self) -> bool:
        """Whether nothing more will happen to the job."""
        return self.state not in WAITING | AT_WORK


def ask(jobs: Collection[str], patience: float = PATIENCE) -> dict[str, JobState]:
    """The states of `jobs` (`12`, or `12_0` for a task of an array) that Slurm knows of.

    The controller forgets a job some minutes after its end (`MinJobAge`). Then the accounting is asked, where there is
    one; a job that neither knows is left out. Raises: RunError: Slurm does not answer within `patience` seconds.
    """
    if not jobs:
        return {}
    end = time.monotonic() + patience
    numbers = ",".join(sorted({job.split("_")[0] for job in jobs}, key=int))
    queue = ["squeue", "--noheader", "--array", "--states=all", f"--jobs={numbers}", "--Format", FIELDS]
    known = read_queue(_told(queue, end, fine="Invalid job id"))
    forgotten = sorted({job.split("_")[0] for job in jobs if job not in known}, key=int)
    if forgotten:
        accounts = ["sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={','.join(forgotten)}"]
        with contextlib.suppress(RunError):  # no accounting here, or it is slow: the controller's answer stands
            known = read_accounts(_told([*accounts, "--format=JobID,State"], end)) | known
    return {job: state for job, state in known.items() if job in jobs}


def read_queue(text: str) -> dict[str, JobState]:
    """`squeue --Format` with `FIELDS`, one job or task of an array per line."""
    found = {}
    for line in text.splitlines():
        parts = line.split(maxsplit=4)
        if len(parts) < 4 or not parts[3].isdigit():
            continue
        number, task, state, restarts = parts[:4]
        name = f"{number}_{task}" if task.isdigit() else number
        reason = parts[4].strip() if len(parts) > 4 else ""
        found[name] = JobState(state, "" if reason == "None" else reason, int(restarts))
    return found


def read_accounts(text: str) -> dict[str, JobState]:
    """`sacct --parsable2 --format=JobID,State`; `CANCELLED by 1000` is `CANCELLED`."""
    lines = (line.split("|") for line in text.splitlines() if line.count("|") == 1)
    return {job: JobState(state.split()[0]) for job, state in lines if state.strip()}


def minutes(text: str) -> int:
    """Slurm's forms of a time (`90`, `90:00`, `1:30:00`, `1-12`, `1-12:00`, `1-12:00:00`) in minutes, rounded up.

    Raises: ParameterError: none of these forms, or no time at all.
    """
    found = TIMES.fullmatch(text.strip())
    if not found:
        raise ParameterError(f"--time {text!r}: write minutes, hours:minutes:seconds or days-hours, such as 8:00:00")
    if found["days"]:
        parts = [int(part) for part in found["clock"].split(":")] + [0, 0]
        seconds = int(found["days"]) * 86400 + parts[0] * 3600 + parts[1] * 60 + parts[2]
    else:
        parts = [int(part) for part in found["plain"].split(":")]
        seconds = {1: [60], 2: [60, 1], 3: [3600, 60, 1]}[len(parts)]
        seconds = sum(part * unit for part, unit in zip(parts, seconds, strict=True))
    if not seconds:
        raise ParameterError(f"--time {text!r}: no time at all; give what the run may take, such as 8:00:00")
    return math.ceil(seconds / 60)


def _told(command: list[str], end: float, fine: str = "\0") -> str:
    """What `command` prints before the clock says `end`; with the words `fine` a failure is an empty answer."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=max(0.1, end - time.monotonic())
        )
    except FileNotFoundError:
        raise RunError(f"Slurm does not answer: there is no {command[0]} on PATH") from None
    except subprocess.TimeoutExpired:
        raise RunError(f"Slurm does not answer: {command[0]} said nothing for {PATIENCE:g} s or more") from None
    if done.returncode and fine not in done.stderr:
        said = done.stderr.strip().splitlines()
        raise RunError(f"Slurm does not answer: {said[-1] if said else f'{command[0]} exited {done.returncode}'}")
    return "" if done.returncode else done.stdout
