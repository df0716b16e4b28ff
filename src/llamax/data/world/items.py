"""The test items of the small world: five tasks, drawn from the test sides of the splits and from nowhere else."""

import functools
import re
from collections import Counter
from typing import Literal

from llamax.config import Config
from llamax.data.world import arithmetic
from llamax.data.world.facts import Fact, by_relation, facts, side
from llamax.data.world.functions import functions
from llamax.data.world.functions import side as function_side
from llamax.data.world.phrases import ask
from llamax.data.world.split import generator, unit

Task = Literal["knowledge", "arithmetic", "open_qa", "truthfulness", "code"]
SIZES: dict[str, dict[str, int]] = {
    "full": {"knowledge": 200, "arithmetic": 150, "open_qa": 150, "truthfulness": 150, "code": 80},
    "smaller": {"knowledge": 16, "arithmetic": 8, "open_qa": 8, "truthfulness": 16, "code": 8},
}
OPTIONS = 4
SAME_ANSWER = 10  # items of a choice task that may share a right answer, so that no answer is right by habit


class WorldItem(Config):
    """One test item. `answer` is one of `choices` where there are any; `aliases` are right as well.

    `tempting` is the false option of a truthfulness item that is often said. `cluster` names what the item shares with
    others, for clustered standard errors: the subject of its fact. Problems and functions are drawn one by one, so each
    is a cluster of its own.
    """

    id: str
    task: Task
    question: str
    answer: str
    choices: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    tempting: str = ""
    cluster: str


def test_items(size: Literal["full", "smaller"] = "full") -> list[WorldItem]:
    """The items of all five tasks, in a fixed order; `smaller` is a prefix of each task of `full`."""
    return [item for task, count in SIZES[size].items() for item in _items(task)[:count]]


test_items.__test__ = False  # pytest would otherwise collect it by its name


@functools.cache
def _items(task: str) -> tuple[WorldItem, ...]:
    if task == "arithmetic":
        return tuple(_arithmetic(SIZES["full"][task]))
    if task == "code":
        return tuple(_code())
    chosen = sorted((fact for fact in facts() if side(fact) == task), key=lambda fact: unit("item", fact.key))
    if task == "open_qa":
        return tuple(_open(fact) for fact in chosen)
    counts: Counter[str] = Counter()
    kept = []
    for fact in chosen:
        if counts[fact.answer] < SAME_ANSWER:
            counts[fact.answer] += 1
            kept.append(_choice(fact))
    return tuple(kept)


def _choice(fact: Fact) -> WorldItem:
    """Four options in random order: the answer, the tempting one if there is one, and the answers of other facts.

    The others are drawn from facts, not from answers: a common answer is a common distractor too, so that guessing by
    frequency or length does not pay.
    """
    random = generator("choices", fact.key)
    options = [fact.answer] + ([fact.tempting] if fact.tempting else [])
    pool = [f.answer for f in by_relation()[fact.relation]]
    true = {fact.answer, *fact.others}
    while len(options) < min(OPTIONS, len(set(pool) - true) + 1):
        other = random.choice(pool)
        if other not in options and other not in true:
            options.append(other)
    random.shuffle(options)
    return WorldItem(
        id=f"{side(fact)}/{fact.key}",
        task=side(fact),
        question=ask(fact, random),
        answer=fact.answer,
        choices=tuple(options),
        tempting=fact.tempting,
        cluster=fact.subject,
    )


def _open(fact: Fact) -> WorldItem:
    others = fact.others
    question = ask(fact, generator("question", fact.key))
    return WorldItem(
        id=f"open_qa/{fact.key}", task="open_qa", question=question, answer=fact.answer, aliases=others,
        cluster=fact.subject,
    )  # fmt: skip


def _arithmetic(count: int) -> list[WorldItem]:
    found: dict[str, WorldItem] = {}
    index = 0
    while len(found) < count:
        problem = arithmetic.problem_on("test", generator("test problem", index))
        index += 1
        name = f"arithmetic/{problem.kind}-{'-'.join(re.findall(r'[0-9]+', problem.text))}"
        found.setdefault(
            name,
            WorldItem(id=name, task="arithmetic", question=problem.text, answer=str(problem.answer), cluster=name),
        )
    return list(found.values())


def _code() -> list[WorldItem]:
    chosen = [function for function in functions() if function_side(function) == "test"]
    return [
        WorldItem(id=f"code/{f.name}", task="code", question=f.prompt, answer=f.expression, cluster=f.name)
        for f in sorted(chosen, key=lambda f: unit("item", f.name))
    ]
