"""The text of every benchmark's questions, for contamination checks; the ids are those of the outcome tables."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jinja2 import TemplateError
from lm_eval.utils import env

from llamax.errors import ParameterError
from llamax.evaluation.definitions import check_size, configs, documents, find, loader


class Question(NamedTuple):
    """What an item asks: without worked examples, and without options where they are a column of their own."""

    item: str
    text: str


def questions(name: str) -> list[Question]:
    """All items of a benchmark, by task and number.

    Raises: ParameterError: no such benchmark. DataError: no data, or not what its card says.
    """
    benchmark, data = find(name), loader()
    found: dict[str, list[Question]] = {}
    for task, config in sorted(configs(benchmark).items()):
        fill = template(benchmark.extras.question or config["doc_to_text"], task)
        docs = documents(config, data(config))
        found[task] = [Question(f"{task}/{number}", fill(doc)) for number, doc in enumerate(docs)]
    check_size(benchmark, {task: len(asked) for task, asked in found.items()}, config)
    return [question for asked in found.values() for question in asked]


def template(text: str, task: str) -> Callable[[dict[str, Any]], str]:
    """A function that fills in an item's columns, compiled once; lm-eval's own compiles for every item.

    It raises ParameterError where the template uses a column that the item does not have.
    """

    def fill(doc: dict[str, Any]) -> str:
        try:
            return compiled.render(**doc)
        except TemplateError as error:
            raise ParameterError(f"{task}: its template {text[:60]!r}: {error}; items have {', '.join(doc)}") from None

    try:
        compiled = env.from_string(text)
    except TemplateError as error:
        raise ParameterError(f"{task}: its template {text[:60]!r} cannot be read: {error}") from None
    return fill
