"""Training data as a stream of texts: conversations, pre-training rows, or plain text, in memory only bit by bit.

JSONL, Parquet, plain text and data sets of the hub are streamed; a JSON list is read whole, as JSON has to be.
"""

import gzip
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from llamax.data.formats import FORMATS, RowError, cut, detect, preference
from llamax.data.formats import text as text_field
from llamax.data.readers import clear_read_errors
from llamax.data.sources import cards, find, read, rows
from llamax.errors import DataError

TEXT_FIELDS = ("text", "content")  # of a pre-training row
PLAIN = (".txt", ".txt.gz")


class Document(NamedTuple):
    """A text of the training data. `row`: its row or line, from 1; `goes_on`: it continues the document before."""

    row: int
    text: str
    goes_on: bool = False


class Documents(NamedTuple):
    """A stream of documents, and how many there will be where that is known beforehand."""

    stream: Iterable[Document]
    total: int | None


def documents(source: str, *, split: str = "train", fields: Sequence[str] = ()) -> Documents:
    """The texts of `source`: a data card's name, a file or a hub id, as `llamax.data.sources` finds them.

    Of a row: all messages, if it is a conversation or a preference pair; else its `text` or `content`; or the named
    `fields`. What belongs to one row is one text. A .txt file is a single text; its rows are its lines.

    Raises: DataError: no such source, or, while the stream is read, a row that has no such text.
    """
    origin = find(source, split)
    if origin.file and source not in cards() and split != "train":
        raise DataError(f"{source}: is a file, which has no split {split!r}; splits are of named sources and hub ids")
    if origin.format == "benchmark" and not fields:
        raise DataError(f"{source} is a benchmark; training data is wanted here, or name the --fields that hold text")
    if fields and (origin.world or (origin.file and origin.file.name.endswith(PLAIN))):
        raise DataError(f"{source}: has no fields to choose from ({', '.join(fields)} given)")
    if origin.world:
        made = read(source)
        return Documents((Document(n, _said(one.messages)) for n, one in enumerate(made, 1)), len(made))
    if origin.file and origin.file.name.endswith(PLAIN):
        return Documents(_lines(origin.file), _count_lines(origin.file))
    total = cards()[source].splits[split].items if source in cards() else _count_rows(origin.file)
    return Documents(_texts(rows(source, split), source, origin.format, tuple(fields)), total)


def row_number(place: str) -> int:
    """7 of "line 7" or "row 7"."""
    return int(place.rpartition(" ")[2])


def _texts(stream: Iterator[tuple[str, Any]], source: str, format: str, fields: tuple[str, ...]) -> Iterator[Document]:
    """Every row as a document; the first row's fields decide how the others are read."""
    first = next(stream, None)
    if first is None:
        raise DataError(f"{source}: no rows in it")
    if not fields and format == "auto":
        format, fields = _form(first[1], source)
    for place, row in chain([first], stream):
        try:
            yield Document(row_number(place), _text(row, format, fields))
        except RowError as error:
            raise DataError(f"{source}: {place} {error}") from None
        except RecursionError:
            raise DataError(f"{source}: {place} is nested too deeply") from None


def _form(row: Any, source: str) -> tuple[str, tuple[str, ...]]:
    """How a source with this first row is read: its format, or the field that holds its text."""
    if isinstance(row, RowError | str):
        return "", ()
    format = detect(row)
    if format:
        return format, ()
    field = next((name for name in TEXT_FIELDS if isinstance(row, dict) and name in row), None)
    if field is None:
        has = cut(", ".join(map(str, row))) if isinstance(row, dict) else f"no fields ({type(row).__name__})"
        wanted = f"a conversation, {' or '.join(TEXT_FIELDS)}; name others with --fields"
        raise DataError(f"{source}: no text in its first row, which has {has}: should be {wanted}")
    return "", (field,)


def _text(row: Any, format: str, fields: tuple[str, ...]) -> str:
    """All text of a row. Raises: RowError."""
    if isinstance(row, RowError):
        raise row
    if isinstance(row, str):
        return row
    if not isinstance(row, dict):
        raise RowError("", f"is {type(row).__name__}", "an object with named fields, or a text")
    if fields:
        return "\n".join(text_field(row, name) if row.get(name, row) is not None else "" for name in fields)
    if format == "preference":
        pair = preference(row, "")
        return _said([*pair.prompt, *pair.chosen, *pair.rejected])
    return _said(FORMATS[format](row))


def _said(messages: Iterable[Any]) -> str:
    return "\n".join(message.content for message in messages)


def _open(path: Path) -> Any:
    return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")


def _lines(path: Path) -> Iterator[Document]:
    with clear_read_errors(path), _open(path) as file:
        for n, line in enumerate(file, 1):
            try:
                yield Document(n, line.decode("utf-8-sig" if n == 1 else "utf-8"), goes_on=n > 1)
            except UnicodeDecodeError as error:
                raise DataError(f"{path}: line {n} is not UTF-8 ({error.reason}); convert it first") from None


def _count_lines(path: Path) -> int:
    with clear_read_errors(path), _open(path) as file:
        blocks = iter(lambda: file.read(1 << 20), b"")
        return sum(block.count(b"\n") for block in blocks)


def _count_rows(path: Path | None) -> int | None:
    """How many rows a file has, where counting them is quick next to reading them."""
    if path is None or not path.is_file():
        return None
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        return _count_lines(path)
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        try:
            return pyarrow.parquet.ParquetFile(path).metadata.num_rows
        except pyarrow.ArrowInvalid:
            return None  # reading it says what is wrong
    return None
