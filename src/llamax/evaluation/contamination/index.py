"""Finding the n-grams and the questions of test items in a stream of text of any length.

The index is over the small side, the test items; training text passes by once, in pieces of about a million tokens, and
only what it shares with the items is kept: for each n-gram of the items the first row that has it. 64-bit hashes find
candidates, and every candidate is compared token by token, so a collision of hashes is never a hit.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import count, repeat
from typing import NamedTuple

import numpy as np

from llamax.errors import DataError
from llamax.evaluation.contamination.tokens import tokenize

SIZES = (8, 13)  # n of the n-grams; the smallest comes first, as every other hit is one of it too
SHORTEST = SIZES[0]  # tokens of a question; shorter ones ("which of the following is true") are anybody's
PIECE = 1_000_000  # tokens looked at together
FILTER_BITS = 24
UNSEEN = np.iinfo(np.int64).max


class Item(NamedTuple):
    """A test item. `text`: all of it that a model sees; `question`: the part that alone gives the item away."""

    benchmark: str
    item: str
    text: str
    question: str


class Grams(NamedTuple):
    """The distinct n-grams of the items.

    hashes: uint64 [grams], sorted. at: where in the items' tokens each first stands [grams]. of_window: which n-gram
    each window is [windows]; owner: the item that the window is in [windows].
    """

    n: int
    hashes: np.ndarray
    at: np.ndarray
    of_window: np.ndarray
    owner: np.ndarray


class Index:
    """Test items by their n-grams and by their questions.

    Raises: DataError: no items, or an item that comes twice.
    """

    def __init__(self, items: Sequence[Item]):
        self.items = _distinct(items)
        self.vocabulary = defaultdict(count(1).__next__)  # 0 is any other token and the gap between texts
        texts = [self._learn(item.text) for item in items]
        questions = [self._learn(item.question) for item in items]
        self.lengths = np.array([len(text) for text in texts])
        self.question_lengths = np.array([len(question) for question in questions])
        self.longest = max(SIZES[-1], int(self.question_lengths.max()))
        self.tokens = np.concatenate([np.array([*text, 0], np.int32) for text in texts])
        self.weights, self.grams = self._hashed()
        self.questions = self._questions(questions)
        anchors = np.fromiter(self.questions, np.uint64, len(self.questions))
        self.filter = np.zeros(1 << FILTER_BITS, bool)
        for hashes in (self.grams[0].hashes, anchors):
            self.filter[hashes >> np.uint64(64 - FILTER_BITS)] = True

    def _learn(self, text: str) -> list[int]:
        """Token ids of a text, new tokens added to the vocabulary."""
        return list(map(self.vocabulary.__getitem__, tokenize(text)))

    def _hashed(self) -> tuple[np.ndarray, list[Grams]]:
        """A random number for each token, and the n-grams: drawn again until no two of them have the same hash."""
        for seed in range(100):
            weights = np.random.default_rng(seed).integers(0, 1 << 64, len(self.vocabulary) + 1, np.uint64)
            grams = [_grams(self.tokens, self.lengths, n, weights) for n in SIZES]
            if all(map(self._is_perfect, grams)):
                return weights, grams
        raise AssertionError("64-bit hashes collide a hundred times over")

    def _is_perfect(self, grams: Grams) -> bool:
        """Whether windows with the same hash have the same tokens."""
        starts = _windows(self.lengths, grams.n)[0]
        return bool(_same(self.tokens, starts, self.tokens, grams.at[grams.of_window], grams.n).all())

    def _questions(self, questions: list[list[int]]) -> dict[int, dict[int, dict[bytes, list[int]]]]:
        """Item numbers by the hash of the question's beginning, then its length, then its tokens."""
        long = [number for number, question in enumerate(questions) if len(question) >= SHORTEST]
        ids = np.array([questions[number][:SHORTEST] for number in long], np.int32).reshape(-1)
        anchors = hash_windows(ids, np.arange(0, len(ids), SHORTEST), SHORTEST, self.weights)
        found: dict[int, dict[int, dict[bytes, list[int]]]] = {}
        for number, anchor in zip(long, anchors.tolist(), strict=True):
            question = np.array(questions[number], np.int32)
            of_length = found.setdefault(anchor, {}).setdefault(len(question), {})
            of_length.setdefault(question.tobytes(), []).append(number)
        return found


class Scan:
    """What a stream of text shares with an index.

    Rows may come in any order and be cut into pieces anywhere: the outcome is the same.
    """

    def __init__(self, index: Index, piece: int = PIECE):
        self.index, self.piece = index, piece
        self.first = [np.full(len(grams.hashes), UNSEEN) for grams in index.grams]  # row, by n-gram
        self.first_question = np.full(len(index.items), UNSEEN)
        self.rows: list[set[int]] = [set() for _ in (*SIZES, "question")]
        self.texts = self.tokens = 0
        self._ids: list[int] = []
        self._rows: list[int] = []
        self._starts: list[int] = []

    def add(self, row: int, text: str, *, goes_on: bool = False) -> bool:
        """Look at the text of a row; True when that completed a piece.

        goes_on: the text continues the one before, as the lines of a file do. Otherwise nothing spans the two.
        """
        if not goes_on and self._ids:
            self._ids.append(0)
        tokens = tokenize(text)
        self._rows.append(row)
        self._starts.append(len(self._ids))
        self._ids.extend(map(self.index.vocabulary.get, tokens, repeat(0)))
        self.texts += 1
        self.tokens += len(tokens)
        if len(self._ids) < self.piece + self.index.longest:
            return False
        self.finish()
        return True

    def finish(self) -> None:
        """Look at what has been added and not been looked at."""
        ids, starts, rows = np.array(self._ids, np.int32), np.array(self._starts), np.array(self._rows)
        if not len(ids):
            return
        self._look(ids, lambda positions: rows[np.searchsorted(starts, positions, "right") - 1])
        keep = min(len(ids), self.index.longest - 1)  # the beginning of what may go on; seen twice does no harm
        first = int(np.searchsorted(starts, len(ids) - keep, "right")) - 1
        self._ids, self._rows = ids[len(ids) - keep :].tolist(), rows[first:].tolist()
        self._starts = np.maximum(starts[first:] - (len(ids) - keep), 0).tolist()

    def _look(self, ids: np.ndarray, row_of) -> None:
        """Find n-grams and questions in a piece [tokens]; `row_of`: positions to rows."""
        index = self.index
        places = np.arange(max(0, len(ids) - SHORTEST + 1))
        hashes = hash_windows(ids, places, SHORTEST, index.weights)
        maybe = np.flatnonzero(index.filter[hashes >> np.uint64(64 - FILTER_BITS)])
        self._look_for_questions(ids, maybe, hashes[maybe], row_of)
        for k, grams in enumerate(index.grams):
            maybe = maybe[maybe <= len(ids) - grams.n]
            gram, maybe = self._matches(ids, maybe, grams)
            rows = row_of(maybe)
            np.minimum.at(self.first[k], gram, rows)
            self.rows[k].update(np.unique(rows).tolist())

    def _matches(self, ids: np.ndarray, places: np.ndarray, grams: Grams) -> tuple[np.ndarray, np.ndarray]:
        """The n-gram at each of the places that begin one, and those places."""
        if not len(grams.hashes):
            return places[:0], places[:0]
        hashes = hash_windows(ids, places, grams.n, self.index.weights)
        gram = np.minimum(np.searchsorted(grams.hashes, hashes), len(grams.hashes) - 1)
        hit = grams.hashes[gram] == hashes
        gram, places = gram[hit], places[hit]
        hit = _same(ids, places, self.index.tokens, grams.at[gram], grams.n)
        return gram[hit], places[hit]

    def _look_for_questions(self, ids: np.ndarray, places: np.ndarray, hashes: np.ndarray, row_of) -> None:
        found = [
            (number, place)
            for place, anchor in zip(places.tolist(), hashes.tolist(), strict=True)
            for length, questions in self.index.questions.get(anchor, {}).items()
            for number in questions.get(ids[place : place + length].tobytes(), ())
        ]
        if found:
            numbers, places = np.array(found).T
            rows = row_of(places)
            np.minimum.at(self.first_question, numbers, rows)
            self.rows[-1].update(np.unique(rows).tolist())


def hash_windows(ids: np.ndarray, places: np.ndarray, n: int, weights: np.ndarray) -> np.ndarray:
    """64-bit hash of the n ids from each of the places on: a polynomial in an odd number, modulo 2^64."""
    base = np.uint64(0x9E3779B97F4A7C15)
    found = np.zeros(len(places), np.uint64)
    for k in range(n):
        found *= base
        found += weights[ids[places + k]]
    return found ^ (found >> np.uint64(32))


def _distinct(items: Iterable[Item]) -> list[Item]:
    items = list(items)
    if not items:
        raise DataError("no test items to check against")
    seen: set[tuple[str, str]] = set()
    for item in items:
        if item[:2] in seen:
            raise DataError(f"{item.benchmark}: item {item.item!r} comes twice; ids must differ")
        seen.add(item[:2])
    return items


def _grams(tokens: np.ndarray, lengths: np.ndarray, n: int, weights: np.ndarray) -> Grams:
    places, owner = _windows(lengths, n)
    hashes, first, of_window = np.unique(
        hash_windows(tokens, places, n, weights), return_index=True, return_inverse=True
    )
    return Grams(n, hashes, places[first], of_window, owner)


def _windows(lengths: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the n-grams of the items begin in their joined tokens (each followed by a gap), and whose they are."""
    counts = np.maximum(lengths - n + 1, 0)
    owner = np.repeat(np.arange(len(lengths)), counts)
    begins = np.cumsum(lengths + 1) - (lengths + 1)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return begins[owner] + within, owner


def _same(left: np.ndarray, at_left: np.ndarray, right: np.ndarray, at_right: np.ndarray, n: int) -> np.ndarray:
    """Whether the n tokens from `at_left` on equal those from `at_right` on, place by place."""
    equal = np.ones(len(at_left), bool)
    for k in range(n):
        equal &= left[at_left + k] == right[at_right + k]
    return equal
