"""Log-probabilities of given text: choices after a context, and documents of packed rows.

A context with its choices is a tree: the context is the trunk, every choice a branch. The whole tree is laid out in one
row and encoded in one forward pass; position ids count from the root and an attention mask lets a token see its
ancestors only, so each branch gets the logits it would get on its own (tree attention: Miao et al. 2023, SpecInfer).
Contexts that begin alike, such as the questions of one MMLU subject after its worked examples, share that trunk too.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llamax.errors import ParameterError
from llamax.progress import Progress

# Contexts share a row while the row stays below this many tokens: attention within a row is quadratic.
ROW_TOKENS = 2048
# A forward pass over packed rows takes about this many tokens.
BATCH_TOKENS = 4096

Pair = tuple[list[int], list[list[int]]]


class Scored(NamedTuple):
    """A continuation: sum of its tokens' log-probabilities (nats), and whether greedy decoding would say it."""

    logprob: float
    greedy: bool


class Tree(NamedTuple):
    """Several pairs in one row of tokens. All arrays are `[row]` but `targets`.

    trunk + item 1's own context + its choices + item 2's own context + ...

    item: 0 in the trunk, else which pair a token belongs to.
    branch: 0 in trunk and contexts, else which choice of the row it belongs to.
    targets `[n, 3]`: (place whose logits predict it, token, branch) for each token to be scored.
    keys: `(pair, choice)` of each branch, in order of branch.
    """

    ids: np.ndarray
    position: np.ndarray
    item: np.ndarray
    branch: np.ndarray
    targets: np.ndarray
    keys: list[tuple[int, int]]


def choice_logprobs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: list[Pair],
    *,
    batch_size: int = 32,
    progress: bool = False,
) -> list[list[float]]:
    """Sum of log p(token) over each choice given its context, in nats; one list per `(context, choices)` pair.

    Raises: ParameterError: an empty context or choice, or more tokens than the model's window.
    """
    scored = score_choices(model, pairs, batch_size=batch_size, progress=progress)
    return [[choice.logprob for choice in choices] for choices in scored]


def score_choices(
    model: PreTrainedModel, pairs: list[Pair], *, batch_size: int = 32, progress: bool = False
) -> list[list[Scored]]:
    """As `choice_logprobs`, and says of each choice whether it is the greedy one."""
    _check(pairs, model.config.max_position_embeddings)
    scored: list[list[Scored | None]] = [[None] * len(choices) for _, choices in pairs]
    trees = sorted((grow(group, pairs) for group in group_by_trunk(pairs)), key=lambda tree: -len(tree.ids))
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), Progress(len(pairs), "score", shown=progress) as bar:
            for batch in batch_trees(trees, batch_size):
                for tree, results in zip(batch, _score_batch(model, batch), strict=True):
                    for (pair, choice), result in zip(tree.keys, results, strict=True):
                        scored[pair][choice] = result
                    bar.advance(len({pair for pair, _ in tree.keys}))
    finally:
        model.train(was_training)
    return scored


def _check(pairs: list[Pair], window: int) -> None:
    for number, (context, choices) in enumerate(pairs):
        if not context or not choices or not all(choices):
            raise ParameterError(f"pair {number}: context and every choice need at least one token")
        if (tokens := len(context) + max(map(len, choices)) - 1) > window:
            raise ParameterError(f"pair {number}: {tokens} tokens exceed the model's window of {window}")


def group_by_trunk(pairs: list[Pair]) -> Iterator[list[int]]:
    """Group pairs whose contexts share at least half of their tokens, while a group fits in `ROW_TOKENS`."""
    order = sorted(range(len(pairs)), key=lambda i: pairs[i][0])
    group, trunk, tokens = [], 0, 0  # `tokens` counts the trunk once per pair
    for i in order:
        context, choices = pairs[i]
        own = len(context) + sum(map(len, choices))
        if group:
            shared = min(trunk, common_prefix(pairs[group[0]][0], context))
            if shared * 2 >= len(context) and tokens + own - len(group) * shared <= ROW_TOKENS:
                group.append(i)
                trunk, tokens = shared, tokens + own
                continue
            yield group
        group, trunk, tokens = [i], len(context), own
    if group:
        yield group


def common_prefix(a: list[int], b: list[int]) -> int:
    """How many leading tokens two lists share."""
    n = min(len(a), len(b))
    unequal = np.nonzero(np.asarray(a[:n]) != np.asarray(b[:n]))[0]
    return int(unequal[0]) if len(unequal) else n


def grow(group: list[int], pairs: list[Pair]) -> Tree:
    """Lay the pairs `group` out as one tree."""
    contexts = [pairs[i][0] for i in group]
    trunk = min(common_prefix(contexts[0], context) for context in contexts)
    ids, position, item, branch = list(contexts[0][:trunk]), list(range(trunk)), [0] * trunk, [0] * trunk
    targets, keys = [], []

    def add(tokens: list[int], start: int, in_item: int, in_branch: int) -> None:
        ids.extend(tokens)
        position.extend(range(start, start + len(tokens)))
        item.extend([in_item] * len(tokens))
        branch.extend([in_branch] * len(tokens))

    for number, i in enumerate(group, start=1):
        context, choices = pairs[i]
        add(context[trunk:], trunk, number, 0)
        # The logits that predict a choice's first token: at the last token of its context.
        stem = len(ids) - 1 if len(context) > trunk else trunk - 1
        for j, choice in enumerate(choices):
            keys.append((i, j))
            places = [stem, *range(len(ids), len(ids) + len(choice) - 1)]
            targets.extend(zip(places, choice, [len(keys)] * len(choice), strict=True))
            add(choice[:-1], len(context), number, len(keys))
    return Tree(*(np.array(x, dtype=np.int64) for x in (ids, position, item, branch, targets)), keys)


def batch_trees(trees: list[Tree], batch_size: int) -> Iterator[list[Tree]]:
    """At most `batch_size` trees at a time, longest first, and at most `BATCH_TOKENS` tokens with padding."""
    start = 0
    while start < len(trees):
        count = max(1, min(batch_size, BATCH_TOKENS // len(trees[start].ids)))
        yield trees[start : start + count]
        start += count


def _score_batch(model: PreTrainedModel, trees: list[Tree]) -> list[list[Scored]]:
    hidden = _encode(model, trees)
    row = np.repeat(np.arange(len(trees)), [len(tree.targets) for tree in trees])
    place, token, branch = torch.from_numpy(np.concatenate([tree.targets for tree in trees])).to(hidden.device).T
    # A stem predicts the first token of every choice: its logits are computed once.
    spots, spot = torch.unique(torch.from_numpy(row).to(hidden.device) * hidden.shape[1] + place, return_inverse=True)
    logprobs = torch.log_softmax(model.get_output_embeddings()(hidden.flatten(0, 1)[spots]).float(), -1)
    value = logprobs[spot, token].double().cpu().numpy()
    hit = (logprobs.argmax(-1)[spot] == token).cpu().numpy()
    # Branches count from 1 in every tree; number them through.
    first = np.cumsum([0, *(len(tree.keys) for tree in trees)])
    index = first[row] + branch.cpu().numpy() - 1
    sums = np.bincount(index, weights=value, minlength=first[-1])
    misses = np.bincount(index, weights=~hit, minlength=first[-1])
    results = [Scored(float(s), m == 0) for s, m in zip(sums, misses, strict=True)]
    return [results[a:b] for a, b in pairwise(first)]


def _encode(model: PreTrainedModel, trees: list[Tree]) -> torch.Tensor:
    """Last hidden states `[batch, row, hidden]` of trees padded on the right."""
    length = max(len(tree.ids) for tree in trees)

    def stack(field: str) -> torch.Tensor:
        rows = [np.pad(getattr(tree, field), (0, length - len(tree.ids))) for tree in trees]
        return torch.from_numpy(np.stack(rows)).to(model.device)

    return model.get_decoder()(
        input_ids=stack("ids"),
        position_ids=stack("position"),
        attention_mask=ancestors(stack("item"), stack("branch"), model.dtype),
        use_cache=False,
    ).last_hidden_state


def ancestors(item: torch.Tensor, branch: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Additive mask `[batch, 1, row, row]`: 0 where the column is the row's ancestor or itself, else the lowest number.

    Padding on the right, whose item and branch are 0, sees the trunk and is seen by nobody before it.
    """
    length = item.shape[1]

    def same_or_root(x: torch.Tensor) -> torch.Tensor:
        return (x[:, None, :] == 0) | (x[:, None, :] == x[:, :, None])

    seen = torch.ones(length, length, dtype=torch.bool, device=item.device).tril()
    seen = seen & same_or_root(item) & same_or_root(branch)
    return torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)[:, None]


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
    count = max(1, BATCH_TOKENS // rows.length)
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
