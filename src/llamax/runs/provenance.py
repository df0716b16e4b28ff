"""What a run is computed with: commit, packages, hardware. Never where: no host name, no user, no path."""

import importlib.metadata
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from llamax import files
from llamax.runs.records import Provenance

SOURCES = ("src", "notebooks", "pyproject.toml", "constraints.txt")
"""What makes a checkout dirty: new results and papers do not."""


def provenance() -> Provenance:
    """Take down the present state. A checkout without git has commit and dirty flag None."""
    status = _output("git", "status", "--porcelain", "--", *SOURCES)
    return Provenance(
        commit=_output("git", "rev-parse", "HEAD"),
        dirty=None if status is None else bool(status),
        packages=packages(),
        hardware=hardware(),
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
    )


def packages() -> dict[str, str]:
    """Version of each package that llamax depends on directly, as installed."""
    needed = [line for line in importlib.metadata.requires("llamax") or [] if "extra ==" not in line]
    names = sorted({re.split(r"[^\w.-]", line)[0] for line in needed})
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """Processor, cores this process may use, threads of a matrix product, memory in GiB, accelerators."""
    info = Path("/proc/cpuinfo")
    match = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else None
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpus = _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") if shutil.which("nvidia-smi") else None
    return {
        "cpu": match[1] if match else platform.processor() or platform.machine(),
        "cores": cores,
        "threads": int(threads) if (threads := os.environ.get("OMP_NUM_THREADS", "")).isdigit() else cores,
        "memory_gib": round(memory / 2**30, 1),
        "gpus": gpus.splitlines() if gpus else [],
    }


def device_and_memory() -> tuple[str, int]:
    """The device this process computed on, and its peak memory in bytes (of the process and its children on a CPU)."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.get_device_name(), torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    peaks = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return "cpu", unit * max(peaks)


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, cwd=files.repository(), capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
