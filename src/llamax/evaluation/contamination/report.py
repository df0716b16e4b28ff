"""Which test items a training set holds: the check, its report, and the report's files."""

import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from llamax.data.sources import fingerprint
from llamax.errors import DataError
from llamax.evaluation.contamination.documents import Document, documents
from llamax.evaluation.contamination.index import SHORTEST, SIZES, UNSEEN, Index, Item, Scan
from llamax.evaluation.contamination.tokens import tokenize, unspaced
from llamax.files import atomic_folder, clear_disk_errors
from llamax.progress import Progress
from llamax.statistics import Estimate, wilson

MEASURES = (*(f"ngram_{n}" for n in reversed(SIZES)), "question")
SHOWN_ROWS = 5  # rows of the training data noted per item; `rows` of the report has all, without their items
COUNTS = ["tokens", "question_tokens", *(f"{kind}_{n}" for n in SIZES for kind in ("ngrams", "hits"))]
FILES = ("report.json", "items.parquet", "rows.parquet")


class Report(NamedTuple):
    """What a check found. Ids and numbers only, no text of a benchmark.

    source, split, fields: what was read; fingerprint: hash of its content. documents, tokens: how much that was;
        seconds: how long reading it took.
    items: one row per test item, in the order of the benchmarks: benchmark, item, tokens (of its text),
        question_tokens, ngrams_8 and hits_8 (its 8-grams and how many of them the data has), ngrams_13, hits_13,
        question (whether the data has the question whole), unspaced (share of its tokens that are single characters of
        a script without blanks), rows (the first few rows of the data that have a 13-gram of it or the question, then
        those that have an 8-gram), asks (a number that items of the same text share, in whichever benchmarks).
    rows: every row of the data that shares something with an item: row, ngram_13, ngram_8, question.
    """

    source: str
    split: str
    fields: tuple[str, ...]
    fingerprint: str
    documents: int
    tokens: int
    seconds: float
    items: pd.DataFrame
    rows: pd.DataFrame

    @property
    def benchmarks(self) -> list[str]:
        """Those that were checked, in order."""
        return self.items["benchmark"].drop_duplicates().tolist()


def check(
    source: str, items: Sequence[Item], *, split: str = "train", fields: Sequence[str] = (), progress: bool = False
) -> Report:
    """Hold training data against test items.

    Args: source, split, fields: as `documents` reads them. items: from `benchmark_items`, or one's own.
    Raises: DataError: no such source, no text in it, no items, an item twice.
    """
    found = documents(source, split=split, fields=fields)
    scan = Scan(Index(items))
    start = time.perf_counter()
    run(scan, found.stream, found.total if progress else None)
    if not scan.tokens:
        raise DataError(f"{source}: {scan.texts} rows, and no text in any of them")
    seconds = time.perf_counter() - start
    read = (scan.texts, scan.tokens, seconds)
    return Report(source, split, tuple(fields), fingerprint(source, split), *read, item_table(scan), row_table(scan))


def run(scan: Scan, stream: Iterable[Document], total: int | None = None) -> None:
    """Look at a whole stream; `total`: how many documents to show the progress of, if any."""
    start, told = time.perf_counter(), 0
    with Progress(total or 0, "contamination", shown=total is not None) as bar:
        for document in stream:
            if scan.add(document.row, document.text, goes_on=document.goes_on):
                rate = {"documents/s": scan.texts / (time.perf_counter() - start)}
                bar.advance(scan.texts - told, **rate)
                told = scan.texts
        scan.finish()
        if scan.texts > told:
            bar.advance(scan.texts - told, **{"documents/s": scan.texts / (time.perf_counter() - start)})


def item_table(scan: Scan) -> pd.DataFrame:
    """The report's `items` of a finished scan."""
    index, count = scan.index, len(scan.index.items)
    columns: dict[str, Any] = {
        "benchmark": [item.benchmark for item in index.items],
        "item": [item.item for item in index.items],
        "tokens": index.lengths,
        "question_tokens": index.question_lengths,
    }
    pairs = []
    for grams, first in zip(index.grams, scan.first, strict=True):
        rows = first[grams.of_window]
        seen = rows != UNSEEN
        columns[f"ngrams_{grams.n}"] = np.bincount(grams.owner, minlength=count)
        columns[f"hits_{grams.n}"] = np.bincount(grams.owner[seen], minlength=count)
        pairs.append(np.stack([grams.owner[seen], rows[seen]], axis=1))
    asked = np.flatnonzero(scan.first_question != UNSEEN)
    columns["question"] = scan.first_question != UNSEEN
    columns["unspaced"] = [_unspaced_share(item.text) for item in index.items]
    pairs.append(np.stack([asked, scan.first_question[asked]], axis=1))
    weak, strong = pairs[0], np.concatenate(pairs[1:])  # 8-grams; 13-grams and whole questions
    columns["rows"] = _first_rows((strong, weak), count)
    numbers: dict[tuple[str, str], int] = {}
    columns["asks"] = [numbers.setdefault((item.text, item.question), len(numbers)) for item in index.items]
    return pd.DataFrame(columns)


def _unspaced_share(text: str) -> float:
    if text.isascii():
        return 0.0
    tokens = tokenize(text)
    return sum(map(unspaced, tokens)) / max(1, len(tokens))


def _first_rows(kinds: Iterable[np.ndarray], count: int) -> list[list[int]]:
    """The smallest few row numbers of each item, from (item, row) pairs: those of the first kind before the others."""
    found: list[list[int]] = [[] for _ in range(count)]
    for pairs in kinds:
        for item, row in np.unique(pairs, axis=0).tolist():
            if len(found[item]) < SHOWN_ROWS and row not in found[item]:
                found[item].append(row)
    return found


def row_table(scan: Scan) -> pd.DataFrame:
    """The report's `rows` of a finished scan."""
    kinds = dict(zip((*(f"ngram_{n}" for n in SIZES), "question"), scan.rows, strict=True))
    rows = sorted(set().union(*scan.rows))
    return pd.DataFrame({"row": rows} | {measure: [row in kinds[measure] for row in rows] for measure in MEASURES})


def hits(items: pd.DataFrame, measure: str) -> pd.Series:
    """Whether each item of a report has a hit by `measure`: ngram_13, ngram_8 or question."""
    return items["question"] if measure == "question" else items[f"hits_{measure.removeprefix('ngram_')}"] > 0


def measurable(items: pd.DataFrame, measure: str) -> pd.Series:
    """Whether each item is long enough for `measure` to say anything about it."""
    if measure == "question":
        return items["question_tokens"] >= SHORTEST
    return items[f"ngrams_{measure.removeprefix('ngram_')}"] > 0


class Line(NamedTuple):
    """Of `n` items: how many the measure can judge, the others being too short, and the share of these with a hit.

    Benchmarks that ask the same questions have one line together. `share` is None where nothing can be judged.
    """

    benchmark: str
    measure: str
    n: int
    judged: int
    hits: int
    share: Estimate | None

    @property
    def too_short(self) -> int:
        return self.n - self.judged


def summary(report: Report) -> list[Line]:
    """Hits of every benchmark by every measure, as a share of the items that can be judged, with Wilson's interval."""
    together: dict[tuple[int, ...], list[str]] = {}
    for benchmark, items in report.items.groupby("benchmark", sort=False):
        together.setdefault(tuple(sorted(items["asks"])), []).append(benchmark)
    lines = []
    for names in together.values():
        items = report.items[report.items["benchmark"] == names[0]]
        for measure in MEASURES:
            found, judged = int(hits(items, measure).sum()), int(measurable(items, measure).sum())
            share = wilson(found, judged) if judged else None
            lines.append(Line(", ".join(names), measure, len(items), judged, found, share))
    return lines


def as_json(report: Report) -> dict[str, Any]:
    """The report as JSON values: what was read, the summary, and every item with a hit."""
    head = {name: getattr(report, name) for name in Report._fields[:7]}
    head["seconds"] = round(report.seconds, 2)
    lines = []
    for line in summary(report):
        value, low, high = (line.share.value, *line.share[2:4]) if line.share else (None, None, None)
        lines.append(line._asdict() | {"too_short": line.too_short, "share": value, "low": low, "high": high})
    touched = report.items[report.items["rows"].str.len() > 0]
    return head | {"summary": lines, "items": touched.to_dict(orient="records")}


def write(report: Report, folder: Path | str) -> Path:
    """Write report.json, items.parquet and rows.parquet as one folder, whole or not at all.

    Raises: DataError: the folder holds something else already. DiskFullError.
    """
    folder = Path(folder)
    check_free(folder, FILES)
    content = json.dumps({key: value for key, value in as_json(report).items() if key != "items"}, indent=1)
    with atomic_folder(folder) as work, clear_disk_errors(folder):
        (work / FILES[0]).write_text(content + "\n")
        report.items.to_parquet(work / FILES[1], index=False)
        report.rows.to_parquet(work / FILES[2], index=False)
    return folder


def check_free(folder: Path, names: Sequence[str]) -> None:
    """Raise `DataError` where `folder` is a file, or holds others than those that are to be written."""
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file; name a folder")
    others = sorted({path.name for path in folder.iterdir()} - set(names)) if folder.is_dir() else []
    if others:
        raise DataError(f"{folder}: holds {others[0]} too, which would be lost; name another folder")


def read_report(folder: Path | str) -> Report:
    """A report that `write` wrote. Raises: DataError: the folder holds none."""
    folder = Path(folder)
    try:
        head = json.loads((folder / FILES[0]).read_text())
        items, rows = (pd.read_parquet(folder / name) for name in FILES[1:])
        items["rows"] = [list(map(int, found)) for found in items["rows"]]
        items["asks"]  # one of an older version has none
        return Report(**{name: head[name] for name in Report._fields[:7]}, items=items, rows=rows)._replace(
            fields=tuple(head["fields"])
        )
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{folder}: no report of `llamax contamination --out` ({reason})") from None
