"""Two ranks under DeepSpeed compute what one rank of the torch engine computes, and survive `kill -9`."""

import pytest
import torch
from training_cases import PAD, gradients, log_of, new_config, new_model, new_rows, run_ranks

from llamax.training.config import LoraConfig
from llamax.training.engines import make_engine
from llamax.training.history import History
from llamax.training.loop import fit
from llamax.training.objectives import next_token_loss
from llamax.training.schedules import learning_rate

STAGES = (0, 1, 2, 3)


def sharded(stage, **changes):
    return new_config(engine="deepspeed", ranks=2, zero_stage=stage, **changes)


def case(out, config, **more):
    return {"out": str(out), "config": config.model_dump(mode="json"), **more}


def result(folder):
    """History and weights that a case left."""
    found = torch.load(folder / "result.pt")
    return History.from_json(found["history"]), found["weights"]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """One start of two ranks (most of its time is imports) that serves all comparisons: a ZeRO-3 run is killed, then in
    the second start it is resumed, run whole, and every stage's gradients are taken."""
    folder = tmp_path_factory.mktemp("ranks")
    config = sharded(3, checkpoint_every=2)
    assert -9 in run_ranks(2, [case(folder / "cut", config, die_after=6)], folder), log_of(folder)
    cases = [case(folder / f"stage-{stage}", sharded(stage), do="gradients") for stage in STAGES]
    cases += [case(folder / "cut", config), case(folder / "whole", config)]
    cases += [case(folder / "lora", sharded(3, max_steps=4, lora=LoraConfig(rank=4), micro_batch=2))]
    cases += [case(folder / "bf16", sharded(3, precision="bf16", micro_batch=1, gradient_checkpointing=True))]
    cases += [case(folder / "offload", sharded(3, offload_optimizer=True, offload_parameters=True, max_steps=4))]
    overflowing = {"fp16": {"initial_scale_power": 32}}  # the original's: its first 16 steps taught nothing
    cases += [case(folder / "fp16", sharded(3, precision="fp16", deepspeed_json=overflowing))]
    assert run_ranks(2, cases, folder) == [0, 0], log_of(folder) + log_of(folder, 1)
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_of_four_have_the_gradient_of_one_of_eight(ranks, stage):
    found = torch.load(ranks / f"stage-{stage}" / "gradients.pt")
    config, model = new_config(micro_batch=8), new_model()
    loss = gradients(make_engine(model, next_token_loss, config), new_rows(), config)
    assert found["loss"] == pytest.approx(loss, rel=1e-6)
    for name, parameter in model.named_parameters():
        assert (found["gradients"][name] - parameter.grad).norm() / parameter.grad.norm() < 1e-5, name


def test_zero3_on_two_ranks_has_the_loss_curve_of_one(ranks, tmp_path):
    history, weights = result(ranks / "whole")
    model = new_model()
    expected = fit(model, new_rows(), new_config(), tmp_path, pad_id=PAD)
    assert history.losses == pytest.approx(expected.losses, rel=1e-5)
    for ours, theirs in zip(history.steps, expected.steps, strict=True):
        assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-4)
        assert (ours.learning_rate, ours.tokens, ours.supervised) == (
            theirs.learning_rate,
            theirs.tokens,
            theirs.supervised,
        )
    for name, parameter in model.named_parameters():
        assert torch.allclose(weights[name], parameter, atol=1e-5), name


def test_killed_zero3_run_is_the_same_run(ranks):
    whole, resumed = result(ranks / "whole"), result(ranks / "cut")
    assert resumed[0].resumed_from == 6
    assert [m[:-1] for m in resumed[0].steps] == [m[:-1] for m in whole[0].steps]
    assert all(torch.equal(resumed[1][name], whole[1][name]) for name in whole[1])


def test_zero3_trains_adapters_and_merges_them(ranks):
    history, weights = result(ranks / "lora")
    assert len(history.steps) == 4 and set(weights) == {name for name, _ in new_model().named_parameters()}
    base = dict(new_model().named_parameters())
    moved = {name for name in weights if not torch.equal(weights[name], base[name])}
    assert moved == {name for name in weights if "_proj" in name}


@pytest.mark.parametrize("name", ["whole", "bf16", "lora", "offload", "fp16"])
def test_deepspeeds_optimizer_steps_at_the_rates_of_the_schedule(ranks, name):
    """What its own parameter groups hold at the moment of its step, not what the loop asked for or was told."""
    rates = torch.load(ranks / name / "result.pt")["rates"]
    steps = result(ranks / name)[0].steps
    config = sharded(3, **({"max_steps": 4} if name in ("lora", "offload") else {}))
    assert [step.learning_rate for step in steps] == [learning_rate(k, len(steps), config) for k in range(len(steps))]
    each = len(rates) // len(steps)  # ZeRO-3 steps group by group
    assert each * len(steps) == len(rates) > 0
    for k, seen in enumerate(rates):
        assert set(seen) == {steps[k // each].learning_rate} and min(seen) > 0


def test_a_step_that_overflows_in_fp16_is_repeated_not_counted(ranks):
    history, whole = result(ranks / "fp16")[0], result(ranks / "whole")[0]
    assert [step.step for step in history.steps] == list(range(len(whole.steps)))
    assert history.losses == pytest.approx(whole.losses, rel=2e-3)
    assert log_of(ranks).count("step 0: a gradient overflowed in fp16: repeated") > 8


def test_bf16_and_offload_follow_fp32(ranks):
    expected = result(ranks / "whole")[0].losses
    assert result(ranks / "bf16")[0].losses == pytest.approx(expected, rel=2e-3)
    # Its schedule has 4 steps instead of 10; the first two updates have (nearly) the same rate.
    assert result(ranks / "offload")[0].losses[:2] == pytest.approx(expected[:2], rel=1e-5)
