"""Problems against a second way of computing them."""

import random
import re

from hypothesis import given
from hypothesis import strategies as st

from llamax.data.world import arithmetic


@given(st.integers(0, 10**9))
def test_worked_answers_are_right(seed):
    problem = arithmetic.problem(random.Random(seed))
    last = None
    for line in problem.sums:
        a, sign, b, result = re.fullmatch(r"(\d+) ([-+*/]) (\d+) = (\d+)", line).groups()
        a, b, result = int(a), int(b), int(result)
        assert last in (None, a)
        assert {"+": a + b, "-": a - b, "*": a * b, "/": a / b}[sign] == result >= 0
        last = result
    assert problem.answer == last
    assert problem.worked.endswith(f"The answer is {last}.")
    told = {int(number) for number in re.findall(r"\d+", problem.text)}
    used = {int(n) for line in problem.sums for n in re.findall(r"\d+", line.partition("=")[0])}
    results = {int(line.rpartition(" ")[2]) for line in problem.sums[:-1]}
    assert told <= used <= told | results


@given(st.integers(0, 10**9))
def test_bare_sums_are_right_written_and_spoken(seed):
    for line in arithmetic.sums(random.Random(seed), 8):
        left, _, right = line.partition(" = ")
        a, sign, b = left.split()
        assert {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b), "/": int(a) / int(b)}[sign] == int(
            right
        )
    assert arithmetic.spoken(random.Random(seed), 1)[0].endswith(".")


def test_the_side_of_a_problem_does_not_hang_on_its_names():
    seen = {}
    for seed in range(3_000):
        problem = arithmetic.problem(random.Random(seed))
        key = (problem.kind, *re.findall(r"\d+", problem.text))
        assert seen.setdefault(key, problem.side) == problem.side
    assert set(seen.values()) == {"train", "held_out", "test"}
    assert arithmetic.problem_on("test", random.Random(0)).side == "test"
