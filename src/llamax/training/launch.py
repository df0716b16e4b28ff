"""Start a training job on many ranks from one process (a notebook cell, say) and follow it. Needs no torch itself."""

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
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from llamax.errors import LaunchError
from llamax.files import write_atomic
from llamax.training.config import Job
from llamax.training.history import History, StepMetrics

OnStep = Callable[[StepMetrics], None]
POLL_SECONDS = 0.2
GRACE_SECONDS = 10
LOST_TOUCH = re.compile(r"Connection (reset|closed|refused)|Broken pipe|remote (process|peer)|NCCL", re.IGNORECASE)
"""At the end of a traceback: the rank complains of another one."""
ENDING = 500  # characters


def train(job: Job, *, on_step: OnStep | None = None) -> History:
    """Run a job where it belongs: engine `torch` in this process, `deepspeed` on ranks of its own."""
    if job.train.engine == "deepspeed":
        return launch(job, on_step=on_step)
    from llamax.training.worker import run_job

    return run_job(job, on_step=on_step)


def launch(job: Job, *, on_step: OnStep | None = None) -> History:
    """Run a job with DeepSpeed's launcher; call `on_step` here for every step that rank 0 finishes.

    The output of all ranks goes to `out/ranks/log.txt`. Interrupted, or with this process gone, no rank lives on.
    Raises: LaunchError: the port is taken, or a rank failed; then it ends with the traceback of the rank that failed
    first.
    """
    job = _placed(job)
    port = _check_port(job.port) if job.port else free_port()
    folder = Path(job.out).resolve() / "ranks"
    shutil.rmtree(folder, ignore_errors=True)
    write_atomic(folder / "job.json", job.model_copy(update={"out": str(folder.parent)}).model_dump_json())
    with open(folder / "log.txt", "wb") as log, _ranks(_command(job, folder, port), _environment(job), log) as process:
        steps = _new_steps(folder / "steps.jsonl")
        running = True
        while running:
            running = process.poll() is None
            for metrics in next(steps):
                if on_step:
                    on_step(metrics)
            if running:
                time.sleep(POLL_SECONDS)
    if process.returncode or not (folder / "history.json").exists():
        for half in folder.parent.glob("checkpoints/.step-*"):  # nobody writes any more; on a full disk it is the disk
            shutil.rmtree(half, ignore_errors=True)
        raise LaunchError(_first_failure(folder, process.returncode, job.train.ranks))
    return History.from_json((folder / "history.json").read_text())


def _placed(job: Job) -> Job:
    """The job with what the environment says of *where* it runs, which is no parameter of *what* is computed.

    `LLAMAX_HOSTFILE`: DeepSpeed's hostfile, for several machines; `LLAMAX_PORT`: of the first rank.
    Raises: LaunchError: no such hostfile, one without hosts, or a port that is no number.
    """
    hostfile, port = job.hostfile or os.environ.get("LLAMAX_HOSTFILE"), job.port or os.environ.get("LLAMAX_PORT")
    if hostfile:
        if not Path(hostfile).is_file():
            raise LaunchError(f"hostfile {hostfile}: no such file; give one with a line 'host slots=8' per machine")
        lines = [line.split("#")[0].strip() for line in Path(hostfile).read_text(errors="replace").splitlines()]
        bad = [line for line in lines if line and not re.fullmatch(r"\S+ slots=[1-9]\d*", line)]
        if bad or not any(lines):
            fault = repr(bad[0][:40]) if bad else "no hosts in it"
            raise LaunchError(f"hostfile {hostfile}: {fault}; want a line 'host slots=8' per machine")
        hostfile = str(Path(hostfile).resolve())
    if port and not (str(port).isdigit() and 0 < int(port) < 65536):
        raise LaunchError(f"LLAMAX_PORT={port}: want a port number from 1 to 65535")
    return job.model_copy(update={"hostfile": hostfile or None, "port": int(port) if port else None})


def _command(job: Job, folder: Path, port: int) -> list[str]:
    """DeepSpeed's launcher for this machine, or its runner, which starts one on each machine of the hostfile.

    On this machine the ranks follow our life through their standard input, which they inherit.
    """
    worker = ["--module", "--no_local_rank", "llamax.training.worker", str(folder / "job.json")]
    python = [sys.executable, "-m"]
    if job.hostfile:
        runner = ["deepspeed.launcher.runner", "--hostfile", job.hostfile, "--master_port", str(port)]
        return python + runner + worker
    visible = [device for device in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if device]  # or UUIDs
    devices = visible[: job.train.ranks] or list(range(job.train.ranks))
    world = base64.urlsafe_b64encode(json.dumps({"localhost": devices}).encode()).decode()
    launcher = ["deepspeed.launcher.launch", f"--world_info={world}", "--master_addr=127.0.0.1"]
    return [*python, *launcher, f"--master_port={port}", *worker, "--parent-on-stdin"]


def _environment(job: Job) -> dict[str, str]:
    """This process's environment, with the cores shared out and DeepSpeed told where there is no GPU."""
    environment = dict(os.environ)
    cores = len(os.sched_getaffinity(0))
    environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // job.train.ranks)))
    if not shutil.which("nvidia-smi"):
        environment.setdefault("DS_ACCELERATOR", "cpu")
    return environment


@contextlib.contextmanager
def _ranks(command: list[str], environment: dict[str, str], log) -> Iterator[subprocess.Popen]:
    """The launcher and its ranks as one process group, none of which outlives the block."""
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
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


def _new_steps(file: Path) -> Iterator[list[StepMetrics]]:
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
        yield [StepMetrics(*json.loads(line)) for line in lines]


def _first_failure(folder: Path, status: int, ranks: int) -> str:
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
        return f"what a rank that survived said (all output: {log}):\n{said}\nanother rank {killed}"
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
