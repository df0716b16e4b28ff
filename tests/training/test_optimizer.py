"""AdamW with fp32 masters."""

import pytest
import torch
from torch import nn
from training_cases import new_config, new_model

from llamax.training.optimizer import MasterAdamW, parameter_groups


def test_matrices_decay_and_norms_do_not():
    groups = parameter_groups(new_model(), 0.1)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert {p.ndim for p in groups[0]["params"]} == {2}
    assert {p.ndim for p in groups[1]["params"]} == {1}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_small_updates_are_not_rounded_away(dtype):
    """From 1.0 bf16 cannot take a step of 1e-4; a hundred of them in the master show up."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    optimizer = MasterAdamW(model, new_config(grad_clip=0), dtype)
    for _ in range(100):
        model(torch.ones(1, 1, dtype=dtype)).sum().backward()
        optimizer.step(1e-4)
    assert model.weight.dtype == dtype
    assert model.weight.item() == pytest.approx(0.99, abs=3e-3)
    assert optimizer.masters[0].item() == pytest.approx(0.99, abs=1e-4)


def test_micro_batches_are_summed_in_fp32():
    """256 + 1 is 256 in bf16."""
    model = nn.Linear(1, 1, bias=False)
    optimizer = MasterAdamW(model, new_config(), torch.bfloat16)
    for gradient in (256.0, 1.0, 1.0):
        (model(torch.full((1, 1), gradient, dtype=torch.bfloat16))).sum().backward()
    assert optimizer.masters[0].grad.item() == 258.0
    assert model.weight.grad is None


def test_norm_is_that_before_clipping_and_the_update_is_clipped():
    model = nn.Linear(2, 1, bias=False)
    optimizer = MasterAdamW(model, new_config(grad_clip=1.0), torch.float32)
    model(torch.tensor([[3.0, 4.0]])).sum().backward()
    seen = []
    optimizer.adam.register_step_pre_hook(lambda *_: seen.append(model.weight.grad.norm().item()))
    norm, rate = optimizer.step(0.25)
    assert (norm, rate) == (pytest.approx(5.0), 0.25)
    assert seen == [pytest.approx(1.0, rel=1e-5)]


def test_the_update_is_torchs_with_every_setting_passed_on():
    settings = {"betas": (0.7, 0.8), "eps": 1e-3, "weight_decay": 0.2}
    config = new_config(grad_clip=0, **settings)
    torch.manual_seed(0)
    ours, theirs = nn.Linear(3, 2, bias=False), nn.Linear(3, 2, bias=False)
    theirs.load_state_dict(ours.state_dict())
    optimizer = MasterAdamW(ours, config, torch.float32)
    reference = torch.optim.AdamW(theirs.parameters(), lr=0.1, **settings)
    for x in torch.randn(4, 1, 3):
        for model in (ours, theirs):
            model(x).square().sum().backward()
        optimizer.step(0.1)
        reference.step()
        reference.zero_grad()
    assert torch.allclose(ours.weight, theirs.weight, rtol=1e-6)
