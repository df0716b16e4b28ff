"""What a harmless program gets, how an ending is named, and what is refused on a machine that has too little."""

import os
import signal
import subprocess
import sys

import pytest

from llamax.errors import ParameterError, SandboxError
from llamax.sandbox import Limits, active, execute, weakness
from llamax.sandbox.places import places

QUICK = Limits(wall=20.0, cpu=5.0)


def test_a_program_runs_and_prints(layers):
    result = execute("import sys\nprint('ä', 6 * 7)\nprint('no', file=sys.stderr)", mechanisms=layers)
    assert (result.status, result.stdout, result.stderr, result.detail, result.denied) == (
        "ok",
        "ä 42\n",
        "no\n",
        "",
        (),
    )
    assert result.memory > 1 << 20


def test_it_starts_with_nothing(layers):
    program = "import os, sys\nprint(dict(os.environ), os.listdir(), sys.argv, sys.stdin.read(), __name__)"
    assert execute(program, mechanisms=layers).stdout == "{} [] ['program.py']  __main__\n"


def test_it_works_in_its_own_folder(layers):
    program = """
import os, tempfile
os.mkdir("a"); open("a/b", "w").write("kept"); os.rename("a/b", "c"); os.symlink("c", "d"); os.link("c", "e")
print(open("d").read(), sorted(os.listdir()), os.path.getsize("c"))
os.remove("c"); os.rmdir("a"); open(os.path.join(os.getcwd(), "f"), "w").close()
"""
    result = execute(program, mechanisms=layers)
    assert (result.status, result.stdout, result.denied) == ("ok", "kept ['a', 'c', 'd', 'e'] 4\n", ())


def test_the_standard_library_is_there_and_nothing_else(layers):
    program = """
import asyncio, bisect, collections, ctypes, decimal, hashlib, json, multiprocessing, random, re, sqlite3, ssl, sys
import threading, typing, zlib
print(hashlib.sha256(b"").hexdigest()[:8], sqlite3.connect(":memory:").execute("select 1").fetchone())
print(asyncio.run(asyncio.sleep(0, 7)), random.SystemRandom().random() < 1)
sys.path += %r
try: import pytest
except (ImportError, PermissionError): print("no packages")
""" % [os.path.dirname(os.path.dirname(pytest.__file__))]
    result = execute(program, mechanisms=layers)
    assert result.stdout == "e3b0c442 (1,)\n7 True\nno packages\n", result.stderr


def test_a_package_that_is_named(layers):
    program = "import sortedcontainers, sys\nprint(sortedcontainers.SortedList([2, 1]))\n"
    program += "try: import hypothesis\nexcept (ImportError, PermissionError): print('no other')"
    result = execute(program, packages=["sortedcontainers"], mechanisms=layers)
    assert (result.status, result.stdout) == ("ok", "SortedList([1, 2])\nno other\n"), result


def test_processes_of_its_own_where_they_can_be_found_again(layers):
    program = "import os\nif os.fork(): print(os.waitstatus_to_exitcode(os.wait()[1]))\nelse: os._exit(5)"
    result = execute(program, mechanisms=layers)
    if layers is None or "namespaces" in layers:
        assert result.stdout == "5\n", result.stderr
    else:
        assert (result.status, result.denied) == ("denied", ("clone",))


def test_stdin_and_bytes(layers):
    assert execute(b"print(input())", stdin=b"hello\n", mechanisms=layers).stdout == "hello\n"


def test_the_same_order_of_sets_every_time():
    program = "print({chr(97 + i) for i in range(20)})"
    assert len({execute(program).stdout for _ in range(3)}) == 1


@pytest.mark.parametrize(
    ("program", "status", "detail"),
    [
        ("raise SystemExit(0)", "ok", ""),
        ("raise SystemExit(3)", "failed", "exit status 3"),
        ("1 / 0", "failed", "exit status 1"),
        ("import ctypes; ctypes.string_at(0)", "failed", "signal 11"),
        ("import os; os.abort()", "failed", "signal 6"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", "failed", "signal 15"),
        ("def f(): f()\nf()", "failed", "exit status 1"),
        ("x = 'x' * 10**10", "memory", "MemoryError at 1,073,741,824 bytes"),
        ("this is no Python", "failed", "exit status 1"),
        ("print('\ud800')", "failed", "exit status 1"),
        (b"\xff\xfe\x00", "failed", "exit status 1"),
        ("print(1)\0", "failed", "exit status 1"),
        ("", "ok", ""),
    ],
)
def test_endings(program, status, detail):
    result = execute(program, QUICK)
    assert (result.status, result.detail) == (status, detail), result


def test_a_traceback_is_the_programs_own():
    result = execute("def f():\n    1 / 0\nf()")
    assert result.stderr.splitlines()[:2] == [
        "Traceback (most recent call last):",
        '  File "program.py", line 3, in <module>',
    ]
    assert result.denied == ()


def test_what_was_refused_does_not_fail_a_program_that_copes():
    result = execute("try: open('/etc/passwd')\nexcept OSError: pass")
    assert (result.status, result.denied) == ("ok", ("open '/etc/passwd'",))


def test_limits_are_positive_numbers():
    with pytest.raises(ParameterError, match=r"limit wall: should be a number above 0 and below .*; got 0"):
        Limits(wall=0)
    with pytest.raises(ParameterError, match=r"limit memory: .* got nan"):
        Limits(memory=float("nan"))


@pytest.mark.parametrize(
    ("mechanisms", "open_to"),
    [
        ({"namespaces"}, ""),
        ({"landlock", "seccomp"}, ""),
        ({"landlock"}, "use of the network"),
        ({"seccomp", "uid"}, "reading and writing of files"),
        ((), "reading and writing of files and use of the network"),
    ],
)
def test_what_is_too_little(mechanisms, open_to, monkeypatch):
    assert weakness(mechanisms) == open_to
    monkeypatch.delenv("LLAMAX_SANDBOX", raising=False)
    if open_to:
        with pytest.raises(SandboxError, match=rf"nothing here prevents {open_to} by a program .*LLAMAX_SANDBOX=weak"):
            execute("pass", mechanisms=mechanisms)


def test_too_little_can_be_allowed(monkeypatch, tag):
    named, alive = tag
    assert execute("print(1)", mechanisms=(), allow_weak=True).stdout == "1\n"
    monkeypatch.setenv("LLAMAX_SANDBOX", "weak")
    daemon = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(60)\n"
    daemon += "    os._exit(0)\nos.wait()"
    assert execute(named + daemon, mechanisms=()).status == "ok"
    assert alive() == 0


@pytest.mark.parametrize("account", [["--map-root-user"], ["--map-user=1000", "--map-group=1000"]])
def test_as_another_user_too(account):
    """Root without root's rights, and nobody in particular: both shut a program in with the same namespaces."""
    code = "from llamax.sandbox import active, execute\nr = execute('import os; print(os.getcwd(), os.listdir())\\n"
    code += 'open("/etc/passwd")\')\nprint(sorted(active()), r.status, r.stdout, r.denied)'
    done = subprocess.run(["unshare", "--user", *account, sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode and "unshare" in done.stderr:
        pytest.skip(f"no user namespaces here: {done.stderr.strip()}")
    assert done.stdout.startswith("['landlock', 'namespaces', 'seccomp'] denied /box []\n"), done.stdout + done.stderr


def test_nothing_outlives_the_one_who_asked(tag):
    named, alive = tag
    program = named + "import time; print(flush=True)\nwhile True: time.sleep(1)"
    code = f"from llamax.sandbox import execute, Limits; execute({program!r}, Limits(wall=100))"
    asker = subprocess.Popen([sys.executable, "-c", code])
    try:
        wait(lambda: alive() == 1)
    finally:
        asker.send_signal(signal.SIGKILL)
        asker.wait()
    wait(lambda: alive() == 0)


def wait(condition, seconds=20.0):
    import time

    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def test_until_ends_it():
    reading, writing = os.pipe()
    os.close(writing)
    result = execute("import time; time.sleep(60)", QUICK, until=reading)
    os.close(reading)
    assert (result.status, result.detail) == ("failed", "ended from outside")
    assert result.seconds < 5


def test_output_may_be_as_long_as_its_limit(layers):
    result = execute("print('x' * 99)", Limits(wall=20.0, cpu=5.0, output=100), mechanisms=layers)
    assert (result.status, result.stdout) == ("ok", "x" * 99 + "\n")
    result = execute("print('x' * 100)", Limits(wall=20.0, cpu=5.0, output=100), mechanisms=layers)
    assert (result.status, result.stdout) == ("denied", "x" * 100)


def test_a_program_that_does_not_mind_the_signal_is_still_out_of_cpu_time():
    program = "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass"
    result = execute(program, Limits(wall=30.0, cpu=1.0))
    assert (result.status, result.detail) == ("timeout", "more than 1 s of CPU time")


def test_channels_are_descriptors_5_and_6():
    (first_out, first_in), (second_out, second_in) = os.pipe(), os.pipe()
    os.write(first_in, b"question")
    result = execute("import os; os.write(6, os.read(5, 99) + b'?')", channels=(first_out, second_in))
    assert (result.status, os.read(second_out, 99)) == ("ok", b"question?")
    for handle in (first_in, second_out):
        os.close(handle)


def test_places_hold_no_installed_package():
    where = places()
    assert os.path.realpath(sys.executable) == where.python
    packages = [path for path in where.granted if "site-packages" in path or "dist-packages" in path]
    assert packages == []
    assert not any(os.path.realpath(pytest.__file__).startswith(path) for path in where.granted)
    assert active() >= {"namespaces"} or active() >= {"landlock", "seccomp"}
