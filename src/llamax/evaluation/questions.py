"""The text of every benchmark's questions, for contamination checks; the ids are those of the outcome tables."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jinja2 import TemplateError
from lm_eval.utils import env

from llamax.errors import ParameterError
from llamax.evaluation.benchmarks import LETTERS
from llamax.evaluation.definitions import check_size, configs, documents, find, loader


class Question(NamedTuple):
    """What an item asks, without worked examples; the options that its prompt shows, one a line, apart from it."""

    item: str
    text: str
    options: str = ""


def questions(name: str) -> list[Question]:
    """All items of a benchmark, by task and number.

    Raises: ParameterError: no such benchmark. DataError: no data, or not what its card says.
    """
    benchmark, data = find(name), loader()
    found: dict[str, list[Question]] = {}
    for task, config in sorted(configs(benchmark).items()):
        fill = template(benchmark.extras.question or config["doc_to_text"], task)
        prompt = template(config["doc_to_text"], task)
        found[task] = [
            Question(f"{task}/{number}", fill(doc), _options(doc, str(prompt(doc))))
            for number, doc in enumerate(documents(config, data(config)))
        ]
        if "doc_to_choice" in config and str(found[task][0].text).isdigit():  # the options are contexts
            raise ParameterError(f"{task}: doc_to_text is a number: metadata.question should say what is asked")
    check_size(benchmark, {task: len(asked) for task, asked in found.items()}, config)
    return [question for asked in found.values() for question in asked]


def _options(doc: dict[str, Any], prompt: str) -> str:
    """The options of an item, one a line: columns (`choices`, or A, B, ...) that the prompt shows; else none."""
    choices = doc.get("choices")
    if not choices or not isinstance(choices, list):
        choices = [doc[letter] for letter in LETTERS if letter in doc]
    return "\n".join(map(str, choices)) if all(str(choice) in prompt for choice in choices) else ""


def template(text: str | Callable, task: str) -> Callable[[dict[str, Any]], str]:
    """A function that fills in an item's columns, compiled once; lm-eval's own compiles for every item.

    As in lm-eval a function fills in by itself, and a column's name stands for the column. What is returned raises
    ParameterError where the template uses a column that the item does not have.
    """
    if callable(text):
        return text

    def fill(doc: dict[str, Any]) -> str:
        if text in doc:
            return str(doc[text])
        try:
            return compiled.render(**doc)
        except TemplateError as error:
            raise ParameterError(f"{task}: its template {text[:60]!r}: {error}; items have {', '.join(doc)}") from None

    try:
        compiled = env.from_string(text)
    except TemplateError as error:
        raise ParameterError(f"{task}: its template {text[:60]!r} cannot be read: {error}") from None
    return fill
