"""Batched decoding with left padding and a KV cache.

Prompts are sorted by length and decoded longest first, so that a batch carries little padding and memory runs out at
the beginning or never. What a prompt is answered with depends on that prompt, its place in the list and the seed, not
on its neighbours in the batch or on `batch_size` (in fp32; lower precisions round differently per batch shape).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache, DynamicLayer

from llamax.errors import ParameterError
from llamax.progress import Progress

# Rows that are done leave the batch once they are this share of it: each departure copies the cache.
FINISHED_SHARE = 0.25


class Generated(NamedTuple):
    """One answer. `token_ids` is without the stop token, `text` also without the stop string."""

    text: str
    token_ids: list[int]
    finish: str  # "stop": a stop token or string came; "length": `max_new_tokens` or the model's window is used up


class Stops(NamedTuple):
    """What ends an answer: token ids, strings, and how many last tokens can hold the longest of the strings."""

    ids: frozenset[int]
    strings: tuple[str, ...]
    tail: int


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int] = (),
    stop_strings: Sequence[str] = (),
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 32,
    progress: bool = False,
) -> list[Generated]:
    """Continue each prompt; `temperature` 0 is greedy, otherwise nucleus sampling (Holtzman et al. 2020).

    The tokenizer's EOS stops, and so do `stop_ids` and `stop_strings`. Answers come in the order of `prompts`.
    Sampling draws from a generator of its own, so the global random state is neither used nor moved.

    Raises: ParameterError: an empty prompt, one that fills the model's window, or a setting out of range.
    """
    window = model.config.max_position_embeddings
    _check(prompts, window, max_new_tokens, temperature, top_p)
    draws = None
    if temperature > 0:
        draws = torch.rand(len(prompts), max_new_tokens, generator=torch.Generator().manual_seed(seed))
    stops = _stops(tokenizer, stop_ids, stop_strings)
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    answers: list[Generated | None] = [None] * len(prompts)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), Progress(len(prompts), "generate", shown=progress) as bar:
            for start in range(0, len(order), batch_size):
                chosen = order[start : start + batch_size]
                batch = _Batch(model, tokenizer, [prompts[i] for i in chosen], stops, max_new_tokens, window)
                sampled = None if draws is None else draws[chosen]
                for place, answer in zip(chosen, batch.decode(sampled, temperature, top_p), strict=True):
                    answers[place] = answer
                bar.advance(len(chosen))
    finally:
        model.train(was_training)
    return answers


def _check(prompts: list[list[int]], window: int, max_new_tokens: int, temperature: float, top_p: float) -> None:
    if max_new_tokens < 1 or temperature < 0 or not 0 < top_p <= 1:
        raise ParameterError(
            f"max_new_tokens={max_new_tokens}, temperature={temperature}, top_p={top_p}: "
            "need max_new_tokens >= 1, temperature >= 0 and 0 < top_p <= 1"
        )
    for number, prompt in enumerate(prompts):
        if not 0 < len(prompt) < window:
            raise ParameterError(
                f"prompt {number} has {len(prompt)} tokens; need at least 1 and at most {window - 1}, "
                f"one less than the model's window"
            )


def _stops(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], strings: Sequence[str]) -> Stops:
    # A token holds at least one byte, so this many last tokens hold every stop string; four more keep the string off
    # the cut edge, where a decoder may strip a space or show half a character.
    tail = max((len(string.encode()) for string in strings), default=0) + 4
    eos = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
    return Stops(frozenset([*ids, *eos]), tuple(filter(None, strings)), tail)


class _Layer(DynamicLayer):
    """A cache layer with room for the whole answer: a step writes one column instead of copying all of them."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        """Append `[batch, heads, new, head_dim]`; returns keys and values `[batch, heads, seen + new, head_dim]`."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            batch, heads, _, size = key_states.shape
            self.room = key_states.new_empty(2, batch, heads, self.capacity, size)
        seen = self.get_seq_length()
        end = seen + key_states.shape[-2]
        self.room[0, :, :, seen:end] = key_states
        self.room[1, :, :, seen:end] = value_states
        self.keys, self.values = self.room[0, :, :, :end], self.room[1, :, :, :end]
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the rows `indices` of the batch."""
        end = self.get_seq_length()
        room = self.room.new_empty(2, len(indices), *self.room.shape[2:])
        room[:, :, :, :end] = self.room[:, indices, :, :end]
        self.room = room
        self.keys, self.values = room[0, :, :, :end], room[1, :, :, :end]


class _Batch:
    """One batch on its way: the rows still going, what each has said so far, and their cache."""

    def __init__(self, model, tokenizer, prompts, stops: Stops, max_new_tokens: int, window: int) -> None:
        self.model, self.tokenizer, self.stops = model, tokenizer, stops
        self.limits = [min(max_new_tokens, window - len(prompt)) for prompt in prompts]
        width = max(map(len, prompts))
        capacity = width + max(self.limits)
        # Left padding: every row's last prompt token sits in the last column, its next token in the one after.
        ids = torch.zeros(len(prompts), width, dtype=torch.long)
        real = torch.zeros(len(prompts), capacity, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            real[row, width - len(prompt) :] = 1
        self.ids, self.real = ids.to(model.device), real.to(model.device)
        self.prompt_width = self.width = width
        self.position = (self.real[:, :width].cumsum(1) - 1).clamp(min=0)
        self.cache = Cache(layers=[_Layer(capacity) for _ in range(model.config.num_hidden_layers)])
        self.said: list[list[int]] = [[] for _ in prompts]
        self.finish = [""] * len(prompts)
        self.rows = list(range(len(prompts)))

    def decode(self, draws: torch.Tensor | None, temperature: float, top_p: float) -> list[Generated]:
        """Decode to the end. `draws` `[batch, max_new_tokens]` pick the tokens, numbers in [0, 1); None is greedy."""
        while self.rows:
            logits = self._forward()
            if draws is None:
                token = logits.argmax(-1)
            else:
                uniform = draws[self.rows, self.width - self.prompt_width].to(logits.device)
                token = sample(logits, uniform, temperature, top_p)
            self._accept(token)
        return [self._answer(row) for row in range(len(self.said))]

    def _forward(self) -> torch.Tensor:
        """Next-token logits `[rows, vocab]` in fp32; the LM head sees the last column only."""
        hidden = self.model.get_decoder()(
            input_ids=self.ids,
            attention_mask=self.real[:, : self.width],
            position_ids=self.position,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        return self.model.get_output_embeddings()(hidden).float()

    def _accept(self, token: torch.Tensor) -> None:
        """Append `token` `[rows]`, note who is done, and prepare the next forward pass."""
        for row, value in zip(self.rows, token.tolist(), strict=True):
            if self.finish[row]:
                continue
            if value in self.stops.ids:
                self.finish[row] = "stop"
                continue
            self.said[row].append(value)
            if len(self.said[row]) >= self.limits[row]:
                self.finish[row] = "length"
        self._find_stop_strings()
        going = [place for place, row in enumerate(self.rows) if not self.finish[row]]
        self.ids, self.position = token[:, None], self.position[:, -1:] + 1
        self.width += 1
        if not going or len(going) <= len(self.rows) * (1 - FINISHED_SHARE):
            self._keep(going)

    def _find_stop_strings(self) -> None:
        rows = [row for row in self.rows if self.finish[row] != "stop" and self.said[row]]
        if not self.stops.strings or not rows:
            return
        tails = self.tokenizer.batch_decode([self.said[row][-self.stops.tail :] for row in rows])
        for row, tail in zip(rows, tails, strict=True):
            if any(string in tail for string in self.stops.strings):
                self.finish[row] = "stop"

    def _keep(self, places: list[int]) -> None:
        """Drop all rows of the batch but `places`."""
        self.rows = [self.rows[place] for place in places]
        if places:
            index = torch.tensor(places, device=self.ids.device)
            self.ids, self.position, self.real = self.ids[index], self.position[index], self.real[index]
            self.cache.batch_select_indices(index)

    def _answer(self, row: int) -> Generated:
        text = self.tokenizer.decode(self.said[row], skip_special_tokens=True)
        for string in self.stops.strings:
            text = text.split(string)[0]
        return Generated(text, self.said[row], self.finish[row])


def sample(logits: torch.Tensor, uniform: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """Draw one token per row by inverting the cumulative distribution at `uniform`.

    Args:
        logits: `[batch, vocab]`.
        uniform: `[batch]`, in [0, 1).
        top_p: keep the fewest tokens whose probability reaches it (Holtzman et al. 2020); the first always stays.

    Returns: token ids `[batch]`.
    """
    probabilities, tokens = torch.softmax(logits / temperature, -1).sort(dim=-1, descending=True, stable=True)
    mass = probabilities.cumsum(-1)
    inside = mass - probabilities < top_p
    total = (probabilities * inside).sum(-1, keepdim=True)
    place = torch.searchsorted(mass, uniform[:, None] * total, right=True)
    place = place.clamp(max=(inside.sum(-1, keepdim=True) - 1))
    return tokens.gather(-1, place).squeeze(-1)
