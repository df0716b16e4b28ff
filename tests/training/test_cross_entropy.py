"""The loss in the logits' own memory is torch's loss, and so is its gradient."""

import pytest
import torch
from torch.nn import functional

from llamax.training import cross_entropy as room
from llamax.training.cross_entropy import cross_entropy


@pytest.mark.parametrize("at_once", [1, 150, 10**6])
def test_losses_and_gradients_are_torchs(monkeypatch, at_once):
    monkeypatch.setitem(room.AT_ONCE, "cpu", at_once)  # rows one by one, three at a time, all
    torch.manual_seed(0)
    hidden, weight = torch.randn(7, 5, requires_grad=True), torch.randn(50, 5, requires_grad=True)
    targets, outer = torch.randint(0, 50, (7,)), torch.rand(7)
    ours = cross_entropy(functional.linear(hidden, weight) * 9, targets)
    theirs = functional.cross_entropy(functional.linear(hidden, weight) * 9, targets, reduction="none")
    assert torch.allclose(ours, theirs, atol=1e-5)
    for mine, expected in zip(
        torch.autograd.grad(ours, (hidden, weight), outer),
        torch.autograd.grad(theirs, (hidden, weight), outer),
        strict=True,
    ):
        assert torch.allclose(mine, expected, atol=1e-4)


def test_bf16_logits_are_summed_in_fp32():
    torch.manual_seed(0)
    weight, targets = torch.randn(4000, 8).bfloat16(), torch.randint(0, 4000, (16,))
    hidden = torch.randn(16, 8).bfloat16().requires_grad_()
    ours = cross_entropy(functional.linear(hidden, weight), targets)
    theirs = functional.cross_entropy(functional.linear(hidden, weight).float(), targets, reduction="none")
    assert ours.dtype == torch.float32 and torch.allclose(ours, theirs, atol=1e-5)
    mine, expected = (torch.autograd.grad(loss.sum(), hidden)[0].float() for loss in (ours, theirs))
    assert (mine - expected).norm() / expected.norm() < 0.01


def test_no_targets_is_nothing_and_a_second_backward_is_refused():
    logits = torch.randn(0, 6, requires_grad=True)
    cross_entropy(logits * 1, torch.zeros(0, dtype=torch.int64)).sum().backward()
    assert logits.grad.shape == (0, 6)
    hidden = torch.randn(2, 6, requires_grad=True)
    loss = cross_entropy(hidden * 1, torch.tensor([1, 2])).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_fp16_keeps_what_only_the_loss_scale_would_show():
    """A probability of 1e-9 is nothing in fp16; times a loss scale of 2**16 it is 6.5e-5, which fp16 has."""
    logits = torch.tensor([[0.0, -20.7, 0.0]], dtype=torch.float16, requires_grad=True)
    (cross_entropy(logits * 1, torch.tensor([0])).sum() * 2**16).backward()
    expected = 2**16 * torch.softmax(torch.tensor([0.0, -20.7, 0.0]), 0)[1]
    assert logits.grad[0, 1].item() == pytest.approx(expected.item(), rel=0.02)
