"""Files to rows to conversations, with every malformed row counted and the first few named.

A file is JSON (a list of rows), JSONL (a row per line), either of them gzipped, or Parquet.
"""

import contextlib
import gzip
import json
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

from llamax.data.conversation import Conversation, Preference
from llamax.data.formats import DETECTED_BY, FORMATS, RowError, conversation, cut, detect, known_formats, preference
from llamax.errors import DataError

SHOWN_FAULTS = 3
ROWS_TO_DETECT = 1000  # the first of them that fits a format decides
SUFFIXES = (".json", ".jsonl", ".parquet")

Read = TypeVar("Read", Conversation, Preference)


def read_file(path: Path | str, *, format: str = "auto", limit: int | None = None) -> list[Conversation]:
    """Conversations of one file, in its order; the first `limit` rows if given.

    Raises: DataError: no such file, not readable as what its name says, or rows that are malformed.
    """
    return convert(file_rows(Path(path)), str(path), format=format, limit=limit)


def convert(
    rows: Iterable[tuple[str, Any]], name: str, *, format: str = "auto", limit: int | None = None
) -> list[Conversation]:
    """Conversations from (place, row) pairs of the source `name`; `auto`: the first row that fits a format decides."""
    rows = _first(rows, limit, name)
    if format == "auto":
        format, rows = _detected(rows, name)
    if format == "preference":
        raise DataError(f"{name}: holds preference pairs, which llamax.data.sources.read_preferences reads")
    if format not in FORMATS:
        raise DataError(f"{name}: unknown format {format!r}; there are: {known_formats()}")
    return _collect(rows, name, lambda row, where: conversation(row, format, where))


def convert_preferences(rows: Iterable[tuple[str, Any]], name: str, *, limit: int | None = None) -> list[Preference]:
    """Preference pairs from (place, row) pairs of the source `name`."""
    return _collect(_first(rows, limit, name), name, preference)


def _first(rows: Iterable[tuple[str, Any]], limit: int | None, name: str) -> Iterator[tuple[str, Any]]:
    """The first `limit` rows, all of them for None."""
    check_limit(limit, name)
    return islice(rows, limit)


def check_limit(limit: int | None, name: str) -> None:
    """Raise `DataError` unless `limit` is None or a number of rows from 1."""
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise DataError(f"{name}: limit {limit!r} should be a number of rows from 1")


def _detected(rows: Iterator[tuple[str, Any]], name: str) -> tuple[str, Iterator[tuple[str, Any]]]:
    """Format of the first row whose fields show one, and all rows again."""
    seen = []
    for place, row in islice(rows, ROWS_TO_DETECT):
        seen.append((place, row))
        format = detect(row)
        if format is not None:
            return format, chain(seen, rows)
    if not seen:
        raise DataError(f"{name}: no rows in it")
    place, row = next(((place, row) for place, row in seen if not isinstance(row, RowError)), seen[0])
    if isinstance(row, RowError):
        return "messages", chain(seen, rows)
    fields = cut(", ".join(map(str, row))) if isinstance(row, dict) else f"no fields ({type(row).__name__})"
    raise DataError(f"{name}: no row shows a format: {place} has the fields {fields}; one shows by {DETECTED_BY}")


def _collect(rows: Iterable[tuple[str, Any]], name: str, parse: Callable[[Any, str], Read]) -> list[Read]:
    """Parse all rows; if any is malformed, one error with the count of all and the first few."""
    parsed: list[Read] = []
    faults: list[str] = []
    short = Path(name).name
    for place, row in rows:
        try:
            if isinstance(row, RowError):
                raise row
            parsed.append(parse(row, f"{short}:{place}"))
        except RowError as error:
            faults.append(f"{place} {error}")
        except RecursionError:
            faults.append(f"{place} is nested too deeply")
    if faults:
        more = f"; and {len(faults) - SHOWN_FAULTS} more" if len(faults) > SHOWN_FAULTS else ""
        count = f"{len(faults)} of {len(faults) + len(parsed)} rows malformed"
        raise DataError(f"{name}: {count}: {'; '.join(faults[:SHOWN_FAULTS])}{more}")
    if not parsed:
        raise DataError(f"{name}: no rows in it")
    return parsed


def file_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """(place, row) pairs of a file: place is "line 7" or "row 7", from 1; a broken line is a `RowError` for a row."""
    if not path.exists():
        raise DataError(f"{path}: no such file")
    if path.is_dir():
        inside = ", ".join(sorted(child.name for child in path.iterdir())[:8]) or "there is none"
        raise DataError(f"{path} is a folder; name a file in it ({inside})")
    readers = {".json": _json_rows, ".jsonl": _jsonl_rows, ".parquet": _parquet_rows}
    suffix = Path(path.name.removesuffix(".gz")).suffix
    if suffix not in readers:
        raise DataError(f"{path}: wants a name that ends in {', '.join(SUFFIXES)} (.gz after the first two)")
    with clear_read_errors(path):
        yield from readers[suffix](path)


@contextlib.contextmanager
def clear_read_errors(path: Path) -> Iterator[None]:
    """Turn what reading a file may raise into a `DataError` that names it."""
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: damaged gzip file ({error})") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); convert it first") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None


def open_text(path: Path) -> Any:
    """The file as text, unpacked if need be; a byte-order mark is dropped."""
    opener = gzip.open if path.suffix == ".gz" else open
    return opener(path, "rt", encoding="utf-8-sig")


def _json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    with open_text(path) as file:
        content = file.read()
    try:
        rows = json.loads(content)
    except json.JSONDecodeError as error:
        hint = "; one row per line belongs in a .jsonl file" if error.msg == "Extra data" else ""
        raise DataError(f"{path}: line {error.lineno}: not JSON: {error.msg} (column {error.colno}){hint}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: JSON that cannot be read: {unreadable(error)}") from None
    if not isinstance(rows, list):
        raise DataError(f"{path}: is a JSON {type(rows).__name__}; wants a list of rows")
    yield from ((f"row {n}", row) for n, row in enumerate(rows, 1))


def _jsonl_rows(path: Path) -> Iterator[tuple[str, Any]]:
    with open_text(path) as file:
        for n, line in enumerate(file, 1):
            if line.strip():
                yield f"line {n}", _line(line)


def _line(line: str) -> Any:
    """A line's row, or the `RowError` that it is not JSON."""
    try:
        return json.loads(line.rstrip("\r\n"))
    except json.JSONDecodeError as error:
        return RowError("", f"is not JSON ({error.msg}, column {error.colno})", "one object per line")
    except (ValueError, RecursionError) as error:
        return RowError("", f"cannot be read: {unreadable(error)}", "an object of fields that the format has")


def unreadable(error: Exception) -> str:
    """Why Python does not read what is JSON."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return f"a number of more than {sys.get_int_max_str_digits()} digits"


def _parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    n = 0
    try:
        file = pyarrow.parquet.ParquetFile(path)
        names = file.schema_arrow.names
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise DataError(f"{path}: has the column {twice[0]!r} twice")
        for batch in file.iter_batches():
            for row in batch.to_pylist():
                n += 1
                yield f"row {n}", row
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path}: not a Parquet file ({str(error).splitlines()[0]})") from None
    except (ValueError, OverflowError) as error:  # a date of the year 300000
        raise DataError(f"{path}: row {n + 1} or one of the next cannot be read ({error})") from None
