"""Documents to rows, rows to batches.

A *document* is one rendered conversation or text. A *row* is a list of documents laid end to end, at most `length`
tokens. Positions restart at 0 with every document, and from that alone the model derives attention that never crosses
from one document into the next:

    tokens        <s>  Q   A1  A2  </s> | <s>  Q   A   </s> | <pad> <pad>
    position_ids   0   1   2   3   4    |  0   1   2   3    |  0     1
    loss_mask      .   .   x   x   x    |  .   .   x   x    |  .     .

`loss_mask[t]` says that token t is a target: it is predicted from token t-1 of the same document, so the first token of
a document never is one.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal, NamedTuple, Self

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from llamax.data.conversation import Conversation
from llamax.data.encode import encode_texts
from llamax.data.render import encode_pieces
from llamax.data.templates import Piece, Template
from llamax.errors import DataError
from llamax.files import atomic_folder, sha256_json

ARRAYS = ("tokens", "mask", "offsets", "sources", "members", "row_offsets")
FACTS = {"length", "rejected", "split", "sha256"}  # of rows.json
TEXTS_AT_ONCE = 1024

OverLong = Literal["error", "reject", "split"]


def best_fit_decreasing(lengths: Sequence[int] | np.ndarray, capacity: int) -> list[list[int]]:
    """Distribute documents over rows of `capacity` tokens: longest first, each into the fullest row that has room.

    O(n log n) for the sort and O(n + longest) for the rest, because lengths only fall: a row too full for the
    document at hand waits until one is short enough, and is then fuller than every row that was open before. So the
    open rows are a stack whose top is the fullest.

    Args: lengths: tokens of each document, each in 1..capacity.
    Returns: the documents of each row, as indices into `lengths`.
    Raises: DataError: a length outside 1..capacity.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    if lengths.size and not (lengths.min() >= 1 and lengths.max() <= capacity):
        bad = int(np.flatnonzero((lengths < 1) | (lengths > capacity))[0])
        raise DataError(f"document {bad} has {lengths[bad]} tokens; a row takes documents of 1 to {capacity}")
    order = np.argsort(-lengths, kind="stable")
    rows: list[list[int]] = []
    # Rows by their free space, all below `shortest`: less than the document at hand, hence than the longest.
    shortest = int(lengths.max(initial=0))
    waiting: list[list[int]] = [[] for _ in range(shortest)]
    open_rows: list[tuple[int, int]] = []  # (free space, row), the fullest on top
    for document, need in zip(order.tolist(), lengths[order].tolist(), strict=True):
        while shortest > need:
            shortest -= 1
            open_rows.extend((shortest, row) for row in waiting[shortest])
        if open_rows:
            space, row = open_rows.pop()
        else:
            space, row = capacity, len(rows)
            rows.append([])
        rows[row].append(document)
        space -= need
        if space >= need:
            open_rows.append((space, row))
        else:
            waiting[space].append(row)
    return rows


class PackingReport(NamedTuple):
    """What became of the documents: counts of rows, documents and tokens; `utilisation` = real / (real + padded)."""

    rows: int
    documents: int
    real: int
    supervised: int
    padded: int
    utilisation: float
    rejected: int  # over-long inputs left out
    split: int  # over-long inputs cut into several documents

    def __str__(self) -> str:
        return (
            f"{self.documents:,} documents in {self.rows:,} rows; {self.real:,} real tokens, {self.supervised:,} "
            f"supervised, {self.padded:,} padded ({self.utilisation:.2%} used); "
            f"{self.rejected:,} rejected, {self.split:,} split"
        )


@dataclass(frozen=True, eq=False)
class Rows:
    """Packed training data, as flat arrays that can stay on disk.

    tokens   int32 [total]          all documents, one after the other
    mask     bool  [total]          True where the token is a target
    offsets  int64 [documents + 1]  document d is tokens[offsets[d] : offsets[d + 1]]
    sources  int64 [documents]      the input (conversation, text) that document d was made from
    members  documents of each row, in order
    length   the most tokens that a row may have; the padded width of a full batch
    """

    tokens: np.ndarray
    mask: np.ndarray
    offsets: np.ndarray
    sources: np.ndarray
    members: list[np.ndarray]
    length: int
    rejected: int = 0
    split: int = 0

    def __len__(self) -> int:
        return len(self.members)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Real tokens of each row, int64 [rows]."""
        return self._row_sums(np.diff(self.offsets))

    @cached_property
    def supervised_lengths(self) -> np.ndarray:
        """Supervised tokens of each row, int64 [rows]."""
        targets_before = np.concatenate([[0], np.cumsum(self.mask, dtype=np.int64)])
        return self._row_sums(np.diff(targets_before[self.offsets]))

    def _row_sums(self, per_document: np.ndarray) -> np.ndarray:
        """Sum over the documents of each row, int64 [rows]."""
        return np.array([per_document[row].sum() for row in self.members], dtype=np.int64)

    def supervised(self, indices: Iterable[int]) -> int:
        """Number of supervised tokens in these rows; -1 stands for an empty row."""
        chosen = np.asarray(list(indices), dtype=np.int64)
        return int(self.supervised_lengths[chosen[chosen >= 0]].sum())

    def real(self, indices: Iterable[int]) -> int:
        """Number of tokens in these rows; -1 stands for an empty row."""
        chosen = np.asarray(list(indices), dtype=np.int64)
        return int(self.lengths[chosen[chosen >= 0]].sum())

    @property
    def longest_document(self) -> int:
        """Most tokens that attend to each other."""
        return int(np.diff(self.offsets).max())

    @property
    def without_targets(self) -> np.ndarray:
        """Numbers of the rows without a supervised token."""
        return np.flatnonzero(self.supervised_lengths == 0)

    def visit(self, seed: int, epoch: int, start: int, stop: int) -> np.ndarray:
        """Rows at places start..stop-1 of an epoch."""
        return epoch_order(len(self), seed, epoch)[start:stop]

    def collate(self, indices: Sequence[int], pad_id: int) -> "Batch":
        """These rows end to end."""
        return collate_flat(self, indices, pad_id)

    def name(self, i: int) -> str:
        """What messages call a row: its number, and those of the inputs (conversations, texts) that lie in it."""
        inputs = sorted({int(self.sources[document]) for document in self.members[i]})
        return f"row {i} (inputs {', '.join(map(str, inputs))})"

    def report(self) -> PackingReport:
        """Real, supervised and padded tokens; padding counts every row up to `length`."""
        real, room = int(self.lengths.sum()), len(self) * self.length
        return PackingReport(
            rows=len(self),
            documents=len(self.offsets) - 1,
            real=real,
            supervised=int(self.supervised_lengths.sum()),
            padded=room - real,
            utilisation=real / room if room else 0.0,
            rejected=self.rejected,
            split=self.split,
        )

    @cached_property
    def fingerprint(self) -> str:
        """Hex sha256 of everything that training sees: tokens, targets, and how they lie in rows."""
        return _fingerprint(self._arrays(), self.length)

    def _arrays(self) -> dict[str, np.ndarray]:
        """The arrays as they are stored: rows as one list of documents and where each row starts in it."""
        sizes = np.array([0, *map(len, self.members)], dtype=np.int64)
        flat = np.concatenate(self.members) if self.members else np.zeros(0)
        stored = {name: getattr(self, name) for name in ("tokens", "mask", "offsets", "sources")}
        return stored | {"members": flat.astype(np.int64), "row_offsets": np.cumsum(sizes)}

    def save(self, folder: Path | str) -> Path:
        """Write `folder` with one .npy per array and `rows.json` with their fingerprint; whole or not at all."""
        facts = {"length": self.length, "rejected": self.rejected, "split": self.split, "sha256": self.fingerprint}
        with atomic_folder(folder) as work:
            for name, array in self._arrays().items():
                _save_array(work / f"{name}.npy", array)
            (work / "rows.json").write_text(json.dumps(facts, indent=1) + "\n")
        return Path(folder)

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """Map the arrays of a saved folder into memory; every byte is checked against the fingerprint first.

        Raises: DataError: not such a folder, or a file of it was changed since it was written.
        """
        folder = Path(folder)
        try:
            facts = json.loads((folder / "rows.json").read_text())
            arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
            sound = facts.keys() == FACTS and _fingerprint(arrays, facts["length"]) == facts.pop("sha256")
        except (OSError, ValueError, TypeError, AttributeError, EOFError, RecursionError) as error:
            line = str(error).splitlines()[0]
            raise DataError(f"{folder}: no packed rows here ({line}); build them again") from None
        if not sound:
            raise DataError(f"{folder}: packed rows are damaged (their checksum differs); build them again")
        flat, starts = arrays.pop("members"), arrays.pop("row_offsets")
        return cls(**arrays, members=np.split(flat, starts[1:-1]) if len(starts) > 1 else [], **facts)


def _save_array(path: Path, array: np.ndarray) -> None:
    """Write a one-dimensional array as `np.save` does, but so that a full disk is an error with its reason.

    `np.save` goes through `ndarray.tofile`, whose OSError has no errno.
    """
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(np.ascontiguousarray(array).view(np.uint8).data)


def _fingerprint(arrays: dict[str, np.ndarray], length: int) -> str:
    """Hex sha256 of the arrays' names, types and bytes, and of the row length."""
    parts = {name: [str(a.dtype), hashlib.sha256(np.ascontiguousarray(a)).hexdigest()] for name, a in arrays.items()}
    return sha256_json({"length": length, "arrays": parts})


class Documents:
    """Collects documents into flat arrays, cutting or refusing those that are too long.

    A document cut in two repeats its last token at the start of the next piece, so that every target but the first
    piece's own first token is still predicted, once. A piece without any target would teach nothing and is left out.
    """

    def __init__(self, length: int):
        if length < 2:
            raise DataError(
                f"row length {length}: a row needs at least 2 tokens, one to predict from and one to predict"
            )
        self.length = length
        self.tokens: list[np.ndarray] = []
        self.mask: list[np.ndarray] = []
        self.sources: list[int] = []
        self.rejected = 0
        self.split = 0

    def add(self, source: int, input_ids: Sequence[int], loss_mask: Sequence[bool]) -> None:
        """Append one document, cut into pieces of `length` tokens where it is longer."""
        tokens, mask = np.asarray(input_ids, np.int32), np.asarray(loss_mask, bool)
        self.split += len(tokens) > self.length
        for start in range(0, max(len(tokens) - 1, 1), self.length - 1):
            piece = mask[start : start + self.length].copy()
            piece[:1] = False
            if piece.any():
                self.tokens.append(tokens[start : start + self.length])
                self.mask.append(piece)
                self.sources.append(source)

    def rows(self, *, packing: bool) -> Rows:
        """Lay the documents out in rows: packed, or one per row in the order they came."""
        lengths = np.array([len(document) for document in self.tokens], dtype=np.int64)
        members = best_fit_decreasing(lengths, self.length) if packing else [[d] for d in range(len(lengths))]
        return Rows(
            tokens=np.concatenate(self.tokens) if self.tokens else np.zeros(0, np.int32),
            mask=np.concatenate(self.mask) if self.mask else np.zeros(0, bool),
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            sources=np.array(self.sources, dtype=np.int64),
            members=[np.array(row, dtype=np.int64) for row in members],
            length=self.length,
            rejected=self.rejected,
            split=self.split,
        )


def build_rows(
    conversations: Sequence[Conversation],
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    *,
    length: int,
    packing: bool = True,
    over_long: OverLong = "error",
) -> Rows:
    """Render conversations and lay them out in rows of `length` tokens, packed or one by one.

    over_long: what becomes of a conversation of more than `length` tokens: an error, left out and counted, or cut into
    pieces and counted. It is never shortened in silence.
    Raises: DataError: nothing to train on, a conversation without a target, or one that is too long.
    """
    documents, too_long = Documents(length), []
    for start in range(0, len(conversations), TEXTS_AT_ONCE):
        chunk = conversations[start : start + TEXTS_AT_ONCE]
        pieces = [_pieces(template, conversation, i) for i, conversation in enumerate(chunk, start)]
        for i, (ids, mask) in enumerate(encode_pieces(pieces, tokenizer, template), start):
            if not any(mask[1:]):
                raise DataError(f"{_name(conversations[i], i)} has no supervised token: nothing to learn from it")
            if len(ids) > length:
                too_long.append((i, len(ids)))
            if len(ids) <= length or over_long == "split":
                documents.add(i, ids, mask)
    if too_long and over_long == "error":
        raise DataError(_too_long_line(conversations, too_long, length))
    documents.rejected = len(too_long) if over_long == "reject" else 0
    if not documents.sources:
        raise DataError(
            f"no conversation to train on: {documents.rejected} of {len(conversations)} exceed {length} tokens"
        )
    return documents.rows(packing=packing)


def _name(conversation: Conversation, i: int) -> str:
    """How a message refers to a conversation: its place in the data, and where it came from if it says so."""
    return f"conversation {i}" + (f" ({conversation.id})" if conversation.id else "")


def _pieces(template: Template, conversation: Conversation, i: int) -> list[Piece]:
    """The template's pieces of a conversation; what the template refuses, it refuses by name."""
    try:
        return template.pieces(conversation.messages)
    except DataError as error:
        raise DataError(f"{_name(conversation, i)}: {error}") from None


def _too_long_line(conversations: Sequence[Conversation], too_long: list[tuple[int, int]], length: int) -> str:
    """One line: how many conversations do not fit, the first of them, and what to do."""
    first, tokens = too_long[0]
    return (
        f"{len(too_long)} of {len(conversations)} conversations exceed the row length of {length} tokens, first "
        f"{_name(conversations[first], first)} with {tokens}; longest {max(n for _, n in too_long)}. Raise the length, "
        "or choose over_long='reject' or 'split'"
    )


def plain_text_rows(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, *, length: int) -> Rows:
    """Pack plain texts as BOS text EOS, every token but BOS a target; a text longer than `length` is split.

    Raises: DataError: an empty text, or no text at all.
    """
    texts = list(texts)
    if not texts:
        raise DataError("no texts to pack")
    documents = Documents(length)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        chunk = texts[start : start + TEXTS_AT_ONCE]
        for source, ids in enumerate(encode_texts(tokenizer, chunk), start):
            if not ids:
                raise DataError(f"text {source} is empty: there is nothing in it to learn")
            documents.add(source, [bos, *ids, eos], [False] + [True] * (len(ids) + 1))
    return documents.rows(packing=True)


class Batch(NamedTuple):
    """Rows end to end, `[1, tokens]` each (training), or side by side, padded on the right, `[batch, seq]` (scoring).

    Pass `input_ids` and `position_ids` to the model with `use_cache=False` and no attention mask: with a cache,
    transformers (5.23, `masking_utils._preprocess_mask_arguments`) no longer looks for documents in the positions, and
    they would see each other. Attention must be `training.attention`'s, eager, sdpa or flex; flash attention finds the
    documents in batches of one row only (`modeling_flash_attention_utils._is_packed_sequence`).
    """

    input_ids: torch.Tensor  # int64
    position_ids: torch.Tensor  # int64, from 0 in every document; padding is a document of its own
    loss_mask: torch.Tensor  # bool


def collate(rows: Rows, indices: Sequence[int], pad_id: int) -> Batch:
    """Batch of the rows `indices`; -1 is an empty row: padding only, nothing supervised.

    The width is that of the longest row among them (1 if all are empty).
    """
    width = max((int(rows.lengths[i]) for i in indices if i >= 0), default=1)
    shape = (len(indices), width)
    input_ids = np.full(shape, pad_id, dtype=np.int64)
    position_ids = np.zeros(shape, dtype=np.int64)
    loss_mask = np.zeros(shape, dtype=bool)
    for b, i in enumerate(indices):
        end = 0
        for document in rows.members[i] if i >= 0 else ():
            first, last = rows.offsets[document], rows.offsets[document + 1]
            start, end = end, end + last - first
            input_ids[b, start:end] = rows.tokens[first:last]
            loss_mask[b, start:end] = rows.mask[first:last]
            position_ids[b, start:end] = np.arange(last - first)
        position_ids[b, end:] = np.arange(width - end)
    return Batch(torch.from_numpy(input_ids), torch.from_numpy(position_ids), torch.from_numpy(loss_mask))


def collate_flat(rows: Rows, indices: Sequence[int], pad_id: int) -> Batch:
    """The rows `indices` end to end, `[1, tokens]` and no padding; -1 is an empty row."""
    documents = [document for i in indices if i >= 0 for document in rows.members[i]]
    spans = [slice(*rows.offsets[document : document + 2]) for document in documents]
    return end_to_end([(rows.tokens[s], np.arange(s.stop - s.start), rows.mask[s]) for s in spans], pad_id)


def end_to_end(pieces: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], pad_id: int) -> Batch:
    """Batch `[1, tokens]` of pieces: tokens, positions and targets of each.

    If there are none, it is one token of padding: a model must be given something.
    """
    pieces = pieces or [([pad_id], [0], [False])]
    fields = zip(zip(*pieces, strict=True), (np.int64, np.int64, bool), strict=True)
    return Batch(*(torch.from_numpy(np.concatenate(parts).astype(dtype))[None] for parts, dtype in fields))


@lru_cache(maxsize=2)  # every step asks for its part of the same one
def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """Order in which epoch `epoch` visits `n` rows, int64 [n], read-only: a pure function of its arguments."""
    order = np.random.default_rng([seed, epoch]).permutation(n)
    order.flags.writeable = False
    return order
