"""Where this Python is: what a program may read in order to run at all. Found once per process."""

import functools
import glob
import importlib.util
import os
import subprocess
import sys
import sysconfig
from dataclasses import dataclass

from llamax.errors import SandboxError

# Run in a bare interpreter: load every extension module of the standard library, print what is mapped into memory.
MAPPED = """
import importlib, os, sys, sysconfig
for name in os.listdir(os.path.join(sysconfig.get_path("platstdlib"), "lib-dynload")):
    name = name.split(".")[0]
    if not name.startswith(("_test", "_xxtest", "xx", "_tkinter")):
        try: importlib.import_module(name)
        except ImportError: pass
print("\\n".join({line.split(None, 5)[5].strip() for line in open("/proc/self/maps") if ".so" in line}))
"""


@dataclass(frozen=True)
class Places:
    """Paths of this Python: what may be read (`readable`), but for the `hidden` folders below; `links` that lead there.

    For a mechanism that can only allow: `granted` is `readable` in pieces that hold nothing hidden, and `listed` the
    folders that were taken apart for it.
    """

    python: str
    readable: tuple[str, ...]
    hidden: tuple[str, ...]
    granted: tuple[str, ...]
    listed: tuple[str, ...]
    links: dict[str, str]
    libraries: tuple[str, ...]


@functools.cache
def places() -> Places:
    """The interpreter, the standard library and the folders of shared libraries; no installed packages.

    Raises: SandboxError: the interpreter does not start bare.
    """
    python = os.path.realpath(sys.executable)
    standard = {os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")}
    done = subprocess.run([python, "-I", "-S", "-c", MAPPED], capture_output=True, text=True)
    if done.returncode:
        raise SandboxError(f"{python} does not start on its own: {done.stderr.strip()[-300:]}")
    libraries = {os.path.dirname(os.path.realpath(path)) for path in done.stdout.split("\n") if path}
    loaders = {
        os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        for path in glob.glob("/lib*/ld-*.so*") + glob.glob("/lib/ld-musl*")
    }
    libraries = {path for path in libraries if not any(_below(path, folder) for folder in standard)}
    readable = _outermost({python, *standard, *libraries, *loaders, "/etc/ld.so.cache"})
    hidden = tuple(os.path.join(folder, name) for folder in sorted(standard) for name in PACKAGES)
    links = {f"/{name}": os.readlink(f"/{name}") for name in os.listdir("/") if os.path.islink(f"/{name}")}
    pieces = [piece for place in readable for piece in _without(place, hidden)]
    granted, listed = (tuple(path for path, whole in pieces if whole is kind) for kind in (True, False))
    return Places(python, readable, hidden, granted, listed, links, tuple(sorted(libraries)))


def package(name: str) -> str:
    """Where an installed package of pure Python is: its folder, or its file. Raises: SandboxError."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise SandboxError(f"the package {name} is not installed; a program needs it")
    return os.path.realpath(os.path.dirname(spec.origin) if spec.submodule_search_locations else spec.origin)


PACKAGES = ("site-packages", "dist-packages", "test", "ensurepip", "idlelib")


def _below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _outermost(paths: set[str]) -> tuple[str, ...]:
    """The paths that are below no other, in order."""
    return tuple(sorted(path for path in paths if not any(_below(path, other) for other in paths - {path})))


def _without(place: str, hidden: tuple[str, ...]) -> list[tuple[str, bool]]:
    """`place` whole (True), or taken apart (False) and what is in it, so that nothing hidden is in what is whole."""
    if place in hidden:
        return []
    if not any(_below(path, place) for path in hidden):
        return [(place, True)]
    inside = [piece for name in sorted(os.listdir(place)) for piece in _without(os.path.join(place, name), hidden)]
    return [(place, False), *inside]
