"""RMSNorm for training: transformers' own reads and writes the row in fp32 a dozen times, and keeps it for later."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.models.llama.modeling_llama import LlamaRMSNorm


class _RMSNorm(torch.autograd.Function):
    """`x / sqrt(mean(x^2) + eps) * weight` over the last dimension (Zhang & Sennrich 2019), by torch's own kernels."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """`[..., size]`, `[size]` of the same precision -> `[..., size]`; fp32 inside, rounded once."""
        found, scale = torch.ops.aten._fused_rms_norm(x, weight.shape, weight, eps)
        ctx.save_for_backward(x, weight, scale)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        """LayerNorm's backward about a mean of 0. It takes the gradient's mean away too, which is given back here."""
        x, weight, scale = ctx.saved_tensors
        shape, (grad, exact, by) = weight.shape, (tensor.to(scale.dtype) for tensor in (grad, x, weight))
        d_x, d_weight, _ = torch.ops.aten.native_layer_norm_backward(
            grad, exact, shape, torch.zeros_like(scale), scale, by, None, [True, True, False]
        )
        d_x.addcmul_((grad @ by)[..., None], scale, value=1 / shape[0])
        return d_x.to(x.dtype), d_weight.to(weight.dtype), None


@contextlib.contextmanager
def fused_norms(model: nn.Module) -> Iterator[None]:
    """While it lasts the model's `LlamaRMSNorm`s are computed by torch's kernels: on a CPU as `_RMSNorm` says.

    Other modules are left alone; so is a norm whose `forward` somebody else has replaced.
    """
    norms = [module for module in model.modules() if type(module) is LlamaRMSNorm and "forward" not in vars(module)]
    for norm in norms:
        norm.forward = _forward_of(norm)
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def _forward_of(norm: LlamaRMSNorm) -> Callable[[Tensor], Tensor]:
    """What stands in for `norm.forward`; modules are still called, so that ZeRO-3's hooks gather the weight."""
    original = norm.forward

    def forward(hidden_states: Tensor) -> Tensor:
        weight, eps = norm.weight, norm.variance_epsilon
        if hidden_states.dtype != weight.dtype:
            return original(hidden_states)
        if hidden_states.is_cuda:  # where torch has a kernel for the backward too
            return nn.functional.rms_norm(hidden_states, weight.shape, weight, eps)
        return _RMSNorm.apply(hidden_states, weight, eps) if hidden_states.is_cpu else original(hidden_states)

    return forward
