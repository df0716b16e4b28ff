"""Text to shards: a corpus of any size as files of token ids that can be mapped into memory.

    folder/
        plan.json             what is being made: inputs, tokenizer, cuts; a folder of another plan is refused
        tokens-00000.bin      uint16 or uint32, little-endian: BOS text EOS BOS text EOS ...
        documents-00000.bin   int64 [documents + 1]: document d of the shard is tokens[offsets[d] : offsets[d + 1]]
        shard-00000.json      receipt, written last: counts, sha256 of both files, pieces of input consumed
        shards.json           the manifest, written when all is done

Memory is bounded by a batch of pieces (and by a row, line or paragraph where that is the document; a .json is read
whole), not by the corpus. A shard ends with the piece of text that fills it; a document cut there goes on in the next
shard, which repeats the last token, so that every token but a document's first is predicted once (as
`packing.Documents` does). Killed at any moment, the work goes on after the last receipt: the inputs are read past, and
nothing that is finished is tokenized again. What is finished is compared with its receipt (once, until it changes),
and only a shard that is damaged or missing is made again.

An input is known again by its name, size, time of change and both ends: one that was only touched or copied without
its time counts as another.
"""

import array
import contextlib
import hashlib
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from filelock import FileLock, Timeout
from transformers import PreTrainedTokenizerBase

from llamax.data.encode import encode_continuations, encode_texts
from llamax.data.formats import RowError, is_unicode
from llamax.data.readers import clear_read_errors, file_rows, open_text
from llamax.errors import DataError, DiskFullError
from llamax.files import clear_disk_errors, sha256_file, sha256_json, write_atomic
from llamax.progress import Progress

FORMAT = 1
SHARD_TOKENS = 1 << 26  # 128 MiB at two bytes a token
PIECE = 1 << 19  # characters of a document that are tokenized together
BATCH = 1 << 22  # characters tokenized in one call; the tokenizer spreads them over the cores
PIECES_AT_ONCE = 4096
ENDS = 1 << 20  # bytes at either end of an input by which it is known again
MANIFEST = "shards.json"
CHECKED = ".checked.json"
KINDS = {type(None): "null", bool: "true or false", int: "a number", float: "a number", list: "a list"}

Split = Literal["file", "paragraph", "line"]


class Piece(NamedTuple):
    """A part of a document, whether the document starts and ends with it, and how far the inputs are read (bytes)."""

    text: str
    first: bool
    last: bool
    read: int


class Receipt(NamedTuple):
    """One finished shard. pieces: of the input, this shard's. open: it ends in the middle of a document."""

    tokens: int
    documents: int
    pieces: int
    empty: int
    open: bool
    sha256: dict[str, str]


class ShardReport(NamedTuple):
    """What a folder of shards holds; `empty`: documents without text, which were left out; `made`: shards just now."""

    shards: int
    documents: int
    tokens: int
    empty: int
    made: int

    def __str__(self) -> str:
        left_out = f"; {self.empty:,} empty documents left out" if self.empty else ""
        counts = f"{self.tokens:,} tokens, {self.documents:,} documents in {self.shards:,} shards"
        return f"{counts} ({self.made:,} made now){left_out}"


def shard_files(
    files: Sequence[Path | str],
    tokenizer: PreTrainedTokenizerBase,
    folder: Path | str,
    *,
    shard_tokens: int = SHARD_TOKENS,
    field: str = "text",
    split: Split = "file",
) -> ShardReport:
    """Tokenize files, in the order given, into shards under `folder`; finished shards are not made again.

    .jsonl, .json and .parquet: a row is a document, its text in `field`. .txt: `split` says what a document is: the
    whole file, a paragraph (text between blank lines) or a line. All but .parquet may be gzipped (.gz).
    Raises: DataError: a file missing, malformed or changed; a folder with other shards; somebody else writing there.
    """
    paths = [Path(file) for file in files]
    if not paths:
        raise DataError("no files to make shards of")
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path}: no such file")
    inputs = {"inputs": [_mark(path) for path in paths], "field": field, "split": split}
    total = sum(path.stat().st_size for path in paths)
    return _write(file_pieces(paths, field, split), inputs, tokenizer, Path(folder), shard_tokens, total)


def shard_texts(
    texts: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    folder: Path | str,
    *,
    name: str,
    shard_tokens: int = SHARD_TOKENS,
) -> ShardReport:
    """As `shard_files`, from documents that come in the same order every time they are asked for.

    name: says which they are; a folder begun under another name is refused.
    """
    return _write(text_pieces(texts), {"inputs": name}, tokenizer, Path(folder), shard_tokens, 0)


def text_pieces(texts: Iterable[str]) -> Iterator[Piece]:
    """The pieces of documents, none for an empty one but a mark that it was there."""
    for text in texts:
        yield from _cut(text, 0)


def file_pieces(paths: Sequence[Path], field: str, split: Split) -> Iterator[Piece]:
    """The pieces of all documents of all files."""
    before = 0
    for path in paths:
        size = path.stat().st_size
        stream = _plain(path, split) if _suffix(path) == ".txt" else _fields(path, field)
        seen = 0
        for piece in stream:
            seen += len(piece.text)
            yield piece._replace(read=before + min(seen, size))
        before += size


def _suffix(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix


def _fields(path: Path, field: str) -> Iterator[Piece]:
    """Documents of a file of rows. Raises: DataError: names the row without a text."""
    for place, row in file_rows(path):
        if isinstance(row, RowError):
            raise DataError(f"{path}: {place} {row}")
        text = row.get(field) if isinstance(row, dict) else None
        if not isinstance(text, str):
            raise DataError(f"{path}: {place}: no text in the field {field!r}{_instead(row, field)}")
        if not is_unicode(text):
            raise DataError(f"{path}: {place}: {field!r} has a lone surrogate (half a character), which is no text")
        yield from _cut(text, 0)


def _instead(row: Any, field: str) -> str:
    """What a row without a text has."""
    if isinstance(row, dict) and field in row:
        return f": it is {KINDS.get(type(row[field]), 'an object')}"
    there = ", ".join(map(str, row))[:100] if isinstance(row, dict) else type(row).__name__
    return f"; it has: {there or 'nothing'}"


def _plain(path: Path, split: Split) -> Iterator[Piece]:
    """Documents of a .txt file, read a piece at a time."""
    with clear_read_errors(path), open_text(path) as file:
        if split == "file":
            yield from _joined(iter(lambda: file.read(PIECE - 1024) + file.readline(1024), ""))
        elif split == "line":
            for line in file:
                if line.strip():
                    yield from _cut(line.rstrip("\n"), 0)
        else:
            lines: list[str] = []
            for line in file:
                if line.strip():
                    lines.append(line)
                elif lines:
                    yield from _cut("".join(lines).rstrip("\n"), 0)
                    lines = []
            if lines:
                yield from _cut("".join(lines).rstrip("\n"), 0)


def _joined(parts: Iterator[str]) -> Iterator[Piece]:
    """One document whose parts come one after the other."""
    part = next(parts, "")
    first = True
    while True:
        following = next(parts, None)
        yield Piece(part, first, following is None, 0)
        if following is None:
            return
        part, first = following, False


def _cut(text: str, start: int) -> Iterator[Piece]:
    """One document in pieces of at most `PIECE` characters, cut before a blank where there is one."""
    while True:
        end = len(text)
        if end - start > PIECE:
            blank = text.rfind(" ", start + PIECE // 2, start + PIECE)
            end = blank if blank > 0 else start + PIECE
        yield Piece(text[start:end], start == 0, end == len(text), 0)
        if end == len(text):
            return
        start = end


def _mark(path: Path) -> list[Any]:
    """Name, size, time of change (ns) and sha256 of both ends of an input: it is not read twice only to know it."""
    size, changed, digest = path.stat().st_size, path.stat().st_mtime_ns, hashlib.sha256()
    with open(path, "rb") as file:
        digest.update(file.read(ENDS))
        file.seek(max(0, size - ENDS))
        digest.update(file.read(ENDS))
    return [path.name, size, changed, digest.hexdigest()]


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hex sha256 of what decides the ids of a text: the Rust tokenizer if there is one, else the vocabulary."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return sha256_json([type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())])
    content = json.loads(backend.to_str())
    content.pop("padding", None), content.pop("truncation", None)  # what callers set on the way
    return sha256_json(content)


def _write(
    pieces: Iterator[Piece],
    inputs: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    shard_tokens: int,
    total: int,
) -> ShardReport:
    """Make the shards that are not there yet or are damaged, then the manifest."""
    if shard_tokens < 2:
        raise DataError(f"shard_tokens {shard_tokens}: a shard takes at least 2 tokens")
    dtype = "<u2" if len(tokenizer) <= 1 << 16 else "<u4"
    plan = {"format": FORMAT, **inputs, "tokenizer": tokenizer_hash(tokenizer), "vocabulary": len(tokenizer)}
    plan = json.loads(json.dumps(plan | {"dtype": dtype, "shard_tokens": shard_tokens}))
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder), clear_disk_errors(folder):
        _same_plan(folder, plan)
        receipts, complete = _finished(folder, plan)
        bad = _damaged_shards(folder, receipts, np.dtype(dtype).itemsize)
        made: list[Receipt] = []
        if bad or not complete:
            with Progress(total or 1, "tokenize", shown=total > 0) as bar:
                missing = [*bad] if complete else [*bad, None]
                made = _make_missing(pieces, receipts, missing, tokenizer, folder, plan, bar)
        receipts += made[len(bad) :]
        for number, receipt in enumerate(receipts):
            if _read_receipt(folder, number) != receipt:
                write_atomic(folder / f"shard-{number:05d}.json", json.dumps(receipt._asdict()))
        if not complete:
            if not sum(receipt.documents for receipt in receipts):
                raise DataError(f"{folder}: the inputs hold no text")
            manifest = {"plan": plan, "shards": [receipt._asdict() for receipt in receipts]}
            write_atomic(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    documents = sum(r.documents for r in receipts) - sum(r.open for r in receipts)
    tokens, empty = sum(r.tokens for r in receipts), sum(r.empty for r in receipts)
    return ShardReport(len(receipts), documents, tokens, empty, len(made))


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Nobody else writes into `folder` meanwhile; the lock goes with the process, however that ends."""
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        with lock:
            yield
    except Timeout:
        raise DataError(f"{folder}: another process is writing shards here; wait for it, or choose another") from None


def _same_plan(folder: Path, plan: dict[str, Any]) -> None:
    """Write the plan, or compare it with the one that is there (damaged: with the manifest's) if it has shards."""
    file = folder / "plan.json"
    begun = (folder / MANIFEST).exists() or any(folder.glob("shard-*.json"))
    before = _read_object(file) or _read_object(folder / MANIFEST).get("plan")
    if begun and not isinstance(before, dict):
        raise DataError(f"{file}: damaged or missing, so nobody knows what these shards are of; delete {folder}")
    changed = [key for key in before | plan if before.get(key) != plan.get(key)] if begun else []
    if changed:
        shown = _difference(changed[0], before.get(changed[0]), plan.get(changed[0]))
        raise DataError(f"{folder}: holds shards of something else: {shown}; choose another folder or delete it")
    if _read_object(file) != plan:
        write_atomic(file, json.dumps(plan, indent=1) + "\n")


def _difference(key: str, before: Any, now: Any) -> str:
    """Where two values of a plan differ, in words."""
    if key == "inputs" and isinstance(before, list) and isinstance(now, list):
        place, old, new = next((i, *pair) for i, pair in enumerate(zip_longest(before, now), 1) if pair[0] != pair[1])
        if not old or not new or old[0] != new[0]:
            return f"input {place} was {old[0] if old else 'not there'}, is {new[0] if new else 'not there'}"
        same = f"has been changed since (still {new[1]:,} bytes)"
        return f"input {place}, {new[0]}, " + (f"had {old[1]:,} bytes, has {new[1]:,}" if old[1] != new[1] else same)
    old, new = str(before), str(now)
    start = max(0, next((i for i, (a, b) in enumerate(zip_longest(old, new)) if a != b), 0) - 40)
    dots = "..." if start else ""
    return f"{key} was {dots}{old[start : start + 80]}, is {dots}{new[start : start + 80]}"


def _read_object(file: Path) -> dict[str, Any]:
    """A JSON object; an empty one if it is missing or damaged."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _receipt(value: Any) -> Receipt | None:
    """A receipt from JSON; None if it is none."""
    try:
        found = Receipt(**value)
    except TypeError:
        return None
    return found if all(type(n) is int for n in found[:4]) and isinstance(found.sha256, dict) else None


def _read_receipt(folder: Path, number: int) -> Receipt | None:
    """The receipt of a shard; None if it is missing or damaged."""
    return _receipt(_read_object(folder / f"shard-{number:05d}.json"))


def read_receipts(folder: Path) -> list[Receipt]:
    """Receipts of the finished shards, in order, up to the first that is missing or damaged."""
    receipts: list[Receipt] = []
    while receipt := _read_receipt(folder, len(receipts)):
        receipts.append(receipt)
    return receipts


def _finished(folder: Path, plan: dict[str, Any]) -> tuple[list[Receipt], bool]:
    """Receipts, in order, from their files or else the manifest; whether the manifest says that they are all."""
    manifest = _read_object(folder / MANIFEST)
    rows = manifest.get("shards") if manifest.get("plan") == plan else None
    listed = [_receipt(row) for row in rows] if isinstance(rows, list) else []
    receipts: list[Receipt] = []
    while receipt := _read_receipt(folder, len(receipts)) or next(iter(listed[len(receipts) :]), None):
        receipts.append(receipt)
    return receipts, bool(receipts) and receipts == listed


def _damaged_shards(folder: Path, receipts: list[Receipt], itemsize: int) -> list[int]:
    """Numbers of the shards whose files are not what their receipt says."""
    bad = damaged(folder, {name: digest for receipt in receipts for name, digest in receipt.sha256.items()})
    found = []
    for number, receipt in enumerate(receipts):
        sizes = {f"tokens-{number:05d}.bin": receipt.tokens * itemsize}
        sizes[f"documents-{number:05d}.bin"] = (receipt.documents + 1) * 8
        whole = receipt.sha256.keys() == sizes.keys() and not bad & sizes.keys()
        if not whole or any((folder / name).stat().st_size != size for name, size in sizes.items()):
            found.append(number)
    return found


def damaged(folder: Path, digests: dict[str, str]) -> set[str]:
    """Names of files that are missing or have another sha256; read are those that changed since that was last done.

    What was compared is noted beside the shards by size and time of change, where that can be written.
    """
    known = _read_object(folder / CHECKED)
    stamps: dict[str, list] = {}
    for name, digest in digests.items():
        file = folder / name
        if file.is_file():
            stamp = [digest, file.stat().st_size, file.stat().st_mtime_ns]
            if known.get(name) == stamp or sha256_file(file) == digest:
                stamps[name] = stamp
    if stamps != known:
        with contextlib.suppress(OSError, DiskFullError):
            write_atomic(folder / CHECKED, json.dumps(stamps))
    return digests.keys() - stamps.keys()


def _make_missing(
    pieces: Iterator[Piece],
    receipts: list[Receipt],
    missing: Sequence[int | None],
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    plan: dict[str, Any],
    bar: Progress,
) -> list[Receipt]:
    """Make these shards of `receipts` again, and for None all after them; give the receipts of what was made."""
    made: list[Receipt] = []
    read = 0
    for number in missing:
        done, wanted = receipts[:number], None if number is None else receipts[number]
        start = sum(receipt.pieces for receipt in done)
        deque(islice(pieces, start - read), maxlen=0)
        part = pieces if wanted is None else islice(pieces, wanted.pieces)
        read = start + (wanted.pieces if wanted else 0)
        made += _make(part, done, tokenizer, folder, plan, bar, wanted)
    bar.reach(bar.total)
    return made


def _make(
    pieces: Iterator[Piece],
    done: list[Receipt],
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    plan: dict[str, Any],
    bar: Progress,
    wanted: Receipt | None = None,
) -> list[Receipt]:
    """Write the shards after those of `done`; give their receipts. wanted: what the only one has to be."""
    made: list[Receipt] = []
    carry = _last_token(folder, len(done) - 1, plan["dtype"]) if done and done[-1].open else None
    shard = _Shard(folder, len(done), plan["dtype"], carry)
    for piece, ids in _encoded(pieces, tokenizer):
        if ids and shard.tokens >= plan["shard_tokens"]:
            made.append(shard.close(wanted))
            carry = shard.last if made[-1].open else None
            shard = _Shard(folder, len(done) + len(made), plan["dtype"], carry)
        shard.add(piece, ids, tokenizer.bos_token_id, tokenizer.eos_token_id)
        bar.reach(min(piece.read, bar.total - 1), tokens=shard.tokens)
    last = shard.close(wanted)
    return [*made, last] if last.tokens else made


def _last_token(folder: Path, number: int, dtype: str) -> int:
    path = folder / f"tokens-{number:05d}.bin"
    return int(np.memmap(path, dtype, mode="r")[-1])


def _encoded(pieces: Iterator[Piece], tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[Piece, list[int]]]:
    """Each piece with its ids, tokenized many at a time. A piece inside a document is encoded as its continuation."""
    for batch in _batches(pieces):
        starts = iter(encode_texts(tokenizer, [piece.text for piece in batch if piece.first]))
        inner = [piece.text for piece in batch if not piece.first]
        rest = iter(encode_continuations(tokenizer, inner) if inner else [])
        for piece in batch:
            yield piece, next(starts if piece.first else rest)


def _batches(pieces: Iterator[Piece]) -> Iterator[list[Piece]]:
    """Pieces in lists of about `BATCH` characters."""
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.text)
        if size >= BATCH or len(batch) >= PIECES_AT_ONCE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _Shard:
    """A shard in the making: tokens go to a hidden file as they come, the receipt makes it one of the finished."""

    def __init__(self, folder: Path, number: int, dtype: str, carry: int | None):
        self.folder, self.number, self.dtype = folder, number, dtype
        self.offsets = array.array("q")
        self.tokens = self.pieces = self.empty = 0
        self.open = carry is not None
        self.last = carry
        self.digest = hashlib.sha256()
        self.work = folder / f".tokens-{number:05d}.bin"
        self.file = open(self.work, "wb")  # noqa: SIM115 (closed by `close`, or with a process that failed)
        if carry is not None:
            self.offsets.append(0)
            self._put([carry])

    def add(self, piece: Piece, ids: Sequence[int], bos: int, eos: int) -> None:
        """Append a piece, with BOS and EOS where its document starts and ends; an empty document is only counted."""
        self.pieces += 1
        if piece.first and piece.last and not ids:
            self.empty += 1
            return
        if piece.first:
            self.offsets.append(self.tokens)
        self._put([*([bos] if piece.first else []), *ids, *([eos] if piece.last else [])])
        self.open = not piece.last

    def _put(self, ids: list[int]) -> None:
        content = np.asarray(ids, self.dtype).tobytes()
        self.file.write(content)
        self.digest.update(content)
        self.tokens += len(ids)
        self.last = ids[-1] if ids else self.last

    def close(self, wanted: Receipt | None = None) -> Receipt:
        """Publish the shard: both files, then the receipt. An empty one leaves nothing but its receipt's counts.

        Raises: DataError: it is not the one that is wanted, so that those after it would not go on from it.
        """
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        name, documents = f"tokens-{self.number:05d}.bin", len(self.offsets)
        index = np.array([*self.offsets, self.tokens], "<i8").tobytes()
        hashes = {name: self.digest.hexdigest()}
        hashes[f"documents-{self.number:05d}.bin"] = hashlib.sha256(index).hexdigest()
        receipt = Receipt(self.tokens, documents, self.pieces, self.empty, self.open, hashes)
        if wanted not in (None, receipt):
            self.work.unlink()
            raise DataError(f"{self.folder}: shard {self.number} comes out as another one now; delete the folder")
        if not self.tokens:
            self.work.unlink()
            return receipt
        write_atomic(self.folder / f"documents-{self.number:05d}.bin", index)
        os.replace(self.work, self.folder / name)
        write_atomic(self.folder / f"shard-{self.number:05d}.json", json.dumps(receipt._asdict()))
        return receipt
