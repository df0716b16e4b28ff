"""Does code that a model wrote pass a benchmark's tests?

Two sandboxes that share two pipes. One holds the solution and answers calls; the other runs the benchmark's own tests,
with a stand-in for the solution that sends each call over and gets plain data back. The tests are never in the
solution's process, nor is anything that decides: exiting early, printing what a checker prints, an `__eq__` that is
always true or a look through frames and memory changes only the solution's own answers. What a solution does to its
arguments is not seen by the tests. Of installed packages it sees those that a problem names: none for HumanEval,
`sortedcontainers` for LeetCodeDataset, whose prompts import it.
"""

import functools
import json
import os
import secrets
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llamax import sandbox
from llamax.errors import DataError
from llamax.progress import Progress
from llamax.sandbox import Limits, Result, execute

DEFAULT = Limits(wall=40.0, cpu=10.0, memory=2 << 30)
PATIENCE = 5.0  # times what the reference needs is fair
SLACK = 10.0  # seconds that the tests' side may take beyond the solution's
REMOTE = (Path(sandbox.__file__).parent / "inside" / "remote.py").read_text()

SOLUTION = """
def _make(prelude, solution, entry):
    module = type(sys)("solution")
    sys.modules["solution"] = module
    exec(compile(prelude, "prelude.py", "exec", dont_inherit=True), module.__dict__)
    exec(compile(solution, "solution.py", "exec", dont_inherit=True), module.__dict__)
    return eval(entry, module.__dict__), module.__dict__

import sys
for handle in (1, 2):  # what a solution prints is nobody's business, however much it is
    os.dup2(os.open(os.devnull, os.O_WRONLY), handle)
serve(lambda: _make(*{texts!r}), 5, 6)
"""
TESTS = """
import sys
def _check(helpers, test, entry):
    module = type(sys)("tests")
    sys.modules["tests"] = module
    space = module.__dict__
    exec(compile(helpers, "helpers.py", "exec", dont_inherit=True), space)  # what fails here is the benchmark's fault
    remote = Remote(5, 6, own_classes(space))
    if entry.isidentifier():
        space[entry] = remote
    exec(compile(test, "test.py", "exec", dont_inherit=True), space)
    step = "the solution"
    try:
        remote.answer()
        step = "call"
        space["check"](remote)
    except BaseException as error:
        kind = type(error).__name__
        where = step if step != "call" else f"call {{remote.calls}}"
        named = "" if kind == "Raised" else f"{{kind}}: "
        return kind, f"{{where}}: {{named}}{{str(error)[:300]}}".rstrip(": ")
    return "", "" if remote.calls else "the tests called nothing"

try:
    verdict = _check(*{texts!r})
except BaseException as error:
    verdict = "broken", f"{{type(error).__name__}}: {{error}}"
print()
print({token!r} + json.dumps(verdict), flush=True)
"""


@dataclass(frozen=True)
class Problem:
    """A function to be written and the tests that it must pass.

    `entry_point` is the expression that gives the function; `test` defines `check(candidate)`, which raises unless
    `candidate` is right; `prelude` is run before the solution, `helpers` before the tests; `reference` is a whole
    solution known to pass; `packages` may be imported by all of these.
    """

    name: str
    entry_point: str
    test: str
    prelude: str = ""
    helpers: str = ""
    reference: str = ""
    packages: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """`status`: passed, failed (a test, or the solution itself), timeout, memory, denied. `detail`: one line of why."""

    passed: bool
    status: str
    detail: str = ""


def humaneval(doc: dict[str, Any]) -> Problem:
    """A row of HumanEval (task_id, prompt, entry_point, canonical_solution, test).

    A solution is the whole program: the prompt and its completion. Raises: DataError: a column is missing or no text.
    """
    task, prompt, entry, body, test = _columns(doc, "task_id", "prompt", "entry_point", "canonical_solution", "test")
    return Problem(task, entry, test, helpers=prompt, reference=prompt + body)


def leetcode(doc: dict[str, Any]) -> Problem:
    """A row of LeetCodeDataset v0.3.1 (task_id, prompt, entry_point, completion, test).

    A solution is a `class Solution`; the imports and classes of the prompt are there before it. Raises: DataError.
    """
    task, prompt, entry, body, test = _columns(doc, "task_id", "prompt", "entry_point", "completion", "test")
    return Problem(task, entry, test, prelude=prompt, helpers=prompt, reference=body, packages=("sortedcontainers",))


def _columns(doc: dict[str, Any], *names: str) -> list[str]:
    for name in names:
        if not isinstance(doc.get(name), str):
            raise DataError(f"{doc.get('task_id', 'a problem')}: column {name} should be a text; got {doc.get(name)!r}")
    return [doc[name] for name in names]


def judge(solution: str, problem: Problem, limits: Limits | None = None) -> Verdict:
    """Whether `solution` passes the tests of `problem`.

    Without `limits` it has 10 s of CPU time and 2 GiB, or, where that is not enough for the reference with ease, five
    times the reference's time. Raises: SandboxError: no sandbox on this machine, a package is not installed. DataError:
    the problem's own helpers or tests do not run.
    """
    verdict = _judge(solution, problem, limits or DEFAULT)[0]
    if limits is not None or verdict.status != "timeout" or not problem.reference:
        return verdict
    fair = PATIENCE * reference_seconds(problem)
    if fair <= DEFAULT.cpu:
        return verdict
    return _judge(solution, problem, replace(DEFAULT, cpu=fair, wall=4 * fair))[0]


@functools.lru_cache(maxsize=4096)
def reference_seconds(problem: Problem) -> float:
    """CPU seconds that the reference takes for all tests; 0 if it does not pass within ten times the usual limit."""
    verdict, result = _judge(problem.reference, problem, replace(DEFAULT, cpu=10 * DEFAULT.cpu, wall=40 * DEFAULT.cpu))
    return result.cpu if verdict.passed else 0.0


def judge_all(
    submissions: list[tuple[str, Problem]],
    *,
    workers: int | None = None,
    limits: Limits | None = None,
    progress: bool = False,
) -> list[Verdict]:
    """A verdict for each (solution, problem), in order; `workers` of them at a time, one per core by default."""
    with Progress(len(submissions), "judge", shown=progress) as bar, ThreadPoolExecutor(workers or _cores()) as pool:
        verdicts = []
        for verdict in pool.map(lambda submission: judge(*submission, limits), submissions):
            verdicts.append(verdict)
            bar.advance()
        return verdicts


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _judge(solution: str, problem: Problem, limits: Limits) -> tuple[Verdict, Result]:
    """The verdict, and what became of the solution's process."""
    token = secrets.token_hex(16)
    texts = (problem.helpers, problem.test, problem.entry_point)
    tests = REMOTE + TESTS.format(texts=texts, token=token)
    texts = (problem.prelude, solution, problem.entry_point)
    answers = REMOTE + SOLUTION.format(texts=texts)
    (call_out, call_in), (answer_out, answer_in) = os.pipe(), os.pipe()
    finished, finish = os.pipe()
    with ThreadPoolExecutor(1) as pool:
        solved = pool.submit(
            execute, answers, limits, packages=problem.packages, channels=(call_out, answer_in), until=finished
        )
        try:
            more = replace(limits, wall=limits.wall + SLACK, cpu=limits.cpu + SLACK)
            checked = execute(tests, more, packages=problem.packages, channels=(answer_out, call_in))
        finally:
            os.close(finish)
            solved.exception()  # it has ended
            os.close(finished)
    return _verdict(checked, solved.result(), token, problem.name), solved.result()


def _verdict(checked: Result, solved: Result, token: str, name: str) -> Verdict:
    """Passed only if the tests' side says so in so many words. Raises: DataError: the tests themselves are broken."""
    _, found, said = checked.stdout.rpartition(token)
    if not found:  # the tests did not come to an end
        worst = solved if solved.status in ("timeout", "memory") else checked
        return Verdict(False, worst.status if worst.status != "ok" else "failed", f"tests: {worst.detail}")
    kind, detail = json.loads(said)
    if kind == "broken":
        raise DataError(f"{name}: the benchmark's own code does not run: {detail}")
    if not kind and not detail:
        return Verdict(True, "passed")
    if kind == "Lost" and solved.status in ("timeout", "memory", "denied"):
        return Verdict(False, solved.status, solved.detail)
    if kind == "MemoryError":
        return Verdict(False, "memory", detail)
    if kind == "Lost":
        detail = f"the solution's process ended before the tests ({solved.detail or 'exit status 0'})"
    return Verdict(False, "denied" if solved.denied else "failed", detail)
