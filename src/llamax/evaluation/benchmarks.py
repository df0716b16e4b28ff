"""Benchmark data for lm-eval's tasks: local files under `LLAMAX_DATA` in the columns that the hub's copies have.

With `LLAMAX_DATA` set no network is touched. Without it the hub serves, if it can be reached at all.
"""

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, load_dataset

from llamax.data.sources import data_folder
from llamax.errors import DataError

HUB_TIMEOUT = 10.0  # seconds


def dataset_loader(config: dict[str, Any]) -> Callable[..., DatasetDict]:
    """A function for lm-eval's `custom_dataset` that loads what a task's `config` names, from files or the hub.

    lm-eval hands it the task's metadata and dataset_kwargs, which say nothing about the data.
    """
    return lambda **_: load(config["dataset_path"], config.get("dataset_name"))


def load(path: str, name: str | None) -> DatasetDict:
    """The data set with hub id `path` and configuration `name`, all splits.

    Raises: DataError: a file is missing or malformed, or there are neither files nor a hub.
    """
    folder = data_folder()
    if folder is None:
        return _from_hub(path, name)
    if path not in LOCAL:
        raise DataError(f"{path}: no local form is known; LLAMAX_DATA serves {', '.join(LOCAL)}")
    return LOCAL[path](folder, name)


def _from_hub(path: str, name: str | None) -> DatasetDict:
    from huggingface_hub import HfApi, constants

    try:
        if not constants.HF_HUB_OFFLINE:  # without a network, `datasets` would try for minutes
            HfApi().dataset_info(path, timeout=HUB_TIMEOUT)
        return load_dataset(path, name)
    except Exception as error:  # the hub's client, its transport and `datasets` share no base class
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"{path}: not to be had from the hub ({reason}); set LLAMAX_DATA to a folder of local copies"
        ) from None


def _read(file: Path) -> str:
    """Text of a file or of its gzipped form beside it. Raises: DataError: neither is there."""
    packed = file.with_name(file.name + ".gz")
    if file.is_file():
        return file.read_bytes().decode()
    if packed.is_file():
        return gzip.decompress(packed.read_bytes()).decode()
    raise DataError(f"{file}: missing; LLAMAX_DATA should hold {'/'.join(file.parts[-3:])}")


def mmlu(folder: Path, subject: str) -> DatasetDict:
    """hendrycks/test's CSV files in the columns of `cais/mmlu`: question, subject, choices, answer (index)."""

    def split(name: str) -> Dataset:
        file = folder / "mmlu" / name / f"{subject}_{name}.csv"
        rows = []
        for number, row in enumerate(csv.reader(io.StringIO(_read(file), newline="")), start=1):
            if len(row) != 6 or row[5] not in set("ABCD"):
                raise DataError(f"{file}, row {number}: expected question, four choices and a letter A to D")
            rows.append({"question": row[0], "subject": subject, "choices": row[1:5], "answer": "ABCD".index(row[5])})
        return Dataset.from_list(rows)

    return DatasetDict({name: split(name) for name in ("test", "dev")})


def gsm8k(folder: Path, _: str | None) -> DatasetDict:
    """openai/grade-school-math's JSON lines: question, answer."""

    def split(name: str) -> Dataset:
        file = folder / "gsm8k" / f"{name}.jsonl"
        rows = []
        for number, line in enumerate(_read(file).rstrip("\n").split("\n"), start=1):
            try:
                row = json.loads(line)
                rows.append({"question": row["question"], "answer": row["answer"]})
            except (ValueError, KeyError, TypeError):
                raise DataError(f"{file}, line {number}: expected a JSON object with question and answer") from None
        return Dataset.from_list(rows)

    return DatasetDict({name: split(name) for name in ("train", "test")})


def truthfulqa(folder: Path, _: str | None) -> DatasetDict:
    """sylinrl/TruthfulQA's mc_task.json in the columns of `truthfulqa/truthful_qa`, configuration multiple_choice."""
    file = folder / "truthfulqa" / "mc_task.json"
    try:
        rows = [
            {"question": item["question"]}
            | {key: {"choices": list(item[key]), "labels": list(item[key].values())} for key in MC_TARGETS}
            for item in json.loads(_read(file))
        ]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{file}: expected a JSON list of objects with question, {', '.join(MC_TARGETS)}") from None
    for number, row in enumerate(rows):
        if row["mc1_targets"]["labels"][:1] != [1]:  # lm-eval's task takes the first choice for the answer
            raise DataError(f"{file}, item {number}: the first choice of mc1_targets is not the true one")
    return DatasetDict({"validation": Dataset.from_list(rows)})


MC_TARGETS = ("mc1_targets", "mc2_targets")
LOCAL: dict[str, Callable[[Path, Any], DatasetDict]] = {
    "cais/mmlu": mmlu,
    "openai/gsm8k": gsm8k,
    "truthfulqa/truthful_qa": truthfulqa,
}
