"""Parameters of direction 01: what would be ignored or believed twice is refused; the arms' own settings."""

import pytest

from llamax.data.world import test_items as world_items
from llamax.errors import ParameterError
from llamax.evaluation.definitions import names
from llamax.instruction_tuning.config import CONFIG, TASKS
from llamax.runs import parse_parameters
from llamax.runs.parameters import profiles


def parse(overrides=None, profile="nano", seed=0):
    return parse_parameters("instruction_tuning", profile, seed, overrides)


def test_tasks_are_those_of_the_suites():
    assert set(TASKS["nano"]) == {item.task for item in world_items()}
    assert set(TASKS["real"]) <= set(names())


@pytest.mark.parametrize("profile", profiles())
def test_every_profile_parses(profile):
    assert parse(profile=profile).profile == profile


def test_the_recipe_of_the_original():
    seven, thirteen = (parse(profile=name).train for name in ("7b", "13b"))
    assert (seven.offload_optimizer, thirteen.offload_optimizer) == (False, True)
    for train in (seven, thirteen):
        assert (train.learning_rate, train.schedule, train.epochs) == (2e-5, "cosine", 3)
        assert (train.engine, train.zero_stage, train.ranks, train.precision) == ("deepspeed", 3, 8, "bf16")
    data = parse(profile="7b").data
    assert (data.source, data.length, data.packing, data.max_examples) == ("alpaca", 2048, True, None)


def test_a_lora_variant_is_its_profile_with_adapters_alone():
    for name in ("7b", "13b", "33b", "65b", "llama3-8b", "llama3-70b"):
        base, adapted = parse(profile=name), parse(profile=f"{name}-lora")
        assert (base.methods, adapted.methods) == (("full", "lora"), ("lora",))
        same = {"profile", "methods", "train"}
        assert base.model_dump(exclude=same) == adapted.model_dump(exclude=same)


def test_every_training_has_a_seed_of_its_own_and_lora_its_adapter_and_rate():
    config = parse({"replicates": 3}, seed=2)
    arms = [config.train_config(method, replicate) for method in ("full", "lora") for replicate in range(3)]
    assert [arm.seed for arm in arms] == [2000, 2001, 2002] * 2
    assert [arm.lora is not None for arm in arms] == [False] * 3 + [True] * 3
    assert arms[3].learning_rate == config.lora_learning_rate != arms[0].learning_rate == config.train.learning_rate


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"train.lora.rank": 4}, "train.lora: methods decides about LoRA"),
        ({"train.seed": 7}, "train.seed: every training gets its own"),
        ({"methods": ["full", "full"]}, "methods: full, full: one is named twice"),
        ({"methods": []}, "parameter 'methods'"),
        ({"protocols": []}, "parameter 'evaluation.protocols'"),
        ({"protocols": ["plain", "plain"]}, "one is named twice"),
        ({"evaluation.limits": {"mmlu": 3}}, "the suite 'nano' has no task 'mmlu'; it has knowledge"),
        ({"evaluation.limits": {"code": True}}, "parameter 'evaluation.limits.code"),
        ({"evaluation.limits": {"code": 0}}, "parameter 'evaluation.limits.code"),
        ({"max_new_tokens": 9}, "max_new_tokens has no effect on the suite 'nano'"),
        ({"betas": [2, 5]}, "parameter 'train.betas.0' = 2"),
        ({"lora_learning_rate": float("inf")}, "parameter 'lora_learning_rate' = inf"),
        ({"data.length": 99_999_999}, "parameter 'data.length' = 99999999"),
        ({"replicates": 1000}, "parameter 'replicates' = 1000"),
        ({"batch_size": 3}, "ambiguous"),
        ({"train.batch_size": 3}, "batch_size 3 must be a multiple of micro_batch 4"),
    ],
)
def test_bad_input_is_one_line(overrides, says):
    with pytest.raises(ParameterError) as caught:
        parse(overrides)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_only_the_benchmarks_that_are_run_enter_the_key():
    config = parse({"evaluation.limits": {"truthfulqa_mc1": 20}}, profile="smol")
    assert config.datasets() == ["alpaca", "nano", "truthfulqa"]
    assert parse({}).datasets() == ["nano"]


def test_what_does_not_concern_the_real_suite_is_refused():
    with pytest.raises(ParameterError, match="protocols has no effect on the suite 'real'"):
        parse({"protocols": ["chat"]}, profile="smol")
    assert "profile" in CONFIG.model_fields
