"""The layers of the sandbox that this machine has, each tried without the others."""

import os
import tempfile
from pathlib import Path

import psutil
import pytest

from llamax.errors import SandboxError
from llamax.sandbox import active

LAYERS = {
    "all": None,
    "namespaces alone": {"namespaces"},
    "no namespaces": {"landlock", "seccomp"},
}


@pytest.fixture(params=list(LAYERS))
def layers(request):
    """What to pass as `mechanisms`; skips what this machine lacks."""
    wanted = LAYERS[request.param]
    try:
        found = active()
    except SandboxError as error:
        pytest.skip(f"no sandbox here: {error}")
    if wanted is not None and not wanted <= found:
        pytest.skip(f"{request.param}: this machine has only {sorted(found)}")
    return wanted


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path_factory, monkeypatch):
    """After each test: no process of ours, no temporary folder."""
    folder = tmp_path_factory.mktemp("boxes")
    folder.chmod(0o755)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    before = set(psutil.Process().children(recursive=True))
    handles = len(os.listdir("/proc/self/fd"))
    yield
    assert set(psutil.Process().children(recursive=True)) <= before
    assert list(folder.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) <= handles


@pytest.fixture
def tag():
    """A program that gives its process, and all that it starts, a name; and how many processes have it."""
    name = f"llx{os.getpid() % 10**6:06}{os.urandom(2).hex()}"
    program = f"import ctypes; ctypes.CDLL(None).prctl(15, {name.encode()!r}, 0, 0, 0)\n"

    def alive() -> int:
        return sum(comm == name for comm in map(_name, Path("/proc").glob("[0-9]*/comm")))

    return program, alive


def _name(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


@pytest.fixture
def secret(tmp_path_factory):
    """A file that the programs must not see: readable by everybody, as far as the file system goes."""
    file = tmp_path_factory.mktemp("home") / "secret.txt"
    file.write_text("the planted secret")
    file.chmod(0o666)
    for folder in (file.parent, file.parent.parent):
        folder.chmod(0o777)
    yield file
    assert file.read_text() == "the planted secret"
    assert [path.name for path in file.parent.iterdir()] == ["secret.txt"]
