"""Benchmark data for lm-eval's tasks: local files under `LLAMAX_DATA` in the columns that the hub's copies have.

With `LLAMAX_DATA` set no network is touched; the files must be those that the data cards describe. Without it the hub
serves, if it can be reached at all.
"""

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, load_dataset

from llamax.data.readers import clear_read_errors
from llamax.data.sources import Split, cards, check_copy, data_folder
from llamax.errors import DataError
from llamax.hub import asked

Splits = dict[str, Split]


def dataset_loader(config: dict[str, Any]) -> Callable[..., DatasetDict]:
    """A function for lm-eval's `custom_dataset` that loads what a task's `config` names, from files or the hub.

    lm-eval hands it the task's metadata and dataset_kwargs, which say nothing about the data.
    """
    return lambda **_: load(config["dataset_path"], config.get("dataset_name"))


def load(path: str, name: str | None) -> DatasetDict:
    """The data set with hub id `path` and configuration `name`, all splits.

    Raises: DataError: a file is missing, malformed or not the one of its data card, or there are neither files nor hub.
    """
    folder = data_folder()
    if folder is None:
        with asked(path, "dataset", DataError, "Connect, or set LLAMAX_DATA to a folder of local copies"):
            return load_dataset(path, name)
    if path not in LOCAL:
        raise DataError(f"{path}: no local form is known; LLAMAX_DATA serves {', '.join(LOCAL)}")
    card = next((card for card in cards().values() if card.hub == path), None)
    if card is None:
        raise DataError(f"{path}: no data card in data_cards/ says what its local files are")
    try:
        return LOCAL[path](folder, card.splits, name)
    except KeyError as error:
        raise DataError(f"{card.name}: its data card lacks the split {error}") from None


def _read(file: Path, root: Path, sha256: str) -> str:
    """Text of a file, unpacked if need be, once `root` (the file or its folder) is what its card says.

    Raises: DataError: missing, another one, damaged, not UTF-8.
    """
    if not file.is_file():
        raise DataError(f"{file}: missing; LLAMAX_DATA should hold {file.relative_to(data_folder()).as_posix()}")
    with clear_read_errors(file):
        check_copy(root, sha256)
        content = file.read_bytes()
        return (gzip.decompress(content) if file.suffix == ".gz" else content).decode()


def _table(rows: list[dict[str, Any]], file: Path, items: int | None = None) -> Dataset:
    """The rows as lm-eval wants them. Raises: DataError: none, or not as many as the data card says."""
    if not rows or items not in (None, len(rows)):
        raise DataError(f"{file}: has {len(rows)} items, should be {items or 'some'}; restore the file")
    return Dataset.from_list(rows)


def _text(value: Any) -> str:
    """`value`, if it is a text that can be written as UTF-8. Raises: TypeError, ValueError."""
    if not isinstance(value, str):
        raise TypeError
    value.encode()
    return value


def mmlu(folder: Path, splits: Splits, subject: str) -> DatasetDict:
    """hendrycks/test's CSV files in the columns of `cais/mmlu`: question, subject, choices, answer (index).

    The card counts the items of all subjects together: the folder's hash vouches for each.
    """

    def split(name: str) -> Dataset:
        root = folder / splits[name].local
        file = root / f"{subject}_{name}.csv"
        rows: list[dict[str, Any]] = []
        try:
            for row in csv.reader(io.StringIO(_read(file, root, splits[name].sha256), newline="")):
                if len(row) != 6:
                    raise ValueError
                answer = "ABCD".index(row[5] or "-")
                rows.append({"question": row[0], "subject": subject, "choices": row[1:5], "answer": answer})
        except (ValueError, csv.Error):
            place = f"{file}, row {len(rows) + 1}"
            raise DataError(f"{place}: expected question, four choices and a letter A to D") from None
        return _table(rows, file)

    return DatasetDict({name: split(name) for name in ("test", "dev")})


def gsm8k(folder: Path, splits: Splits, _: str | None) -> DatasetDict:
    """openai/grade-school-math's JSON lines: question, answer."""

    def split(name: str) -> Dataset:
        file = folder / splits[name].local
        content = _read(file, file, splits[name].sha256).rstrip("\n")
        rows = []
        for number, line in enumerate(content.split("\n") if content else [], start=1):
            try:
                row = json.loads(line)
                rows.append({key: _text(row[key]) for key in ("question", "answer")})
            except (ValueError, KeyError, TypeError, RecursionError):
                wanted = "a JSON object with the texts question and answer"
                raise DataError(f"{file}, line {number}: expected {wanted}") from None
        return _table(rows, file, splits[name].items)

    return DatasetDict({name: split(name) for name in ("train", "test")})


def truthfulqa(folder: Path, splits: Splits, _: str | None) -> DatasetDict:
    """sylinrl/TruthfulQA's mc_task.json in the columns of `truthfulqa/truthful_qa`, configuration multiple_choice."""
    described = splits["validation"]
    root = folder / described.local
    file = root / "mc_task.json"
    content = _read(file, root, described.sha256)
    try:
        rows = [
            {"question": _text(item["question"])}
            | {
                key: {"choices": [_text(choice) for choice in item[key]], "labels": list(item[key].values())}
                for key in MC_TARGETS
            }
            for item in json.loads(content)
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DataError(f"{file}: expected a JSON list of objects with question, {', '.join(MC_TARGETS)}") from None
    for number, row in enumerate(rows):
        labels = [label for key in MC_TARGETS for label in row[key]["labels"]]
        if row["mc1_targets"]["labels"][:1] != [1]:  # lm-eval's task takes the first choice for the answer
            raise DataError(f"{file}, item {number}: the first choice of mc1_targets is not the true one")
        if any(label not in (0, 1) for label in labels) or 1 not in row["mc2_targets"]["labels"]:
            raise DataError(f"{file}, item {number}: expected labels 0 and 1, at least one of mc2_targets 1")
    return DatasetDict({"validation": _table(rows, file, described.items)})


MC_TARGETS = ("mc1_targets", "mc2_targets")
LOCAL: dict[str, Callable[[Path, Splits, Any], DatasetDict]] = {
    "cais/mmlu": mmlu,
    "openai/gsm8k": gsm8k,
    "truthfulqa/truthful_qa": truthfulqa,
}
