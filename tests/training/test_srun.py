"""The command that starts ranks on the nodes of a Slurm job; it runs for real in tests/runs/test_slurm.py."""

import base64
import json
import re
import shlex
import sys

from llamax.training.ranks import _command, place
from llamax.training.srun import srun_command


def test_srun_starts_deepspeeds_launcher_once_on_each_node(tmp_path, monkeypatch):
    hosts = tmp_path / "hosts"
    hosts.write_text("a08 slots=4  # fast\n\na09 slots=4\n")
    monkeypatch.setenv("LLAMAX_LAUNCHER", "srun")
    command = _command("llamax.training.worker", tmp_path / "a job.json", place(8, str(hosts), 29501))
    assert command == srun_command(
        str(hosts), 29501, ["--module", "--no_local_rank", "llamax.training.worker", f"{tmp_path}/a job.json"]
    )
    assert command[0] == "srun"
    assert {"--overlap", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--kill-on-bad-exit=1"} <= set(command)
    assert command[-3:-1] == ["sh", "-c"]
    warned, launch = command[-1].split("; exec ")
    assert warned == "trap '' USR2"
    words = shlex.split(launch)
    assert words[:3] == [sys.executable, "-m", "deepspeed.launcher.launch"]
    assert words[-6:] == [
        "--node_rank=$SLURM_NODEID", "--module", "--no_local_rank", "llamax.training.worker",
        f"{tmp_path}/a job.json", "--parent-on-stdin",
    ]  # fmt: skip
    assert "--master_port=29501" in words
    world = base64.urlsafe_b64decode(re.search(r"--world_info=(\S+)", launch)[1])
    assert json.loads(world) == {"a08": [0, 1, 2, 3], "a09": [0, 1, 2, 3]}


def test_a_hostfile_alone_is_for_deepspeeds_own_runner(tmp_path, monkeypatch):
    hosts = tmp_path / "hosts"
    hosts.write_text("a slots=1\nb slots=1\n")
    monkeypatch.delenv("LLAMAX_LAUNCHER", raising=False)
    command = _command("llamax.training.worker", tmp_path / "job.json", place(2, str(hosts), 29501))
    assert command[:3] == [sys.executable, "-m", "deepspeed.launcher.runner"]
