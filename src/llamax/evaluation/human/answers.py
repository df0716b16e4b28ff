"""What the models answered: read from a file of any known shape, or generated.

Shapes of a row: ours, `id` and `answer` (a text or a list, one per turn); FastChat's model answers, `question_id` and
`choices`; self-instruct's predictions of GPT-3-family systems, `instruction`, `input` and `response`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llamax.data.conversation import assistant, user
from llamax.data.formats import RowError
from llamax.data.readers import file_rows
from llamax.errors import DataError
from llamax.evaluation.human.prompts import Prompt, request, text_of
from llamax.files import locate, write_atomic

Answers = dict[str, tuple[str, ...]]
"""Prompt id -> one answer per turn."""


def read_answers(path: Path | str, prompts: Sequence[Prompt]) -> Answers:
    """One answer per turn of each prompt; answers to other prompts are passed over.

    Raises: DataError: no such file, a malformed row, a prompt answered twice, or prompts without an answer.
    """
    path = locate(path)
    by_text = {prompt.turns[0]: prompt.id for prompt in prompts}
    wanted = {prompt.id: len(prompt.turns) for prompt in prompts}
    found: Answers = {}
    places: dict[str, str] = {}
    for place, row in file_rows(path):
        where = f"{path}:{place}"
        name, texts = _answer(row, by_text, where)
        if name not in wanted:
            continue
        if name in found:
            raise DataError(f"{where}: a second answer to prompt {name!r}, the first is at {places[name]}")
        if len(texts) < wanted[name]:
            raise DataError(f"{where}: {len(texts)} answers to prompt {name!r}, which has {wanted[name]} turns")
        found[name], places[name] = texts[: wanted[name]], place
    if missing := [name for name in wanted if name not in found]:
        raise DataError(f"{path}: no answer to {len(missing)} of {len(wanted)} prompts, the first is {missing[0]!r}")
    return {name: found[name] for name in wanted}


def _answer(row: Any, by_text: dict[str, str], where: str) -> tuple[str | None, tuple[str, ...]]:
    """(prompt id, answers) of a row; the id is None where the row answers none of our prompts."""
    if isinstance(row, RowError):
        raise DataError(f"{where}: {row}")
    fields = row if isinstance(row, dict) else {}
    if {"id", "answer"} <= fields.keys():
        name, texts = text_of(fields, "id", where), fields["answer"]
    elif {"question_id", "choices"} <= fields.keys():
        name, texts = f"mt_bench/{fields['question_id']}", _first_choice(fields["choices"], where)
    elif {"instruction", "input", "response"} <= fields.keys():
        asked = request(text_of(fields, "instruction", where), text_of(fields, "input", where))
        name, texts = by_text.get(asked), fields["response"]
    else:
        raise DataError(f"{where}: should have id and answer, found {', '.join(fields) or type(row).__name__}")
    texts = texts if isinstance(texts, list) else [texts]
    if not all(isinstance(text, str) for text in texts):
        raise DataError(f"{where}: an answer should be a text, or a list of texts, one per turn")
    return name, tuple(text.strip() for text in texts)


def _first_choice(choices: Any, where: str) -> Any:
    """The turns of the first of FastChat's choices."""
    first = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(first, dict) or "turns" not in first:
        raise DataError(f"{where}: choices should be a list, of which the first has the model's turns")
    return first["turns"]


def write_answers(path: Path | str, answers: Answers) -> Path:
    """Write answers in our shape: a line per prompt; complete or not at all."""
    rows = ({"id": name, "answer": texts[0] if len(texts) == 1 else list(texts)} for name, texts in answers.items())
    return write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def generate_answers(
    model: str,
    prompts: Sequence[Prompt],
    *,
    template: str = "chatml",
    max_new_tokens: int = 512,
    temperature: float = 0.0,
    seed: int = 0,
    batch_size: int = 16,
) -> Answers:
    """Ask `model` (as `llamax.models.load` names one) every prompt, turn after turn; greedy at temperature 0.

    Raises: ModelError: no such model, or one that was trained with another template.
    """
    from llamax.data.render import render_prompt
    from llamax.data.templates import get_template
    from llamax.generation.decode import generate
    from llamax.models.load import load
    from llamax.models.source import find
    from llamax.models.template import check_template

    loaded = load(model)
    form = get_template(template, loaded.tokenizer)
    if (folder := find(model).path) is not None and folder.is_dir():
        check_template(folder, form)
    said: Answers = {prompt.id: () for prompt in prompts}
    for turn in range(max(len(prompt.turns) for prompt in prompts)):
        asked = [prompt for prompt in prompts if len(prompt.turns) > turn]
        ids = [render_prompt(_so_far(p, said[p.id]), loaded.tokenizer, form) for p in asked]
        texts = generate(
            *loaded, ids, max_new_tokens=max_new_tokens, stop_ids=form.stop.token_ids, stop_strings=form.stop.strings,
            temperature=temperature, seed=seed + turn, batch_size=batch_size, progress=True,
        )  # fmt: skip
        for prompt, text in zip(asked, texts, strict=True):
            said[prompt.id] += (text.text.strip(),)
    return said


def _so_far(prompt: Prompt, answers: tuple[str, ...]) -> tuple:
    """The conversation up to the user's next turn."""
    past = [
        message for pair in zip(prompt.turns, answers, strict=False) for message in (user(pair[0]), assistant(pair[1]))
    ]
    return (*past, user(prompt.turns[len(answers)]))
