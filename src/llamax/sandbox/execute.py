"""Run a program that nobody has vouched for, and say how it ended."""

import contextlib
import functools
import io
import itertools
import marshal
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llamax.errors import ParameterError, SandboxError
from llamax.sandbox.inside.launch import UNIQUE
from llamax.sandbox.inside.mounts import DEVICES
from llamax.sandbox.places import package, places

Status = Literal["ok", "failed", "timeout", "memory", "denied"]
MECHANISMS = ("namespaces", "landlock", "seccomp", "uid")
WEAK = "LLAMAX_SANDBOX"  # environment variable; its value "weak" allows what `allow_weak` allows
BOX, PACKAGES = "/box", "/packages"  # in a file system of its own: the program's folder, and what it may import
GRACE = 10.0  # seconds after the wall limit until the launcher itself is taken to be stuck
HERE = Path(__file__).parent
LIMIT = "LIMIT "  # of the notes, those on which limit ended the program
REACHED = {
    "DISK": "{disk:,} bytes of disk",
    "FILES": "{files:,} open files",
    "PROCESSES": "{processes:,} processes",
    "THREADS": "{processes:,} processes and threads, or of {memory:,} bytes of memory",
}
"""What a program may be told by the kernel, and fail of."""


@dataclass(frozen=True)
class Limits:
    """What one program may use. Seconds and bytes.

    `memory` bounds the address space of each process and what all of them hold together; `cpu` each process; `files`
    the open ones; `disk` the folder and each file in it; `output` what is kept of stdout and of stderr: beyond it the
    program is ended. `processes` counts threads, too.
    """

    wall: float = 20.0
    cpu: float = 10.0
    memory: int = 1 << 30
    processes: int = 16
    files: int = 64
    disk: int = 64 << 20
    output: int = 1 << 20

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 < value < 1 << 62:
                raise ParameterError(f"limit {name}: should be a number above 0 and below 2^62; got {value}")


@dataclass(frozen=True)
class Result:
    """How a program ended.

    `ok`: by itself, with exit status 0. `failed`: an exception, another exit status, a signal. `timeout`: out of wall
    or CPU time. `memory`: out of memory. `denied`: it failed or was ended after something was refused; `denied` says
    what. `detail` is one line of why it is not ok, with the limit that a failed one had reached. `seconds` of wall
    time, `cpu` seconds of CPU time of all its processes, `memory` the most bytes held at once.
    """

    status: Status
    stdout: str
    stderr: str
    detail: str = ""
    denied: tuple[str, ...] = ()
    seconds: float = 0.0
    cpu: float = 0.0
    memory: int = 0


@functools.cache
def active() -> frozenset[str]:
    """Which of the mechanisms work together on this machine for this user: the first in order of strength, by trying.

    Raises: SandboxError: not even limits work.
    """
    outcome: dict[str, Any] = {}
    broken: set[str] = set() if os.getuid() == 0 else {"uid"}
    for choice in itertools.product((True, False), repeat=len(MECHANISMS)):
        wanted = frozenset(itertools.compress(MECHANISMS, choice))
        if not wanted & broken:
            outcome = _run(b"pass", Limits(), wanted)[0]
            if outcome.get("status") == 0:
                return wanted
            if outcome.get("mechanism") == "namespaces":  # any other's failure may come of their combination
                broken.add("namespaces")
    raise SandboxError(f"no program runs in the sandbox here: {outcome.get('error', 'python does not start')}")


def weakness(mechanisms: Collection[str]) -> str:
    """What these mechanisms together cannot prevent; an empty text if they suffice."""
    if "namespaces" in mechanisms:
        return ""
    missing = [] if "landlock" in mechanisms else ["reading and writing of files"]
    return " and ".join(missing + ([] if "seccomp" in mechanisms else ["use of the network"]))


def execute(
    program: str | bytes,
    limits: Limits | None = None,
    *,
    stdin: bytes = b"",
    mechanisms: Collection[str] | None = None,
    allow_weak: bool = False,
    packages: Sequence[str] = (),
    channels: Sequence[int] = (),
    until: int | None = None,
) -> Result:
    """Run a Python program shut in: its own empty folder, no network, no other processes, limits on everything.

    It sees the standard library and of what is installed only `packages`, has an empty environment, and finds
    `channels` (descriptors of the caller's, closed here) as descriptors 5, 6, ... All it started is gone when this
    returns. It is ended early when `until`, the reading end of a pipe, says something or closes. `mechanisms` leaves
    some out (for tests); by default all that work here are used.

    Raises: SandboxError: they do not suffice to keep it from files and network, unless `allow_weak` is set or the
    environment says LLAMAX_SANDBOX=weak; a package is not installed.
    """
    used = active() if mechanisms is None else frozenset(mechanisms)
    open_to = weakness(used)
    if open_to and not (allow_weak or os.environ.get(WEAK) == "weak"):
        raise SandboxError(
            f"nothing here prevents {open_to} by a program (it needs user namespaces, or Landlock and seccomp; see "
            f"`llamax doctor`); allow it with {WEAK}=weak"
        )
    source = program.encode("utf-8", "surrogatepass") if isinstance(program, str) else program
    limits = limits or Limits()
    outcome, out, err = _run(source, limits, used, stdin, packages, channels, until)
    if "error" in outcome and not outcome.get("killed"):
        raise SandboxError(f"the sandbox does not start: {outcome['mechanism'] or 'launcher'}: {outcome['error']}")
    return _result(outcome, out, err, limits)


def _result(outcome: dict[str, Any], out: bytes, err: bytes, limits: Limits) -> Result:
    """Read the launcher's account of how it ended."""
    notes = outcome["notes"].decode(errors="replace").splitlines()
    denied = tuple(dict.fromkeys([*outcome["refused"], *(note for note in notes if not note.startswith(LIMIT))]))
    reached = [note.removeprefix(LIMIT) for note in notes if note.startswith(LIMIT)]
    status, detail = _ending(outcome, limits, reached)
    if status == "failed" and denied:
        status = "denied"
    if outcome["killed"] in ("output", "disk"):
        status, denied = "denied", (*denied, detail)
    texts = (text.decode(errors="replace") for text in (out, err))
    return Result(status, *texts, detail, denied, outcome["seconds"], outcome["cpu"], outcome["peak"])


def _ending(outcome: dict[str, Any], limits: Limits, reached: list[str]) -> tuple[Status, str]:
    """Status and one line."""
    killed = outcome["killed"]
    if killed == "wall":
        return "timeout", f"more than {limits.wall:g} s"
    if killed == "memory":
        return "memory", f"more than {limits.memory:,} bytes of memory"
    if killed in ("output", "disk"):
        return "failed", f"more than {getattr(limits, killed):,} bytes of {killed}"
    if killed == "until":
        return "failed", "ended from outside"
    code = os.waitstatus_to_exitcode(outcome.get("status", 9))
    if code == 0:
        return "ok", ""
    if "MEMORY" in reached:
        return "memory", f"MemoryError at {limits.memory:,} bytes"
    if code == -signal.SIGXCPU or (code == -signal.SIGKILL and outcome["cpu"] >= limits.cpu):
        return "timeout", f"more than {limits.cpu:g} s of CPU time"
    named = next((f", at the limit of {REACHED[one].format(**vars(limits))}" for one in reached if one in REACHED), "")
    return "failed", f"{f'exit status {code}' if code > 0 else f'signal {-code}'}{named}"


def _run(
    source: bytes,
    limits: Limits,
    mechanisms: frozenset[str],
    stdin: bytes = b"",
    packages: Sequence[str] = (),
    channels: Sequence[int] = (),
    until: int | None = None,
) -> tuple[dict[str, Any], bytes, bytes]:
    """Start a launcher, hand it its order, collect what comes back: its account, stdout, stderr."""
    with contextlib.ExitStack() as stack:
        folder = "" if "namespaces" in mechanisms else stack.enter_context(_folder())
        text = stack.enter_context(_file_in_memory(source))
        given = stack.enter_context(_file_in_memory(stdin))
        order = _order(limits, mechanisms, folder or BOX, text, packages, channels)  # may refuse: before any pipe
        control, control_in = os.pipe()
        result, result_end = os.pipe()
        order_to = stack.enter_context(os.fdopen(control_in, "wb", buffering=0))  # closed, it ends everything
        code = f"import sys; sys.path.insert(0, {str(HERE)!r}); from inside import launch; "
        code += f"launch.main({control}, {result_end})"
        launcher = subprocess.Popen(
            [places().python, "-I", "-S", "-c", code],
            stdin=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, cwd="/",
            pass_fds=[control, result_end, text, *channels], env=_environment(),
        )  # fmt: skip
        for handle in (control, result_end, *channels):
            os.close(handle)
        with launcher:
            try:
                order_to.write(marshal.dumps(order))
                return _collect(launcher, result, order_to, limits, until)
            finally:
                order_to.close()
                os.close(result)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    launcher.wait(GRACE)
                launcher.kill()


def _order(
    limits: Limits,
    mechanisms: frozenset[str],
    box: str,
    program: int,
    packages: Sequence[str],
    channels: Sequence[int],
) -> dict[str, Any]:
    """All that the launcher needs to know."""
    where = places()
    sources = [package(name) for name in packages]
    shown = {f"{PACKAGES}/{os.path.basename(path)}" if box == BOX else path: path for path in sources}
    paths = sorted({os.path.dirname(path) for path in shown})
    readable = {path: path for path in where.readable} | shown
    allowed = (*(f"{path}/" for path in (*readable, box)), *readable, box, *DEVICES)
    return vars(limits) | {
        "mechanisms": sorted(mechanisms),
        "python": where.python,
        "readable": readable,
        "hidden": where.hidden,
        "granted": (*where.granted, *shown),
        "listed": (*where.listed, *paths),
        "links": where.links,
        "box": box,
        "owned": box != BOX,
        "uid": UNIQUE if _many_accounts() else 65534,
        "program": program,
        "channels": tuple(channels),
        "code": f"{(HERE / 'inside' / 'boot.py').read_text()}\nrun({allowed!r}, {paths!r})\n",
        "environment": {"PYTHONHASHSEED": "0"} | _environment(),
    }


def _environment() -> dict[str, str]:
    """Nothing, but for a Python whose own libraries are found by it alone."""
    return {"LD_LIBRARY_PATH": ":".join(places().libraries)} if os.environ.get("LD_LIBRARY_PATH") else {}


def _many_accounts() -> bool:
    """Whether root may become any account it likes, which in some containers it may not."""
    first, _, size = (int(number) for number in Path("/proc/self/uid_map").read_text().split()[:3])
    return first == 0 and size > UNIQUE * 2


@contextlib.contextmanager
def _file_in_memory(content: bytes) -> Iterator[int]:
    handle = os.memfd_create("llamax")
    try:
        with os.fdopen(os.dup(handle), "wb") as file:
            file.write(content)
        os.lseek(handle, 0, os.SEEK_SET)
        yield handle
    finally:
        os.close(handle)


@contextlib.contextmanager
def _folder() -> Iterator[str]:
    """A temporary folder on disk, removed whatever a program put there (names too deep for Python included)."""
    folder = tempfile.mkdtemp(prefix="llamax-box-")
    try:
        yield folder
    finally:
        subprocess.run(["rm", "-rf", "--", folder], stderr=subprocess.DEVNULL)


def _collect(
    launcher: subprocess.Popen, result: int, order_to: io.RawIOBase, limits: Limits, until: int | None
) -> tuple[dict[str, Any], bytes, bytes]:
    """Read until the launcher has given its account; stop the program when it says too much, or `until` says so."""
    texts = {launcher.stdout.fileno(): b"", launcher.stderr.fileno(): b"", result: b""}
    deadline = time.monotonic() + limits.wall + GRACE
    stopped = ""
    with selectors.DefaultSelector() as selector:
        for handle in (*texts, *([] if until is None else [until])):
            selector.register(handle, selectors.EVENT_READ)
        while texts.keys() & selector.get_map().keys() and time.monotonic() < deadline:
            for key, _ in selector.select(0.5):
                block = b"" if key.fd == until else os.read(key.fd, 65_536)
                if not block:
                    selector.unregister(key.fd)
                if key.fd != until:
                    texts[key.fd] += block
                too_much = key.fd in texts and key.fd != result and len(texts[key.fd]) > limits.output
                if too_much:
                    texts[key.fd] = texts[key.fd][: limits.output]
                if not stopped and (too_much or key.fd == until):
                    stopped = "output" if too_much else "until"
                    with contextlib.suppress(BrokenPipeError):  # it has just ended by itself
                        order_to.write(b"stop")
                    order_to.close()
    out, err, account = texts.values()
    if not account:
        raise SandboxError(f"the sandbox's launcher died: {err.decode(errors='replace').strip()[-300:] or 'killed'}")
    outcome = marshal.loads(account)
    if stopped and (stopped == "output" or outcome.get("killed")):
        outcome["killed"] = stopped
    return outcome, out, err
