"""Which token sequences are worth an encoded prefix that they share, and which go well into one batch.

Sorted sequences form a tree by their common prefixes. Each of its nodes is a group that could share a prefix; it is
worth the tokens that need not be encoded again, less the price of a batch of its own. The best groups are chosen from
the leaves upwards.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np

SHORTEST = 16  # tokens; to share less is not worth the trouble
PRICE = 256  # tokens: a group is a batch of its own, and rarely a full one
PADDED = 0.9  # of the longest row's length is the least that such a batch takes in
STEP = 8  # tokens; prefixes are told apart if they differ by more than this and a tenth


class Group(NamedTuple):
    """Sequences `members` and how many leading tokens they share; 0: nothing that pays."""

    members: list[int]
    prefix: int


class Choice(NamedTuple):
    """Groups `(start, end, prefix)` among sorted sequences, and how many tokens they save."""

    saved: int
    groups: list[tuple[int, int, int]]


def common_prefix(a: list[int], b: list[int]) -> int:
    """How many leading tokens two lists share."""
    n = min(len(a), len(b))
    unequal = np.nonzero(np.asarray(a[:n]) != np.asarray(b[:n]))[0]
    return int(unequal[0]) if len(unequal) else n


def group_by_prefix(sequences: list[list[int]], price: int | None = None) -> list[Group]:
    """Partition sequences into groups with a shared prefix, and a last group of all that share nothing that pays.

    A prefix is always shorter than each of its sequences: the last token stays out of it.

    price: tokens that a group must save to be worth a batch of its own; `PRICE` where none is given.
    """
    order = sorted(range(len(sequences)), key=lambda i: sequences[i])
    pairs = pairwise(order)
    shared = np.array(
        [min(common_prefix(sequences[a], sequences[b]), len(sequences[a]) - 1, len(sequences[b]) - 1) for a, b in pairs]
    )
    best = _best(shared, 0, len(order), PRICE if price is None else price)
    found = [Group(order[start:end], prefix) for start, end, prefix in best.groups]
    grouped = {member for group in found for member in group.members}
    alone = [member for member in range(len(sequences)) if member not in grouped]
    return [*found, *([Group(alone, 0)] if alone else [])]


def _best(shared: np.ndarray, start: int, end: int, price: int) -> Choice:
    """The best groups among sorted sequences `start` to `end`; `shared[i]` is what i and i + 1 have in common."""
    between = shared[start : end - 1]
    if not len(between) or between.max() * len(between) <= price:
        return Choice(0, [])
    common = int(between.min())
    whole = common * len(between) - price if common >= SHORTEST else 0
    cuts = start + 1 + np.nonzero(between <= common * 1.1 + STEP)[0]
    edges = [start, *cuts.tolist(), end]
    parts = [_best(shared, a, b, price) for a, b in pairwise(edges)]
    saved = sum(part.saved for part in parts)
    if whole >= saved:
        return Choice(whole, [(start, end, common)] if whole > 0 else [])
    return Choice(saved, [group for part in parts for group in part.groups])


def alike(lengths: list[int], tokens: int) -> int:
    """How many rows of falling `lengths` go well into one batch of at most `tokens`, padding included.

    Padding is small once an eighth of the tokens is there.
    """
    most = min(len(lengths), tokens // lengths[0])
    count = 1
    while count < most:
        if count * lengths[0] >= tokens / 8 and lengths[count] < PADDED * lengths[0]:
            break
        count += 1
    return count
