"""The launcher: a small process that shuts a child of its own in, lets the program run there, and watches it.

    launcher        outside: clock, memory, refused calls; its end is the end of all
      first         the first process of the namespaces: waits for the program, and when it leaves, the kernel kills
                    every process that is still there
        program     without rights, limits set, filter on: becomes the program's Python

It is started with two pipes, says how the program ended on one, and kills everything when the other closes.
"""

import _signal as signal  # what the modules signal and socket wrap: those cost more than all else here together
import _socket as socket
import array
import errno
import fcntl
import marshal
import os
import resource
import select
import time

from . import kernel, landlock, mounts, seccomp

TICK = 0.02  # seconds between two looks at memory and clock
NOTES_MOST = 65_536  # bytes of notes that are read
REFUSED_MOST = 50  # different refusals that are reported
UNIQUE = 2_000_000_000  # accounts from here on are nobody's: each run takes its own, so that limits count it alone
PAGE = os.sysconf("SC_PAGESIZE")


class Failed(Exception):
    """A mechanism that does not work here: its name, and why."""


def main(control: int, result: int) -> None:
    """Read the order from `control`, carry it out, write the result to `result`."""
    with os.fdopen(os.dup(control), "rb") as file:
        order = marshal.load(file)
    try:
        outcome = launch(order, control)
    except Failed as error:
        outcome = {"mechanism": error.args[0], "error": error.args[1]}
    except OSError as error:
        outcome = {"mechanism": "", "error": str(error)}
    os.write(result, marshal.dumps(outcome))


def launch(order: dict, control: int) -> dict:
    """Run one program as the order says; how it ended."""
    use = order["mechanisms"]
    if order["uid"] >= UNIQUE:
        order["uid"] += os.getpid()
    _be_expendable()
    if "namespaces" in use:
        with _named("namespaces"):
            _unshare()
    else:
        kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    notes, notes_in = os.pipe()
    started = time.monotonic()
    first = os.fork()
    if first == 0:
        ours.close()
        os.close(notes)
        _first(order, theirs, notes_in)
    theirs.close()
    null = os.open("/dev/null", os.O_RDWR)
    for handle in (notes_in, order["program"], *order["channels"]):
        os.close(handle)
    for handle in (0, 1, 2):  # so that who reads sees the end when the program has ended
        os.dup2(null, handle)
    ours.send(b"go")
    watch = Watch(order, control, first, ours, notes)
    try:
        watch.until_the_end(started)
    finally:
        watch.cpu = sum(map(consumed, descendants(first)))  # of those that are now killed, nobody hears any more
        _kill(first, "namespaces" in use)
    return watch.outcome(time.monotonic() - started)


def _be_expendable() -> None:
    """If the machine runs out of memory, the kernel should take these processes first."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:
        pass


class _named:
    """Any OSError inside is the failure of the mechanism `name`."""

    def __init__(self, name: str):
        self.name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if isinstance(error, OSError):
            raise Failed(self.name, str(error)) from None


def _unshare() -> None:
    """New namespaces for the children. Root needs no user namespace for it, everybody else does."""
    spaces = kernel.CLONE_NEWPID | kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
    spaces |= kernel.CLONE_NEWCGROUP
    user, group = os.getuid(), os.getgid()
    if user == 0:
        kernel.call("unshare", spaces)
        return
    kernel.call("unshare", spaces | kernel.CLONE_NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def _first(order: dict, link: "socket.socket", notes: int) -> None:
    """The first process inside: make the tree, start the program, wait for it, say how it ended. Never returns."""
    try:
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        if link.recv(2) != b"go":  # the launcher died before it could be noticed
            os._exit(1)
        if "namespaces" in order["mechanisms"]:
            with _named("namespaces"):
                kernel.call("unshare", kernel.CLONE_NEWNS)
                mounts.enter(order["readable"], order["hidden"], order["links"], order["box"], order["disk"])
        program = os.fork()
        if program == 0:
            _program(order, link, notes)
        os.close(notes)
        for handle in (0, 1, 2, *order["channels"]):
            os.close(handle)
        while True:
            child, status = os.wait()
            if child == program:
                link.send(marshal.dumps({"status": status}))
                os._exit(0)
    except BaseException as error:
        _tell(error, link)
    finally:
        os._exit(1)


def _program(order: dict, link: "socket.socket", notes: int) -> None:
    """Give up every right, then become the program's Python. Never returns."""
    try:
        os.setsid()
        os.chdir(order["box"])
        link = _place_descriptors(order, link, notes)
        _set_limits(order)
        _drop_rights(order)
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        own = "namespaces" in order["mechanisms"]
        if "landlock" in order["mechanisms"]:
            with _named("landlock"):
                landlock.restrict(order["granted"], order["listed"], (order["box"],), mounts.DEVICES)
        listener = None
        if "seccomp" in order["mechanisms"]:
            with _named("seccomp"):
                listener = seccomp.install(own_files=own, own_processes=own)
        handles = array.array("i", [] if listener is None else [listener])
        link.sendmsg([marshal.dumps({})], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, handles)] if handles else [])
        os.execve(order["python"], [order["python"], "-P", "-s", "-S", "-B", "-c", order["code"]], order["environment"])
    except BaseException as error:
        _tell(error, link)
    finally:
        os._exit(1)


def _tell(error: BaseException, link: "socket.socket") -> None:
    """Say outside what went wrong, and which mechanism it was."""
    mechanism, text = error.args if isinstance(error, Failed) else ("", f"{type(error).__name__}: {error}")
    link.send(marshal.dumps({"mechanism": mechanism, "error": text}))


def _place_descriptors(order: dict, link: "socket.socket", notes: int) -> "socket.socket":
    """0, 1, 2 as they are, 3 the program, 4 the notes, from 5 on the channels, last the link, which the exec closes."""
    wanted = [order["program"], notes, *order["channels"], link.detach()]
    high = [fcntl.fcntl(handle, fcntl.F_DUPFD, 64) for handle in wanted]
    for target, handle in enumerate(high, 3):
        os.dup2(handle, target)
    last = 2 + len(wanted)
    os.closerange(last + 1, os.sysconf("SC_OPEN_MAX"))
    os.set_inheritable(last, False)
    return socket.socket(fileno=last)


def _set_limits(order: dict) -> None:
    """The limits of each single process."""
    limits = {
        resource.RLIMIT_AS: order["memory"],
        resource.RLIMIT_FSIZE: order["disk"],
        resource.RLIMIT_NOFILE: order["files"],
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    for which, most in limits.items():
        hard = resource.getrlimit(which)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(which, (most, most))
    seconds = max(1, -(-order["cpu"] // 1))
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds) + 1))


def _drop_rights(order: dict) -> None:
    """An account that owns nothing, where this is root's to choose; no capabilities in any case.

    The number of processes is limited where the account's processes are this run's alone.
    """
    own, chosen = "namespaces" in order["mechanisms"], "uid" in order["mechanisms"]
    if chosen and order["uid"] >= UNIQUE:
        resource.setrlimit(resource.RLIMIT_NPROC, (order["processes"],) * 2)
    elif own and not chosen and _release() >= (5, 14):  # from there on a user namespace has a count of its own
        resource.setrlimit(resource.RLIMIT_NPROC, (order["processes"] + 2,) * 2)  # launcher and first process are in it
    kernel.lock_capabilities()
    if chosen:
        with _named("uid"):
            if order["owned"]:
                os.chown(order["box"], order["uid"], order["uid"])
            os.setgroups([])
            os.setresgid(*[order["uid"]] * 3)
            os.setresuid(*[order["uid"]] * 3)
    kernel.drop_capabilities()
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)  # after the change of account, which would undo it


def _release() -> tuple[int, ...]:
    """Version of the kernel: the first two numbers."""
    return tuple(int(number) for number in os.uname().release.split("-")[0].split(".")[:2])


class Watch:
    """What the launcher sees of the program while it runs."""

    def __init__(self, order: dict, control: int, first: int, link: "socket.socket", notes: int):
        self.order, self.control, self.first, self.link, self.notes = order, control, first, link, notes
        self.listener: seccomp.Listener | None = None
        self.refused: list[str] = []
        self.noted = b""
        self.said: dict = {}
        self.peak, self.cpu, self.looks = 0, 0.0, 0
        self.killed = ""

    def until_the_end(self, started: float) -> None:
        """Return when the program has ended, broken a limit, or nobody waits for it any more."""
        poll = select.poll()
        for handle in (self.control, self.link.fileno(), self.notes):
            poll.register(handle, select.POLLIN)
        tick = 0
        while not self.killed and "status" not in self.said and "error" not in self.said:
            events = poll.poll(TICK * 1000)
            for handle, event in events:
                self._hear(poll, handle, event)
            now = time.monotonic()
            if now - started > self.order["wall"]:
                self.killed = "wall"
            if int((now - started) / TICK) > tick:  # not each time that a refused call wakes us
                tick = int((now - started) / TICK)
                self._measure()

    def _hear(self, poll: select.poll, handle: int, event: int) -> None:
        if handle == self.control:
            self.killed = "control"
        elif handle == self.notes:
            block = os.read(handle, 4096)
            self.noted += block[: NOTES_MOST - len(self.noted)]
            if not block:
                poll.unregister(handle)
        elif self.listener and handle == self.listener.handle:
            name = self.listener.answer() if event & select.POLLIN else ""
            if name and name not in self.refused and len(self.refused) < REFUSED_MOST:
                self.refused.append(name)
            if event & select.POLLHUP:
                poll.unregister(handle)
        else:
            self._hear_from_inside(poll)

    def _hear_from_inside(self, poll: select.poll) -> None:
        data, extra, _, _ = self.link.recvmsg(4096, socket.CMSG_SPACE(4))
        if not data:
            self.said.setdefault("error", "the first process is gone")
            self.said.setdefault("mechanism", "")
            return
        self.said |= marshal.loads(data)
        for _, _, packed in extra:
            (handle,) = array.array("i", packed)
            self.listener = seccomp.Listener(handle)
            poll.register(handle, select.POLLIN)

    def _measure(self) -> None:
        """Memory of all processes together, which no limit of one process bounds; the folder, if it is the host's."""
        total = sum(resident(pid) for pid in descendants(self.first))
        self.peak = max(self.peak, total)
        if total > self.order["memory"]:
            self.killed = "memory"
        self.looks += 1
        if self.order["owned"] and self.looks % 5 == 0 and usage(self.order["box"]) > self.order["disk"]:
            self.killed = "disk"

    def outcome(self, seconds: float) -> dict:
        """How it ended, for the one who asked."""
        os.set_blocking(self.notes, False)
        try:
            while (block := os.read(self.notes, 4096)) and len(self.noted) < NOTES_MOST:
                self.noted += block
        except BlockingIOError:
            pass
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)  # of all: the first process has waited for the others
        found = {"killed": self.killed, "refused": self.refused, "notes": self.noted, "seconds": seconds}
        found |= {"cpu": self.cpu + usage.ru_utime + usage.ru_stime, "peak": max(self.peak, usage.ru_maxrss * 1024)}
        return self.said | found


def descendants(pid: int) -> list[int]:
    """A process's children, their children, and so on."""
    found: list[int] = []
    queue = [pid]
    while queue:
        here = queue.pop()
        try:
            for thread in os.listdir(f"/proc/{here}/task"):
                with open(f"/proc/{here}/task/{thread}/children") as file:
                    queue += map(int, file.read().split())
        except OSError:  # it has ended
            continue
        found.append(here)
    return found[1:]


def resident(pid: int) -> int:
    """Bytes of memory that a process holds."""
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * PAGE
    except (OSError, IndexError):
        return 0


def consumed(pid: int) -> float:
    """Seconds of CPU time that a process and those it waited for have used."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return sum(map(int, file.read().rpartition(")")[2].split()[11:15])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return 0.0


def usage(folder: str) -> int:
    """Bytes of disk below a folder, a block at least for each entry; no end of them where paths are too long."""
    total, queue = 0, [folder]
    while queue:
        try:
            with os.scandir(queue.pop()) as entries:
                for entry in entries:
                    total += 4096 + entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        queue.append(entry.path)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return 1 << 62
    return total


def _kill(first: int, own_processes: bool) -> None:
    """End everything. In a process namespace the kernel does it when the first process ends; else find them all."""
    if not own_processes:
        for pid in descendants(first):
            _end(pid)
    _end(first)
    while True:
        if not own_processes:  # orphans become the launcher's children
            for pid in descendants(os.getpid()):
                _end(pid)
        try:
            os.wait()
        except ChildProcessError:
            return


def _end(pid: int) -> None:
    try:  # noqa: SIM105 - contextlib costs a millisecond
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
