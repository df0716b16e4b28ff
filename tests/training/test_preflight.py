"""What is said against a training before anything is loaded."""

import pytest
from training_cases import new_config

from llamax.errors import LaunchError, ParameterError
from llamax.runs import parse_parameters
from llamax.training.preflight import check_trainings, gpus, placed

SHARDED = {"engine": "deepspeed", "ranks": 2, "zero_stage": 3}


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    for name in ("LLAMAX_REHEARSAL", "LLAMAX_CPU", "LLAMAX_RANKS", "LLAMAX_HOSTFILE", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


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


def test_too_few_gpus_are_said(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    with pytest.raises(LaunchError, match="8 GPUs and this machine shows 4: LLAMAX_RANKS=4"):
        check_trainings(seven())
    monkeypatch.setenv("LLAMAX_RANKS", "4")
    check_trainings(seven())
    monkeypatch.delenv("LLAMAX_RANKS")
    (tmp_path / "hosts").write_text("a slots=4\nb slots=4\n")
    monkeypatch.setenv("LLAMAX_HOSTFILE", str(tmp_path / "hosts"))
    check_trainings(seven())


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
    for wrong, says in (("5", "batch_size 24 should be a multiple"), ("x", "want a number"), ("0", "want a number")):
        monkeypatch.setenv("LLAMAX_RANKS", wrong)
        with pytest.raises(LaunchError, match=f"LLAMAX_RANKS={wrong}: {says}"):
            placed(train)
