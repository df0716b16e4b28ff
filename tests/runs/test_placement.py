"""How many ranks nodes and GPUs give direction 01, and with which micro-batch."""

import subprocess
import sys

import pytest

from llamax.errors import ParameterError
from llamax.runs.parameters import parse_parameters
from llamax.runs.placement import spread


def ranks(nodes, gpus, overrides=None, profile="7b"):
    return spread("instruction_tuning", profile, overrides or {}, nodes, gpus)


def test_nodes_times_gpus():
    assert ranks(1, 8) == ({}, 8)  # as the profile has it: no override, the same key
    assert ranks(2, 4) == ({}, 4)
    assert ranks(2, 8) == ({"train.ranks": 16, "train.micro_batch": 1}, 8)
    given = {"train.batch_size": 64, "train.micro_batch": 2}
    assert ranks(2, 8, given) == ({**given, "train.ranks": 16}, 8)
    assert ranks(1, 2, {"train.batch_size": 16}) == ({"train.batch_size": 16, "train.ranks": 2}, 2)


def test_the_ranks_that_notebook_07_compares_are_no_layout():
    assert spread("infrastructure", "smol", {}, 1, 1) == ({}, 1)


def test_ranks_that_cannot_share_the_batch_are_told_what_they_could():
    for overrides, batch, wanted in (
        ({}, 16, 24),
        ({"train.batch_size": 25}, 25, 48),
        ({"micro_batch": 4}, 16, 96),
    ):
        says = rf"^batch_size {batch} cannot be shared by 24 ranks: -p train.batch_size={wanted} \(or a multiple\)$"
        with pytest.raises(ParameterError, match=says):
            ranks(3, 8, overrides)
        changed, _ = ranks(3, 8, overrides | {"train.batch_size": wanted})
        assert parse_parameters("instruction_tuning", "7b", 0, changed).train.ranks == 24


def test_without_gpus_the_nodes_share_the_ranks_of_the_profile():
    overrides = {"train.engine": "deepspeed", "train.ranks": 4, "train.micro_batch": 1}
    assert ranks(2, 0, overrides, "nano") == (overrides, 2)
    with pytest.raises(ParameterError, match="--nodes 3: they cannot share 4 ranks equally"):
        ranks(3, 0, overrides, "nano")


def test_ranks_are_not_said_twice():
    with pytest.raises(ParameterError, match="-p ranks=8: leave it out, nodes x GPUs are 16 ranks"):
        ranks(2, 8, {"ranks": 8})


def test_a_plan_knows_nothing_of_slurm():
    code = "import sys, llamax.runs.planning\nassert not {'llamax.runs.cluster', 'submitit'} & sys.modules.keys()"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
