"""Programs that mean harm. Each must end within its limits, reach nothing, and leave nothing behind."""

import os
import platform
import socket
import threading
import time

import pytest

import llamax
from llamax.sandbox import Limits, active, execute
from llamax.sandbox.inside import seccomp

SHORT = Limits(wall=3.0, cpu=2.0, memory=256 << 20, processes=8)
ENDLESS = Limits(wall=1.2, memory=256 << 20, processes=8)  # for what ends by the clock alone
MACHINE = platform.machine()
COLUMN = {"x86_64": 0, "aarch64": 1}.get(MACHINE)


PLACES = ["/etc/passwd", "/etc/shadow", "/proc/1/environ", "/proc/self/environ", "/dev/shm/x", "/tmp/x", "/var/tmp/x"]
PLACES += ["/sys/kernel/notes", "/dev/tty", "/x", llamax.__file__]


def timed(program, limits=SHORT, **options):
    """The result; ended within the wall limit and what starting and ending take on a busy machine."""
    start = time.monotonic()
    result = execute(program, limits, **options)
    assert time.monotonic() - start < limits.wall + 8
    return result


def has_processes(layers):
    return layers is None or "namespaces" in layers


class TestResources:
    def test_fork_bomb(self, layers, tag):
        named, alive = tag
        bomb = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
        assert timed(named + bomb, ENDLESS, mechanisms=layers).status in ("timeout", "memory")
        assert alive() == 0

    def test_number_of_processes(self, layers):
        if not has_processes(layers) or (layers is not None and os.getuid() == 0):
            pytest.skip("nothing counts the processes of root, and without namespaces there are none")
        program = (
            "import os, time\nn = 0\ntry:\n    while True:\n        if os.fork() == 0: time.sleep(60)\n        n += 1\n"
        )
        program += "except OSError: print(n)"
        assert timed(program, mechanisms=layers).stdout == "7\n"

    @pytest.mark.parametrize(
        ("program", "named"),
        [
            ("for n in range(40): open(str(n), 'wb').write(bytes(1 << 20))", "8,388,608 bytes of disk"),
            ("import os\nwhile True: os.fork()", "8 processes"),
            ("import subprocess, sys\nfor _ in range(20): subprocess.Popen([sys.executable])", "8 processes"),
            ("import threading, time\nfor _ in range(20): threading.Thread(target=time.sleep, args=(9,)).start()",
             "8 processes and threads, or of 4,294,967,296 bytes of memory"),
            ("f = [open('/dev/null') for _ in range(99)]", "64 open files"),
            ("import os\nos.set_blocking(0, False)\nraise BlockingIOError(11, 'no process was asked for')", ""),
            ("import os\nos.fork()\nraise OSError(2, 'no such file')", ""),
        ],
    )  # fmt: skip
    def test_the_limit_that_a_program_failed_of_is_named(self, program, named):
        if "namespaces" not in active() or ("uid" not in active() and os.getuid() == 0):
            pytest.skip("nothing counts the processes of root, and without namespaces there are none")
        result = timed(program, Limits(wall=10.0, processes=8, memory=4 << 30, disk=8 << 20))
        assert result.status in ("failed", "denied")
        assert result.detail == "exit status 1" + (f", at the limit of {named}" if named else "")

    def test_threads(self):
        program = "import threading, time\nn = 1\ntry:\n    while True:\n"
        program += "        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n        n += 1\n"
        program += "except RuntimeError: print(n, flush=True)\nimport os; os._exit(0)"
        if "uid" not in active() and os.getuid() == 0:
            pytest.skip("nothing counts the threads of root")
        limits = Limits(wall=10.0, processes=8)  # a thread takes much address space, though little memory
        assert timed(program, limits).stdout == "8\n"

    def test_memory_bomb(self, layers):
        assert timed("x = []\nwhile True: x.append(bytearray(1 << 20))", mechanisms=layers).status == "memory"

    def test_memory_bomb_that_catches_its_errors(self, layers):
        program = "x = []\nwhile True:\n    try: x.append(bytearray(1 << 20))\n    except MemoryError: pass"
        result = timed(program, ENDLESS, mechanisms=layers)
        assert result.status in ("timeout", "memory")
        assert result.memory <= 1.1 * SHORT.memory

    def test_memory_bomb_of_many_processes(self, layers):
        if not has_processes(layers):
            pytest.skip("there are no other processes")
        program = (
            "import os, time\nfor _ in range(6):\n    if os.fork() == 0:\n        x = bytearray(b'1') * (100 << 20)\n"
        )
        program += "        time.sleep(60)\ntime.sleep(60)"
        result = timed(program, mechanisms=layers)
        assert (result.status, result.detail) == ("memory", "more than 268,435,456 bytes of memory")

    def test_ten_gigabytes_of_output(self, layers):
        program = "import sys\nwhile True: sys.{}.write('x' * 1000000)"
        for name in ("stdout", "stderr"):
            result = timed(program.format(name), Limits(wall=30, output=5000), mechanisms=layers)
            assert (result.status, result.detail) == ("denied", "more than 5,000 bytes of output")
            assert (len(result.stdout), len(result.stderr)) == ((5000, 0) if name == "stdout" else (0, 5000))
            assert result.denied == (result.detail,)

    @pytest.mark.parametrize("loop", ["while True: pass", "import time\nwhile True: time.sleep(1)"])
    def test_endless_loop_that_ignores_signals(self, layers, loop):
        ignore = "import signal\nfor s in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}: "
        ignore += "signal.signal(s, signal.SIG_IGN)\n"
        result = timed(ignore + loop, ENDLESS, mechanisms=layers)
        assert (result.status, result.detail) == ("timeout", "more than 1.2 s")

    def test_a_program_that_stops_itself(self, layers):
        program = "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)"
        assert timed(program, ENDLESS, mechanisms=layers).detail == "more than 1.2 s"

    def test_full_disk(self, layers):
        program = "n = 0\ntry:\n    while True: open(str(n), 'wb').write(bytes(1 << 20)); n += 1\n"
        program += "except OSError as error: print(n, error.errno)"
        result = timed(program, Limits(wall=20, disk=8 << 20), mechanisms=layers)
        if has_processes(layers):
            assert result.stdout in ("7 28\n", "8 28\n")
        else:
            assert (result.status, result.detail) == ("denied", "more than 8,388,608 bytes of disk")

    def test_one_large_file(self, layers):
        program = "f = open('a', 'wb')\nf.truncate(1 << 40)"
        assert timed(program, mechanisms=layers).status in ("failed", "denied")

    def test_many_empty_files(self, layers):
        program = "n = 0\nwhile True: open(str(n), 'w').close(); n += 1"
        result = timed(program, Limits(wall=20, disk=4 << 20), mechanisms=layers)
        assert "No space left" in result.stderr or result.detail == "more than 4,194,304 bytes of disk"

    def test_folders_too_deep_to_remove_by_name(self, layers):
        program = "import os\nfor _ in range(3000): os.mkdir('d' * 50); os.chdir('d' * 50)"
        result = timed(program, Limits(wall=20), mechanisms=layers)
        assert result.status == "ok" or result.detail == "more than 67,108,864 bytes of disk"

    def test_a_full_disk_out_of_sight(self):
        """Where the folder is on the host's disk, its files are counted; what lies too deep to count is too much."""
        if not {"landlock", "seccomp"} <= active():
            pytest.skip("no Landlock here")
        program = "import os, time\nfor _ in range(200): os.mkdir('d' * 50); os.chdir('d' * 50)\n"
        program += "open('a', 'w').write('x')\ntime.sleep(60)"
        result = timed(program, Limits(wall=20), mechanisms={"landlock", "seccomp"})
        assert (result.status, result.detail) == ("denied", "more than 67,108,864 bytes of disk")

    def test_open_files(self, layers):
        program = "x = []\ntry:\n    while True: x.append(open('a', 'w'))\nexcept OSError: print(len(x))"
        assert 30 < int(timed(program, mechanisms=layers).stdout) <= 64

    def test_a_daemon_that_detaches_itself_twice(self, layers, tag):
        if not has_processes(layers):
            pytest.skip("there are no other processes")
        named, alive = tag
        daemon = """
import os, signal, time
if os.fork() == 0:
    os.setsid()
    for s in range(1, 32):
        try: signal.signal(s, signal.SIG_IGN)
        except OSError: pass
    if os.fork() == 0:
        for handle in range(64):
            try: os.close(handle)
            except OSError: pass
        time.sleep(60)
    os._exit(0)
os.wait()
print("parent is done")
"""
        result = timed(named + daemon, mechanisms=layers)
        assert (result.status, result.stdout) == ("ok", "parent is done\n")
        assert alive() == 0


class TestFiles:
    def test_reading_and_deleting_what_is_elsewhere(self, layers, secret):
        attempts = [
            "print(open(path).read())",
            "print(open(path, 'r+').read())",
            "open(path, 'w').write('gone')",
            "open(path, 'a').write('more')",
            "os.remove(path)",
            "os.rename(path, path + '.old')",
            "os.rename(path, 'mine')",
            "os.link(path, 'mine'); print(open('mine').read())",
            "os.symlink(path, 'mine'); print(open('mine').read())",
            "os.truncate(path, 0)",
            "os.chmod(path, 0)",
            "os.chown(path, 1, 1)",
            "os.utime(path, (0, 0))",
            "os.setxattr(path, 'user.a', b'b')",
            "shutil.rmtree(os.path.dirname(path))",
            "print(os.listdir(os.path.dirname(path)))",
            "open(os.path.join(os.path.dirname(path), 'new'), 'w')",
            "os.mkdir(os.path.join(os.path.dirname(path), 'new'))",
            "os.mkfifo(os.path.join(os.path.dirname(path), 'new'))",
            "os.chdir(os.path.dirname(path)); print(open('secret.txt').read())",
            "print(os.open(os.path.dirname(path), os.O_RDONLY | os.O_TMPFILE))",
            "sys.path.insert(0, os.path.dirname(path)); import secret",
            "print(open(os.path.relpath(path)).read())",
            "print(open('/proc/self/root' + path).read())",
        ]
        attempt = "try: exec({0!r}); print('DONE', {0!r})\nexcept Exception as error: print(type(error).__name__)\n"
        program = f"import os, shutil, sys\npath = {str(secret)!r}\n" + "".join(map(attempt.format, attempts))
        mode, times = secret.stat().st_mode, secret.stat().st_mtime_ns
        result = timed(program, mechanisms=layers)
        assert "planted" not in result.stdout + result.stderr
        assert "DONE" not in result.stdout, result.stdout
        assert len(result.stdout.splitlines()) == len(attempts), result.stderr
        assert (secret.stat().st_mode, secret.stat().st_mtime_ns) == (mode, times)
        assert f"open {str(secret)!r}" in result.denied

    @pytest.mark.parametrize("path", PLACES)
    def test_places_that_programs_like(self, layers, path):
        for mode in ("r", "w"):
            result = timed(f"open({path!r}, {mode!r}).read()", mechanisms=layers)
            assert (result.status, result.denied) == ("denied", (f"open {path!r}",)), result
        assert not os.path.exists("/dev/shm/x")

    def test_the_callers_environment(self, layers, monkeypatch):
        monkeypatch.setenv("LLAMAX_PLANTED", "planted")
        program = """
import ctypes, os
print(dict(os.environ))
libc = ctypes.CDLL(None); libc.getenv.restype = ctypes.c_char_p
print(libc.getenv(b"LLAMAX_PLANTED"), libc.getenv(b"PATH"))
for pid in [*range(200), os.getppid(), "self", CALLER]:
    for name in ("environ", "cmdline", "maps", "mem") + ("fd/0", "fd/1", "cwd/pyproject.toml") * (pid == CALLER):
        try: print(open(f"/proc/{pid}/{name}", "rb").read(1000))
        except OSError: pass
""".replace("CALLER", str(os.getpid()))
        result = timed(program, mechanisms=layers)
        assert (result.status, result.stdout) == ("ok", "{}\nNone None\n"), result

    def test_descriptors_of_the_caller(self, layers, secret):
        with open(secret) as file:
            os.set_inheritable(file.fileno(), True)
            program = (
                "import os\nfor handle in range(3, 2000):\n    try:\n        os.fstat(handle)\n        print(handle)\n"
            )
            program += "        print(os.read(handle, 100))\n    except OSError: pass"
            result = timed(program, mechanisms=layers)
        assert result.stdout == "4\n"  # where the notes go, which cannot be read

    def test_junk_where_the_notes_go_changes_nothing_else(self, layers):
        program = "import marshal, os\nfor handle in range(3, 64):\n    try:\n        for _ in range(1000): "
        program += "os.write(handle, marshal.dumps({'status': 0}) * 99)\n    except OSError: pass\nos._exit(1)"
        result = timed(program, mechanisms=layers)
        assert (result.status, result.detail) == ("denied", "exit status 1")
        assert sum(map(len, result.denied)) < 100_000

    def test_the_way_out_of_a_root(self, layers):
        program = "import os\nhere = os.open('.', os.O_PATH)\nfor act in ('os.chroot(\".\")', 'os.fchdir(here)'):\n"
        program += "    try: exec(act); print(act)\n    except OSError as error: print(type(error).__name__)\n"
        program += "for _ in range(50): os.chdir('..')\nprint(open('etc/passwd').read())"
        result = timed(program, mechanisms=layers)
        assert (result.status, result.stdout) == ("denied", "PermissionError\nos.fchdir(here)\n")


class TestOthers:
    def test_loopback(self, layers):
        with socket.create_server(("127.0.0.1", 0)) as server:
            heard = listen(server)
            program = f"import socket\nsocket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 2).send(b'x')"
            result = timed(program, mechanisms=layers)
        assert result.status in ("failed", "denied")
        assert heard == []
        if layers is None or "seccomp" in layers:
            assert result.denied == ("socket",)

    def test_an_abstract_unix_socket(self, layers):
        name = f"\0llamax-{os.getpid()}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
            server.bind(name)
            server.settimeout(0.2)
            program = f"""
import socket
name = {name!r}
for make in ("socket(AF_UNIX, SOCK_DGRAM)", "socketpair(AF_UNIX, SOCK_DGRAM)[0]", "socketpair()[0]"):
    for act in ("sendto(b'x', name)", "connect(name)", "sendmsg([b'x'], [], 0, name)"):
        try: exec(f"from socket import *; {{make}}.{{act}}")
        except OSError as error: print(type(error).__name__)
"""
            for used in (layers, {"seccomp"} & active()):  # the filter must do without the others' help
                result = timed(program, mechanisms=used, allow_weak=True)
                assert result.status == "ok", result
                if used != set():
                    with pytest.raises(TimeoutError):
                        server.recv(9)

    def test_killing_the_caller(self, layers):
        program = (
            f"import os\nfor pid in ({os.getpid()}, os.getppid(), 1, -1, {-os.getpgrp()}):\n    for s in (9, 15, 19):\n"
        )
        program += "        try: os.kill(pid, s)\n        except OSError: pass\nprint('done')"
        result = timed(program, mechanisms=layers)
        assert result.stdout == "done\n", result

    def test_limits_of_the_caller(self, layers):
        import resource

        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        program = f"import os, resource\nfor pid in ({os.getpid()}, os.getppid()):\n"
        program += "    try: resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, 3)); print(pid)\n"
        program += "    except OSError as error: print(type(error).__name__)"
        assert "PermissionError" in timed(program, mechanisms=layers).stdout or has_processes(layers)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == before

    def test_raising_its_own_limits(self, layers):
        program = "from resource import *\nfor which in (RLIMIT_AS, RLIMIT_NOFILE, RLIMIT_CPU, RLIMIT_FSIZE):\n"
        program += "    try: setrlimit(which, (1 << 40, 1 << 40)); print(which)\n    except (ValueError, OSError): pass"
        assert timed(program, mechanisms=layers).stdout == ""

    def test_another_account(self, layers):
        program = "import os\nfor act in (os.setuid, os.setgid, os.seteuid):\n    for who in (0, 1, 1000):\n"
        program += "        if who == os.getuid(): continue\n"
        program += "        try: act(who); print(act, who)\n        except OSError: pass"
        assert timed(program, mechanisms=layers).stdout == ""


@pytest.mark.skipif(COLUMN is None, reason=f"the numbers of system calls on {MACHINE} are not known")
class TestSystemCalls:
    @pytest.fixture(autouse=True)
    def filtered(self):
        if "seccomp" not in active():
            pytest.skip("no filter of system calls here")

    def test_every_refused_call_is_refused_and_reported(self):
        numbers = {numbers[COLUMN]: name for name, numbers in seccomp.DENIED.items() if numbers[COLUMN] is not None}
        result = timed(calls(list(numbers)))
        assert set(result.stdout.split("\n")) == {"-1 1", ""}, result
        assert len(result.stdout.splitlines()) == len(numbers)
        assert set(result.denied) == set(list(numbers.values())[:50])

    def test_calls_that_are_newer_than_the_filter_do_not_exist(self):
        numbers = [seccomp.NEWEST + 1, seccomp.NEWEST + 20, 0x40000000 + 41, 435]
        assert timed(calls(numbers)).stdout == "-1 38\n" * 4

    def test_no_namespace_of_its_own(self):
        program = (
            "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nfor flag in (0x10000000, 0x20000, 0x40000000):\n"
        )
        program += f"    print(libc.syscall({(56, 220)[COLUMN]}, flag | 17, 0, 0, 0, 0), ctypes.get_errno())"
        assert timed(program).stdout == "-1 1\n" * 3

    @pytest.mark.skipif(MACHINE != "x86_64", reason="the calls of 32-bit programs are x86's")
    def test_the_calls_of_32_bit_programs(self):
        """int 0x80 with eax = 20 (getpid there): the filter counts in 64-bit numbers, so it must refuse them all."""
        program = """
import ctypes, mmap
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(bytes.fromhex("b814000000cd80c3"))
print("calling", flush=True)
print(ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))())
"""
        result = timed(program)
        assert (result.stdout, result.detail) == ("calling\n", "signal 31")

    def test_without_processes_of_its_own_it_signals_nobody(self):
        if not {"landlock", "seccomp"} <= active():
            pytest.skip("no Landlock here")
        program = f"""
import fcntl, os, socket
a, b = socket.socketpair()
for command, value in ((8, {os.getpid()}), (10, 9)):
    try: fcntl.fcntl(a, command, value); print("set", command)
    except OSError as error: print(type(error).__name__)
"""
        result = timed(program, mechanisms={"landlock", "seccomp"})
        assert result.stdout == "PermissionError\nset 10\n"


def calls(numbers):
    """A program that makes system calls with zeros and prints result and error of each."""
    return f"""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
for number in {numbers!r}:
    print(libc.syscall(number, 0, 0, 0, 0, 0, 0), ctypes.get_errno())
"""


def listen(server):
    """Whom a server hears, in the background until it is closed."""
    heard = []

    def accept():
        try:
            while True:
                heard.append(server.accept())
        except OSError:
            return

    threading.Thread(target=accept, daemon=True).start()
    return heard
