"""What is said against a training before anything is loaded."""

import pytest
from training_cases import new_config

from llamax.errors import LaunchError, ParameterError
from llamax.runs import parse_parameters
from llamax.runs.notebook import execute
from llamax.runs.store import Store
from llamax.training.preflight import check_trainings, gpus, placed

SHARDED = {"engine": "deepspeed", "ranks": 2, "zero_stage": 3}


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    for name in ("REHEARSAL", "CPU", "RANKS", "HOSTFILE", "PORT", "LAUNCHER"):
        monkeypatch.delenv(f"LLAMAX_{name}", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def seven(**overrides):
    return parse_parameters("instruction_tuning", "7b", 0, overrides)


def test_a_gpu_profile_without_a_gpu_is_refused_in_one_line(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpus() == 0
    with pytest.raises(
        LaunchError, match=r"profile 7b trains on 8 GPUs and this machine has none: .*--rehearse"
    ) as error:
        check_trainings(seven())
    assert "llamax plan --profile 7b" in str(error.value) and "\n" not in str(error.value)
    for name in ("LLAMAX_REHEARSAL", "LLAMAX_CPU"):
        monkeypatch.setenv(name, "1")
        check_trainings(seven())
        monkeypatch.delenv(name)
    check_trainings(parse_parameters("instruction_tuning", "nano"))
    check_trainings(parse_parameters("evaluation", "7b"))


def test_that_there_is_no_gpu_is_said_before_that_there_is_no_hub(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("LLAMAX_DATA", raising=False)
    with pytest.raises(LaunchError, match="this machine has none"):
        execute("instruction_tuning", "7b", store=Store(tmp_path))


def test_too_few_gpus_are_said(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    with pytest.raises(LaunchError, match="8 GPUs and this machine shows 4: LLAMAX_RANKS=4"):
        check_trainings(seven())
    monkeypatch.setenv("LLAMAX_RANKS", "4")
    check_trainings(seven())


@pytest.fixture
def hosts(monkeypatch, tmp_path):
    """Two hosts with four slots each, and an `ssh` that reaches `a` alone as long as there is a file `down`."""
    for name, text in (("ssh", f'case "$*" in *b*true) test ! -e {tmp_path}/down;; esac'), ("pdsh", "")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "hosts").write_text("a slots=4\nb slots=4\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("LLAMAX_HOSTFILE", str(tmp_path / "hosts"))
    return tmp_path


@pytest.mark.parametrize("where", ["LLAMAX_CPU", "NOTHING"])
def test_hosts_are_asked_before_anything_starts(monkeypatch, hosts, where):
    monkeypatch.setenv(where, "1")
    check_trainings(seven())
    (hosts / "down").touch()
    with pytest.raises(LaunchError, match="b cannot be reached"):
        check_trainings(seven())
    monkeypatch.setenv("LLAMAX_LAUNCHER", "srun")  # Slurm reaches it
    check_trainings(seven())
    monkeypatch.setenv("LLAMAX_RANKS", "4")
    with pytest.raises(LaunchError, match="8 slots on 2 hosts, but the job has 4 ranks"):
        check_trainings(seven())
    monkeypatch.setenv("LLAMAX_HOSTFILE", str(hosts))
    with pytest.raises(LaunchError, match=r"hostfile .*: a folder; give a file with a line 'host slots=8'"):
        check_trainings(seven())


def test_a_rehearsal_is_told_at_once_what_is_no_number(monkeypatch, hosts):
    monkeypatch.setenv("LLAMAX_REHEARSAL", "7b")
    (hosts / "down").touch()
    check_trainings(seven())  # on how many ranks, its launcher sees
    monkeypatch.setenv("LLAMAX_RANKS", "x")
    with pytest.raises(LaunchError, match="LLAMAX_RANKS=x: want a number"):
        check_trainings(seven())
    monkeypatch.delenv("LLAMAX_RANKS")
    monkeypatch.setenv("LLAMAX_PORT", "²")
    with pytest.raises(LaunchError, match="LLAMAX_PORT=²: want a port number"):
        check_trainings(seven())


def test_ranks_for_one_device_are_refused(monkeypatch):
    nano = parse_parameters("instruction_tuning", "nano")
    monkeypatch.setenv("LLAMAX_RANKS", "2")
    with pytest.raises(LaunchError, match="LLAMAX_RANKS=2: profile nano trains with engine 'torch', which is one dev"):
        check_trainings(nano)
    check_trainings(parse_parameters("evaluation", "nano"))  # its processes answer
    monkeypatch.setenv("LLAMAX_RANKS", "1")
    check_trainings(nano)


def test_a_key_that_deepspeed_would_ignore_is_said_before_anything_starts(monkeypatch):
    monkeypatch.setenv("LLAMAX_CPU", "1")
    with pytest.raises(ParameterError, match="'zero_optimisation' and would ignore it: did you mean"):
        check_trainings(seven(**{"train.deepspeed_json": {"zero_optimisation": {"stage": 3}}}))


def test_other_ranks_keep_the_batch(monkeypatch):
    train = new_config(**SHARDED, batch_size=24, micro_batch=12)
    assert placed(train) == train
    for ranks, micro in ((1, 12), (3, 8), (4, 6), (8, 3), (24, 1)):
        monkeypatch.setenv("LLAMAX_RANKS", str(ranks))
        found = placed(train)
        assert (found.ranks, found.micro_batch) == (ranks, micro)
        assert placed(new_config(micro_batch=8)) == new_config(micro_batch=8)  # one device is one device
    for wrong, says in (("5", "batch_size 24 should be a multiple"), ("²", "want a number"), ("0", "want a number")):
        monkeypatch.setenv("LLAMAX_RANKS", wrong)
        with pytest.raises(LaunchError, match=f"LLAMAX_RANKS={wrong}: {says}"):
            placed(train)
