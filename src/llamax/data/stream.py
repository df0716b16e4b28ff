"""Shards to batches: an endless, shuffled order of windows that is a formula, not a list.

A *window* is a row of at most `length` tokens of one shard. Neighbours overlap by one token, so that every token but a
document's first is a target of exactly one window; documents keep apart inside it, as in `packing`:

    shard         <s> a b c d e f </s> | <s> g h </s>
    window 0      <s> a b c d                               targets    a b c d
    window 1                d e f </s> | <s>                targets    e f </s>
    window 2                             <s> g h </s>       targets    g h </s>

An epoch visits every window of a source once, or `weight` times (LLaMA's table 1, Touvron et al. 2023, gives such
weights as "epochs": Wikipedia 2.45, Books 2.23, CommonCrawl 1.1). Place p of epoch e is looked up by a permutation
that is computed, not stored (`permute`), so picking a batch costs the same whatever the size of the corpus, and a
resumed run needs no position but its step.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from transformers import PreTrainedTokenizerBase

from llamax.data.packing import Batch, end_to_end
from llamax.data.shards import MANIFEST, Receipt, damaged, tokenizer_hash
from llamax.errors import DataError
from llamax.files import locate, sha256_json, write_atomic

MIXTURE = "mixture.json"
HEAVIEST = 1e6  # weight of a source: rows of an epoch are counted in int64
SHORTEST = 3  # tokens of a window: two new ones, which cannot both be the first of a document
ROUNDS = 8
OPEN_FILES = 128


def permute(places: np.ndarray, n: int, key: Sequence[int]) -> np.ndarray:
    """Where a pseudo-random permutation of 0..n-1, chosen by `key`, takes `places`: int64, O(places) whatever n.

    A balanced Feistel network (Luby & Rackoff 1988) over the smallest even number of bits that holds n, its round
    function splitmix64's finaliser (Steele, Lea & Flood 2014); what falls outside 0..n-1 goes through again
    ("cycle walking", Black & Rogaway 2002), fewer than four times on average.
    """
    half = np.uint64(max(1, math.ceil((n - 1).bit_length() / 2)))
    low = (np.uint64(1) << half) - np.uint64(1)
    keys = np.random.SeedSequence(list(key)).generate_state(ROUNDS, np.uint64)
    result = np.asarray(places).astype(np.uint64)
    todo = np.arange(len(result))
    while len(todo):
        left, right = result[todo] >> half, result[todo] & low
        for round_key in keys:
            left, right = right, left ^ (_mix(right + round_key) & low)
        result[todo] = (left << half) | right
        todo = todo[result[todo] >= n]
    return result.astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser, on uint64 with wrap-around."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@lru_cache(maxsize=OPEN_FILES)
def _mapped(path: str, dtype: str) -> np.ndarray:
    """A file of numbers, mapped; only so many are held open, because every mapping holds a file."""
    return np.memmap(path, dtype, mode="r")


class ShardFolder(NamedTuple):
    """One source: a folder that `shards.shard_files` wrote. weight: how often an epoch reads it."""

    folder: str
    weight: float
    plan: dict[str, Any]
    shards: tuple[Receipt, ...]

    @property
    def name(self) -> str:
        """The folder's name, by which messages call it."""
        return Path(self.folder).name

    def tokens(self, shard: int) -> np.ndarray:
        """Token ids of a shard, [tokens] uint16 or uint32."""
        return _mapped(f"{self.folder}/tokens-{shard:05d}.bin", self.plan["dtype"])

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise `DataError` unless the shards were made with this tokenizer."""
        if self.plan["tokenizer"] != tokenizer_hash(tokenizer):
            raise DataError(f"{self.folder}: these shards were made with another tokenizer than the model's")

    def documents(self, shard: int) -> np.ndarray:
        """Offsets of a shard's documents, int64 [documents + 1]."""
        return _mapped(f"{self.folder}/documents-{shard:05d}.bin", "<i8")


def open_shards(folder: Path | str, weight: float = 1.0) -> ShardFolder:
    """A finished folder of shards, every byte compared with its manifest (once, until it changes).

    Raises: DataError: no manifest, or a file that is missing or damaged; names it.
    """
    folder = locate(folder).resolve()
    if not 0 < weight <= HEAVIEST:
        raise DataError(f"{folder}: weight {weight} should be above 0 and at most {HEAVIEST:,.0f}")
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        found = ShardFolder(str(folder), weight, manifest["plan"], tuple(Receipt(**r) for r in manifest["shards"]))
    except (OSError, ValueError, LookupError, TypeError):
        if (folder / MANIFEST).is_file():
            raise DataError(f"{folder / MANIFEST}: damaged; make the shards again") from None
        unfinished = " (begun, not finished: run the same command again)" if (folder / "plan.json").exists() else ""
        raise DataError(f"{folder}: no shards here{unfinished}; make them with `llamax data shards`") from None
    bad = damaged(folder, {name: digest for receipt in found.shards for name, digest in receipt.sha256.items()})
    if bad:
        raise DataError(f"{folder / min(bad)}: damaged or missing; make the shards again")
    return found


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows of `length` tokens over the shards of one or more sources: training data for `training.loop.fit`.

    Row i is a window; windows are numbered source by source, shard by shard.
    """

    sources: tuple[ShardFolder, ...]
    length: int

    @classmethod
    def over(cls, sources: Sequence[ShardFolder], length: int) -> Self:
        """Raises: DataError: no source, sources of several tokenizers, or windows too short."""
        if length < SHORTEST:
            raise DataError(f"row length {length}: a window needs at least {SHORTEST} tokens")
        if not sources:
            raise DataError("no shards to train on")
        for source in sources[1:]:
            if source.plan["tokenizer"] != sources[0].plan["tokenizer"]:
                raise DataError(f"{sources[0].folder} and {source.folder}: made with two tokenizers")
        return cls(tuple(sources), length)

    def save(self, folder: Path | str) -> Path:
        """Name the sources in `folder`, so that another process can `load` them; the shards stay where they are."""
        sources = [{"folder": source.folder, "weight": source.weight} for source in self.sources]
        facts = {"length": self.length, "sources": sources, "sha256": self.fingerprint}
        write_atomic(Path(folder) / MIXTURE, json.dumps(facts, indent=1) + "\n")
        return Path(folder)

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """What `save` named. Raises: DataError: not such a folder, or its shards are others now."""
        try:
            facts = json.loads((Path(folder) / MIXTURE).read_text())
            named = [(source["folder"], source["weight"]) for source in facts["sources"]]
            length, digest = facts["length"], facts["sha256"]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise DataError(f"{folder}: no mixture of shards here ({error}); make it again") from None
        found = cls.over([open_shards(*source) for source in named], length)
        if found.fingerprint != digest:
            raise DataError(f"{folder}: the shards it names are others than when it was made; make it again")
        return found

    @cached_property
    def _shards(self) -> list[tuple[ShardFolder, int]]:
        """(source, number) of every shard."""
        return [(source, shard) for source in self.sources for shard in range(len(source.shards))]

    @cached_property
    def _ends(self) -> np.ndarray:
        """Windows up to the end of each shard, int64 [shards]."""
        tokens = np.array([source.shards[shard].tokens for source, shard in self._shards], dtype=np.int64)
        return np.cumsum(-(-(tokens - 1) // (self.length - 1)))

    @cached_property
    def _source_starts(self) -> np.ndarray:
        """First window of each source, and the number of all, int64 [sources + 1]."""
        shards = np.cumsum([len(source.shards) for source in self.sources])
        return np.concatenate([[0], self._ends[shards - 1]])

    @cached_property
    def _slot_ends(self) -> np.ndarray:
        """Rows of an epoch up to the end of each source's part, before they are shuffled, int64 [sources]."""
        windows = np.diff(self._source_starts)
        weights = [source.weight for source in self.sources]
        return np.cumsum([max(1, round(weight * n)) for weight, n in zip(weights, windows.tolist(), strict=True)])

    def __len__(self) -> int:
        """Rows of an epoch: windows, times their sources' weights."""
        return int(self._slot_ends[-1])

    @cached_property
    def fingerprint(self) -> str:
        """Hex sha256 of all that training sees: the shards' contents, how they are weighted, and the row length."""
        parts = [[s.weight, s.plan["dtype"], [sorted(r.sha256.items()) for r in s.shards]] for s in self.sources]
        return sha256_json({"length": self.length, "sources": parts})

    @property
    def longest_document(self) -> int:
        """Most tokens that attend to each other."""
        return self.length

    @property
    def without_targets(self) -> np.ndarray:
        """Rows that would teach nothing: there are none (see `SHORTEST`)."""
        return np.zeros(0, np.int64)

    def visit(self, seed: int, epoch: int, start: int, stop: int) -> np.ndarray:
        """Windows at places start..stop-1 of an epoch, int64: a pure function of its arguments.

        Source s has k rows of an epoch and n windows. Its rows of all epochs, one after the other, are passes over its
        windows, each pass in an order of its own: so with weight 1 an epoch is a pass, with 0.5 two epochs are.
        """
        stop = min(stop, len(self))
        slots = permute(np.arange(start, stop), len(self), [seed, 0, epoch])
        source_of = np.searchsorted(self._slot_ends, slots, side="right")
        windows = np.empty(len(slots), np.int64)
        for s in np.unique(source_of).tolist():
            mine = np.flatnonzero(source_of == s)
            first, last = ([0, *self._slot_ends.tolist()])[s : s + 2]
            n = int(self._source_starts[s + 1] - self._source_starts[s])
            passes, places = np.divmod(epoch * (last - first) + slots[mine] - first, n)
            for p in np.unique(passes).tolist():
                of_pass = passes == p
                order = permute(places[of_pass], n, [seed, s + 1, p])
                windows[mine[of_pass]] = self._source_starts[s] + order
        return windows

    def _where(self, window: int) -> tuple[ShardFolder, int, int, int]:
        """(source, shard, first token, end) of a window."""
        i = int(np.searchsorted(self._ends, window, side="right"))
        source, shard = self._shards[i]
        start = (window - (int(self._ends[i - 1]) if i else 0)) * (self.length - 1)
        return source, shard, start, min(start + self.length, source.shards[shard].tokens)

    def _starts(self, window: int) -> tuple[int, np.ndarray]:
        """Tokens of a window, and the places in it after the first where documents start."""
        source, shard, start, end = self._where(window)
        offsets = source.documents(shard)
        inner = offsets[np.searchsorted(offsets, start, side="right") : np.searchsorted(offsets, end, side="left")]
        return end - start, np.asarray(inner) - start

    def supervised(self, indices: Iterable[int]) -> int:
        """Number of targets in these windows; -1 stands for an empty row."""
        found = [self._starts(int(i)) for i in indices if i >= 0]
        return sum(tokens - 1 - len(starts) for tokens, starts in found)

    def real(self, indices: Iterable[int]) -> int:
        """Number of tokens in these windows; -1 stands for an empty row."""
        found = [self._where(int(i)) for i in indices if i >= 0]
        return sum(end - start for _, _, start, end in found)

    def name(self, i: int) -> str:
        """What messages call a window: source, shard and tokens."""
        source, shard, start, end = self._where(int(i))
        return f"row {i} ({source.name} shard {shard}, tokens {start} to {end - 1})"

    def collate(self, indices: Sequence[int], pad_id: int) -> Batch:
        """These windows end to end, `[1, tokens]`; -1 is an empty row."""
        pieces = []
        for i in (int(i) for i in indices if i >= 0):
            source, shard, start, end = self._where(i)
            n, starts = self._starts(i)
            first, mask = np.zeros(n, np.int64), np.ones(n, bool)
            first[starts] = starts
            mask[[0, *starts]] = False
            pieces.append((source.tokens(shard)[start:end], np.arange(n) - np.maximum.accumulate(first), mask))
        return end_to_end(pieces, pad_id)
