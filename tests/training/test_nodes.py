"""Two nodes: hosts of a hostfile that are this machine twice, behind a real sshd, started by DeepSpeed's own runner."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from test_launch import new_job
from training_cases import new_config

from llamax.errors import LaunchError
from llamax.training.hosts import check_hosts, environment_file, slots
from llamax.training.launch import launch, train
from llamax.training.ranks import free_port


def programs(folder, **scripts):
    """A folder of little programs to stand in front of PATH."""
    folder.mkdir(exist_ok=True)
    for name, text in scripts.items():
        (folder / name).write_text("#!/bin/sh\n" + text)
        (folder / name).chmod(0o755)
    return folder


def test_a_host_that_does_not_answer_is_named_at_once(tmp_path, monkeypatch, tiny_model, tiny_tokenizer):
    deaf = (
        'for host; do :; done; case "$*" in *node2*) echo "ssh: connect to host node2: No route" >&2; exit 255;; esac'
    )
    monkeypatch.setenv("PATH", f"{programs(tmp_path / 'bin', ssh=deaf, pdsh='exit 1')}:{os.environ['PATH']}")
    (tmp_path / "hosts").write_text("node1 slots=1\nnode2 slots=1  # ours\n")
    job = new_job(tmp_path, tiny_model, tiny_tokenizer, hostfile=str(tmp_path / "hosts"))
    start = time.monotonic()
    with pytest.raises(LaunchError, match=r"node2 cannot be reached \(ssh: connect to host node2: No route\)") as error:
        launch(job)
    assert "\n" not in str(error.value) and time.monotonic() - start < 15
    assert slots(job.hostfile) == {"node1": 1, "node2": 1}
    with pytest.raises(LaunchError, match="2 slots on 2 hosts, but the job has 4 ranks"):
        check_hosts(job.hostfile, 4)
    monkeypatch.setenv("PATH", str(programs(tmp_path / "only", ssh="exit 0")))
    with pytest.raises(LaunchError, match="pdsh is not here"):
        check_hosts(job.hostfile, 2)


def test_other_machines_get_our_variables():
    given = {"LLAMAX_DATA": "/a b", "HF_HOME": "/h", "HOME": "/root", "LLAMAX_HOSTFILE": "x", "DS_ACCELERATOR": "cpu"}
    assert environment_file(given) == "DS_ACCELERATOR=cpu\nHF_HOME=/h\nLLAMAX_DATA=/a b"


@pytest.fixture
def nodes(tmp_path, monkeypatch):
    """A hostfile of two hosts, 127.0.0.1 and 127.0.0.2, that an sshd of our own serves. Needs root."""
    missing = [
        name for name in ("sshd", "pdsh", "ssh") if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    ]
    if os.geteuid() or missing:
        pytest.skip(f"two nodes need root and {', '.join(missing)}: apt-get install openssh-server pdsh")
    keys, port = tmp_path / "keys", free_port()
    keys.mkdir(mode=0o700)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", keys / name], check=True)
    shutil.copy(keys / "user.pub", keys / "authorized")
    Path("/run/sshd").mkdir(exist_ok=True)
    (keys / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nListenAddress 127.0.0.2\nHostKey {keys}/host\nStrictModes no\n"
        f"AuthorizedKeysFile {keys}/authorized\nPasswordAuthentication no\nPermitRootLogin yes\nUsePAM no\n"
        f"PidFile {keys}/pid\n"
    )
    (keys / "config").write_text(
        f"Host *\nPort {port}\nUser root\nIdentityFile {keys}/user\nIdentitiesOnly yes\nStrictHostKeyChecking no\n"
        f"UserKnownHostsFile /dev/null\nLogLevel ERROR\n"
    )
    ssh = (
        f'[ "$*" = "127.0.0.1 hostname -I" ] && exec echo 127.0.0.1\nexec {shutil.which("ssh")} -F {keys}/config "$@"\n'
    )
    monkeypatch.setenv("PATH", f"{programs(tmp_path / 'bin', ssh=ssh)}:{os.environ['PATH']}")
    (tmp_path / "hosts").write_text("127.0.0.1 slots=1\n127.0.0.2 slots=1\n")
    with subprocess.Popen(
        ["/usr/sbin/sshd", "-D", "-e", "-f", keys / "sshd_config"], stderr=subprocess.DEVNULL
    ) as server:
        time.sleep(0.5)
        yield str(tmp_path / "hosts")
        server.terminate()


@pytest.mark.slow
def test_two_nodes_compute_what_one_does_and_fall_together(tmp_path, tiny_model, tiny_tokenizer, nodes, monkeypatch):
    job = new_job(tmp_path, tiny_model, tiny_tokenizer, hostfile=nodes)
    config = new_config(engine="deepspeed", ranks=2, zero_stage=3, max_steps=4, checkpoint_every=2)
    job = job.model_copy(update={"train": config})
    monkeypatch.setenv("LLAMAX_KILL", "1:2")  # carried to the other node, and not to this one's launcher
    with pytest.raises(LaunchError) as error:
        launch(job)
    assert "rank 1 ended without a traceback: killed" in str(error.value).splitlines()[-1]
    assert_none_left(job)
    monkeypatch.delenv("LLAMAX_KILL")
    history = launch(job)
    assert history.resumed_from == 2
    alone = train(job.model_copy(update={"train": new_config(max_steps=4), "out": str(tmp_path / "alone")}))
    assert history.losses == pytest.approx(alone.losses, rel=1e-5)


@pytest.mark.slow
def test_the_traceback_of_a_rank_on_another_node_arrives(tmp_path, tiny_model, tiny_tokenizer, nodes):
    job = new_job(tmp_path, tiny_model, tiny_tokenizer, hostfile=nodes, model=str(tmp_path / "nothing here"))
    with pytest.raises(LaunchError, match=r"rank [01] failed") as error:
        launch(job)
    assert "ModelError" in str(error.value).splitlines()[-1] and "nothing here" in str(error.value).splitlines()[-1]
    assert_none_left(job)


def assert_none_left(job):
    """No process of the job lives on."""
    deadline = time.monotonic() + 30
    while left := [
        p.pid for p in psutil.process_iter(["cmdline"]) if f"{job.out}/ranks" in " ".join(p.info["cmdline"] or [])
    ]:
        assert time.monotonic() < deadline, left
        time.sleep(0.5)
