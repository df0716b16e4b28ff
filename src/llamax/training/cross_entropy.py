"""Cross-entropy in the logits' own memory: the vocabulary is wide, and every pass over it counts."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

AT_ONCE = 2**22
"""Logits in fp32 at a time: 16 MiB, which a CPU's last cache still holds."""


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
        rows = max(1, AT_ONCE // logits.shape[1])
        for loss, part, target in zip(losses.split(rows), logits.split(rows), targets.split(rows), strict=True):
            target = target[:, None]
            exact = part.float()  # a copy, or `part` itself where that is fp32
            log_z = exact.logsumexp(-1, keepdim=True)
            loss.copy_((log_z - exact.gather(1, target)).squeeze(1))
            exact.sub_(log_z).exp_()
            if z_loss:
                exact.mul_(1 + 2 * z_loss * log_z)
            exact.scatter_add_(1, target, exact.new_full((1, 1), -1.0).expand_as(target))
            part.copy_(exact)
        ctx.save_for_backward(logits)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        """`grad`: `[targets]`. In place: autograd itself refuses a second time."""
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(grad[:, None]), None, None
