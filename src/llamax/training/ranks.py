"""Processes of one job on this machine or several: started by DeepSpeed's launcher, followed, gone when we are.

`run_ranks` starts them from one process (a notebook cell, say) and needs no torch; `rank_of` is what each of them runs
in. A rank that fails leaves its own traceback, so that nobody need guess which of the many complaints that follow one
failure was the first.
"""

import base64
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

from llamax.errors import LaunchError
from llamax.files import locate, write_atomic
from llamax.training.hosts import check_hosts, environment_file, slots
from llamax.training.srun import srun_command

POLL_SECONDS = 0.2
GRACE_SECONDS = 10
LOST_TOUCH = re.compile(r"Connection (reset|closed|refused)|Broken pipe|remote (process|peer)|NCCL", re.IGNORECASE)
"""At the end of a traceback: the rank complains of another one."""
ENDING = 500  # characters
ONE_GONE = b"exits with return code"
"""What DeepSpeed's launcher on a machine says when one of its ranks has failed."""


class Placement(NamedTuple):
    """Where ranks run: how many in all, on which machines (DeepSpeed's hostfile; None: this one), first port."""

    ranks: int
    hostfile: str | None = None
    port: int | None = None


def place(ranks: int, hostfile: str | None = None, port: int | None = None) -> Placement:
    """What is given, or what the environment says: `LLAMAX_HOSTFILE` and `LLAMAX_PORT`. Where is no parameter of what.

    Raises: LaunchError: no such hostfile, one without hosts, or a port that is none or is taken.
    """
    hostfile, wanted = hostfile or os.environ.get("LLAMAX_HOSTFILE"), port or os.environ.get("LLAMAX_PORT")
    if wanted and not (str(wanted).isdecimal() and 0 < int(wanted) < 65536):
        raise LaunchError(f"LLAMAX_PORT={wanted}: want a port number from 1 to 65535")
    if wanted:
        _check_port(int(wanted))
    return Placement(ranks, _checked(hostfile) if hostfile else None, int(wanted) if wanted else None)


def _checked(hostfile: str) -> str:
    """Absolute path of a hostfile that DeepSpeed understands; it would go on without one that it does not."""
    path = locate(hostfile)
    if path.is_dir():
        raise LaunchError(f"hostfile {hostfile}: a folder; give a file with a line 'host slots=8' per machine")
    if not path.is_file():
        raise LaunchError(f"hostfile {hostfile}: no such file; give one with a line 'host slots=8' per machine")
    lines = [line.split("#")[0].strip() for line in path.read_text(errors="replace").splitlines()]
    bad = [line for line in lines if line and not re.fullmatch(r"\S+\s+slots=[1-9]\d*", line)]
    if bad or not any(lines):
        fault = repr(bad[0][:40]) if bad else "no hosts in it"
        raise LaunchError(f"hostfile {hostfile}: {fault}; want a line 'host slots=8' per machine")
    return str(path.resolve())


def run_ranks(module: str, job_file: Path, where: Placement, follow: Callable[[], None]) -> int:
    """Run `python -m module job_file` on every rank and call `follow` several times a second; the exit status.

    What they print goes to `log.txt` beside the job file, and so do their tracebacks (`first_failure`). Interrupted,
    or with this process gone, no rank lives on.
    """
    logged, failed = new_lines(job_file.parent / "log.txt"), None
    with started(module, job_file, where) as process:
        running = True
        while running:
            running = process.poll() is None
            follow()
            if running:
                time.sleep(POLL_SECONDS)
            if where.hostfile and failed is None and any(ONE_GONE in line for line in next(logged)):
                failed = time.monotonic()  # pdsh waits for the other machines, whose ranks may wait for this one's
            if failed is not None and time.monotonic() - failed > GRACE_SECONDS:
                break
    return process.returncode


def _command(module: str, job_file: Path, where: Placement) -> list[str]:
    """DeepSpeed's launcher for this machine, or its runner, which starts one on each machine of the hostfile.

    On this machine the ranks follow our life through their standard input, which they inherit.
    """
    worker = ["--module", "--no_local_rank", module, str(job_file)]
    python, port = [sys.executable, "-m"], where.port or free_port()
    if where.hostfile and os.environ.get("LLAMAX_LAUNCHER") == "srun":  # a job of Slurm (`runs.task`)
        return srun_command(where.hostfile, port, worker)
    if where.hostfile:
        runner = ["deepspeed.launcher.runner", "--hostfile", where.hostfile, "--master_port", str(port)]
        return python + runner + worker
    visible = [device for device in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if device]  # or UUIDs
    if 0 < len(visible) < where.ranks:
        raise LaunchError(f"{where.ranks} ranks asked, but CUDA_VISIBLE_DEVICES={','.join(visible)} shows fewer")
    devices = visible[: where.ranks] or list(range(where.ranks))
    world = base64.urlsafe_b64encode(json.dumps({"localhost": devices}).encode()).decode()
    launcher = ["deepspeed.launcher.launch", f"--world_info={world}", "--master_addr=127.0.0.1"]
    return [*python, *launcher, f"--master_port={port}", *worker, "--parent-on-stdin"]


def _environment(where: Placement) -> dict[str, str]:
    """This process's environment, with a machine's cores shared out and DeepSpeed told where there is no GPU."""
    environment = dict(os.environ)
    here = max(slots(where.hostfile).values()) if where.hostfile else where.ranks
    environment.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // here)))
    if not shutil.which("nvidia-smi"):
        environment.setdefault("DS_ACCELERATOR", "cpu")
    return environment


@contextlib.contextmanager
def started(module: str, job_file: Path, where: Placement) -> Iterator[subprocess.Popen]:
    """The launcher and its ranks as one process group, none of which outlives the block; `run_ranks` says the rest."""
    environment = _environment(where)
    if where.hostfile and os.environ.get("LLAMAX_LAUNCHER") != "srun":  # Slurm has its own ways to its machines
        check_hosts(where.hostfile, where.ranks)
        text = environment_file(environment)
        carried = write_atomic(job_file.parent / "environment", text, mode=0o600)  # it may hold the hub's token
        environment["DS_ENV_FILE"] = str(carried)
    with open(job_file.parent / "log.txt", "wb") as log:
        process = subprocess.Popen(
            _command(module, job_file, where),
            env=environment,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.stdin.close()
        process.wait()
        (job_file.parent / "environment").unlink(missing_ok=True)


def new_lines(file: Path) -> Iterator[list[bytes]]:
    """Each time it is asked: the complete lines that were added to `file` since."""
    position = 0
    while True:
        lines = []
        if file.exists():
            with open(file, "rb") as stream:
                stream.seek(position)
                whole, newline, _ = stream.read().rpartition(b"\n")
            position += len(whole) + len(newline)
            lines = whole.splitlines()
        yield lines


def first_failure(folder: Path, status: int, ranks: int) -> str:
    """Message of the `LaunchError`; its last line is what went wrong first, as far as anyone could tell.

    That is what the earliest failing rank said, unless all it said is that it lost touch with one that died silently.
    """
    log = folder / "log.txt"
    errors = [(json.loads(file.read_text()), file) for file in folder.glob("error-*.json")]
    error, file = min(errors, key=lambda pair: pair[0]["time"], default=({"traceback": ""}, log))
    said = error["traceback"].rstrip()
    killed = "ended without a traceback: killed, or out of memory?"
    if not said:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        return f"end of {log}:\n{tail}\nthe ranks {killed} (status {status})"
    if len(errors) < ranks and LOST_TOUCH.search(said[-ENDING:]):
        silent = set(range(ranks)) - {int(path.stem.removeprefix("error-")) for _, path in errors}
        which = f"rank {silent.pop()}" if len(silent) == 1 else "another rank"
        return f"what a rank that survived said (all output: {log}):\n{said}\n{which} {killed}"
    return f"rank {file.stem.removeprefix('error-')} failed (all output: {log}); its traceback:\n{said}"


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def _check_port(port: int) -> int:
    """`port`, if it can be listened on. Raises: LaunchError."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise LaunchError(
                f"port {port} cannot be used ({error.strerror}): give another, or none to have one chosen"
            ) from None
    return port


@contextlib.contextmanager
def rank_of(job_file: str) -> Iterator[tuple[int, int]]:
    """Rank and number of ranks, as the launcher's environment names them. The process ends with the block (`leave`).

    Failure leaves a traceback and exit status 1.
    """
    if "--parent-on-stdin" in sys.argv:
        threading.Thread(target=_exit_with_parent, daemon=True).start()
    rank = int(os.environ["RANK"])
    try:
        yield rank, int(os.environ["WORLD_SIZE"])
    except BaseException:
        text = traceback.format_exc()
        print(text, file=sys.stderr, flush=True)
        failed = {"time": time.time(), "traceback": text}
        write_atomic(Path(job_file).parent / f"error-{rank}.json", json.dumps(failed))
        os._exit(1)  # not sys.exit: leaving a process group in good order can wait for ranks that are gone
    leave()


def leave() -> NoReturn:
    """End this process, its work done and its files closed.

    Not by running off the end: where threads of torch or gloo are still alive when Python takes itself down, the
    process now and then aborts, and a finished run would count as failed.
    """
    if "torch" in sys.modules and (distributed := sys.modules["torch"].distributed).is_initialized():
        distributed.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _exit_with_parent() -> None:
    """Wait on the pipe that the launching process holds open; when that process is gone, however it went, so are we."""
    os.read(0, 1)  # not sys.stdin: a thread that holds its lock makes Python abort at exit
    os._exit(1)
