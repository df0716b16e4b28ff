"""The fused RMSNorm and rotation are transformers' own, and so are their gradients; the model gets its own back."""

import copy

import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft import get_peft_model
from torch import nn
from training_cases import PAD, new_config, new_model, new_rows
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding, apply_rotary_pos_emb

from llamax.training.fused import _RMSNorm, _Rotary, fused, rotate
from llamax.training.loop import fit
from llamax.training.objectives import next_token_loss

SIZE = 96


def new_norm(dtype, seed=0):
    """A norm whose weights are not ones, inputs whose mean is not 0 and rows of unequal size, an outer gradient."""
    torch.manual_seed(seed)
    norm = LlamaRMSNorm(SIZE, 1e-5)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    x = (torch.randn(2, 50, SIZE) * 2 + 0.7) * torch.rand(2, 50, 1)
    return norm.to(dtype), x.to(dtype).requires_grad_(), (torch.randn(2, 50, SIZE) + 0.3).to(dtype)


def results(norm, x, outer):
    """Output, gradient of the input, gradient of the weight."""
    found = norm(x)
    return found.detach(), *torch.autograd.grad(found, (x, norm.weight), outer)


def error(found, expected):
    """Relative error as a norm."""
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


def test_fp32_is_transformers_own_to_rounding():
    norm, x, outer = new_norm(torch.float32)
    expected = results(norm, x, outer)
    with fused(norm):
        assert "_RMSNorm" in norm(x).grad_fn.name()
        found = results(norm, x, outer)
    assert all(error(a, b) < 1e-6 for a, b in zip(found, expected, strict=True))


def test_bf16_is_as_near_to_exact_values_as_transformers_own():
    norm, x, outer = new_norm(torch.bfloat16)
    exact = results(copy.deepcopy(norm).float(), x.detach().float().requires_grad_(), outer.float())
    theirs = results(norm, x, outer)
    with fused(norm):
        found = results(norm, x, outer)
    assert [tensor.dtype for tensor in found] == [torch.bfloat16] * 3
    for ours, peer, right in zip(found, theirs, exact, strict=True):
        assert error(ours, right) < 1.01 * error(peer, right)


def test_gradients_are_those_of_finite_differences():
    torch.manual_seed(0)
    x, weight = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3, 5), (5,)))
    assert torch.autograd.gradcheck(lambda x, w: _RMSNorm.apply(x, w, 1e-2), (x, weight))


def test_a_gradient_that_is_not_contiguous_is_read_right():
    norm, x, outer = new_norm(torch.float32)
    outer = outer.transpose(0, 1).contiguous().transpose(0, 1)
    expected = results(norm, x, outer)
    with fused(norm):
        assert all(error(a, b) < 1e-6 for a, b in zip(results(norm, x, outer), expected, strict=True))


def test_no_tokens_are_nothing():
    norm, _, _ = new_norm(torch.float32)
    x = torch.zeros(1, 0, SIZE, requires_grad=True)
    with fused(norm):
        found = results(norm, x, torch.zeros(1, 0, SIZE))
    assert [tensor.shape for tensor in found] == [x.shape, x.shape, (SIZE,)] and not found[2].any()


def rotated(how, queries, keys, angles, outer):
    """Both turned, and the gradients of both."""
    found = how(queries, keys, *angles)
    return *(tensor.detach() for tensor in found), *torch.autograd.grad(found, (queries, keys), outer)


def new_rotation(dtype):
    """Queries of 4 heads and keys of 2 (before tokens by strides alone, as in the model), LLaMA's angles, gradients."""
    torch.manual_seed(0)
    queries, keys, d_queries, d_keys = (torch.randn(2, 30, n, 8).to(dtype).transpose(1, 2) for n in (4, 2, 4, 2))
    positions = torch.arange(7, 37).expand(2, -1)
    angles = LlamaRotaryEmbedding(new_config_of_angles())(queries, positions)
    return queries.requires_grad_(), keys.requires_grad_(), angles, (d_queries, d_keys)


def new_config_of_angles():
    """Angles of heads of 8."""
    return modeling_llama.LlamaConfig(hidden_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=8)


def test_rotation_in_fp32_is_transformers_own_to_rounding():
    case = new_rotation(torch.float32)
    pairs = zip(rotated(rotate, *case), rotated(apply_rotary_pos_emb, *case), strict=True)
    assert all(error(a, b) < 1e-6 for a, b in pairs)


def test_rotation_in_bf16_is_nearer_to_exact_values_than_transformers_own():
    case = new_rotation(torch.bfloat16)
    queries, keys, angles, outer = case
    double = [tuple(tensor.double() for tensor in tensors) for tensors in (angles, outer)]
    exact = rotated(apply_rotary_pos_emb, queries.double(), keys.double(), *double)
    ours, theirs = rotated(rotate, *case), rotated(apply_rotary_pos_emb, *case)
    for found, peer, right in zip(ours, theirs, exact, strict=True):
        assert found.dtype == torch.bfloat16 and error(found, right) < error(peer, right)


def test_gradients_of_a_rotation_are_those_of_finite_differences_whatever_the_angles():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64, requires_grad=True)
    cos, sin = (torch.randn(2, 1, 4, 6, dtype=torch.float64) for _ in range(2))
    assert torch.autograd.gradcheck(lambda x: _Rotary.apply(x, cos, sin), x)


def test_heads_may_come_after_tokens():
    queries, keys, angles, _ = new_rotation(torch.float32)
    found = rotate(queries.transpose(1, 2), keys.transpose(1, 2), *angles, unsqueeze_dim=2)
    for ours, right in zip(found, rotate(queries, keys, *angles), strict=True):
        assert torch.equal(ours.transpose(1, 2), right)


def gradients(model, ids):
    """Loss and the gradients of what is trained."""
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [loss.detach(), *torch.autograd.grad(loss, trained)]


@pytest.mark.parametrize("how", ["full", "checkpointing", "lora"])
def test_a_whole_model_has_the_same_loss_and_gradients(how):
    model = new_model().train()
    if how == "checkpointing":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if how == "lora":
        model = get_peft_model(model, PeftConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    ids = torch.randint(3, 128, (2, 20))
    expected = gradients(model, ids)
    with fused(model):
        found = gradients(model, ids)
    assert all(error(a, b) < 1e-5 for a, b in zip(found, expected, strict=True))


def test_training_uses_it(tmp_path):
    seen = []

    def objective(model, batch):
        seen.append(["forward" in vars(norm) for norm in model.modules() if isinstance(norm, LlamaRMSNorm)])
        seen[-1].append(modeling_llama.apply_rotary_pos_emb is rotate)
        return next_token_loss(model, batch)

    model = new_model()
    fit(model, new_rows(), new_config(max_steps=1), tmp_path, pad_id=PAD, objective=objective)
    assert seen and all(used == [True] * 6 for used in seen)


def test_the_model_has_its_own_again_whatever_happened():
    model = new_model()
    norms = [module for module in model.modules() if isinstance(module, LlamaRMSNorm)]
    with pytest.raises(KeyError), fused(model):
        assert len(norms) == 5 and all("forward" in vars(norm) for norm in norms)
        raise KeyError
    assert not any("forward" in vars(norm) for norm in norms)
    assert modeling_llama.apply_rotary_pos_emb is apply_rotary_pos_emb


def test_what_is_not_known_is_left_alone():
    class Other(LlamaRMSNorm):
        """Another formula may be meant."""

    replaced = LlamaRMSNorm(SIZE)
    replaced.forward = lambda x: x
    mine = replaced.forward
    model = nn.ModuleList([Other(SIZE), nn.RMSNorm(SIZE), replaced])
    with fused(model):
        assert [("forward" in vars(module)) for module in model] == [False, False, True] and replaced.forward is mine
    assert replaced.forward is mine


def test_an_input_of_another_precision_goes_the_old_way():
    norm, x, _ = new_norm(torch.bfloat16)
    norm.float()
    expected = norm(x)
    with fused(norm):
        found = norm(x)
    assert torch.equal(found, expected) and found.dtype == expected.dtype
