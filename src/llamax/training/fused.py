"""RMSNorm and rotary positions for training, in fewer passes over the row than transformers' own.

Its norm goes over the row in fp32 a dozen times, and keeps it for later; its rotation makes five rows to get one.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.models.llama import modeling_llama
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


class _Rotary(torch.autograd.Function):
    """`x * cos + (-x2, x1) * sin`, `x1` and `x2` the halves of `x` (Su et al. 2021), in three passes."""

    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """`[..., heads, tokens, head_dim]`, twice `[..., 1, tokens, head_dim]` -> the former."""
        ctx.save_for_backward(cos, sin)
        half = x.shape[-1] // 2
        found = x * cos
        found[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
        found[..., half:].addcmul_(x[..., :half], sin[..., half:])
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        """The transpose; the two halves of the angles may differ."""
        cos, sin = ctx.saved_tensors
        half = grad.shape[-1] // 2
        d_x = grad * cos
        d_x[..., :half].addcmul_(grad[..., half:], sin[..., half:])
        d_x[..., half:].addcmul_(grad[..., :half], sin[..., :half], value=-1)
        return d_x, None, None


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    """Queries and keys `[batch, heads, tokens, head_dim]` by their positions' angles `[batch, tokens, head_dim]`.

    Stands in for transformers' `apply_rotary_pos_emb`. Angles are taken for constants.
    """
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return _Rotary.apply(q, cos, sin), _Rotary.apply(k, cos, sin)


@contextlib.contextmanager
def fused(model: nn.Module, *, rotary: bool = True) -> Iterator[None]:
    """While it lasts the model's `LlamaRMSNorm`s are computed by torch's kernels (on a CPU as `_RMSNorm` says), and
    every LLaMA of this process turns queries and keys by `rotate` (a function is all that transformers has for it).

    Other modules are left alone; so is a norm whose `forward` somebody else has replaced.
    """
    norms = [module for module in model.modules() if type(module) is LlamaRMSNorm and "forward" not in vars(module)]
    for norm in norms:
        norm.forward = _forward_of(norm)
    was = modeling_llama.apply_rotary_pos_emb
    modeling_llama.apply_rotary_pos_emb = rotate if rotary else was
    try:
        yield
    finally:
        modeling_llama.apply_rotary_pos_emb = was
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
