"""Cross-entropy in the logits' own memory: the vocabulary is wide, and every pass over it counts."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

AT_ONCE = {"cpu": 2**20, "cuda": 2**22}
"""Logits in fp32 at a time: 4 MiB, so that each pass finds them in a CPU's cache; on a GPU more, for fewer launches."""


def cross_entropy(logits: Tensor, targets: Tensor, z_loss: float = 0.0) -> Tensor:
    """`-log softmax(logits)[target]` in nats, fp32 `[targets]`. `logits` `[targets, vocab]` are used up.

    Their memory takes the gradient, `softmax - one-hot`, rounded to their precision, so that beside them only
    `AT_ONCE` numbers are held. What made them must not need them for its own backward pass; a linear layer does not.

    fp16 logits are turned to fp32 first: small differences from the one-hot would be lost before the loss scale comes.
    z_loss: adds the gradient of `z_loss * log(Z)^2`, which is `2 * z_loss * log(Z) * softmax`, but not the value.
    """
    logits = logits.float() if logits.dtype == torch.float16 else logits
    return _CrossEntropy.apply(logits, targets, z_loss)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits: Tensor, targets: Tensor, z_loss: float) -> Tensor:
        """Losses; what stays in `logits` is their gradient."""
        losses = torch.empty(len(targets), dtype=torch.float32, device=logits.device)
        for part, loss, target in _blocks(logits, losses, targets):
            target = target[:, None]
            largest = part.amax(-1, keepdim=True).float()
            shifted = part.float() - largest
            loss.copy_(-shifted.gather(1, target).squeeze(1))
            exact = shifted.exp_()  # not torch's softmax, whose exponential is good to 20 units in the last place only
            total = exact.sum(-1, keepdim=True)
            loss.add_(total.log().squeeze(1))
            exact.div_(total)
            if z_loss:
                exact.mul_(1 + 2 * z_loss * (largest + total.log()))
            exact.scatter_add_(1, target, exact.new_full((1, 1), -1.0).expand_as(target))
            part.copy_(exact)
        ctx.save_for_backward(logits)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        """`grad`: `[targets]`. In place: autograd itself refuses a second time."""
        (gradient,) = ctx.saved_tensors
        for part, factor in _blocks(gradient, grad[:, None]):
            part.mul_(factor)  # a CPU makes an fp32 copy of all it multiplies here
        return gradient, None, None


def _blocks(logits: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Each tensor's rows, those of `AT_ONCE` logits at a time."""
    rows = max(1, AT_ONCE[logits.device.type] // logits.shape[1])
    return zip(logits.split(rows), *(other.split(rows) for other in others), strict=True)
