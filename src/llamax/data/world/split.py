"""Which side of the fence a fact, a problem or a function is on: decided by its own hash and by nothing else.

Adding data therefore never moves an old item from one side to the other.
"""

import hashlib
import random
import re
from collections.abc import Iterable, Iterator

RAREST = 1 / 64
NGRAM = 13  # words; the overlap that GPT-3 (Brown et al. 2020, appendix C) counts as contamination


def unit(*key: object) -> float:
    """A number in [0, 1) that depends on `key` alone."""
    return int.from_bytes(_digest(key)[:7], "big") / 2**56


def popularity(*key: object) -> float:
    """How often the thing called `key` is spoken of, relative to the most popular: log-uniform in [`RAREST`, 1].

    What a model knows follows how often it read it (Kandpal et al. 2023), so a long tail leaves something to learn.
    """
    return RAREST ** unit("popularity", *key)


def generator(*key: object) -> random.Random:
    """A random generator seeded by `key` alone; the same on every platform and in every process."""
    return random.Random(int.from_bytes(_digest(key)[:16], "big"))


def _digest(key: tuple[object, ...]) -> bytes:
    return hashlib.sha256("|".join(map(str, key)).encode()).digest()


def words(text: str) -> list[str]:
    """The words of a text as contamination is counted: lower case; letters and digits, and runs of operators."""
    return re.findall(r"[^\W_]+|[-+*/%<>=!&|^~]+", text.lower())


class Contamination:
    """Finds texts that repeat `n` words of a question, or all words of a question that is shorter than that."""

    def __init__(self, questions: Iterable[str], n: int = NGRAM):
        self.known: dict[int, dict[tuple[str, ...], str]] = {}
        for question in questions:
            listed = words(question)
            size = min(n, len(listed))
            self.known.setdefault(size, {}).update(dict.fromkeys(_windows(listed, size), question))

    def find(self, text: str) -> str | None:
        """A question that `text` repeats, or None."""
        listed = words(text)
        for size, known in self.known.items():
            if not known.keys().isdisjoint(_windows(listed, size)):
                return next(known[gram] for gram in _windows(listed, size) if gram in known)
        return None


def _windows(listed: list[str], size: int) -> Iterator[tuple[str, ...]]:
    return zip(*(listed[start:] for start in range(size)), strict=False)
