"""Batched greedy decoding and sampling with a KV cache, a shared prefix, and batches that refill.

Prompts that begin alike share one encoded prefix. The others' tokens lie in a room with a place for each row of the
batch; when rows are done the next prompts take their places, so the batch stays full until no prompt is left. Longest
prompts go first, so that memory runs out at the beginning or never; if it does, the batch is halved and what was in it
starts again. What a prompt is answered with depends on that prompt, its place in the list and the seed, not on its
neighbours or on `batch_size` (in fp32; lower precisions round differently per batch shape).
"""

from collections import deque
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import islice
from typing import NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llamax.errors import ModelError, ParameterError
from llamax.generation.attention import (
    Continued,
    Filled,
    Prefix,
    Room,
    batch_tokens,
    encode,
    encode_prefix,
    head_size,
    logits_of,
    out_of_memory,
    shared_attention,
)
from llamax.generation.prefixes import PRICE, alike, group_by_prefix
from llamax.progress import Progress

REFILL_SHARE = 0.125  # of the batch: so many places are free before new prompts come in, for their batch's sake
FINISHED_SHARE = 0.25  # of the batch: so many rows are done before the room shrinks, once no prompt is left
SHRINK = 0.5  # prompts that need less than this share of the first one's room get a room of their own
HOST_BYTES = 6 * 2**30  # of keys and values, where there is no accelerator to ask
DEVICE_SHARE = 0.7  # of an accelerator's free memory


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


class Settings(NamedTuple):
    """What holds for all prompts of a call."""

    stops: Stops
    max_new_tokens: int
    window: int
    temperature: float
    top_p: float
    seed: int


OnAnswer = Callable[[int, Generated], None]


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
    places: Sequence[int] | None = None,
    batch_size: int = 32,
    on_answer: OnAnswer | None = None,
    progress: bool = False,
) -> list[Generated]:
    """Continue each prompt; `temperature` 0 is greedy, otherwise nucleus sampling (Holtzman et al. 2020).

    The tokenizer's EOS stops, and so do `stop_ids` and `stop_strings`. Answers come in the order of `prompts`.
    Sampling draws from a generator per prompt, so the global random state is neither used nor moved.

    Args:
        places: of the prompts in a longer list that this is a part of; sampling draws by place.
        batch_size: at most so many rows; fewer if their keys and values would not fit into memory.
        on_answer: called with a prompt's number and its answer as soon as it is there.

    Raises: ParameterError: an empty prompt, one that fills the model's window, a setting out of range, or not as many
        places as prompts.
        ModelError: logits that are not numbers.
    """
    window = model.config.max_position_embeddings
    _check(prompts, window, max_new_tokens, temperature, top_p)
    places = range(len(prompts)) if places is None else places
    if len(places) != len(prompts):
        raise ParameterError(f"places: {len(places)} for {len(prompts)} prompts; need one for each")
    settings = Settings(_stops(tokenizer, stop_ids, stop_strings), max_new_tokens, window, temperature, top_p, seed)
    answers: list[Generated | None] = [None] * len(prompts)
    with shared_attention(model), Progress(len(prompts), "generate", shown=progress) as bar:

        def done(number: int, answer: Generated) -> None:
            answers[number] = answer
            if on_answer:
                on_answer(number, answer)
            bar.advance(1)

        # A group decodes by itself, its last rows in a batch that no other group's prompts refill.
        for members, shared in group_by_prefix(prompts, PRICE + step_price(model) * max_new_tokens):
            prefix = encode_prefix(model, prompts[members[0]][:shared]) if shared else None
            own = {number: prompts[number][shared:] for number in members}
            for part in _alike(own, settings, shared, batch_size):
                queue = deque(_Answer(n, own[n], places[n], settings, shared) for n in part)
                _Decoder(model, tokenizer, settings, prefix, batch_size, done).run(queue)
    return answers


def _alike(own: dict[int, list[int]], settings: Settings, shared: int, batch_size: int) -> list[list[int]]:
    """Prompts' numbers, longest first, cut where they need much less room than the first of their part.

    A part is a full batch at least, for it decodes by itself.
    """
    parts: list[list[int]] = []
    for number in sorted(own, key=lambda number: -len(own[number])):
        need = _room(len(own[number]), settings, shared)
        full = parts and len(parts[-1]) >= batch_size
        if not parts or (full and need < SHRINK * _room(len(own[parts[-1][0]]), settings, shared)):
            parts.append([])
        parts[-1].append(number)
    return parts


def _room(tokens: int, settings: Settings, shared: int) -> int:
    """Tokens of a prompt, without prefix, and its answer."""
    return min(tokens + settings.max_new_tokens, settings.window - shared)


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


class _Answer:
    """One prompt on its way: what it has said so far, and why it ended."""

    def __init__(self, number: int, prompt: list[int], place: int, settings: Settings, shared: int) -> None:
        self.number, self.prompt = number, prompt
        self.limit = _room(len(prompt), settings, shared) - len(prompt)
        self.said: list[int] = []
        self.finish = ""
        self.seed = seed_of(settings.seed, place)

    @cached_property
    def draws(self) -> torch.Tensor:
        """A number in [0, 1) for each token that may be sampled. Made when first asked for: a queue can be long."""
        return torch.rand(self.limit, generator=torch.Generator().manual_seed(self.seed))

    def accept(self, token: int, stops: Stops) -> None:
        """The next token: said, unless it ends the answer."""
        if token in stops.ids:
            self.finish = "stop"
            return
        self.said.append(token)
        if len(self.said) >= self.limit:
            self.finish = "length"

    def restart(self) -> "_Answer":
        """As if nothing had been said."""
        self.said, self.finish = [], ""
        return self


class _Decoder:
    """One batch after the other through one room; `rows[i]` is the answer at place i, None where the place is free."""

    def __init__(
        self, model, tokenizer, settings: Settings, prefix: Prefix | None, batch_size: int, done: OnAnswer
    ) -> None:
        self.model, self.tokenizer, self.settings = model, tokenizer, settings
        self.prefix, self.batch_size, self.done = prefix, batch_size, done
        self.shared = prefix.length if prefix else 0
        self.rows: list[_Answer | None] = []

    def run(self, queue: deque[_Answer]) -> None:
        """Answer all of the queue, whose first prompt is the longest."""
        capacity = len(queue[0].prompt) + queue[0].limit
        size = max(1, min(self.batch_size, len(queue), tokens_that_fit(self.model) // capacity))
        while queue:
            try:
                self._drain(queue, size, capacity)
            except (RuntimeError, MemoryError) as error:
                if size == 1 or not out_of_memory(error):
                    raise
                size //= 2
            # What memory ran out on starts again, before the rest of the queue, none of which is longer.
            untold = [answer.restart() for answer in self.rows if answer]
            queue.extendleft(sorted(untold, key=lambda answer: len(answer.prompt)))
            self.rows, self.room = [], None
            torch.cuda.empty_cache()

    def _drain(self, queue: deque[_Answer], size: int, capacity: int) -> None:
        self.rows = [None] * size
        self.room = Room(self.model, size, capacity)
        while queue or any(self.rows):
            free = [place for place, answer in enumerate(self.rows) if answer is None]
            if queue and (len(free) >= REFILL_SHARE * len(self.rows) or len(free) == len(self.rows)):
                self._fill(queue, free)
            elif not queue and len(free) >= FINISHED_SHARE * len(self.rows):
                self._shrink()
            if any(self.rows):
                self._step()

    def _fill(self, queue: deque[_Answer], free: list[int]) -> None:
        """Encode the next prompts into free places, and take their first tokens."""
        lengths = [len(answer.prompt) for answer in islice(queue, len(free))]
        count = alike(lengths, batch_tokens(self.model))
        width = max(lengths[:count])
        places = free[:count]
        for place in places:
            self.rows[place] = queue.popleft()
        new = [self.rows[place] for place in places]
        # Right padding: a causal mask keeps it from being seen, and the next tokens overwrite it.
        ids = torch.zeros(count, width, dtype=torch.long)
        for row, answer in enumerate(new):
            ids[row, : len(answer.prompt)] = torch.tensor(answer.prompt)
        device = self.model.device
        position = (self.shared + torch.arange(width, device=device)).expand(count, -1)
        past = Filled(self.room, torch.tensor(places, device=device), self.prefix)
        hidden = encode(self.model, ids.to(device), position, past)
        last = torch.tensor([len(answer.prompt) - 1 for answer in new], device=device)
        self._accept(hidden[torch.arange(count, device=device), last], places)

    def _step(self) -> None:
        """One token more for every row; a free place is computed along and not looked at."""
        device = self.model.device
        seen = [len(answer.prompt) + len(answer.said) if answer else 1 for answer in self.rows]
        ids = torch.tensor([[answer.said[-1] if answer else 0] for answer in self.rows], device=device)
        position = torch.tensor(seen, device=device) - 1
        longest = max(seen)
        mask = torch.arange(longest, device=device) <= position[:, None]
        past = Continued(self.room, position, longest, self.prefix)
        hidden = encode(self.model, ids, self.shared + position[:, None], past, mask[:, None, None])
        places = [place for place, answer in enumerate(self.rows) if answer]
        self._accept(hidden[places, 0], places)

    def _accept(self, hidden: torch.Tensor, places: list[int]) -> None:
        """Choose the next token of the rows at `places` from their hidden states, and let go of those that are done."""
        answers = [self.rows[place] for place in places]
        for answer, token in zip(answers, self._choose(logits_of(self.model, hidden), answers), strict=True):
            answer.accept(token, self.settings.stops)
        self._find_stop_strings([answer for answer in answers if answer.finish != "stop"])
        for place, answer in zip(places, answers, strict=True):
            if answer.finish:
                self.rows[place] = None
                self.done(answer.number, self._finished(answer))

    def _choose(self, logits: torch.Tensor, answers: list[_Answer]) -> list[int]:
        """The next token of each answer from logits `[rows, vocab]`."""
        best, token = logits.max(-1)
        if best.isnan().any():
            number = answers[int(best.isnan().nonzero()[0, 0])].number
            raise ModelError(f"prompt {number}: the model's logits are not numbers (NaN); its weights are damaged")
        if self.settings.temperature > 0:
            uniform = torch.stack([answer.draws[len(answer.said)] for answer in answers]).to(logits.device)
            token = sample(logits, uniform, self.settings.temperature, self.settings.top_p)
        return token.tolist()

    def _find_stop_strings(self, answers: list[_Answer]) -> None:
        stops = self.settings.stops
        if not stops.strings or not answers:
            return
        tails = self.tokenizer.batch_decode([answer.said[-stops.tail :] for answer in answers])
        for answer, tail in zip(answers, tails, strict=True):
            if any(string in tail for string in stops.strings):
                answer.finish = "stop"

    def _shrink(self) -> None:
        """Give up the free places."""
        places = [place for place, answer in enumerate(self.rows) if answer]
        self.room.keep(torch.tensor(places, device=self.model.device))
        self.rows = [self.rows[place] for place in places]

    def _finished(self, answer: _Answer) -> Generated:
        text = text_of(self.tokenizer, answer.said, self.settings.stops.strings)
        return Generated(text, answer.said, answer.finish)


def text_of(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], stop_strings: Sequence[str]) -> str:
    """An answer's text: without special tokens, up to the first stop string."""
    text = tokenizer.decode(ids, skip_special_tokens=True)
    for string in filter(None, stop_strings):
        text = text.split(string)[0]
    return text


def seed_of(seed: int, place: int) -> int:
    """Seed of the generator that draws the sample at `place`."""
    return (seed * 1_000_003 + place) % 2**63


def step_price(model: PreTrainedModel) -> int:
    """Tokens that could be encoded in the time that a small batch's step takes more than its share of a full one's.

    An accelerator takes nearly as long for two rows as for a full batch.
    """
    return 4 if model.device.type == "cpu" else 512


def tokens_that_fit(model: PreTrainedModel) -> int:
    """How many tokens' keys and values a batch may hold."""
    config = model.config
    each = 2 * config.num_hidden_layers * config.num_key_value_heads * head_size(config) * model.dtype.itemsize
    free = HOST_BYTES
    if model.device.type == "cuda":
        torch.cuda.empty_cache()  # what earlier work left in torch's own cache is free for us
        free = int(DEVICE_SHARE * torch.cuda.mem_get_info(model.device)[0])
    return free // each


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
