"""Ranks on the nodes of a Slurm job, started by `srun`: no ssh between nodes, and no rank outlives the job.

DeepSpeed has a launcher of that name too, but its 0.19.8 runs no module (`-m`) and gives the ranks no RANK. So srun
starts, on each node, the launcher that DeepSpeed's own runner would start there over ssh.
"""

import base64
import json
import shlex
import socket
import sys

from llamax.training.hosts import slots


def srun_command(hostfile: str, port: int, worker: list[str]) -> list[str]:
    """Command that runs DeepSpeed's per-node launcher once on each host, which starts `slots` ranks of `worker`.

    It is meant to be called on the first node of the job, where rank 0 will be. `--overlap`: the notebook's own step
    holds the node already. The warning signal (USR2), which Slurm sends to everybody, is left to the notebook's job.
    """
    hosts = slots(hostfile)
    each = next(iter(hosts.values()))
    world = base64.urlsafe_b64encode(json.dumps({host: list(range(each)) for host in hosts}).encode()).decode()
    launcher = ["-m", "deepspeed.launcher.launch", f"--world_info={world}", f"--master_addr={socket.gethostname()}"]
    here = shlex.join([sys.executable, *launcher, f"--master_port={port}"])
    script = f"trap '' USR2; exec {here} --node_rank=$SLURM_NODEID {shlex.join(worker)} --parent-on-stdin"
    nodes = [f"--nodes={len(hosts)}", f"--ntasks={len(hosts)}", "--ntasks-per-node=1"]
    return ["srun", "--overlap", "--export=ALL", "--kill-on-bad-exit=1", "--cpu-bind=none", *nodes, "sh", "-c", script]
