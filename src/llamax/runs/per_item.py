"""Per-item outcomes of any origin: a CSV, JSONL, JSON or Parquet file of somebody's, or a run of ours.

    logged = Columns(item=("doc_id",), outcome="exact_match")
    old = read_items("samples_gsm8k_old.jsonl", logged, {"filter": "strict-match"})
    new = read_items("samples_gsm8k_new.jsonl", logged, {"filter": "strict-match"})
    pairs = pair(old, new)

A column may lie inside another one: `doc.subject` is the field `subject` of the field `doc`, as in the samples that
lm-eval logs.
"""

import contextlib
import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llamax import files
from llamax.data.formats import RowError
from llamax.data.readers import SUFFIXES, clear_read_errors, file_rows
from llamax.errors import DataError
from llamax.runs.keys import few

WORDS = {"true": 1.0, "false": 0.0, "correct": 1.0, "incorrect": 0.0}
"""Outcomes that are written as a word, in any case."""
MOST = 1e50  # of an outcome; squares of squares are still numbers
ABSENT = object()
OURS = {"model", "benchmark", "metric", "item", "sample", "outcome"}
"""Columns by which a file is known to be the items.parquet of a run of direction 08."""
MOST_VALUES = 20


class Items(NamedTuple):
    """Outcomes of one system: item id -> those of its answers, and item id -> cluster where the source tells one.

    `content`: a hash of the rows that were kept, of whatever order and spelling.
    """

    name: str
    outcomes: dict[str, list[float]]
    clusters: dict[str, str]
    content: str = ""


class Pairs(NamedTuple):
    """Two systems on the same items, in the order of the first.

    Ids [items], two arrays of outcomes [items, samples], clusters [items]. Where a system has more answers to some
    items than to others, its outcomes are their means [items, 1].
    `only`: how many items each of the two had for itself, which were left out.
    """

    names: tuple[str, str]
    items: list[str]
    outcomes: tuple[np.ndarray, np.ndarray]
    clusters: list[str] | None
    only: tuple[int, int]


class Columns(NamedTuple):
    """Which columns to read; `sample` numbers the answers to one item, which are averaged."""

    item: tuple[str, ...] = ("item",)
    outcome: str = "outcome"
    cluster: str | None = None
    sample: str | None = None


def read_items(source: str | Path, columns: Columns | None = None, where: Mapping[str, str] | None = None) -> Items:
    """The outcomes of a file, or of a complete run.

    SOURCE:MODEL keeps the rows whose column `model` is MODEL, SOURCE:COLUMN=VALUE those with this value, and `where`
    those with all of these values, compared as text. An outcome is a finite number, true or false, correct or
    incorrect. Of a run, or a file with its columns (`OURS`), `cluster` and `sample` are used unless others are named.

    Raises: DataError: no such file or run, an unreadable one, a missing column, a row without a usable outcome, an item
        that occurs twice, no row at all; the message names the file and the row.
    """
    columns, where = columns or Columns(), dict(where or {})
    name, chosen = _split(str(source))
    for column, value in chosen.items():
        if where.setdefault(column, value) != value:
            raise DataError(f"{source}: asks for {column}={value}, --where for {column}={where[column]}: choose one")
    path = files.locate(name)
    is_file = path.is_file() or _looks_like_a_file(name)
    rows = list(_file(path) if is_file else _run(name))
    if is_file and not (rows and isinstance(rows[0][1], dict) and rows[0][1].keys() >= OURS):
        return _gather(rows, str(source), columns, where)
    _refuse_mixtures(rows, str(source), where)
    own = {name: name for name in ("cluster", "sample") if name in rows[0][1] and getattr(columns, name) is None}
    return _gather(rows, str(source), columns._replace(**own), where)


def _split(source: str) -> tuple[str, dict[str, str]]:
    """A source's name, and the rows that it asks for after a colon."""
    name, colon, value = source.partition(":")
    if not colon or files.locate(source).is_file():
        return source, {}
    column, equals, wanted = value.partition("=")
    return name, {column: wanted} if equals else {"model": value}


def pair(first: Items, second: Items, *, common: bool = False) -> Pairs:
    """The items of both, in the order of the first. A cluster that only one of them tells counts for both.

    Raises: DataError: items that only one of the two has, unless `common`; none in both; clusters that contradict; the
        same rows twice.
    """
    if first.content and first.content == second.content:
        count = f"{len(first.outcomes)} items"
        raise DataError(f"{first.name} and {second.name} hold the same rows on {count}: there is nothing to compare")
    alone = [[i for i in one.outcomes if i not in other.outcomes] for one, other in ((first, second), (second, first))]
    if any(alone) and not common:
        parts = [f"{len(a)} only in {s.name} ({few(a)})" for a, s in zip(alone, (first, second), strict=True) if a]
        raise DataError(f"not the same items: {', '.join(parts)}; --common compares the items of both")
    items = [item for item in first.outcomes if item in second.outcomes]
    if not items:
        raise DataError(f"{first.name} and {second.name} have no item in common: do both call their items the same?")
    outcomes = (_table(first, items), _table(second, items))
    left_out = (len(alone[0]), len(alone[1]))
    return Pairs((first.name, second.name), items, outcomes, _clusters(first, second, items), left_out)


def _table(source: Items, items: list[str]) -> np.ndarray:
    """Outcomes [items, samples], or their means [items, 1] where the numbers of samples differ."""
    answers = [source.outcomes[item] for item in items]
    same = len({len(row) for row in answers}) == 1
    return np.array(answers if same else [[np.mean(row)] for row in answers])


def _clusters(first: Items, second: Items, items: list[str]) -> list[str] | None:
    """Clusters [items] of two sources that do not contradict each other; None where neither tells any."""
    both = [item for item in items if item in first.clusters and item in second.clusters]
    for item in both:
        one, other = first.clusters[item], second.clusters[item]
        if one != other:
            count = sum(first.clusters[i] != second.clusters[i] for i in both)
            more = f" ({count} such items)" if count > 1 else ""
            raise DataError(f"item {item!r} is of cluster {one!r} in {first.name}, {other!r} in {second.name}{more}")
    known = second.clusters | first.clusters
    if known and (bare := [item for item in items if item not in known]):
        raise DataError(f"{few(bare)}: no cluster in {first.name} nor in {second.name}; name one for every item")
    return [known[item] for item in items] if known else None


def _looks_like_a_file(source: str | Path) -> bool:
    return Path(str(source).removesuffix(".gz")).suffix in (*SUFFIXES, ".csv", ".tsv", ".txt")


def _file(path: Path) -> Iterator[tuple[str, Any]]:
    """(place, row) pairs of a file."""
    suffix = Path(path.name.removesuffix(".gz")).suffix
    if suffix not in (".csv", *SUFFIXES):
        raise DataError(f"{path}: wants a name that ends in .csv, {', '.join(SUFFIXES)} (.gz after the text ones)")
    if suffix == ".csv" and path.is_file():
        with clear_read_errors(path):
            yield from _csv_rows(path)
    else:
        yield from file_rows(path)


def _csv_rows(path: Path) -> Iterator[tuple[str, Any]]:
    import gzip

    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            header = next(reader, None)
            if header is None:
                return
            if twice := sorted({name for name in header if header.count(name) > 1}):
                raise DataError(f"{path}: column {twice[0]!r} occurs twice in the header")
            for cells in reader:
                place = f"line {reader.line_num}"
                if len(cells) != len(header) and cells:
                    found = f"has {len(cells)} of the header's {len(header)} cells"
                    yield place, RowError("", found, "one for each column; is the line torn?")
                elif cells:
                    yield place, dict(zip(header, cells, strict=True))
        except csv.Error as error:
            raise DataError(f"{path}: line {reader.line_num}: not CSV ({error})") from None


def _run(run: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a complete run's items."""
    from llamax.runs.store import Store

    store = Store()
    frame = store.items(store.load(run))
    if frame.empty:
        raise DataError(f"run {run} has no items")
    names = list(frame.columns)
    return ((f"row {n}", dict(zip(names, row, strict=True))) for n, row in enumerate(frame.itertuples(False, None), 1))


def _refuse_mixtures(rows: list[tuple[str, dict[str, Any]]], name: str, where: Mapping[str, str]) -> None:
    """Raise `DataError` where rows of several models, benchmarks or metrics would be averaged into one."""
    whole = [row for _, row in rows if isinstance(row, dict)]  # one that is torn is told of later
    kept = [row for row in whole if all(_text(row.get(key)) == value for key, value in where.items() if key in row)]
    how = {"model": "choose with RUN:MODEL", "benchmark": "choose with --benchmark", "metric": "choose with --metric"}
    for column, hint in how.items():
        values = list(dict.fromkeys(_text(row[column]) for row in kept if column in row))
        if len(values) > 1 and column not in where:
            raise DataError(f"{name}: rows of {len(values)} {column}s ({', '.join(values[:MOST_VALUES])}): {hint}")


def _gather(rows: Iterable[tuple[str, Any]], name: str, columns: Columns, where: Mapping[str, str]) -> Items:
    """Rows to outcomes by item."""
    found: dict[str, dict[str, tuple[str, float, Any]]] = {}  # item -> sample -> place, outcome, row
    clusters: dict[str, str] = {}
    values: dict[str, dict[str, None]] = {key: {} for key in where}
    contents: list[str] = []
    seen = kept = 0
    for place, row in rows:
        seen += 1
        at = f"{name}: {place}"
        if not isinstance(row, dict):
            raise DataError(f"{at} {row if isinstance(row, RowError) else 'is no object of columns'}")
        here = {key: _text(_value(row, key, at)) for key in where}
        if here != where:
            for key, value in here.items():
                values[key][value] = None
            continue
        kept += 1
        names = [_label(row, column, at) for column in columns.item]
        item = "/".join(name.replace("/", "//") for name in names) if len(names) > 1 else names[0]
        sample = _label(row, columns.sample, at) if columns.sample else ""
        answers = found.setdefault(item, {})
        if sample in answers:
            raise DataError(_twice(name, item, answers[sample], (place, row), columns))
        answers[sample] = (place, _outcome(row, columns.outcome, at), row)
        contents.append(_canonical(row | {columns.outcome: answers[sample][1]}))
        _note_cluster(clusters, row, item, columns.cluster, at)
    if not kept:
        raise DataError(f"{name}: no rows in it" if not seen else f"{name}: {_none(seen, where, values)}")
    outcomes = {item: [outcome for _, outcome, _ in answers.values()] for item, answers in found.items()}
    return Items(name, outcomes, clusters, files.sha256_json(sorted(contents)))


def _canonical(row: dict[str, Any]) -> str:
    """A row's content: the order of its columns, and whether a number is written as 1, 1.0 or "1", do not count."""
    texts = {key: _text(value) if _plain(value) else value for key, value in row.items()}
    return json.dumps(texts, sort_keys=True, default=str)


def _none(seen: int, where: Mapping[str, str], values: Mapping[str, Iterable[str]]) -> str:
    """Why none of the rows was kept, and which values there are."""
    wanted = " and ".join(f"{key}={value}" for key, value in where.items())
    return f"none of {seen} rows has {wanted}; there are " + "; ".join(
        f"{key}: {', '.join(list(found)[:MOST_VALUES])}" for key, found in values.items()
    )


def _note_cluster(clusters: dict[str, str], row: dict[str, Any], item: str, column: str | None, at: str) -> None:
    """Remember the cluster of `item`, if there is such a column in this source at all."""
    if column is None or _find(row, column) is ABSENT:
        return
    cluster = _label(row, column, at)
    if clusters.setdefault(item, cluster) != cluster:
        raise DataError(f"{at}: item {item!r} is of cluster {cluster!r}, before of {clusters[item]!r}")


def _twice(name: str, item: str, first: tuple[str, float, Any], second: tuple[str, Any], columns: Columns) -> str:
    """What to do about two rows of one item: choose by a column in which they differ."""
    (place, _, one), (again, other) = first, second
    used = {*columns.item, columns.outcome}
    differ = [key for key in other if key in one and key not in used and _plain(one[key]) and one[key] != other[key]]
    hint = ""
    if differ:
        key = differ[0]
        values = f"{_text(one[key])!r} and {_text(other[key])!r}"
        hint = f"; they differ in {key} ({values}): choose with --where {key}={_text(one[key])}"
        hint += f", or average them with --sample {key}"
    return f"{name}: item {item!r} on {place} and again on {again}{hint or '; keep one of them'}"


def _find(row: Mapping[str, Any], column: str) -> Any:
    """The value of a column, or of a dotted path into one; `ABSENT` where there is none."""
    if column in row:
        return row[column]
    head, dot, rest = column.partition(".")
    inner = row.get(head)
    return _find(inner, rest) if dot and isinstance(inner, Mapping) else ABSENT


def _value(row: Mapping[str, Any], column: str, at: str) -> Any:
    value = _find(row, column)
    if value is ABSENT:
        raise DataError(f"{at} has no column {column!r}: it has {', '.join(map(str, list(row)[:MOST_VALUES]))}")
    return value


def _label(row: Mapping[str, Any], column: str, at: str) -> str:
    """An item's, sample's or cluster's name as text: 7, 7.0 and "7" are the same."""
    value = _value(row, column, at)
    text = _text(value) if _plain(value) else ""
    if not text or (isinstance(value, float) and not math.isfinite(value)):
        raise DataError(f"{at}: {column} is {_shown(value)}, should be a name or a number")
    return text


def _outcome(row: Mapping[str, Any], column: str, at: str) -> float:
    """An outcome as a finite number."""
    value = _value(row, column, at)
    number = math.nan
    if isinstance(value, (bool, np.bool_, int, float, np.number)):
        with contextlib.suppress(OverflowError):  # an integer beyond any float
            number = float(value)
    elif isinstance(value, str):
        number = WORDS.get(value.strip().lower(), math.nan)
        if math.isnan(number):
            number = _parsed(value)
    if not abs(number) <= MOST:
        raise DataError(f"{at}: {column} is {_shown(value)}, should be a finite number (up to {MOST:g}), true or false")
    return number


def _parsed(text: str) -> float:
    try:
        return math.nan if "_" in text else float(text)  # Python would read 1_0 as 10
    except ValueError:
        return math.nan


def _plain(value: Any) -> bool:
    return isinstance(value, (str, int, float, np.number, np.bool_))


def _text(value: Any) -> str:
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(int(value))
    return str(value).strip()


def _shown(value: Any) -> str:
    """A value in an error message, cut short."""
    text = "empty" if value in ("", None) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
