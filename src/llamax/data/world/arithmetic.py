"""Arithmetic: sums, and word problems of one or two steps with their worked answers."""

import random
from typing import NamedTuple

from llamax.data.world.split import unit

NAMES = "Anna Ben Clara David Emma Felix Grace Hugo Ida Jonas Kate Leo Mia Noah Olga Paul Rosa Sam Tina Victor".split()  # noqa: SIM905
THINGS = "apples books cards coins cups eggs flowers keys letters marbles nuts pens plates shells stamps stones".split()  # noqa: SIM905

# (name, form of the sum, story, question). `a b c` are the numbers, `n m` two names, `o` the things.
STORIES = (
    ("buy", "a+b", "{n} has {a} {o} and buys {b} more.", "How many {o} does {n} have now?"),
    ("find", "a+b", "{n} owns {a} {o}. On a walk {n} finds {b} {o}.", "How many {o} does {n} own in the end?"),
    ("together", "a+b", "{n} has {a} {o} and {m} has {b} {o}.", "How many {o} do they have together?"),
    ("boxes", "a+b", "One box holds {a} {o}. Another box holds {b} {o}.", "How many {o} are in both boxes?"),
    ("give", "a-b", "{n} has {a} {o} and gives {b} to {m}.", "How many {o} does {n} keep?"),
    ("lose", "a-b", "{n} had {a} {o} but lost {b} of them.", "How many {o} are left?"),
    ("more", "a-b", "{n} has {a} {o}. {m} has {b} {o}.", "How many more {o} does {n} have than {m}?"),
    ("bags", "a*b", "{n} has {a} bags with {b} {o} in each.", "How many {o} does {n} have?"),
    ("days", "a*b", "{n} collects {b} {o} a day for {a} days.", "How many {o} does {n} collect?"),
    ("share", "a/b", "{n} shares {a} {o} among {b} friends.", "How many {o} does each friend get?"),
    ("three", "a+b+c", "{n} has {a} {o}, {m} has {b} and a friend has {c}.", "How many {o} do all three have?"),
    ("week", "a+b+c", "{n} found {a} {o} on Monday, {b} on Tuesday and {c} on Friday.", "How many {o} were found?"),
    ("trade", "a+b-c", "{n} has {a} {o}, buys {b} more and loses {c}.", "How many {o} does {n} have now?"),
    ("bus", "a+b-c", "A bus carries {a} people. {b} get on and {c} get off.", "How many people are on the bus?"),
    ("shop", "a-b-c", "A shop had {a} {o}. It sold {b} to {n} and {c} to {m}.", "How many {o} remain?"),
    ("packs", "a*b+c", "{n} buys {a} packs of {b} {o} and finds {c} more.", "How many {o} does {n} have?"),
    ("rows", "a*b-c", "{n} lays {a} rows of {b} {o} and takes {c} away.", "How many {o} still lie there?"),
)


class Problem(NamedTuple):
    """A word problem; `sums` are the worked steps, e.g. `("3 * 4 = 12", "12 + 5 = 17")`."""

    story: str
    question: str
    sums: tuple[str, ...]
    answer: int
    kind: str
    side: str

    @property
    def text(self) -> str:
        return f"{self.story} {self.question}"

    @property
    def worked(self) -> str:
        return f"{'. '.join(self.sums)}. The answer is {self.answer}."


def numbers(form: str, random: random.Random) -> list[int]:
    """Numbers for a sum of the given form: never negative, products within the times table, division exact."""
    if form.startswith("a*b"):
        a, b = random.randint(2, 9), random.randint(2, 9)
        return [a, b, random.randint(2, 20) if form == "a*b+c" else random.randint(1, a * b - 1)][: 1 + len(form) // 2]
    if form == "a/b":
        b = random.randint(2, 9)
        return [b * random.randint(2, 9), b]
    a, b = random.randint(3, 45), random.randint(2, 35)
    if form.startswith("a-"):
        b = random.randint(1, a - 2)
        return [a, b] if form == "a-b" else [a, b, random.randint(1, a - b)]
    if form == "a+b":
        return [a, b]
    return [a, b, random.randint(2, 20) if form == "a+b+c" else random.randint(1, a + b - 1)]


def work(form: str, values: list[int]) -> tuple[tuple[str, ...], int]:
    """The steps of a sum, left to right, and its result."""
    total, steps = values[0], []
    for sign, value in zip(form[1::2], values[1:], strict=True):
        result = {"+": total + value, "-": total - value, "*": total * value, "/": total // value}[sign]
        steps.append(f"{total} {sign} {value} = {result}")
        total = result
    return tuple(steps), total


def problem(random: random.Random) -> Problem:
    """Draw a problem; its side (`train`, `held_out`, `test`) depends on its story and numbers, not on its names."""
    kind, form, story, question = random.choice(STORIES)
    values = numbers(form, random)
    (n, m), o = random.sample(NAMES, 2), random.choice(THINGS)
    fields = {"n": n, "m": m, "o": o} | dict(zip("abc", values, strict=False))
    sums, answer = work(form, values)
    place = unit("problem", kind, *values)
    side = "test" if place < 0.15 else "held_out" if place < 0.2 else "train"
    return Problem(story.format(**fields), question.format(**fields), sums, answer, kind, side)


def problem_on(side: str, random: random.Random) -> Problem:
    """Draw until a problem is on the wanted side."""
    while True:
        drawn = problem(random)
        if drawn.side == side:
            return drawn


def sums(random: random.Random, count: int) -> list[str]:
    """Bare sums: `23 + 45 = 68`."""
    forms = ("a+b", "a+b", "a-b", "a-b", "a*b", "a/b", "a+b", "a-b")
    return [work(form, numbers(form, random))[0][0] for form in random.choices(forms, k=count)]


def spoken(random: random.Random, count: int) -> list[str]:
    """The same in words: `23 plus 45 is 68.`"""
    names = {" + ": " plus ", " - ": " minus ", " * ": " times ", " / ": " divided by "}
    found = []
    for line in sums(random, count):
        for sign, name in names.items():
            line = line.replace(sign, name)
        found.append(line.replace(" = ", " is ") + ".")
    return found
