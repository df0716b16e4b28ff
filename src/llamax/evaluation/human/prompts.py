"""What the models are asked: prompts of one or two user turns.

nano             the small world's questions, made by code; task after task in turn, so that any prefix is mixed
mt_bench         80 questions of two turns (Zheng et al. 2023), from the local copy that the data card names
self_instruct    252 user-oriented tasks (Wang et al. 2022), from the local copy that the data card names
a .jsonl file    rows of `id` and `prompt`, a text or a list of turns
"""

from collections.abc import Iterator
from itertools import chain, zip_longest
from typing import Annotated, Any

from pydantic import Field, ValidationError

from llamax.config import Config, explain
from llamax.data.formats import RowError
from llamax.data.readers import file_rows
from llamax.data.sources import cards, check_copy, data_folder, find
from llamax.errors import DataError, ParameterError
from llamax.files import sha256_json

LOCAL = ("mt_bench", "self_instruct")


class Prompt(Config):
    """One test item: what a user says, turn by turn; the model answers each turn."""

    id: str = Field(min_length=1)
    turns: tuple[Annotated[str, Field(min_length=1)], ...] = Field(min_length=1)


def read_prompts(source: str, *, turns: int = 1, limit: int | None = None) -> list[Prompt]:
    """The prompts of `source`, in a fixed order: the first `turns` turns of each, the first `limit` prompts if given.

    Raises: DataError: no such source, a malformed row, an id given twice. ParameterError: `turns` or `limit` below 1.
    """
    if turns < 1 or (limit is not None and limit < 1):
        raise ParameterError(f"turns = {turns}, limit = {limit}: both should be at least 1")
    found: dict[str, Prompt] = {}
    places: dict[str, str] = {}
    for place, row in _nano() if source == "nano" else _rows(source):
        prompt = _prompt(row, place)
        if prompt.id in found:
            raise DataError(f"{place}: prompt {prompt.id!r} is given twice, first at {places[prompt.id]}")
        found[prompt.id] = prompt.model_copy(update={"turns": prompt.turns[:turns]})
        places[prompt.id] = place
    if not found:
        raise DataError(f"{source}: no prompts in it")
    return list(found.values())[:limit]


def prompts_hash(prompts: list[Prompt]) -> str:
    """Hash of the prompts' ids and texts, in their order."""
    return sha256_json([[prompt.id, list(prompt.turns)] for prompt in prompts])


def _nano() -> Iterator[tuple[str, Any]]:
    """The small world's test questions as a user would put them, one of each task in turn."""
    from llamax.data.world import test_items
    from llamax.data.world.phrases import code_request

    by_task: dict[str, list[dict]] = {}
    for item in test_items():
        text = code_request(item.question) if item.task == "code" else item.question
        by_task.setdefault(item.task, []).append({"id": item.id, "prompt": text})
    mixed = (row for row in chain.from_iterable(zip_longest(*by_task.values())) if row is not None)
    return ((f"nano:{row['id']}", row) for row in mixed)


def _rows(source: str) -> Iterator[tuple[str, Any]]:
    """(place, row) pairs of a named source's local copy, or of a file."""
    if source in LOCAL and data_folder() is None:
        local = next(iter(cards()[source].splits.values())).local
        raise DataError(f"{source}: is read from a local copy: set LLAMAX_DATA to a folder that holds {local}")
    if source not in LOCAL and not source.endswith((".jsonl", ".jsonl.gz", ".json", ".json.gz")):
        raise DataError(f"no prompts {source!r}: give nano, {', '.join(LOCAL)}, or a .jsonl file of id and prompt")
    origin = find(source, next(iter(cards()[source].splits)) if source in LOCAL else "train")
    check_copy(origin.file, origin.sha256)
    return ((f"{origin.file}:{place}", row) for place, row in file_rows(origin.file))


def _prompt(row: Any, place: str) -> Prompt:
    """A row of any of the known shapes as a prompt."""
    if isinstance(row, RowError):
        raise DataError(f"{place}: {row}")
    if not isinstance(row, dict):
        raise DataError(f"{place}: should be an object with id and prompt, found {type(row).__name__}")
    try:
        if {"question_id", "turns"} <= row.keys():  # MT-bench
            return Prompt(id=f"mt_bench/{row['question_id']}", turns=row["turns"])
        if {"id", "instruction", "instances"} <= row.keys():  # self-instruct
            first = row["instances"][0] if isinstance(row["instances"], list) and row["instances"] else None
            if not isinstance(first, dict):
                raise DataError(f"{place}: instances should be a list, of which the first has an input")
            text = request(text_of(row, "instruction", place), text_of(first, "input", place))
            return Prompt(id=row["id"], turns=(text,))
        if {"id", "prompt"} <= row.keys():
            turns = row["prompt"] if isinstance(row["prompt"], list) else [row["prompt"]]
            return Prompt(id=row["id"], turns=turns)
    except ValidationError as error:
        raise DataError(explain(error, Prompt, place)) from None
    raise DataError(f"{place}: should have id and prompt, found {', '.join(map(str, row)) or 'nothing'}")


def text_of(row: dict[str, Any], field: str, place: str) -> str:
    """A field that has to be a text. Raises: DataError: it is something else, or not there."""
    value = row.get(field)
    if not isinstance(value, str):
        raise DataError(f"{place}: {field} should be a text, found {type(value).__name__}")
    return value


def request(instruction: str, given: str) -> str:
    """An instruction and its input as one message."""
    return "\n\n".join(part.strip() for part in (instruction, given) if part.strip())
