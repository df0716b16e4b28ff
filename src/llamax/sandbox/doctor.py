"""What a machine has of what the house needs, a line each."""

import os
import platform
import sys
from collections.abc import Iterator
from importlib import metadata

from llamax.errors import SandboxError
from llamax.sandbox.execute import MECHANISMS, WEAK, active, weakness

PREVENTS = {
    "namespaces": "no network, no other processes, and a file system of its own",
    "landlock": "no files but its own and Python's",
    "seccomp": "no sockets, no system calls that a computation does not need",
    "uid": "an account that owns nothing (root only)",
}


def findings() -> Iterator[tuple[str, str]]:
    """Name and finding of each thing that was looked at."""
    yield "python", f"{platform.python_version()} at {sys.executable}"
    yield "torch", _version("torch")
    yield "GPU", _gpu()
    yield "gradio", _version("gradio")
    yield "LLAMAX_DATA", _data()
    yield from _sandbox()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _gpu() -> str:
    try:
        import torch
    except ImportError as error:
        return f"unknown: torch does not load: {error}"
    if not torch.cuda.is_available():
        return "none that torch can use"
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return ", ".join(names)


def _data() -> str:
    folder = os.environ.get("LLAMAX_DATA")
    if not folder:
        return "not set: data comes from the hub"
    return folder if os.path.isdir(folder) else f"{folder}: no such folder"


def _sandbox() -> Iterator[tuple[str, str]]:
    try:
        found = active()
    except SandboxError as error:
        yield "sandbox", f"none: {error}"
        return
    open_to = weakness(found)
    allowed = os.environ.get(WEAK) == "weak"
    if not open_to:
        yield "sandbox", "generated code is kept from files and network"
    else:
        yield "sandbox", f"nothing prevents {open_to}: {'allowed by' if allowed else 'refused without'} {WEAK}=weak"
    for name in MECHANISMS:
        yield f"  {name}", f"{'active' if name in found else 'not here'}: {PREVENTS[name]}"
