"""A real Slurm on this machine: one controller, two nodes, no systemd, nothing of the machine's own Slurm touched.

Both nodes are this machine (`slurmd -N n1`, `slurmd -N n2`), each with one job at a time: its memory goes to the first.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

PACKAGES = {"munged": "munge", "slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client"}
CONF = """
ClusterName=llamax
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=12
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
KillWait=5
MinJobAge=3600
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs={cpus} RealMemory=4000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs={cpus} RealMemory=4000
PartitionName=main Nodes=n1,n2 Default=YES State=UP
"""
"""cred_expire: a requeued job waits until its credentials have expired, two minutes by default."""


def install() -> None:
    """See to it that Slurm's programs are there; skip the test, with the reason, where that cannot be."""
    os.environ["PATH"] += ":/usr/sbin"
    if os.geteuid():
        pytest.skip("a Slurm of our own needs root: slurmd starts jobs of other users")
    missing = sorted({package for program, package in PACKAGES.items() if not shutil.which(program)})
    if not missing:
        return
    if not shutil.which("apt-get"):
        pytest.skip(f"Slurm is not installed and there is no apt-get: install {', '.join(missing)}")
    command = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *missing]
    quiet = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for _ in range(2):  # a fresh container has no lists yet
        done = subprocess.run(command, env=environment, **quiet)
        if done.returncode == 0:
            return
        subprocess.run(["apt-get", "update", "-q"], env=environment, **quiet)
    pytest.skip(f"Slurm is not installed, and apt-get cannot: {done.stderr.strip().splitlines()[-1]}")


@contextlib.contextmanager
def slurm(folder: Path):
    """Start Slurm under `folder`; yields the environment with which its commands find it."""
    install()
    for name in ("munge", "state", "spool-n1", "spool-n2"):
        (folder / name).mkdir(parents=True)
    (folder / "key").write_bytes(os.urandom(1024))
    (folder / "key").chmod(0o400)
    conf = folder / "slurm.conf"
    names = {"host": socket.gethostname().split(".")[0], "cpus": os.cpu_count(), "ports": _free_ports(3)}
    conf.write_text(CONF.format(folder=folder, **names))
    environment = {"SLURM_CONF": str(conf)}
    places = [f"--socket={folder}/munge/socket", f"--key-file={folder}/key", f"--seed-file={folder}/seed"]
    places += [f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log"]
    commands = [["munged", "--foreground", "--force", *places], ["slurmctld", "-D", "-f", str(conf)]]
    commands += [["slurmd", "-D", "-N", name, "-f", str(conf)] for name in ("n1", "n2")]
    started = []
    try:
        for command in commands:
            with open(folder / f"{command[0]}.out", "ab") as out:
                started.append(subprocess.Popen(command, env=os.environ | environment, stdout=out, stderr=out))
            _wait(folder / "munge" / "socket")
        _wait_until_idle(folder, environment)
        yield environment
    finally:
        subprocess.run(["scancel", "--user=root", "--signal=KILL", "--full"], env=os.environ | environment)
        subprocess.run(["scancel", "--user=root"], env=os.environ | environment)
        for process in reversed(started):
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
            process.kill()
            process.wait()


def _wait(path: Path, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} never came"
        time.sleep(0.05)


def _wait_until_idle(folder: Path, environment: dict[str, str], seconds: float = 60) -> None:
    end, said = time.monotonic() + seconds, ""
    command = ["sinfo", "--noheader", "--Node", "--format=%T"]
    while said.split() != ["idle", "idle"]:
        logs = "\n".join(path.read_text()[-1000:] for path in folder.glob("*.log"))
        assert time.monotonic() < end, f"Slurm did not start: {said}\n{logs}"
        time.sleep(0.3)
        said = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True).stdout


def _free_ports(number: int) -> list[int]:
    """Ports that nobody listens on now, all different."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(number)]
        for probe in probes:
            probe.bind(("", 0))
        return [probe.getsockname()[1] for probe in probes]
