"""Every key of DeepSpeed's JSON counts: misspelt, unknown, owned by another or of a wrong type is one line."""

import pytest
from training_cases import new_config

from llamax.errors import ParameterError
from llamax.training.config import ONE_OWNER
from llamax.training.deepspeed_keys import check_deepspeed
from llamax.training.engines import deepspeed_config


def sharded(**changes):
    return new_config(engine="deepspeed", zero_stage=3, **changes)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_what_the_engine_makes_is_known_to_deepspeed(precision):
    for changes in ({}, {"offload_optimizer": True}, {"offload_optimizer": True, "offload_parameters": True}):
        check_deepspeed(deepspeed_config(sharded(precision=precision, **changes), 64))
    for stage in (0, 1, 2) if precision == "fp32" else (1, 2):
        config = new_config(engine="deepspeed", zero_stage=stage, precision=precision)
        check_deepspeed(deepspeed_config(config, 64))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"zero_optimisation": {}}, "no key 'zero_optimisation' and would ignore it: did you mean 'zero_optimization'"),
        (
            {"zero_optimization": {"stage3_max_live_parametres": 1}},
            "'zero_optimization.stage3_max_live_parametres' and would ignore it: did you mean 'stage3_max_live_param",
        ),
        (
            {"zero_optimization": {"offload_param": {"pin_memroy": True}}},
            "'zero_optimization.offload_param.pin_memroy' and would ignore it: did you mean 'pin_memory'",
        ),
        ({"activation_checkpointing": {"profil": True}}, "did you mean 'profile'"),
        ({"data_types": {"xyz": "fp32"}}, "'data_types.xyz' and would ignore it: valid here: .*keep_in_fp32_modules"),
        ({"bf16": {"imediate_grad_update": True}}, "did you mean 'immediate_grad_update'"),
        ({"flops_profiler": {"enabled": False, "module_deep": 1}}, "did you mean 'module_depth'"),
        (
            {"zero_optimization": {"reduce_bucket_size": "big"}},
            "zero_optimization.reduce_bucket_size = 'big': Input sh",
        ),
        ({"pipeline_": 1}, "did you mean 'pipeline'"),
    ],
)
def test_a_key_that_deepspeed_would_ignore_is_refused_with_the_nearest(settings, says):
    with pytest.raises(ParameterError, match=says) as caught:
        check_deepspeed(deepspeed_config(sharded(deepspeed_json=settings), 64))
    assert "\n" not in str(caught.value)


def test_what_deepspeed_knows_is_taken():
    more = {"wall_clock_breakdown": True, "zero_optimization": {"stage3_max_live_parameters": 7, "overlap_comm": True}}
    made = deepspeed_config(sharded(deepspeed_json=more), 64)
    check_deepspeed(made)
    assert made["wall_clock_breakdown"] and made["zero_optimization"]["stage3_max_live_parameters"] == 7
    assert made["zero_optimization"]["stage"] == 3


@pytest.mark.parametrize("name", ONE_OWNER)
def test_what_another_parameter_decides_has_one_owner(name):
    nested: object = False
    for part in reversed(name.split(".")):
        nested = {part: nested}
    with pytest.raises(ParameterError, match=f"deepspeed_json: {name} is decided by .*leave it out"):
        sharded(deepspeed_json=nested)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"bf16": None}, "bf16 = None: should be an object, whose enabled is decided by precision"),
        (
            {"zero_optimization": {"offload_optimizer": None}},
            "zero_optimization.offload_optimizer = None: should be an object, whose device is decided by offload_optim",
        ),
        ({"zero_optimization": 5}, "zero_optimization = 5: should be an object"),
        ({"data_types": None}, "data_types = None: should be an object, whose grad_accum_dtype is decided by"),
        ({"checkpoint": []}, r"checkpoint = \[\]: should be an object"),
        ({"amp": {"enabled": True}}, "amp is decided by precision"),
        ({"elasticity": {"enabled": True}}, "elasticity is decided by batch_size"),
    ],
)
def test_no_null_gets_around_the_owner(settings, says):
    with pytest.raises(ParameterError, match=f"deepspeed_json: {says}") as caught:
        sharded(deepspeed_json=settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"sparse_gradients": True}, "sparse_gradients = True: DeepSpeed cannot take it: Sparse compression of"),
        ({"curriculum_learning": {"enabled": True}}, "curriculum_learning: DeepSpeed cannot take it: Legacy"),
        ({"wall_clock_breakdown": "maybe"}, "wall_clock_breakdown = 'maybe': DeepSpeed cannot take it: "),
        ({"pipeline": None}, "pipeline = None: DeepSpeed cannot take it: "),
        ({"communication_data_type": "x"}, "communication_data_type = 'x': DeepSpeed cannot take it: Invalid comm"),
        (
            {"zero_optimization": {"param_persistence_threshold": 7}},
            "zero_optimization.param_persistence_threshold is 'stage3_param_persistence_threshold', which is set al",
        ),
    ],
)
def test_what_deepspeed_cannot_take_is_named_in_one_line_of_ours(settings, says):
    with pytest.raises(ParameterError, match=f"^deepspeed_json: {says}") as caught:
        check_deepspeed(deepspeed_config(sharded(deepspeed_json=settings), 64))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings", [{"data_types": None}, {"amp": {"enabled": True}}, {"elasticity": {}}, {"zero_optimization": 5}]
)
def test_and_where_no_config_was_before(settings):
    with pytest.raises(ParameterError, match=f"^deepspeed_json: {next(iter(settings))}.*: DeepSpeed cannot take it"):
        check_deepspeed(deepspeed_config(sharded(), 64) | settings)


def test_buffers_have_the_width_of_the_model():
    zero = deepspeed_config(sharded(), 4096)["zero_optimization"]
    assert zero["reduce_bucket_size"] == 4096**2 and zero["stage3_param_persistence_threshold"] == 40960
    assert "reduce_bucket_size" not in deepspeed_config(new_config(engine="deepspeed", zero_stage=1), 64)


def test_fp16_starts_at_a_loss_scale_that_does_not_overflow():
    assert deepspeed_config(sharded(precision="fp16"), 64)["fp16"]["initial_scale_power"] == 16
    with pytest.raises(ParameterError, match=r"precision fp16 .* need engine 'deepspeed'"):
        new_config(precision="fp16")
    with pytest.raises(ParameterError, match="precision fp16 with engine 'deepspeed' needs zero_stage"):
        new_config(engine="deepspeed", precision="fp16")
