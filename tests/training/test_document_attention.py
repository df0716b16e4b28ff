"""Attention over documents end to end is torch's own attention, document by document; so are its gradients."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from training_cases import new_model

from llamax.training import attention
from llamax.training.attention import NAME, Extents, attend, documents_attention

KV_HEADS, GROUP, SIZE = 2, 3, 4


def new_inputs(lengths, dtype=torch.float64):
    """Query, key and value of documents of these lengths, the positions that tell them apart, and an outer gradient."""
    torch.manual_seed(0)
    n = sum(lengths)
    shapes = [(1, KV_HEADS * GROUP, n, SIZE), (1, KV_HEADS, n, SIZE), (1, KV_HEADS, n, SIZE)]
    inputs = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    return inputs, Extents.of(positions), torch.randn(1, n, KV_HEADS * GROUP, SIZE, dtype=dtype)


def one_by_one(query, key, value, lengths):
    """Torch's attention on each document alone, from a mask written out."""
    parts = zip(*(tensor.split(lengths, 2) for tensor in (query, key, value)), strict=True)
    found = []
    for q, k, v in parts:
        may_see = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).tril()
        k, v = k.repeat_interleave(GROUP, 1), v.repeat_interleave(GROUP, 1)
        found.append(scaled_dot_product_attention(q, k, v, attn_mask=may_see, scale=0.3))
    return torch.cat(found, 2).transpose(1, 2)


@pytest.mark.parametrize("short", [0, 3, 100])
@pytest.mark.parametrize("lengths", [[1], [5], [3, 1, 7, 2, 2, 9], [9, 3, 3]])
def test_values_and_gradients_are_those_of_each_document_alone(monkeypatch, lengths, short):
    monkeypatch.setattr(attention, "SHORT", short)
    inputs, documents, outer = new_inputs(lengths)
    found, _ = attend(None, *inputs, None, scaling=0.3, documents=documents)
    expected = one_by_one(*inputs, lengths)
    assert torch.allclose(found, expected, atol=1e-12)
    ours, theirs = torch.autograd.grad(found, inputs, outer), torch.autograd.grad(expected, inputs, outer)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(ours, theirs, strict=True))


def test_gradients_are_those_of_finite_differences():
    inputs, documents, _ = new_inputs([4, 1, 2])
    assert torch.autograd.gradcheck(
        lambda q, k, v: attend(None, q, k, v, None, scaling=0.3, documents=documents)[0], inputs
    )


def test_bf16_is_as_near_to_fp32_as_torchs_own():
    lengths = [40, 17, 120]
    exact, documents, outer = new_inputs(lengths, torch.float32)
    rounded = [tensor.detach().bfloat16().requires_grad_() for tensor in exact]
    found, _ = attend(None, *rounded, None, scaling=0.3, documents=documents)
    theirs = one_by_one(*rounded, lengths)
    expected = one_by_one(*exact, lengths)
    assert (found - expected).abs().mean() < 1.5 * (theirs - expected).abs().mean()
    wanted = torch.autograd.grad(expected, exact, outer)
    for ours, peer, right in zip(
        torch.autograd.grad(found, rounded, outer.bfloat16()),
        torch.autograd.grad(theirs, rounded, outer.bfloat16()),
        wanted,
        strict=True,
    ):
        assert (ours - right).abs().mean() < 1.5 * (peer - right).abs().mean()


def test_dropout_is_taken_care_of():
    inputs, documents, _ = new_inputs([30, 20])
    dropped = attend(None, *inputs, None, scaling=0.3, documents=documents, dropout=0.5)[0]
    assert not torch.allclose(dropped, attend(None, *inputs, None, scaling=0.3, documents=documents)[0])


def test_extents_are_read_off_the_positions():
    extents = Extents.of(torch.tensor([[0, 1, 2, 0, 0, 1]]))
    assert (extents.lengths, extents.starts.tolist(), extents.starts.dtype) == ([3, 1, 2], [0, 3, 4, 6], torch.int32)


def test_a_document_does_not_see_its_neighbours():
    model = new_model().eval()
    positions = torch.tensor([[*range(6), *range(5), *range(7)]])
    ids = torch.randint(3, 40, positions.shape)
    changed = ids.clone()
    changed[0, 6:11] = torch.randint(3, 40, (5,))
    with documents_attention(model), torch.no_grad():
        before, after = (
            model.get_decoder()(
                input_ids=x, position_ids=positions, use_cache=False, documents=Extents.of(positions)
            ).last_hidden_state[0]
            for x in (ids, changed)
        )
    assert torch.equal(before[:6], after[:6]) and torch.equal(before[11:], after[11:])
    assert not torch.equal(before[6:11], after[6:11])


def test_the_model_has_its_own_attention_again_whatever_happened():
    model = new_model()
    was = model.config._attn_implementation
    with pytest.raises(KeyError), documents_attention(model):
        assert model.config._attn_implementation == NAME != was
        raise KeyError
    assert model.config._attn_implementation == was
    model.config.sliding_window = 4
    with documents_attention(model):
        assert model.config._attn_implementation == was
