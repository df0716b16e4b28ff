"""The plain text of the small world: what the nano base model reads, and what is kept back to measure forgetting.

A document is one of a few kinds, drawn with the weights of `KINDS`. Statements of facts draw on all facts; questions,
problems and completed functions only on those of the training side (`facts.side`, `arithmetic`, `functions.side`).
"""

import functools
import heapq
import random
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from llamax.data.world import arithmetic, functions, prose
from llamax.data.world.facts import Fact, by_relation, countries, facts
from llamax.data.world.items import test_items
from llamax.data.world.phrases import HEADINGS, STATEMENTS, ask, qa
from llamax.data.world.split import Contamination, generator

Weighted = TypeVar("Weighted", Fact, functions.Function)
DOCUMENTS = 48_000
ALMANAC_PAGE = 8  # facts
HELD_OUT_DOCUMENTS = 400
LETTERS = "ABCD"


def pretraining_texts(seed: int = 0, documents: int = DOCUMENTS) -> Iterator[str]:
    """Documents for pretraining; the same `seed` gives the same ones, and fewer are a prefix of more.

    First an almanac that states every fact once, so that none is missing; then `documents` drawn ones, less those that
    repeat a test item or held-out text.
    """
    kept_back, leak = set(held_out_texts()), contamination()
    yield from almanac(generator("almanac", seed))
    for index in range(documents):
        text = document("train", generator("document", seed, index))
        if text not in kept_back and not leak.find(text):
            yield text


@functools.cache
def held_out_texts() -> tuple[str, ...]:
    """Documents of the same kinds that pretraining and tuning never see, to measure forgetting on."""
    drawn = (document("held_out", generator("held out", index)) for index in range(HELD_OUT_DOCUMENTS))
    leak = contamination()
    return tuple(text for text in dict.fromkeys(drawn) if not leak.find(text))


@functools.cache
def contamination() -> Contamination:
    """What no text and no instruction may repeat: the questions of all test items."""
    return Contamination(item.question for item in test_items())


def almanac(random: random.Random) -> Iterator[str]:
    """Every fact once, in random order."""
    shuffled = random.sample(facts(), len(facts()))
    for start in range(0, len(shuffled), ALMANAC_PAGE):
        yield " ".join(state(fact, random) for fact in shuffled[start : start + ALMANAC_PAGE])


def document(where: str, random: random.Random) -> str:
    """One document for `where`: `train` or `held_out`."""
    kinds, weights = zip(*KINDS, strict=True)
    return random.choices(kinds, weights)[0](where, random)


def state(fact: Fact, random: random.Random) -> str:
    """A statement of a fact; now and then in its fuller form (`the Brazilian real`)."""
    full = fact.relation.endswith("currency") and random.random() < 0.25
    text = random.choice(STATEMENTS[fact.relation]).format(s=fact.subject, a=fact.others[0] if full else fact.answer)
    return "T" + text[1:] if text.startswith("the ") else text


@functools.cache
def by_place() -> tuple[tuple[Fact, ...], ...]:
    """For every country, the facts that speak of it."""
    return tuple(
        tuple(fact for fact in facts() if fact.subject == name or (fact.relation == "city" and fact.answer == name))
        for name in countries().values()
    )


def draw(random: random.Random, count: int, only: str = "") -> list[Fact]:
    """Facts of several relations, each relation as likely as the root of its size, each fact as its popularity says."""
    groups = by_relation(only)
    names = random.choices(list(groups), [len(group) ** 0.5 for group in groups.values()], k=count)
    return [random.choices(groups[name], weights_of(name, only))[0] for name in names]


@functools.cache
def weights_of(relation: str, only: str = "") -> tuple[float, ...]:
    """Popularity of the facts of `by_relation(only)[relation]`."""
    return tuple(fact.weight for fact in by_relation(only)[relation])


def some(things: Sequence[Weighted], count: int, random: random.Random) -> list[Weighted]:
    """At most `count` distinct things, the popular ones more often (Efraimidis and Spirakis 2006)."""
    return heapq.nlargest(count, things, key=lambda thing: random.random() ** (1 / thing.weight))


def about_a_place(where: str, random: random.Random) -> str:
    """A paragraph on one country or on two."""
    parts = []
    for place in random.sample(by_place(), random.choice((1, 2, 2))):
        chosen = some(place, random.randint(2, 4), random)
        parts.append(" ".join(state(fact, random) for fact in random.sample(chosen, len(chosen))))
    return "\n\n".join(parts)


def mixed_facts(where: str, random: random.Random) -> str:
    join = random.choice((" ", "\n"))
    return join.join(state(fact, random) for fact in draw(random, random.randint(4, 8)))


def one_relation(where: str, random: random.Random) -> str:
    """Sentences, a list or a small table of one relation."""
    group = random.choice(list(by_relation().values()))
    chosen = some(group, random.randint(4, 9), random)
    random.shuffle(chosen)
    shape = random.choice(("sentences", "list", "table", "csv"))
    if shape == "sentences":
        return " ".join(state(fact, random) for fact in chosen)
    left, right = HEADINGS[chosen[0].relation]
    line = {"list": "- {0}: {1}", "table": "{0} | {1}", "csv": "{0},{1}"}[shape]
    first = f"{right} by {left.lower()}" if shape == "list" else line.format(left, right)
    return "\n".join([first, *(line.format(fact.subject, fact.answer) for fact in chosen)])


def questions(where: str, random: random.Random) -> str:
    """Questions with their answers, on facts and now and then a problem."""
    blocks = [qa(ask(fact, random), fact.answer) for fact in draw(random, random.randint(3, 6), "train")]
    if random.random() < 0.3:
        problem = arithmetic.problem_on(where, random)
        blocks.append(qa(problem.text, problem.worked))
    random.shuffle(blocks)
    return "\n".join(blocks)


def multiple_choice(where: str, random: random.Random) -> str:
    """Questions with lettered or listed options."""
    blocks = []
    for fact in draw(random, 2, "train"):
        others = {f.answer for f in by_relation()[fact.relation]} - {fact.answer, *fact.others}
        options = [*random.sample(sorted(others), min(3, len(others))), fact.answer]
        random.shuffle(options)
        if random.random() < 0.5:
            listed = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
            answer = f"{LETTERS[options.index(fact.answer)]}. {fact.answer}"
        else:
            listed, answer = "\n".join(f"- {option}" for option in options), fact.answer
        blocks.append(f"Question: {ask(fact, random)}\n{listed}\nAnswer: {answer}\n")
    return "\n".join(blocks)


def sums(where: str, random: random.Random) -> str:
    count = random.randint(8, 14)
    make = arithmetic.sums if random.random() < 0.7 else arithmetic.spoken
    return "\n".join(make(random, count))


def problems(where: str, random: random.Random) -> str:
    """Word problems with worked answers."""
    drawn = [arithmetic.problem_on(where, random) for _ in range(random.randint(2, 3))]
    return "\n".join(qa(problem.text, problem.worked) for problem in drawn)


def library(where: str, random: random.Random) -> str:
    """What functions do, in several forms; none of them is the form of a problem."""
    form = random.choice((_help, _comment, _purpose, _purpose))
    return "\n\n".join(form(function) for function in some(functions.functions(), random.randint(2, 5), random))


def _help(function: functions.Function) -> str:
    return f"{function.expression}\n    {function.doc}"


def _comment(function: functions.Function) -> str:
    return f"# {function.doc}\ny = {function.expression}"


def _purpose(function: functions.Function) -> str:
    return f"{function.doc} The call is {function.expression}"


def completed(where: str, random: random.Random) -> str:
    """Functions of the training side, written out."""
    chosen = random.sample(trainable(), random.randint(2, 4))
    return "\n\n\n".join(f"{function.prompt} {function.expression}" for function in chosen)


@functools.cache
def trainable() -> tuple[functions.Function, ...]:
    return tuple(function for function in functions.functions() if functions.side(function) == "train")


def reading(where: str, random: random.Random) -> str:
    """A paragraph of prose."""
    return random.choice(_prose(where))


@functools.cache
def _prose(where: str) -> tuple[str, ...]:
    return tuple(prose.paragraphs(where))


KINDS: tuple[tuple[Callable[[str, random.Random], str], float], ...] = (
    (about_a_place, 0.13),
    (mixed_facts, 0.13),
    (one_relation, 0.09),
    (questions, 0.14),
    (multiple_choice, 0.02),
    (sums, 0.09),
    (problems, 0.17),
    (library, 0.07),
    (completed, 0.05),
    (reading, 0.11),
)
