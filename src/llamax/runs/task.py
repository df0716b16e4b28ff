"""A run as a job of Slurm: what submitit calls on the node, and the process beneath it that executes the notebook.

Two processes, so that the notebook can be stopped in good order while submitit's signal handler waits for it: on the
warning signal the run is interrupted as Ctrl-C interrupts it, then the job is requeued, and the next attempt goes on
from the newest checkpoint. Slurm sends its signals to every process of a job: the warning is ignored by all but the
one that it is meant for.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamax.errors import LlamaxError, RunError

if TYPE_CHECKING:
    from submitit.core.utils import DelayedSubmission

TO_STOP = 60.0
"""Seconds for a run to stop in good order: less than between the warning and the end (`cluster.WARNING`)."""
TO_BE_KILLED = 600.0
"""Seconds to wait for Slurm's SIGKILL after its SIGTERM: a job that left by itself would not be requeued."""
POLL = 0.2
INTERRUPTED = 130


class Task:
    """`execute(**arguments)` on `nodes` nodes, with `slots` ranks on each; submitit keeps it in a file.

    It has no state: what was computed lies in the run's scratch folder.
    """

    def __init__(self, arguments: dict[str, Any], nodes: int = 1, slots: int = 1) -> None:
        self.arguments, self.nodes, self.slots = arguments, nodes, slots
        self.process: subprocess.Popen | None = None
        self.told_to_end = False

    def __call__(self) -> None:
        """Execute the run and wait for it. Raises: RunError: it failed, or was interrupted."""
        signal.signal(signal.SIGTERM, self._end)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "llamax.runs.task", json.dumps(self.arguments)],
            stdin=subprocess.PIPE,  # by which it learns of our end
            env=os.environ | self._places(),
            preexec_fn=lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN),
        )
        while not self._stopped():
            time.sleep(POLL)
        status = self.process.wait()
        if self.told_to_end:
            time.sleep(TO_BE_KILLED)
        if status:
            how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
            raise RunError(f"{self.arguments['direction']}: the run {how}; what it said is above")

    def checkpoint(self) -> "DelayedSubmission":
        """Called by submitit on the warning signal: stop the run, and say what is to be done next time: the same."""
        from submitit.core.utils import DelayedSubmission

        signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # a second warning would begin this anew, in the midst of it
        if self.process is not None:
            self._stop(self.process)
        return DelayedSubmission(Task(self.arguments, self.nodes, self.slots))

    def _stop(self, process: subprocess.Popen) -> None:
        """Ctrl-C for the run; SIGKILL if it does not stop."""
        end = time.monotonic() + TO_STOP
        if not self._stopped():
            process.send_signal(signal.SIGINT)
        while not self._stopped() and time.monotonic() < end:
            time.sleep(POLL)
        if not self._stopped():
            process.kill()

    def _stopped(self) -> bool:
        """Whether the process is over, without reaping it: a signal handler may ask while `wait` holds Popen's lock."""
        if self.process.returncode is not None:
            return True
        return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None

    def _end(self, signum: int, frame: Any) -> None:
        """SIGTERM: Slurm is about to kill the job, for good or to requeue it; the run hears it as well."""
        self.told_to_end = True
        if self.process is not None and not self._stopped():
            self.process.send_signal(signal.SIGINT)

    def _places(self) -> dict[str, str]:
        """Environment that tells `llamax.training.ranks` where ranks run, if that is not on this node alone."""
        if self.nodes == 1:
            return {}
        from submitit import JobEnvironment

        job = JobEnvironment()
        path = job.paths.folder / f"{job.job_id}.hosts"
        path.write_text("".join(f"{host} slots={self.slots}\n" for host in job.hostnames))
        return {"LLAMAX_HOSTFILE": str(path), "LLAMAX_LAUNCHER": "srun"}


def main(arguments: str) -> int:
    """Execute the run that `arguments` (JSON) describes; exit status as of `llamax run`."""
    from llamax.runs import Store
    from llamax.runs.notebook import execute

    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    try:
        record = execute(**json.loads(arguments))
    except KeyboardInterrupt:
        print("interrupted: it goes on from its newest checkpoint", file=sys.stderr, flush=True)
        return INTERRUPTED
    except (LlamaxError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return 2
    print(f"{record.status}: {Path(record.direction, record.run)} in {Store().root.name}/results", flush=True)
    return 0


def _stop_with_parent() -> None:
    """Wait on the pipe that the job's first process holds open; when it is gone, be interrupted, then gone too."""
    with contextlib.suppress(OSError):
        os.read(0, 1)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(TO_STOP / 2)
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
