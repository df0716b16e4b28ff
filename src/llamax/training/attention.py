"""Attention for training: documents lie end to end in one row, and a token sees its own document up to itself.

The model learns of it as an attention implementation of transformers' own register. Nothing is spent on padding, nor
on the pairs of tokens that may not see each other: a mask over a row of many short documents hides nearly all of it.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, groupby

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "llamax_documents"
SHORT = 512
"""Tokens up to which whole score matrices beat torch's flash kernel on a CPU (bf16: 3.9 times at 128 tokens, 1.6 at
512, 0.8 at 1,024); they are kept for the backward pass, `heads * tokens**2` numbers."""


@dataclass(frozen=True, eq=False)  # no tuple: DeepSpeed rebuilds the tuples it finds among arguments
class Extents:
    """Where documents lie in a row: the tokens of each, in order, and int32 [documents + 1] where each starts.

    short: tokens up to which attention uses whole score matrices on a CPU; `SHORT` if not given.
    """

    lengths: list[int]
    starts: Tensor
    short: int | None = None

    @classmethod
    def of(cls, position_ids: Tensor, short: int | None = None) -> "Extents":
        """Read off positions `[1, tokens]`, which restart at 0 with every document."""
        starts = (position_ids[0] == 0).nonzero().squeeze(1)
        starts = nn.functional.pad(starts, (0, 1), value=position_ids.shape[1]).to(torch.int32)
        return cls(starts.diff().tolist(), starts, short)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    documents: Extents,
    dropout: float = 0.0,
    **_,
) -> tuple[Tensor, None]:
    """Causal attention within each document.

    Args: query: `[1, heads, tokens, head_dim]`; key, value: `[1, kv_heads, tokens, head_dim]`.
    Returns: `[1, tokens, heads, head_dim]`.
    """
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and not dropout:
        return _varlen(query, key, value, documents, scaling), None
    short = SHORT if documents.short is None else documents.short
    runs, found = _runs(documents.lengths, short=0 if dropout or query.is_cuda else short), []
    sizes = [sum(lengths) for _, lengths in runs]
    parts = zip(runs, query.split(sizes, 2), key.split(sizes, 2), value.split(sizes, 2), strict=True)
    for (is_short, lengths), q, k, v in parts:
        if is_short:
            found.append(_ShortDocuments.apply(q[0], k[0], v[0], lengths, scaling)[None])
        else:
            out = scaled_dot_product_attention(
                q, k, v, is_causal=True, scale=scaling, dropout_p=dropout, enable_gqa=True
            )
            found.append(out.transpose(1, 2))
    return torch.cat(found, 1) if len(found) > 1 else found[0], None


def _runs(lengths: list[int], short: int) -> list[tuple[bool, list[int]]]:
    """Neighbouring short documents together, long ones one by one."""
    runs: list[tuple[bool, list[int]]] = []
    for is_short, group in groupby(lengths, lambda length: length <= short):
        together = list(group)
        runs += [(True, together)] if is_short else [(False, [length]) for length in together]
    return runs


def _varlen(query: Tensor, key: Tensor, value: Tensor, documents: Extents, scaling: float) -> Tensor:
    """Torch's flash attention over documents of any length, on a GPU."""
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    longest, starts = max(documents.lengths), documents.starts
    # Said only where it is so: torch 2.11 does not know the word.
    grouped = {"enable_gqa": True} if q.shape[1] != k.shape[1] else {}
    causal = (-1, 0)
    out = varlen_attn(q, k, v, starts, starts, longest, longest, scale=scaling, window_size=causal, **grouped)
    return out[None]


class _ShortDocuments(torch.autograd.Function):
    """Softmax attention, document by document, with whole score matrices.

    Heads that share a key-value head are stacked as its queries, so that no key is copied: `[kv_heads, group * n, n]`.
    Backward as in Dao et al. 2022 (FlashAttention), appendix B.2, without tiles.
    """

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, lengths: list[int], scaling: float) -> Tensor:
        """`[heads, tokens, head_dim]`, twice `[kv_heads, tokens, head_dim]` -> `[tokens, heads, head_dim]`."""
        heads, tokens, size = query.shape
        kv_heads, longest = key.shape[0], max(lengths)
        future = torch.full((longest, longest), float("-inf"), dtype=query.dtype).triu_(1)
        found, kept = query.new_empty(tokens, heads, size), []
        for start, n in _placed(lengths):
            own = slice(start, start + n)
            scores = (query[:, own] * scaling).reshape(kv_heads, -1, size) @ key[:, own].transpose(1, 2)
            weights = (scores.view(kv_heads, -1, n, n).add_(future[:n, :n])).softmax(-1).view(kv_heads, -1, n)
            found[own] = (weights @ value[:, own]).view(heads, n, size).transpose(0, 1)
            kept.append(weights)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.lengths, ctx.scaling = lengths, scaling
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        """`grad`: `[tokens, heads, head_dim]`."""
        query, key, value, *kept = ctx.saved_tensors
        kv_heads, _, size = key.shape
        d_query, d_key, d_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        for (start, n), weights in zip(_placed(ctx.lengths), kept, strict=True):
            own = slice(start, start + n)
            d_out = grad[own].transpose(0, 1).reshape(kv_heads, -1, size)
            d_value[:, own] = weights.transpose(1, 2) @ d_out
            d_weights = d_out @ value[:, own].transpose(1, 2)
            d_scores = torch.ops.aten._softmax_backward_data(d_weights, weights, -1, weights.dtype)
            d_query[:, own] = (d_scores @ key[:, own]).view(-1, n, size)
            d_key[:, own] = d_scores.transpose(1, 2) @ query[:, own].reshape(kv_heads, -1, size)
        return d_query.mul_(ctx.scaling), d_key.mul_(ctx.scaling), d_value, None, None


def _placed(lengths: list[int]) -> Iterator[tuple[int, int]]:
    """(start, length) of each document."""
    return zip(accumulate(lengths, initial=0), lengths, strict=False)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, lambda *_, **__: None)  # no mask is built


@contextlib.contextmanager
def documents_attention(model: nn.Module) -> Iterator[None]:
    """While it lasts the model, with adapters or without, attends by `attend`.

    One with a sliding window, which `attend` does not know, keeps its own attention.
    """
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    if getattr(model.config, "sliding_window", None):
        yield
        return
    was = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(was)
