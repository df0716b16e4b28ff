"""Attention over a shared prefix: tokens that many rows have before them are encoded once and stored once.

The keys and values of a `Prefix` are not repeated for each row, and a row's own ones lie in a `Room` with a place for
every sequence in the batch, so that a sequence that is done makes room for the next. Softmax over the two parts is
exact (the online softmax of Milakov & Gimelshein 2018; for prefixes: Juravsky et al. 2024, Hydragen).

The model learns of it as an attention implementation of transformers' own register; every LLaMA-like model that takes
its attention from there can use it.
"""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from llamax.errors import ModelError

NAME = "llamax_shared_prefix"


class Prefix(NamedTuple):
    """Keys and values `[kv_heads, length, head_dim]` of every layer, rotary positions applied."""

    layers: list[tuple[torch.Tensor, torch.Tensor]]
    length: int


class Past:
    """What lies before the tokens of a forward pass, and what becomes of their keys and values. Here: nothing."""

    def __init__(self, prefix: Prefix | None = None) -> None:
        self.prefix = prefix

    def extend(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values `[rows, kv_heads, tokens, head_dim]` that the rows have of their own, new ones included."""
        return key, value


class Recorded(Past):
    """Keeps the keys and values of a single row: they are a prefix."""

    def __init__(self) -> None:
        super().__init__()
        self.layers: list[tuple[torch.Tensor, torch.Tensor]] = []

    def extend(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.layers.append((key[0].contiguous(), value[0].contiguous()))
        return key, value


class Room:
    """Keys and values of `rows` sequences of at most `capacity` tokens each, for every layer."""

    def __init__(self, model: PreTrainedModel, rows: int, capacity: int) -> None:
        config = model.config
        shape = (2, rows, config.num_key_value_heads, capacity, head_size(config))
        # Zeros: what a mask hides has weight 0, and 0 times a NaN of stale memory would be NaN.
        self.layers = [
            torch.zeros(shape, dtype=model.dtype, device=model.device) for _ in range(config.num_hidden_layers)
        ]

    def keep(self, rows: torch.Tensor) -> None:
        """Keep these rows only, layer by layer, so that little is held twice."""
        for number, layer in enumerate(self.layers):
            self.layers[number] = layer[:, rows]


class Filled(Past):
    """New sequences go into `rows` of a room; they see themselves and the prefix."""

    def __init__(self, room: Room, rows: torch.Tensor, prefix: Prefix | None) -> None:
        super().__init__(prefix)
        self.room, self.rows = room, rows

    def extend(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        place = self.room.layers[layer]
        place[0, self.rows, :, : key.shape[2]] = key
        place[1, self.rows, :, : key.shape[2]] = value
        return key, value


class Continued(Past):
    """Every row of a room gets one token more, at its own `position` `[rows]`."""

    def __init__(self, room: Room, position: torch.Tensor, longest: int, prefix: Prefix | None) -> None:
        super().__init__(prefix)
        self.room, self.position, self.longest = room, position, longest
        self.rows = torch.arange(len(position), device=position.device)

    def extend(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        place = self.room.layers[layer]
        place[0, self.rows, :, self.position] = key[:, :, 0]
        place[1, self.rows, :, self.position] = value[:, :, 0]
        return place[0, :, :, : self.longest], place[1, :, :, : self.longest]


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    past: Past,
    **_,
) -> tuple[torch.Tensor, None]:
    """Attention of `query` `[rows, heads, new, head_dim]` over the prefix and the row's own tokens.

    attention_mask: bool `[rows or 1, 1, new or 1, own]`, True where a token may look; None is causal. The whole prefix
        is seen by all.
    Returns: `[rows, new, heads, head_dim]`.
    """
    key, value = past.extend(module.layer_idx, key, value)
    if past.prefix is None:
        found = _grouped(query, key, value, attention_mask, scaling)
    elif query.shape[2] == 1 and attention_mask is not None:
        found = _next_token(query, *past.prefix.layers[module.layer_idx], key, value, attention_mask, scaling)
    else:
        found = _after_prefix(query, *past.prefix.layers[module.layer_idx], key, value, attention_mask, scaling)
    return found.transpose(1, 2).contiguous(), None


def _grouped(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float
) -> torch.Tensor:
    """Attention in which the heads of a key-value head are queries of it, so that no key is copied for each of them."""
    if mask is None:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
    rows, heads, _, size = query.shape
    packed = query.reshape(rows, key.shape[1], -1, size)
    mask = mask.repeat(1, 1, heads // key.shape[1], 1)
    return scaled_dot_product_attention(packed, key, value, attn_mask=mask, scale=scaling).reshape(query.shape)


def _after_prefix(
    query: torch.Tensor,
    prefix_key: torch.Tensor,
    prefix_value: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
) -> torch.Tensor:
    """Many new tokens: the prefix is put before each row's own keys, a copy that is small beside the work."""
    rows, new = query.shape[0], query.shape[2]
    if mask is None:
        mask = torch.ones(new, new, dtype=torch.bool, device=query.device).tril()[None, None]
    mask = torch.nn.functional.pad(mask, (prefix_key.shape[1], 0), value=True)
    key = torch.cat([prefix_key.expand(rows, -1, -1, -1), key], 2)
    value = torch.cat([prefix_value.expand(rows, -1, -1, -1), value], 2)
    return _grouped(query, key, value, mask, scaling)


def _next_token(
    query: torch.Tensor,
    prefix_key: torch.Tensor,
    prefix_value: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """One new token: reading keys is the work, so those of the prefix are read once, by one product for all rows."""
    rows, heads, _, size = query.shape
    kv_heads = key.shape[1]
    packed = (query * scaling).reshape(rows, kv_heads, -1, size)
    across = packed.transpose(0, 1).reshape(kv_heads, -1, size)  # the queries of all rows, by key-value head
    far = (across @ prefix_key.transpose(1, 2)).float()
    near = (packed @ key.transpose(2, 3)).float().masked_fill_(~mask, float("-inf"))
    top = torch.maximum(far.amax(-1).view(kv_heads, rows, -1).transpose(0, 1), near.amax(-1))
    far.sub_(top.transpose(0, 1).reshape(kv_heads, -1, 1)).exp_()
    near.sub_(top[..., None]).exp_()
    total = far.sum(-1).view(kv_heads, rows, -1).transpose(0, 1) + near.sum(-1)
    far = (far.to(value.dtype) @ prefix_value).view(kv_heads, rows, -1, size).transpose(0, 1)
    found = (far + near.to(value.dtype) @ value) / total[..., None].to(value.dtype)
    return found.reshape(rows, heads, 1, size)


AttentionInterface.register(NAME, attend)


@contextlib.contextmanager
def shared_attention(model: PreTrainedModel) -> Iterator[None]:
    """While it lasts the model, in evaluation mode and without gradients, attends by `attend`.

    Raises: ModelError: a model that looks at a sliding window, which `attend` does not.
    """
    if getattr(model.config, "sliding_window", None):
        raise ModelError(f"{type(model).__name__}: sliding-window attention is not supported here; use a LLaMA model")
    was, training = model.config._attn_implementation, model.training
    model.set_attn_implementation(NAME)
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.set_attn_implementation(was)
        model.train(training)


def encode(
    model: PreTrainedModel,
    ids: torch.Tensor,
    position: torch.Tensor,
    past: Past,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Last hidden states `[rows, tokens, hidden]` of `ids` at `position` `[rows, tokens]`; in `shared_attention`."""
    decoder = model.get_decoder()
    return decoder(
        input_ids=ids, position_ids=position, attention_mask=mask, use_cache=False, past=past
    ).last_hidden_state


def encode_prefix(model: PreTrainedModel, ids: list[int]) -> Prefix:
    """Encode a prefix, inside `shared_attention`."""
    recorded = Recorded()
    tokens = torch.tensor([ids], device=model.device)
    encode(model, tokens, torch.arange(len(ids), device=model.device)[None], recorded)
    return Prefix(recorded.layers, len(ids))


def logits_of(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """Logits `[..., vocab]` in fp32 of hidden states `[..., hidden]`."""
    return model.get_output_embeddings()(hidden).float()


def batch_tokens(model: PreTrainedModel) -> int:
    """Tokens, padding included, that are encoded in one forward pass: enough to keep the device busy, not more."""
    return 4096 if model.device.type == "cpu" else 32768


def head_size(config) -> int:
    """Numbers in one key of one head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a tensor did not fit, on an accelerator or on the host."""
    said = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(text in str(error) for text in said)
