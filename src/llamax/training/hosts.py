"""Several machines: what DeepSpeed's runner needs of a hostfile, checked before it hangs; what it would not carry."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from llamax.errors import LaunchError

CONNECT_SECONDS = 5
CARRIED = re.compile(r"(LLAMAX|HF|NCCL|GLOO|OMP|DS|TOKENIZERS)_\w+|CUDA_HOME|LD_LIBRARY_PATH")
"""Environment variables that ranks on other machines get; DeepSpeed itself hands on little but PYTHON*."""
NOT_CARRIED = {"DS_ENV_FILE", "LLAMAX_HOSTFILE", "LLAMAX_PORT"}


def slots(hostfile: str) -> dict[str, int]:
    """Ranks of each host, in the order of the (checked) hostfile."""
    lines = (line.split("#")[0].split() for line in Path(hostfile).read_text().splitlines())
    return {words[0]: int(words[1].partition("=")[2]) for words in lines if words}


def check_hosts(hostfile: str, ranks: int) -> None:
    """Raise `LaunchError`, one line: ranks and slots differ, no pdsh, or a host cannot be reached by ssh.

    Slurm (`LLAMAX_LAUNCHER=srun`) has its own ways to its machines: there only the slots are counted.
    """
    hosts = slots(hostfile)
    if sum(hosts.values()) != ranks:
        has = f"{sum(hosts.values())} slots on {len(hosts)} hosts"
        raise LaunchError(
            f"hostfile {hostfile}: {has}, but the job has {ranks} ranks: LLAMAX_RANKS or the slots must change"
        )
    if os.environ.get("LLAMAX_LAUNCHER") == "srun":
        return
    for program in ("ssh", "pdsh"):
        if not shutil.which(program):
            raise LaunchError(
                f"hostfile {hostfile}: DeepSpeed starts ranks through pdsh and ssh; {program} is not here"
            )
    options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_SECONDS}"]
    asked = {
        host: subprocess.Popen(
            ["ssh", *options, host, "true"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for host in hosts
    }
    for host, process in asked.items():
        if reason := _silence(process):
            raise LaunchError(f"hostfile {hostfile}: {host} cannot be reached ({reason}): `ssh {host} true` must work")


def _silence(process: subprocess.Popen) -> str:
    """Why a host did not answer; empty if it did."""
    try:
        said, _ = process.communicate(timeout=2 * CONNECT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return f"no answer in {2 * CONNECT_SECONDS} s"
    lines = said.decode(errors="replace").split("\n")
    told = [line.strip() for line in lines if line.strip() and not line.startswith("Warning:")]
    return (told[-1] if told else f"status {process.returncode}") if process.returncode else ""


def environment_file(environment: Mapping[str, str]) -> str:
    """What DeepSpeed's `DS_ENV_FILE` should hold, a variable on each line; it quotes the values itself."""
    carried = sorted(name for name in environment if CARRIED.fullmatch(name) and name not in NOT_CARRIED)
    return "\n".join(f"{name}={environment[name]}" for name in carried)
