"""AdamW on an fp32 master copy of whatever the model computes in."""

import math

import torch
from torch import Tensor, nn

from llamax.training.config import TrainConfig


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Trainable parameters in two groups: matrices decay, norms and biases (one dimension) do not."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    # ZeRO-3 leaves an empty tensor in the module and the true shape in ds_shape.
    is_matrix = [len(getattr(p, "ds_shape", p.shape)) >= 2 for p in trainable]
    groups = [
        {"params": [p for p, matrix in zip(trainable, is_matrix, strict=True) if matrix], "weight_decay": weight_decay},
        {"params": [p for p, matrix in zip(trainable, is_matrix, strict=True) if not matrix], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


class MasterAdamW:
    """AdamW (Loshchilov & Hutter 2019) whose state and sums are fp32, whatever the parameters' precision.

    A parameter below fp32 gets a master copy: gradients of all micro-batches are summed there in fp32 as soon as they
    appear, the update happens there, and the rounded result is copied back. An fp32 parameter is its own master.
    """

    def __init__(self, model: nn.Module, config: TrainConfig, dtype: torch.dtype):
        """`dtype`: what the trainable parameters become; the masters keep all digits they had before."""
        groups = parameter_groups(model, config.weight_decay)
        self.parameters: list[Tensor] = [p for group in groups for p in group["params"]]
        self.masters: list[Tensor] = [_master(p, dtype) for p in self.parameters]
        masters = iter(self.masters)
        for group in groups:
            group["params"] = [next(masters) for _ in group["params"]]
        self.adam = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=True)
        self.grad_clip = config.grad_clip or float("inf")

    def step(self, learning_rate: float) -> tuple[float, float]:
        """Clip, update, forget the gradients. Gives (global L2 norm before clipping, rate that was applied)."""
        for group in self.adam.param_groups:
            group["lr"] = learning_rate
        total = nn.utils.get_total_norm([master.grad for master in self.masters if master.grad is not None])
        norm = total.item()
        if norm > self.grad_clip:  # else there is no need to touch 4 bytes of every parameter
            nn.utils.clip_grads_with_norm_(self.masters, self.grad_clip, total)
        if math.isfinite(norm):  # or every weight would be lost; the caller sees the norm
            self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        self.publish()
        return norm, self.adam.param_groups[0]["lr"]

    @torch.no_grad()
    def publish(self) -> None:
        """Copy the masters into the parameters, rounding to their precision."""
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            if parameter is not master:
                parameter.copy_(master)


def _master(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn `parameter` to `dtype`; give the fp32 tensor that stands for it in the optimizer and gets its gradients."""
    if dtype == torch.float32:
        parameter.data = parameter.data.to(dtype)
        return parameter
    master = parameter.detach().to(torch.float32, copy=True)
    parameter.data = parameter.data.to(dtype)

    def collect(parameter: Tensor) -> None:
        if master.grad is None:
            master.grad = parameter.grad.to(torch.float32)
        else:
            master.grad.add_(parameter.grad)  # summed in fp32; a GPU makes no copy in fp32 for it
        parameter.grad = None

    parameter.register_post_accumulate_grad_hook(collect)
    return master
