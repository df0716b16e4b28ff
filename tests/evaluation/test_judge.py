"""The judge: right solutions pass, wrong ones do not, and no solution passes by any other way than by being right."""

import gzip
import json
from dataclasses import replace

import pytest

from llamax.errors import DataError, SandboxError
from llamax.evaluation import judge as module
from llamax.evaluation.judge import Problem, Verdict, humaneval, judge, judge_all, leetcode, reference_seconds
from llamax.sandbox import Limits, Result, active

pytestmark = pytest.mark.skipif(not active() & {"namespaces", "landlock"}, reason="no sandbox here")
QUICK = Limits(wall=6.0, cpu=1.5)
PATIENT = Limits(wall=60.0, cpu=1.5)  # on a busy machine CPU time is slow to pass

# Two problems of our own in the form of HumanEval's rows, one in that of LeetCodeDataset's.
SUM = {
    "task_id": "own/0",
    "prompt": 'def total(xs):\n    """Sum of the squares."""\n',
    "entry_point": "total",
    "canonical_solution": "    return sum(x * x for x in xs)\n",
    "test": "def check(candidate):\n    assert candidate([1, 2]) == 5\n    assert candidate([]) == 0\n"
    "    import random\n    xs = [random.randint(-9, 9) for _ in range(5)]\n"
    "    assert candidate(xs) == sum(x * x for x in xs)\n    assert total((2,)) == 4\n",
}
POLY = {
    "task_id": "own/1",
    "prompt": 'def poly(a, x):\n    return a[0] + a[1] * x\n\n\ndef root(a):\n    """Where poly is 0."""\n',
    "entry_point": "root",
    "canonical_solution": "    return -a[0] / a[1]\n",
    "test": "def check(candidate):\n"
    "    for a in ([1, 2], [3, -4]):\n        assert abs(poly(a, candidate(a))) < 1e-9\n",
}
TREE = {
    "task_id": "own-tree",
    "prompt": "from collections import *\n\nclass Tree:\n    def __init__(self, val=0, left=None):\n"
    "        self.val, self.left = val, left\n\ndef same(p, q):\n"
    "    return (p is None and q is None) or (p.val == q.val and same(p.left, q.left))\n",
    "entry_point": "Solution().grow",
    "completion": "class Solution:\n    def grow(self, tree):\n        return Tree(tree.val + 1, tree)\n",
    "test": "def check(candidate):\n    assert same(candidate(tree=Tree(1)), Tree(2, Tree(1)))\n"
    "    assert same(candidate(tree=Tree(7, Tree(8))), Tree(8, Tree(7, Tree(8))))\n",
}
SQUARES, ROOT, GROW = humaneval(SUM), humaneval(POLY), leetcode(TREE)


@pytest.mark.parametrize("problem", [SQUARES, ROOT, GROW], ids=lambda p: p.name)
def test_references_pass_and_nothing_does_not(problem):
    assert judge(problem.reference, problem) == Verdict(True, "passed")
    nothing = "class Solution:\n    def grow(self, tree): return None" if problem is GROW else problem.helpers
    verdict = judge(nothing, problem)
    assert (verdict.passed, verdict.status) == (False, "failed")
    assert verdict.detail.startswith("call 1: ")


def test_verdicts_come_in_order():
    good, bad = (SQUARES.reference, SQUARES), ("def total(xs): return 5", SQUARES)
    verdicts = judge_all([good, bad, good, bad, good], workers=3)
    assert [verdict.passed for verdict in verdicts] == [True, False, True, False, True]
    assert judge_all([]) == []


@pytest.mark.parametrize(
    ("solution", "status", "detail"),
    [
        ("def total(xs): return 0", "failed", "call 1: AssertionError"),
        ("def total(xs): return {}[1]", "failed", "call 1: KeyError: '1'"),
        ("def total(xs: return", "failed", "the solution: SyntaxError: invalid syntax (solution.py, line 1)"),
        ("def other(xs): return 0", "failed", "the solution: NameError: name 'total' is not defined"),
        ("total = 7", "failed", "call 1: TypeError: 'int' object is not callable"),
        ("import numpy", "failed", "the solution: ModuleNotFoundError: No module named 'numpy'"),
        ("print(1)\0", "failed", "the solution: SyntaxError: source code string cannot contain null bytes"),
        ("def total(xs): return '\ud800'", "failed", "the solution: UnicodeEncodeError"),
        ("def total(xs): return total(xs)", "failed", "call 1: RecursionError"),
        ("def total(xs): return [0] * 10**10", "memory", "call 1: MemoryError"),
        ("def total(xs): open('/etc/passwd')", "denied", "call 1: "),
        ("def total(xs): input()", "failed", "call 1: EOFError"),
    ],
)
def test_why_a_solution_fails(solution, status, detail):
    verdict = judge(solution, SQUARES, QUICK)
    assert (verdict.passed, verdict.status) == (False, status)
    assert verdict.detail.startswith(detail), verdict.detail


def test_a_solution_that_waits():
    verdict = judge("import time\ntime.sleep(60)", SQUARES, Limits(wall=2.0))
    assert verdict == Verdict(False, "timeout", "more than 2 s")


def test_a_problem_without_a_reference_has_the_usual_time(monkeypatch):
    monkeypatch.setattr(module, "DEFAULT", Limits(wall=60.0, cpu=0.5))
    problem = Problem("own/7", "f", "def check(candidate):\n    assert candidate() == 1\n")
    verdict = judge("def f():\n    while True: pass", problem)
    assert verdict == Verdict(False, "timeout", "more than 0.5 s of CPU time")
    quick = replace(problem, reference="def f(): return 1")  # and so has one whose reference is quick
    assert judge("def f():\n    while True: pass", quick) == verdict


def test_a_reference_that_does_not_pass_gives_no_time(monkeypatch):
    monkeypatch.setattr(module, "DEFAULT", Limits(wall=60.0, cpu=0.5))
    wrong = Problem("own/8", "f", "def check(candidate):\n    assert candidate() == 1\n", reference="def f(): return 2")
    assert reference_seconds(wrong) == 0.0


def test_limits_that_are_given_hold_however_slow_the_reference_is(monkeypatch):
    monkeypatch.setattr(module, "reference_seconds", lambda problem: pytest.fail("nobody asked"))
    assert judge("def total(xs):\n    while True: pass", SQUARES, PATIENT).status == "timeout"


def test_a_fair_time_is_a_multiple_of_the_references(monkeypatch):
    asked = []

    def judged(solution, problem, limits):
        asked.append(limits)
        return Verdict(False, "timeout"), None

    monkeypatch.setattr(module, "_judge", judged)
    monkeypatch.setattr(module, "reference_seconds", lambda problem: 7.0)
    judge("slow", SQUARES)
    assert [(one.cpu, one.wall) for one in asked] == [(10.0, 40.0), (35.0, 140.0)]


def test_the_reference_is_run_once(monkeypatch):
    runs = []
    result = type("Result", (), {"cpu": 3.0})
    monkeypatch.setattr(module, "_judge", lambda *given: runs.append(given[2]) or (Verdict(True, "passed"), result))
    problem = Problem("own/once", "f", "", reference="def f(): pass")
    assert [reference_seconds(problem) for _ in range(3)] == [3.0] * 3
    assert [(one.cpu, one.wall) for one in runs] == [(100.0, 400.0)]


def test_a_solution_that_goes_on_is_ended_with_its_tests():
    busy = "import threading, time\nthreading.Thread(target=time.sleep, args=(300,)).start()\n" + SQUARES.reference
    verdict, solved = module._judge(busy, SQUARES, Limits(wall=60.0))
    assert verdict.passed
    assert (solved.status, solved.detail) == ("failed", "ended from outside")


def test_tests_that_never_come_to_an_end_are_no_pass():
    quits = Problem("own/9", "f", "import os\ndef check(candidate):\n    candidate()\n    os._exit(0)\n")
    assert judge("def f(): return 1", quits) == Verdict(False, "failed", "tests: ")


def made(status="ok", stdout="", detail="", denied=()):
    return Result(status, stdout, "", detail, denied)


@pytest.mark.parametrize(
    ("said", "solved", "verdict"),
    [
        (("", ""), made(), Verdict(True, "passed")),
        (("", ""), made("timeout", detail="late"), Verdict(True, "passed")),
        (("Lost", "x"), made("timeout", detail="more than 1 s"), Verdict(False, "timeout", "more than 1 s")),
        (("Lost", "x"), made("memory", detail="too much"), Verdict(False, "memory", "too much")),
        (("Lost", "x"), made("denied", detail="exit status 1"), Verdict(False, "denied", "exit status 1")),
        (
            ("Lost", "x"),
            made(),
            Verdict(False, "failed", "the solution's process ended before the tests (exit status 0)"),
        ),
        (
            ("Lost", "x"),
            made("failed", detail="signal 11"),
            Verdict(False, "failed", "the solution's process ended before the tests (signal 11)"),
        ),
        (("MemoryError", "call 1: "), made(), Verdict(False, "memory", "call 1: ")),
        (("ValueError", "call 1: x"), made(denied=("open",)), Verdict(False, "denied", "call 1: x")),
        (("ValueError", "call 1: x"), made("timeout"), Verdict(False, "failed", "call 1: x")),
        (None, made("timeout", detail="late"), Verdict(False, "timeout", "tests: late")),
        (None, made("memory", detail="full"), Verdict(False, "memory", "tests: full")),
        (None, made(), Verdict(False, "failed", "tests: exit status 3")),
    ],
)
def test_verdicts_by_what_both_sides_say(said, solved, verdict):
    token = "f" * 32
    text = f"noise\n{token if said else 'e' * 32}{json.dumps(said)}\n"
    checked = made("failed" if said is None else "ok", text, "exit status 3" if said is None else "")
    assert module._verdict(checked, solved, token, "own") == verdict


def test_as_many_at_a_time_as_are_asked_for(monkeypatch):
    pools = []
    real = module.ThreadPoolExecutor
    monkeypatch.setattr(module, "ThreadPoolExecutor", lambda workers: pools.append(workers) or real(workers))
    monkeypatch.setattr(module, "judge", lambda *_: None)
    monkeypatch.setattr(module, "_cores", lambda: 5)
    judge_all([("", SQUARES)], workers=3)
    judge_all([("", SQUARES)])
    assert pools == [3, 5]


def test_a_long_complaint_is_cut_short():
    verdict = judge("def total(xs): raise ValueError('x' * 900)", SQUARES, QUICK)
    assert verdict.detail == "call 1: ValueError: " + "x" * 300


def test_an_endless_loop_costs_no_more_than_its_limit():
    verdict = judge("def total(xs):\n    while True: pass", SQUARES, PATIENT)
    assert verdict == Verdict(False, "timeout", "more than 1.5 s of CPU time")


def test_a_solution_may_print_as_much_as_it_likes():
    noisy = "import sys\ndef total(xs):\n    print('x' * 10_000_000, file={})\n    return sum(x * x for x in xs)"
    assert all(judge(noisy.format(stream), SQUARES).passed for stream in ("sys.stdout", "sys.stderr"))


def test_what_is_below_the_name_main_does_not_run():
    assert judge(SQUARES.reference + "\nif __name__ == '__main__': raise SystemExit(1)\n", SQUARES).passed


def test_a_class_of_the_prelude_may_be_written_again():
    again = "class Tree:\n    def __init__(self, val=0, left=None): self.val, self.left = val, left\n"
    assert judge(again + GROW.reference, GROW).passed


LIAR = """
class Liar(int):
    __eq__ = __ne__ = __lt__ = __gt__ = __le__ = __ge__ = lambda self, other: True
    __hash__ = __bool__ = __index__ = lambda self: 1
    def __getattr__(self, name): return self
    def __call__(self, *a, **k): return self
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __abs__ = __call__
"""
FAKES = {
    "leaves early": "import sys; sys.exit(0)",
    "leaves at once": "import os; os._exit(0)",
    "leaves when called": "import os\ndef total(xs): os._exit(0)",
    "leaves politely when called": "def total(xs): raise SystemExit(0)",
    "leaves at the end": "import atexit, os\natexit.register(os._exit, 0)\ndef total(xs): raise StopIteration",
    "says that it passed": "def total(xs): return 0\nprint('passed'); print('[\"\", \"\"]')\nfor handle in range(64):\n"
    '    import os\n    try: os.write(handle, b\'["", ""]\\n\')\n    except OSError: pass',
    "equals everything": LIAR + "def total(xs): return Liar(0)",
    "equals everything by name": LIAR.replace("Liar(int)", "Liar") + "def total(xs): return Liar()",
    "replaces check": "def total(xs): return 0\ndef check(candidate): pass\nimport builtins, sys\n"
    "builtins.check = sys.modules['__main__'].check = check\nfor module in list(sys.modules.values()):\n"
    "    try: module.check = check\n    except Exception: pass",
    "replaces builtins": "import builtins\ndef total(xs): return 0\nbuiltins.sum = lambda *a: 0\n"
    "builtins.AssertionError = type('Fine', (Exception,), {})\nbuiltins.abs = lambda x: 0",
    "switches assertions off": "import sys\ndef total(xs): return 0\n"
    "sys.flags = type(sys)('x')\nsys.flags.optimize = 2",
    "swallows exceptions": "import sys, threading\nsys.excepthook = lambda *a: None\nsys.settrace(lambda *a: None)\n"
    "def total(xs): return 0",
    "looks for the expected value": "import gc, sys\ndef total(xs):\n    frame = sys._getframe()\n    while frame:\n"
    "        for value in frame.f_locals.values():\n            if 'assert' in str(value): raise SystemExit(value)\n"
    "        frame = frame.f_back\n    texts = [o for o in gc.get_objects() if 'assert candidate' in str(o)[:10**6]]\n"
    "    return eval(texts[0].split('==')[1]) if texts else None",
    "raises what the test may catch": "def total(xs): raise AssertionError",
    "raises what ends a loop": "def total(xs): raise StopIteration",
    "answers before it is asked": "import os, struct, json\ndef total(xs): return 0\n"
    "message = json.dumps([['list', 5], ['tuple', 5], ['list', [1]]]).encode()\n"
    "for _ in range(9): os.write(6, struct.pack('!I', len(message)) + message)",
    "closes its end": "import os\nos.close(6)\ndef total(xs): return 5",
    "closes both ends": "import os\nos.close(5); os.close(6)\ndef total(xs): return 5",
    "sends junk": "import os\nos.write(6, os.urandom(1000))\ndef total(xs): return 5",
    "sends a length without end": "import os\nos.write(6, b'\\xff\\xff\\xff\\xff')\ndef total(xs): return 5",
    "sends without end": "import os, struct\nos.write(6, struct.pack('!I', 32 << 20))\n"
    "while True: os.write(6, b' ' * 9999)",
    "never sends the end": "import os, time\nos.write(6, b'\\0\\0\\0\\x09[')\ntime.sleep(60)",
    "sends nested brackets": "import os, struct\nos.write(6, struct.pack('!I', 1 << 20) + b'[' * (1 << 20))",
    "sends a huge number": "import os, struct\nos.write(6, struct.pack('!I', 1 << 20) + b'9' * (1 << 20))",
    "answers with an endless iterator": "import itertools\ndef total(xs): return itertools.count()",
    "answers with a doubling": "def total(xs):\n    x = (0,)\n    for _ in range(60): x = (x, x)\n    return x",
    "answers with a deep list": "def total(xs):\n    x = []\n    for _ in range(20_000): x = [x]\n    return x",
    "answers with itself": "def total(xs):\n    x = []\n    x.append(x)\n    return x",
    "kills all others": "import os, signal\nfor pid in (-1, 1, os.getppid(), *range(2, 50)):\n"
    "    if pid != os.getpid():\n"
    "        try: os.kill(pid, 9)\n        except OSError: pass\ndef total(xs): return 0",
    "traces its parent": "import ctypes, os\nlibc = ctypes.CDLL(None)\n"
    "for pid in (1, os.getppid(), *range(2, 50)): libc.ptrace(16, pid, 0, 0)\ndef total(xs): return 0",
}


@pytest.mark.parametrize("name", FAKES)
def test_no_pass_can_be_faked(name):
    verdict = judge(FAKES[name], SQUARES, QUICK)
    assert not verdict.passed
    assert verdict.detail


def test_a_stop_of_iteration_does_not_cut_the_tests_short():
    """With a plain call, `all(map(...))` would end early and be true."""
    test = "def check(candidate):\n    assert all(map(lambda x: candidate(x) == x, [1, 2]))\n"
    problem = Problem("own/2", "f", test)
    assert judge("def f(x): return x", problem).passed
    assert not judge("def f(x): raise StopIteration", problem).passed


def test_tests_may_expect_exceptions():
    test = "def check(candidate):\n    try: candidate(0)\n    except ZeroDivisionError: return\n    assert False\n"
    problem = Problem("own/3", "f", test)
    assert judge("def f(x): return 1 / x", problem).passed
    assert not judge("def f(x): return 1", problem).passed
    assert not judge("def f(x): raise SystemExit", problem).passed


def test_tests_that_call_nothing_prove_nothing():
    problem = Problem("own/4", "f", "def check(candidate): pass")
    assert judge("def f(x): return 1", problem) == Verdict(False, "failed", "the tests called nothing")


def test_tests_that_print_do_not_disturb():
    problem = Problem("own/5", "f", "def check(candidate):\n    print('x', end='')\n    assert candidate() == 1\n")
    assert judge("def f(): return 1", problem).passed
    assert not judge("def f(): return 2", problem).passed


def test_a_slow_reference_gives_more_time(monkeypatch):
    """What takes the reference longer than the usual limit, here 1 s of CPU time, may take a solution so, too."""
    monkeypatch.setattr(module, "DEFAULT", Limits(wall=60.0, cpu=0.5))
    slow = "import time\ndef f():\n    end = time.process_time() + 1.3\n"
    slow += "    while time.process_time() < end: pass\n    return 1\n"
    problem = Problem("own/slow", "f", "def check(candidate):\n    assert candidate() == 1\n", reference=slow)
    assert 1.2 < reference_seconds(problem) < 3
    assert judge(slow, problem).passed
    quick = Problem("own/quick", "f", problem.test, reference="def f(): return 1")
    assert judge(slow, quick).status == "timeout"


@pytest.mark.parametrize(
    ("broken", "says"),
    [({"helpers": "import nowhere"}, "No module named 'nowhere'"), ({"test": "def check(:"}, "invalid syntax")],
)
def test_what_is_wrong_with_the_benchmark_is_not_the_solutions_fault(broken, says):
    with pytest.raises(DataError, match=f"own/0: the benchmark's own code does not run: .*{says}"):
        judge(SQUARES.reference, replace(SQUARES, **broken))


def test_packages_are_there_for_the_problems_that_name_them():
    test = "def check(candidate):\n    import sortedcontainers\n    assert candidate([2, 1]) == [1, 2]\n"
    problem = Problem("own/6", "f", test, packages=("sortedcontainers",))
    solution = "from sortedcontainers import SortedList\ndef f(x): return list(SortedList(x))"
    assert judge(solution, problem).passed
    assert "No module named 'sortedcontainers'" in judge(solution, SQUARES).detail
    with pytest.raises(SandboxError, match="the package nowhere is not installed"):
        judge(solution, replace(problem, packages=("nowhere",)))


@pytest.mark.parametrize("form", [humaneval, leetcode])
@pytest.mark.parametrize(("doc", "wrong"), [({}, "task_id"), ({"task_id": "a", "prompt": 3}, "prompt")])
def test_a_row_without_its_columns(form, doc, wrong):
    with pytest.raises(DataError, match=f"{doc.get('task_id', 'a problem')}: column {wrong} should be a text; got"):
        form(doc)


def rows(file):
    with gzip.open(file, "rt") as lines:
        return [json.loads(line) for line in lines]


def humaneval_rows(shared_data):
    return rows(shared_data / "humaneval" / "HumanEval.jsonl.gz")


def leetcode_rows(shared_data):
    return rows(shared_data / "leetcode" / "LeetCodeDataset-v0.3.1-test.jsonl.gz")


def failures(problems, solutions):
    verdicts = judge_all(list(zip(solutions, problems, strict=True)))
    return {problem.name: v for problem, v in zip(problems, verdicts, strict=True) if not v.passed}


def test_some_real_references_pass(shared_data):
    """Among them those whose tests use the prompt's helpers (32, 38, 50) or the function's own name (33)."""
    chosen = [humaneval(humaneval_rows(shared_data)[number]) for number in (0, 32, 33, 38, 50, 160)]
    trees = [leetcode(row) for row in leetcode_rows(shared_data) if "tree_node" in row["test"]]
    assert trees
    problems = chosen + trees
    assert failures(problems, [problem.reference for problem in problems]) == {}
    docs = humaneval_rows(shared_data)[:3]
    assert len(failures([*map(humaneval, docs)], [doc["prompt"] + "    return None\n" for doc in docs])) == 3


@pytest.mark.slow
def test_all_of_humaneval(shared_data):
    docs = humaneval_rows(shared_data)
    problems = [humaneval(doc) for doc in docs]
    assert len(problems) == 164
    assert failures(problems, [problem.reference for problem in problems]) == {}
    assert len(failures(problems, [doc["prompt"] + "    return None\n" for doc in docs])) == 164


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_of_leetcode(shared_data):
    problems = [leetcode(doc) for doc in leetcode_rows(shared_data)]
    assert len(problems) == 228
    assert failures(problems, [problem.reference for problem in problems]) == {}
