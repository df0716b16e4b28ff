"""Attention over a shared prefix is attention over the prefix and the row's own tokens put together."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from llamax.generation import attention

ROWS, KV_HEADS, SIZE, FAR, NEAR = 3, 2, 8, 7, 5


def parts(groups, new, scale=1.0, dtype=torch.float32):
    """Query, keys and values of a prefix and of the rows, and a mask in which each row sees more or less of its own."""
    generator = torch.Generator().manual_seed(groups * 10 + new)

    def random(*shape):
        return torch.randn(*shape, SIZE, generator=generator).to(dtype)

    query = random(ROWS, KV_HEADS * groups, new) * scale
    prefix = [random(KV_HEADS, FAR) for _ in range(2)]
    own = [random(ROWS, KV_HEADS, NEAR) for _ in range(2)]
    seen = torch.tensor([1, 3, NEAR])[:, None] - new + torch.arange(new) + 1
    return query, prefix, own, (torch.arange(NEAR) < seen[..., None].clamp(min=1))[:, None]


def whole(query, prefix, own, mask, scaling):
    """The definition: every row has its own copy of the prefix, every query head its own key-value head."""
    groups = query.shape[1] // KV_HEADS
    key, value = (
        torch.cat([far.expand(ROWS, -1, -1, -1), near], 2).repeat_interleave(groups, 1)
        for far, near in zip(prefix, own, strict=True)
    )
    mask = torch.cat([torch.ones(*mask.shape[:-1], FAR, dtype=torch.bool), mask], -1)
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("scale", [1.0, 300.0])
@pytest.mark.parametrize("way", ["_next_token", "_after_prefix"])
def test_two_parts_are_one(groups, scale, way):
    """Also where one part outweighs the other by more than fp32 can count."""
    query, prefix, own, mask = parts(groups, 1 if way == "_next_token" else 4, scale)
    found = getattr(attention, way)(query, *prefix, *own, mask, 0.3)
    torch.testing.assert_close(found, whole(query, prefix, own, mask, 0.3), rtol=1e-4, atol=1e-5)


def test_in_bf16_two_parts_are_one_within_rounding():
    query, prefix, own, mask = parts(2, 1, dtype=torch.bfloat16)
    found = attention._next_token(query, *prefix, *own, mask, 0.3)
    assert found.dtype == torch.bfloat16
    wanted = whole(query.float(), [x.float() for x in prefix], [x.float() for x in own], mask, 0.3)
    torch.testing.assert_close(found.float(), wanted, rtol=0.03, atol=0.03)


def test_heads_of_a_size_of_their_own():
    """Their size is not always the hidden size shared out."""
    from types import SimpleNamespace

    assert attention.head_size(SimpleNamespace(hidden_size=32, num_attention_heads=4)) == 8
    assert attention.head_size(SimpleNamespace(hidden_size=32, num_attention_heads=4, head_dim=None)) == 8
    assert attention.head_size(SimpleNamespace(hidden_size=32, num_attention_heads=4, head_dim=16)) == 16


@pytest.mark.parametrize("groups", [1, 2])
def test_without_a_mask_it_is_causal_and_scaled_as_the_model_says(groups):
    """Some models scale by another number than one over the root of a head's size."""
    query, _, own, _ = parts(groups, NEAR)
    causal = torch.ones(NEAR, NEAR, dtype=torch.bool).tril()[None, None].expand(ROWS, 1, NEAR, NEAR)
    nothing = [torch.empty(KV_HEADS, 0, SIZE) for _ in range(2)]
    key, value = (near.repeat_interleave(groups, 1) for near in own)
    wanted = scaled_dot_product_attention(query, key, value, attn_mask=causal, scale=0.3)
    torch.testing.assert_close(attention._grouped(query, *own, None, 0.3), wanted)
    torch.testing.assert_close(attention._after_prefix(query, *nothing, *own, None, 0.3), wanted)


def test_logits_are_in_fp32_whatever_the_model_is_in(tiny_model):
    """Log-probabilities of bf16 logits would be wrong in the third digit."""
    model = tiny_model.to(torch.bfloat16)
    hidden = torch.randn(2, model.config.hidden_size, dtype=torch.bfloat16)
    assert attention.logits_of(model, hidden).dtype == torch.float32
