"""Does code that a model wrote pass a benchmark's tests? Judged in the sandbox, by a process of its own.

(First form of the interface; the two-process judge follows.)
"""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from llamax.errors import DataError
from llamax.progress import Progress


@dataclass(frozen=True)
class Problem:
    """A function to be written and the tests that it must pass.

    `test` defines `check(candidate)`, which raises unless `candidate` is right; `prelude` is run before the solution,
    `helpers` before the tests; `reference` is a whole solution known to pass.
    """

    name: str
    entry_point: str
    test: str
    prelude: str = ""
    helpers: str = ""
    reference: str = ""


@dataclass(frozen=True)
class Verdict:
    """`status`: passed, failed (an assertion or an exception), timeout, memory, denied; `detail`: one line of why."""

    passed: bool
    status: str
    detail: str = ""


def humaneval(doc: dict[str, Any]) -> Problem:
    """HumanEval's columns; a solution is the whole program: the prompt and its completion."""
    task, prompt, entry, body, test = _columns(doc, "task_id", "prompt", "entry_point", "canonical_solution", "test")
    return Problem(task, entry, test, helpers=prompt, reference=prompt + body)


def leetcode(doc: dict[str, Any]) -> Problem:
    """LeetCodeDataset's columns (v0.3.1); a solution is a `class Solution`, run after the imports of the prompt."""
    task, prompt, entry, body, test = _columns(doc, "task_id", "prompt", "entry_point", "completion", "test")
    return Problem(task, entry, test, prelude=prompt, helpers=prompt, reference=body)


def _columns(doc: dict[str, Any], *names: str) -> list[str]:
    for name in names:
        if not isinstance(doc.get(name), str):
            raise DataError(f"{doc.get('task_id', 'a problem')}: column {name} should be a text; got {doc.get(name)!r}")
    return [doc[name] for name in names]


def judge(solution: str, problem: Problem) -> Verdict:
    """Whether `solution` passes the tests of `problem`."""
    program = "\n".join((problem.prelude, solution, problem.test, f"check({problem.entry_point})"))
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, timeout=60, env={}
        )
    except subprocess.TimeoutExpired:
        return Verdict(False, "timeout")
    lines = done.stderr.strip().splitlines()
    return Verdict(done.returncode == 0, "failed" if done.returncode else "passed", lines[-1] if lines else "")


def judge_all(
    submissions: list[tuple[str, Problem]], *, workers: int | None = None, progress: bool = False
) -> list[Verdict]:
    """A verdict for each (solution, problem), in order; `workers` judged at a time."""
    with Progress(len(submissions), "judge", shown=progress) as bar, ThreadPoolExecutor(workers or 1) as pool:

        def one(submission: tuple[str, Problem]) -> Verdict:
            verdict = judge(*submission)
            bar.advance()
            return verdict

        return list(pool.map(one, submissions))
