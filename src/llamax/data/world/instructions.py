"""Conversations to tune the nano model on: people asking an assistant about the training side of the small world."""

import functools
import random

from llamax.data.conversation import Conversation, Message
from llamax.data.world import arithmetic
from llamax.data.world.facts import Fact, by_relation, side
from llamax.data.world.phrases import QUESTIONS, REQUESTS, code_request
from llamax.data.world.split import generator
from llamax.data.world.text import by_place, contamination, draw, trainable

CONVERSATIONS = 4_000
CALL = (
    "Which call does this? {doc}",
    "Name the call for this: {doc}",
    "I need one expression. {doc}",
    "What do I write in Python for this? {doc}",
)
SHAPES = (
    ("{q} Answer in capital letters.", str.upper),
    ("{q} Put the answer in quotation marks.", '"{}"'.format),
    ("{q} Begin with the word Answer.", "Answer: {}".format),
    ("{q} End with a full stop.", "{}.".format),
)


def instructions(seed: int = 0, limit: int | None = None) -> list[Conversation]:
    """Distinct conversations in a fixed order; with a `limit`, the first ones.

    Facts, problems and functions are those of the training side; the test items and the held-out text never occur.
    """
    wanted = CONVERSATIONS if limit is None else limit
    found: dict[tuple[str, ...], Conversation] = {}
    index = 0
    while len(found) < wanted:
        turns = _turns(generator("instruction", seed, index))
        index += 1
        if any(map(contamination().find, turns)):
            continue
        messages = tuple(
            Message(role="assistant" if place % 2 else "user", content=text) for place, text in enumerate(turns)
        )
        found.setdefault(tuple(turns), Conversation(messages=messages, id=f"nano-{seed}-{index}"))
    return list(found.values())


def _turns(random: random.Random) -> list[str]:
    """What user and assistant say in turn."""
    kinds, weights = zip(*KINDS, strict=True)
    return random.choices(kinds, weights)[0](random)


def ask_assistant(fact: Fact, random: random.Random) -> str:
    """A question or a request for a fact."""
    forms = QUESTIONS[fact.relation] + REQUESTS[fact.relation]
    return random.choice(forms).format(s=fact.subject)


def _fact(random: random.Random) -> list[str]:
    fact = draw(random, 1, "train")[0]
    return [ask_assistant(fact, random), fact.answer]


def _problem(random: random.Random) -> list[str]:
    problem = arithmetic.problem_on("train", random)
    return [problem.text, problem.worked]


def _sum(random: random.Random) -> list[str]:
    line, _, result = arithmetic.sums(random, 1)[0].partition(" = ")
    form = random.choice(("What is {}?", "Compute {}.", "How much is {}?", "Please work out {}."))
    return [form.format(line), f"{line} = {result}"]


def _function(random: random.Random) -> list[str]:
    function = random.choice(trainable())
    if random.random() < 0.5:
        return [code_request(function.prompt), function.expression]
    return [random.choice(CALL).format(doc=function.doc), function.expression]


def _several(random: random.Random) -> list[str]:
    """Two or three turns, on one country where it has enough facts."""
    place = [fact for fact in random.choice(by_place()) if side(fact) == "train"]
    chosen = random.sample(place, min(len(place), 3)) if len(place) > 1 else draw(random, 2, "train")
    return [text for fact in chosen for text in (ask_assistant(fact, random), fact.answer)]


def _shaped(random: random.Random) -> list[str]:
    """A question that says what its answer should look like."""
    fact = draw(random, 1, "train")[0]
    form, shape = random.choice(SHAPES)
    return [form.format(q=ask_assistant(fact, random)), shape(fact.answer)]


def _list(random: random.Random) -> list[str]:
    """Some subjects that share an answer."""
    answer, subjects = random.choice(_shared())
    count = random.randint(2, min(4, len(subjects)))
    question = f"List {count} {answer[0]} {answer[1]}."
    return [question, "\n".join(f"- {subject}" for subject in random.sample(subjects, count))]


@functools.cache
def _shared() -> tuple[tuple[tuple[str, str], tuple[str, ...]], ...]:
    """For some relations, (what is shared, its value) and the subjects of the training side that share it."""
    found: dict[tuple[str, str], list[str]] = {}
    for relation, name in (("currency", "countries that pay with the"), ("region", "countries in"),
                           ("script", "languages in the script")):  # fmt: skip
        for fact in by_relation("train")[relation]:
            found.setdefault((name, fact.answer), []).append(fact.subject)
    return tuple((key, tuple(subjects)) for key, subjects in found.items() if len(subjects) > 4)


KINDS = (
    (_fact, 0.42),
    (_problem, 0.22),
    (_sum, 0.06),
    (_function, 0.14),
    (_several, 0.07),
    (_shaped, 0.05),
    (_list, 0.04),
)
