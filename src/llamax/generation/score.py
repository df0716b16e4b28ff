"""Log-probabilities of given text: choices after a context, and documents of packed rows.

Contexts that begin alike, such as the questions of one MMLU subject after its worked examples, share an encoded prefix
(`llamax.generation.prefixes`). What remains of a context, with its choices, is a tree: the context is the trunk, every
choice a branch. The tree is laid out in one row and encoded in one forward pass; position ids count from the root and a
mask lets a token see its ancestors only, so each branch gets the logits it would get on its own (tree attention: Miao
et al. 2023, SpecInfer).
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from llamax.errors import ModelError, ParameterError
from llamax.generation.attention import (
    Past,
    Prefix,
    batch_tokens,
    encode,
    encode_prefix,
    logits_of,
    out_of_memory,
    shared_attention,
)
from llamax.generation.prefixes import alike, group_by_prefix
from llamax.progress import Progress

SCORES = 2**26  # attention scores held at once for all heads of a layer, about: 256 MB in fp32
SPOTS = 1024  # places whose logits over the whole vocabulary are held at once

Pair = tuple[list[int], list[list[int]]]


class Scored(NamedTuple):
    """A continuation: sum of its tokens' log-probabilities (nats), and whether greedy decoding would say it."""

    logprob: float
    greedy: bool


class Tree(NamedTuple):
    """What one pair adds to its prefix, in one row of tokens. All arrays are `[row]` but `targets`.

    rest of the context + choice 1 + choice 2 + ...

    branch: 0 in the context, else which choice a token belongs to.
    targets `[n, 3]`: (place whose logits predict it, token, choice) for each token to be scored.
    """

    pair: int
    ids: np.ndarray
    position: np.ndarray
    branch: np.ndarray
    targets: np.ndarray
    choices: int


OnScored = Callable[[int, list[Scored]], None]


def choice_logprobs(
    model: PreTrainedModel,
    pairs: list[Pair],
    *,
    batch_size: int = 32,
    progress: bool = False,
) -> list[list[float]]:
    """Sum of log p(token) over each choice given its context, in nats; one list per `(context, choices)` pair.

    Raises: ParameterError: an empty context or choice, or more tokens than the model's window.
        ModelError: logits that are not numbers.
    """
    scored = score_choices(model, pairs, batch_size=batch_size, progress=progress)
    return [[choice.logprob for choice in choices] for choices in scored]


def score_choices(
    model: PreTrainedModel,
    pairs: list[Pair],
    *,
    batch_size: int = 32,
    on_scored: OnScored | None = None,
    progress: bool = False,
) -> list[list[Scored]]:
    """As `choice_logprobs`, and says of each choice whether it is the greedy one.

    on_scored: called with a pair's number and its choices as soon as they are scored.
    """
    _check(pairs, model.config.max_position_embeddings)
    scored: list[list[Scored] | None] = [None] * len(pairs)
    tokens = batch_tokens(model)
    with shared_attention(model), Progress(len(pairs), "score", shown=progress) as bar:
        for members, shared in group_by_prefix([context for context, _ in pairs]):
            prefix = encode_prefix(model, pairs[members[0]][0][:shared]) if shared else None
            trees = sorted((grow(i, *pairs[i], shared) for i in members), key=lambda tree: -len(tree.ids))
            for batch in batch_trees(trees, batch_size, shared, model.config.num_attention_heads, tokens):
                for tree, found in zip(batch, _score(model, batch, prefix), strict=True):
                    scored[tree.pair] = found
                    if on_scored:
                        on_scored(tree.pair, found)
                bar.advance(len(batch))
    return scored


def _check(pairs: list[Pair], window: int) -> None:
    for number, (context, choices) in enumerate(pairs):
        if not context or not choices or not all(choices):
            raise ParameterError(f"pair {number}: context and every choice need at least one token")
        if (tokens := len(context) + max(map(len, choices)) - 1) > window:
            raise ParameterError(f"pair {number}: {tokens} tokens exceed the model's window of {window}")


def grow(pair: int, context: list[int], choices: list[list[int]], shared: int) -> Tree:
    """Lay a context, without its `shared` first tokens, and its choices out as one tree."""
    ids, position = list(context[shared:]), list(range(shared, len(context)))
    branch, targets = [0] * len(ids), []
    stem = len(ids) - 1  # its logits predict the first token of every choice
    for number, choice in enumerate(choices, start=1):
        places = [stem, *range(len(ids), len(ids) + len(choice) - 1)]
        targets.extend(zip(places, choice, [number - 1] * len(choice), strict=True))
        ids.extend(choice[:-1])
        position.extend(range(len(context), len(context) + len(choice) - 1))
        branch.extend([number] * (len(choice) - 1))
    arrays = (np.array(x, dtype=np.int64) for x in (ids, position, branch, targets))
    return Tree(pair, *arrays, len(choices))


def batch_trees(trees: list[Tree], batch_size: int, shared: int, heads: int, tokens: int) -> Iterator[list[Tree]]:
    """At most `batch_size` trees at a time, longest first, within `tokens` and `SCORES`, with little padding."""
    start = 0
    while start < len(trees):
        longest = len(trees[start].ids)
        fit = max(1, min(batch_size, SCORES // (heads * longest * (longest + shared))))
        count = alike([len(tree.ids) for tree in trees[start : start + fit]], tokens)
        yield trees[start : start + count]
        start += count


def _score(model: PreTrainedModel, trees: list[Tree], prefix: Prefix | None) -> list[list[Scored]]:
    """Score a batch; where memory runs out, its halves."""
    try:
        return _score_batch(model, trees, prefix)
    except (RuntimeError, MemoryError) as error:
        if len(trees) == 1 or not out_of_memory(error):
            raise
    torch.cuda.empty_cache()
    half = len(trees) // 2
    return _score(model, trees[:half], prefix) + _score(model, trees[half:], prefix)


def _score_batch(model: PreTrainedModel, trees: list[Tree], prefix: Prefix | None) -> list[list[Scored]]:
    hidden = _encode(model, trees, prefix)
    row = np.repeat(np.arange(len(trees)), [len(tree.targets) for tree in trees])
    place, token, choice = np.concatenate([tree.targets for tree in trees]).T
    value, hit = _token_logprobs(model, hidden.flatten(0, 1), row * hidden.shape[1] + place, token)
    if np.isnan(value).any():
        pair = trees[row[np.isnan(value).argmax()]].pair
        raise ModelError(f"pair {pair}: the model's logits are not numbers (NaN); its weights are damaged")
    first = np.cumsum([0, *(tree.choices for tree in trees)])
    index = first[row] + choice
    sums = np.bincount(index, weights=value, minlength=first[-1])
    misses = np.bincount(index, weights=~hit, minlength=first[-1])
    results = [Scored(float(s), bool(m == 0)) for s, m in zip(sums, misses, strict=True)]
    return [results[a:b] for a, b in pairwise(first)]


def _token_logprobs(
    model: PreTrainedModel, hidden: torch.Tensor, place: np.ndarray, token: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """log p of each `token` `[n]` by the logits at `place` `[n]` of `hidden` `[all, hidden]`, and whether it is best.

    A place that predicts several tokens, as the end of a context does, has its logits computed once.
    """
    spots, spot = np.unique(place, return_inverse=True)
    value, hit = np.empty(len(token)), np.empty(len(token), dtype=bool)
    for start in range(0, len(spots), SPOTS):
        chosen = torch.from_numpy(spots[start : start + SPOTS]).to(hidden.device)
        logprobs = torch.log_softmax(logits_of(model, hidden[chosen]), -1)
        inside = np.flatnonzero((spot >= start) & (spot < start + SPOTS))
        where = torch.from_numpy(spot[inside] - start).to(hidden.device)
        wanted = torch.from_numpy(token[inside]).to(hidden.device)
        value[inside] = logprobs[where, wanted].double().cpu().numpy()
        hit[inside] = (logprobs.argmax(-1)[where] == wanted).cpu().numpy()
    return value, hit


def _encode(model: PreTrainedModel, trees: list[Tree], prefix: Prefix | None) -> torch.Tensor:
    """Last hidden states `[batch, row, hidden]` of trees padded on the right."""
    length = max(len(tree.ids) for tree in trees)

    def stack(field: str) -> torch.Tensor:
        rows = [np.pad(getattr(tree, field), (0, length - len(tree.ids))) for tree in trees]
        return torch.from_numpy(np.stack(rows)).to(model.device)

    branched = any(tree.branch.any() for tree in trees)  # without branches a causal mask does
    mask = ancestors(stack("branch")) if branched else None
    return encode(model, stack("ids"), stack("position"), Past(prefix), mask)


def ancestors(branch: torch.Tensor) -> torch.Tensor:
    """Mask `[batch, 1, row, row]`, True where the column is the row's ancestor or itself.

    Padding on the right, of branch 0, sees the trunk and is seen by nobody before it.
    """
    length = branch.shape[1]
    seen = torch.ones(length, length, dtype=torch.bool, device=branch.device).tril()
    return (seen & ((branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])))[:, None]


class TextLoss(NamedTuple):
    """Loss on packed text. Arrays are per input (`Rows.sources`), so that two models can be compared pairwise."""

    nats: float  # sum of -log p over the supervised tokens
    tokens: int
    input_nats: np.ndarray
    input_tokens: np.ndarray


def text_loss(model: PreTrainedModel, rows, pad_id: int) -> TextLoss:
    """-log p of every supervised token of `rows` (`llamax.data.packing.Rows`), summed over all and per input text."""
    from llamax.data.packing import collate

    nats = np.zeros(int(rows.sources.max(initial=-1)) + 1)
    tokens = np.zeros(len(nats), dtype=np.int64)
    count = max(1, batch_tokens(model) // rows.length)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for start in range(0, len(rows), count):
                indices = list(range(start, min(start + count, len(rows))))
                batch = collate(rows, indices, pad_id)
                loss, row, place = _target_losses(model, batch)
                # Positions restart at 0 with every document, so counting restarts finds a token's document.
                nth = (batch.position_ids == 0).cumsum(1).numpy()[row, place] - 1
                documents = [rows.members[indices[r]][k] for r, k in zip(row, nth, strict=True)]
                np.add.at(nats, rows.sources[documents], loss)
                np.add.at(tokens, rows.sources[documents], 1)
    finally:
        model.train(was_training)
    return TextLoss(float(nats.sum()), int(tokens.sum()), nats, tokens)


def _target_losses(model: PreTrainedModel, batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """-log p of the batch's supervised tokens, with the row and the place of each: three arrays `[n]`."""
    hidden = model.get_decoder()(
        input_ids=batch.input_ids.to(model.device), position_ids=batch.position_ids.to(model.device), use_cache=False
    ).last_hidden_state
    row, place = batch.loss_mask.nonzero(as_tuple=True)
    logits = model.get_output_embeddings()(hidden[row, place - 1]).float()
    loss = cross_entropy(logits, batch.input_ids[row, place].to(model.device), reduction="none")
    return loss.double().cpu().numpy(), row.numpy(), place.numpy()
