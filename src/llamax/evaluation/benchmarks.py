"""Benchmark data for the task definitions: local files under `LLAMAX_DATA` in the columns that the hub's copies have.

With `LLAMAX_DATA` set no network is touched for what has a local copy; the files must be those that the data cards
describe. Without it the hub serves, if it can be reached at all. A card with `columns` needs no code here: JSON, JSONL,
Parquet and CSV files, or a folder with one CSV file per subject, are read as they are. Only odd formats have a loader.
"""

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, load_dataset

from llamax.data.formats import RowError
from llamax.data.readers import clear_read_errors, file_rows
from llamax.data.sources import Card, Split, cards, check_copy, data_folder
from llamax.errors import DataError
from llamax.hub import asked

Rows = list[tuple[str, dict[str, Any]]]
"""(place in the file, row) pairs."""

LETTERS = "ABCDEFG"
MC_TARGETS = ("mc1_targets", "mc2_targets")


def card_of(path: str) -> Card:
    """The data card with the hub id or the name `path`. Raises: DataError: there is none."""
    card = cards().get(path) or next((card for card in cards().values() if card.hub == path), None)
    if card is None:
        raise DataError(f"{path}: no data card in data_cards/ says what its files are")
    return card


def load(path: str, name: str | None = None) -> DatasetDict:
    """The data set with the hub id or data card `path` and the configuration `name` (a subject), all splits.

    Raises: DataError: a file is missing, malformed or not the one of its data card, or there are neither files nor hub.
    """
    card, folder = card_of(path), data_folder()
    described = {split: one for split, one in card.splits.items() if one.local}
    if folder is None or not described:
        return _from_hub(card, name)
    if path in ODD:
        try:
            return ODD[path](folder, card.splits, name)
        except KeyError as error:
            raise DataError(f"{card.name}: its data card lacks the split {error}") from None
    return DatasetDict({split: _local_split(folder / one.local, card, one, name) for split, one in described.items()})


# -- the hub ----------------------------------------------------------------------------------------------------------


def _from_hub(card: Card, name: str | None) -> DatasetDict:
    """What the hub has, held against the data card."""
    if not card.hub:
        files = ", ".join(split.local for split in card.splits.values())
        raise DataError(f"{card.name}: is on no hub; set LLAMAX_DATA to a folder that holds {files}")
    with asked(card.hub, "dataset", DataError, "Connect, or set LLAMAX_DATA to a folder of local copies"):
        found = load_dataset(card.hub, name)
    for split, described in card.splits.items():
        if split in found:
            check_hub_split(
                found[split], card, described, f"{card.hub} ({split})", whole=(name or "") == card.hub_config
            )
    return found


def check_hub_split(rows: Dataset, card: Card, described: Split, where: str, *, whole: bool) -> None:
    """Hold a split from the hub against its card: columns, ids, repeated rows and, of the `whole` set, their number.

    Raises: DataError: it is another one.
    """
    if missing := [column for column in card.columns if column not in rows.column_names]:
        raise DataError(f"{where}: has no column {missing[0]!r}, only {', '.join(rows.column_names)}")
    wanted = described.hub_items or described.items
    if whole and len(rows) != wanted:
        raise DataError(f"{where}: has {len(rows)} items, should be {wanted}; the hub's copy was changed")
    if card.columns:
        columns = rows.select_columns(list(card.columns))
        _check_unique([(f"row {n}", row) for n, row in enumerate(columns, 1)], card, described, where)


# -- local files ------------------------------------------------------------------------------------------------------


def _local_split(root: Path, card: Card, described: Split, name: str | None) -> Dataset:
    """One split from its file, or from a folder: the file `name` in it, or all of them with a column `subject`."""
    files = [root]
    if root.is_dir():
        files = sorted(file for file in root.iterdir() if file.suffix == ".csv" and name in (None, file.stem))
        if not files:
            raise DataError(f"{root}: holds no {name or '*'}.csv")
    rows: Rows = []
    for file in files:
        _present(file, root, described.sha256)
        subject = {"subject": file.stem} if root.is_dir() else {}
        rows += [(f"{file}, {place}", row | subject) for place, row in _checked(_file_rows(file, card), file, card)]
    _check_unique(rows, card, described, "")
    return _table([row for _, row in rows], root, described.items if name is None or not root.is_dir() else None)


def _present(file: Path, root: Path, sha256: str) -> None:
    """Raise `DataError` unless the file is there and `root` (it or its folder) is what its card says."""
    if not file.is_file():
        raise DataError(f"{file}: missing; LLAMAX_DATA should hold {file.relative_to(data_folder()).as_posix()}")
    with clear_read_errors(file):
        check_copy(root, sha256)


def _read(file: Path, root: Path, sha256: str) -> str:
    """Text of a file, unpacked if need be, once `root` (the file or its folder) is what its card says.

    Raises: DataError: missing, another one, damaged, not UTF-8.
    """
    _present(file, root, sha256)
    with clear_read_errors(file):
        content = file.read_bytes()
        return (gzip.decompress(content) if file.suffix == ".gz" else content).decode("utf-8-sig")


def _file_rows(file: Path, card: Card) -> Iterator[tuple[str, Any]]:
    """(place, row) pairs of a JSON, JSONL, Parquet or CSV file."""
    if file.name.removesuffix(".gz").endswith(".csv"):
        return _csv_rows(_read(file, file, ""), file, None if card.header else list(card.columns))
    return file_rows(file)


def _csv_rows(content: str, file: Path, names: list[str] | None) -> Iterator[tuple[str, Any]]:
    """Rows of a CSV file by column; `names` are the columns of a file without a header."""
    place = 0
    try:
        for place, row in enumerate(csv.reader(io.StringIO(content, newline="")), start=1):
            if names is None:
                names = row
            elif len(row) != len(names):
                raise DataError(f"{file}, row {place}: has {len(row)} fields, expected {', '.join(names)}")
            else:
                yield f"row {place}", dict(zip(names, row, strict=True))
    except csv.Error as error:
        raise DataError(f"{file}, row {place + 1}: not CSV ({error})") from None


def _checked(rows: Iterable[tuple[str, Any]], file: Path, card: Card) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows with the card's columns only. Raises: DataError: a row is no object, lacks one or has another type."""
    wanted = card.columns
    for place, row in rows:
        if isinstance(row, RowError):
            raise DataError(f"{file}, {place}: {row}")
        if not isinstance(row, dict):
            raise DataError(f"{file}, {place}: is a {type(row).__name__}, should be an object with named columns")
        wanted = wanted or dict.fromkeys(row, "any")  # a card without columns: every row has those of the first
        for column, kind in wanted.items():
            if column not in row:
                raise DataError(f"{file}, {place}: no column {column!r}; it has {', '.join(row) or 'none'}")
            if not FITS[kind](row[column]):
                raise DataError(f"{file}, {place}: {column} should be {MEANT[kind]}, is {str(row[column])[:40]!a}")
        yield place, {column: row[column] for column in wanted}


def _check_unique(rows: Rows, card: Card, described: Split, where: str) -> None:
    """Raise `DataError` where an id comes twice, or more whole rows do than the original set repeats."""
    ids: dict[Any, str] = {}
    seen: dict[str, str] = {}
    repeats = 0
    prefix = f"{where}, " if where else ""
    for place, row in rows:
        if card.id and (first := ids.setdefault(row[card.id], place)) is not place:
            raise DataError(f"{prefix}{place}: {card.id} {row[card.id]!r} is there before, in {first}; one must go")
        first = seen.setdefault(json.dumps(row, sort_keys=True, default=str), place)
        repeats += first is not place
        if described.repeats is not None and repeats > described.repeats:
            raise DataError(f"{prefix}{place}: the same row as {first}; its data card allows {described.repeats} such")


def _table(rows: list[dict[str, Any]], file: Path, items: int | None = None) -> Dataset:
    """The rows as lm-eval wants them. Raises: DataError: none, or not as many as the data card says."""
    if not rows or items not in (None, len(rows)):
        raise DataError(f"{file}: has {len(rows)} items, should be {items or 'some'}; restore the file")
    try:
        return Dataset.from_list(rows)
    except (ValueError, TypeError) as error:  # pyarrow's errors are these
        raise DataError(f"{file}: a column has values of two types ({str(error).splitlines()[0]})") from None


def _is_text(value: Any) -> bool:
    """Whether `value` is a text that can be written as UTF-8."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


FITS: dict[str, Callable[[Any], bool]] = {
    "text": _is_text,
    "texts": lambda value: isinstance(value, list) and len(value) > 0 and all(map(_is_text, value)),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "any": lambda value: True,
}
MEANT = {"text": "a text", "texts": "a list of texts", "number": "a number"}


# -- odd formats ------------------------------------------------------------------------------------------------------


def mmlu(folder: Path, splits: dict[str, Split], subject: str) -> DatasetDict:
    """hendrycks/test's CSV files in the columns of `cais/mmlu`: question, subject, choices, answer (index).

    The card counts the items of all subjects together: the folder's hash vouches for each.
    """
    names = ["question", "A", "B", "C", "D", "answer"]

    def split(name: str) -> Dataset:
        root = folder / splits[name].local
        file = root / f"{subject}_{name}.csv"
        rows = []
        for place, row in _csv_rows(_read(file, root, splits[name].sha256), file, names):
            if row["answer"] not in {*"ABCD"}:
                raise DataError(f"{file}, {place}: expected question, four choices and a letter A to D")
            choices, answer = [row[letter] for letter in "ABCD"], "ABCD".index(row["answer"])
            rows.append({"question": row["question"], "subject": subject, "choices": choices, "answer": answer})
        return _table(rows, file)

    return DatasetDict({name: split(name) for name in ("test", "dev")})


def truthfulqa(folder: Path, splits: dict[str, Split], _: str | None) -> DatasetDict:
    """sylinrl/TruthfulQA's mc_task.json in the columns of `truthfulqa/truthful_qa`, configuration multiple_choice."""
    described = splits["validation"]
    root = folder / described.local
    file = root / "mc_task.json"
    _present(file, root, described.sha256)
    rows, seen = [], {}
    for place, item in file_rows(file):
        try:
            row: dict[str, Any] = {"question": item["question"]}
            for key in MC_TARGETS:
                row[key] = {"choices": list(item[key]), "labels": list(item[key].values())}
        except (KeyError, TypeError, AttributeError):
            raise DataError(f"{file}, {place}: expected an object with question, {', '.join(MC_TARGETS)}") from None
        _check_choices(row, f"{file}, {place}")
        if (first := seen.setdefault(row["question"], place)) is not place:
            raise DataError(f"{file}, {place}: the same question as {first}")
        rows.append(row)
    return DatasetDict({"validation": _table(rows, file, described.items)})


def _check_choices(row: dict[str, Any], where: str) -> None:
    """Raise `DataError` where TruthfulQA's answers and labels are not what its scoring takes them for."""
    texts = [row["question"], *(choice for key in MC_TARGETS for choice in row[key]["choices"])]
    if not all(map(_is_text, texts)):
        raise DataError(f"{where}: question and choices should be texts")
    if row["mc1_targets"]["labels"][:1] != [1]:  # lm-eval's task takes the first choice for the answer
        raise DataError(f"{where}: the first choice of mc1_targets is not the true one")
    labels = [label for key in MC_TARGETS for label in row[key]["labels"]]
    if any(label not in (0, 1) for label in labels) or 1 not in row["mc2_targets"]["labels"]:
        raise DataError(f"{where}: expected labels 0 and 1, at least one of mc2_targets 1")


def agieval(folder: Path, splits: dict[str, Split], _: str | None) -> DatasetDict:
    """AGIEval's JSON lines in the columns of `hails/agieval-*`: query (AGIEval's zero-shot prompt), choices, gold."""
    described = splits["test"]
    file = folder / described.local
    _present(file, file, described.sha256)
    rows = []
    for place, item in file_rows(file):
        try:
            options, letter = item["options"], item["label"]
            gold = LETTERS[: len(options)].index(letter or "-")
            asked_for = f"{item['passage'] or ''}Q: {item['question']} Answer Choices: {' '.join(options)}"
            query = f"{asked_for}\nA: Among A through {LETTERS[len(options) - 1]}, the answer is"
        except (KeyError, TypeError, ValueError):
            wanted = "passage, question, options and the letter of one of them as label"
            raise DataError(f"{file}, {place}: expected an object with {wanted}") from None
        rows.append({"query": query, "choices": options, "gold": [gold]})
    return DatasetDict({"test": _table(rows, file, described.items)})


def puzzlevqa(folder: Path, splits: dict[str, Split], _: str | None) -> DatasetDict:
    """PuzzleVQA's JSON lines: id, image, question, options, answer, category. An option is a text or a number, here a
    text; what says the answer in words (caption, explanation, deduction) is left out."""
    described = splits["test"]
    file = folder / described.local
    _present(file, file, described.sha256)
    rows, seen = [], {}
    for place, item in file_rows(file):
        try:
            row = {key: _text(item[key]) for key in ("id", "image", "question", "category")}
            row |= {"options": [str(option) for option in item["options"]], "answer": str(item["answer"])}
        except (KeyError, TypeError):
            wanted = "texts id, image, question and category, options and answer"
            raise DataError(f"{file}, {place}: expected an object with {wanted}") from None
        if (first := seen.setdefault(row["id"], place)) is not place:
            raise DataError(f"{file}, {place}: id {row['id']!r} is there before, in {first}; one must go")
        rows.append(row)
    return DatasetDict({"test": _table(rows, file, described.items)})


def _text(value: Any) -> str:
    """`value`, if it is a text. Raises: TypeError."""
    if not _is_text(value):
        raise TypeError
    return value


ODD: dict[str, Callable[[Path, dict[str, Split], Any], DatasetDict]] = {
    "cais/mmlu": mmlu,
    "truthfulqa/truthful_qa": truthfulqa,
    "hails/agieval-aqua-rat": agieval,
    "hails/agieval-sat-math": agieval,
    "hails/agieval-sat-en": agieval,
    "hails/agieval-lsat-ar": agieval,
    "hails/agieval-lsat-lr": agieval,
    "hails/agieval-lsat-rc": agieval,
    "puzzlevqa": puzzlevqa,
}
