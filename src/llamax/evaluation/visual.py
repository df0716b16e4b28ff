"""Benchmarks about pictures, for models that see: items with pictures, the prompt, the letter that an answer names.

A vision model plugs in as a function from an item to a text. Beside its score belong two controls: `majority` (always
the letter that is right most often) and the same model without the picture (`blind`).
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from llamax.data.sources import data_folder
from llamax.errors import DataError, ParameterError
from llamax.evaluation import benchmarks
from llamax.evaluation.harness import COLUMNS, Row, select
from llamax.files import sha256_json
from llamax.progress import Progress
from llamax.versions.measured import Measured, item_set

BENCHMARK = "puzzlevqa"
LETTERS = "ABCDEFGH"
PROMPT = "{question}\nOptions:\n{options}\nAnswer with the letter of the right option.\nAnswer:"
# The letter that an answer begins with ("B", "(B) 4", "B."), not an article ("A dog"); else the last that it calls the
# answer ("the answer is (B)").
FIRST = re.compile(r"\s*(?:\(([A-H])\)|([A-H])\s*(?:$|[).:,\n]))")
NAMED = re.compile(r"(?i:answer|option)(?i: is|:)?\s*\(?([A-H])(?![A-Za-z'])")


class VisualItem(NamedTuple):
    """A question about a picture. `image` is None for a model that must do without."""

    item: str
    prompt: str
    image: Path | None
    options: tuple[str, ...]
    right: str  # a letter; answer functions leave it alone
    category: str


Answer = Callable[[VisualItem], str]


def items(limit: int | None = None, seed: int = 0) -> list[VisualItem]:
    """PuzzleVQA's items with absolute paths of their pictures; a part is spread evenly over the categories.

    Raises: DataError: no local copy, a picture is missing, or an answer is none of its options.
    """
    rows = benchmarks.load(BENCHMARK)["test"]
    root = (data_folder() / benchmarks.card_of(BENCHMARK).splits["test"].local).parent
    found = [_item(row, number, root) for number, row in enumerate(rows)]
    by_category: dict[str, list[VisualItem]] = {}
    for item in found:
        by_category.setdefault(item.category, []).append(item)
    chosen = select({name: len(group) for name, group in by_category.items()}, limit, seed)
    return [by_category[name][number] for name, numbers in chosen.items() for number in numbers]


def _item(row: dict, number: int, root: Path) -> VisualItem:
    options, answer = tuple(map(str, row["options"])), str(row["answer"])
    name = f"{BENCHMARK}/{number}"
    if answer not in options:
        raise DataError(f"{name}: its answer {answer!r} is none of the options {', '.join(options)}")
    if not (image := root / row["image"]).is_file():
        raise DataError(f"{name}: its picture {image} is missing; restore the folder")
    listed = "\n".join(f"({letter}) {option}" for letter, option in zip(LETTERS, options, strict=False))
    prompt = PROMPT.format(question=row["question"], options=listed)
    return VisualItem(name, prompt, image, options, LETTERS[options.index(answer)], row["category"])


def letter_of(answer: str) -> str | None:
    """The letter that an answer names, or None."""
    if first := FIRST.match(answer):
        return first[1] or first[2]
    named = NAMED.findall(answer)
    return named[-1] if named else None


def evaluate(asked: Sequence[VisualItem], answer: Answer, *, progress: bool = False) -> pd.DataFrame:
    """Ask a model every item; a row for each in the columns of every outcome table, clustered by category.

    An answer that names no letter counts as wrong.
    """
    if not asked:
        raise ParameterError("no items to ask")
    rows = []
    with Progress(len(asked), BENCHMARK, shown=progress) as bar:
        for item in asked:
            right = letter_of(answer(item)) == item.right
            rows.append(Row(BENCHMARK, "acc", item.item, 0, float(right), item.category))
            bar.advance()
    return pd.DataFrame(rows, columns=COLUMNS)


def majority(asked: Sequence[VisualItem]) -> Answer:
    """The control that always says the letter that is right most often among these items."""
    most = Counter(item.right for item in asked).most_common(1)[0][0]
    return lambda _: most


def blind(answer: Answer) -> Answer:
    """The control that asks the same model without the picture."""
    return lambda item: answer(item._replace(image=None))


def measured(asked: Sequence[VisualItem], *, max_new_tokens: int | None = None, precision: str = "fp32") -> Measured:
    """What the score means, for the gate."""
    card = benchmarks.card_of(BENCHMARK)
    names = [item.item for item in asked]
    return Measured(
        benchmark=BENCHMARK,
        metric="acc",
        protocol="llamax",
        prompts=sha256_json([PROMPT, FIRST.pattern, NAMED.pattern]),
        shots=0,
        max_new_tokens=max_new_tokens,
        items=len(names),
        total=card.splits["test"].items,
        item_set=item_set(names),
        precision=precision,
    )
