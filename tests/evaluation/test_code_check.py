"""The judge of expressions: right ones pass, wrong ones fail, hostile ones are refused before they can do anything."""

import ast
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamax.data.world.functions import functions
from llamax.evaluation.code_check import MAX_LENGTH, Refused, check, evaluate, parse

FUNCTIONS = {function.name: function for function in functions()}
VALUES = {"x": "abc", "y": [1, 2, 3]}

HOSTILE = [
    # attributes and dunders
    "().__class__", "().__class__.__bases__[0].__subclasses__()", "x.__len__()", "x.__class__", "x.upper.__self__",
    "math.__loader__.load_module('os')", "math.floor.__call__(x)", "str.__mro__", "x.upper().__class__()",
    "json.decoder.sys.modules", "textwrap.re.sys", "base64.re", "posixpath.os.system('true')", "statistics.sys.exit()",
    # names and calls that are not on the list
    "__import__('os')", "open('/etc/passwd')", "exec('1')", "eval('1')", "print(x)", "globals()", "getattr(x, 'upper')",
    "breakpoint()", "input()", "type(x)", "vars()", "operator.attrgetter('a')(x)", "operator.methodcaller('upper')(x)",
    "os.system('true')", "z", "math", "(lambda: 1)()", "x()", "x[0]()", "math.floor",
    # doors inside allowed functions
    "'{0.__class__}'.format(x)", "x.format(1)", "'%s' % x", "'%1000000000d' % 1", "x.encode('zip')",
    "json.dumps(x, 1)", "json.loads('1', 2)", "math.floor(x=1)", "sorted(y, key=x)", "max(*y)", "dict(**{})", "f'{x}'",
    # what is no expression
    "import os", "x = 1", "x := 1", "x; y", "", "   ", "\x00", "return x", "yield x", "await x", "del x",
    # comprehensions
    "[i for i in y]", "{i for i in y}", "{i: i for i in y}", "(i for i in y)", "sum(i for i in y)",
    # numbers and memory
    "9**9**9", "10**100000", "2**2**2**2**2**2", "(-2)**0.5", "1 << 10**9", "pow(3, 10**9, 7)", "pow(9, 99999)",
    "operator.pow(9, operator.pow(9, 9))", "operator.lshift(1, 10**10)", "math.factorial(10**6)", "math.perm(10**9)",
    "math.comb(10**9, 10**8)", "'a' * 10**9", "10**9 * 'a'", "[0] * 10**9", "operator.mul(x, 10**9)", "x.ljust(10**9)",
    "x.zfill(10**9)", "x.center(10**9)", "'\\t'.expandtabs(10**9)", "textwrap.fill(x, 10**9)", "round(1, -10**9)",
    "statistics.quantiles(y, 10**9)", "b'a' * 10**9", "('a' * 900) * 900", "[[y] * 900] * 900", "1j", "...",
    # depth
    "(" * 150 + ")" * 150, "-" * 190 + "1", "[" * 90 + "]" * 90, "not " * 40 + "x", "x" * 500, "1" * 199 + "**9999",
    "json.loads('" + "[" * 180 + "')",
]  # fmt: skip


@pytest.mark.parametrize("expression", HOSTILE, ids=[f"{n}-{e[:20]!r}" for n, e in enumerate(HOSTILE)])
def test_hostile_expressions_are_refused_at_once(expression):
    began = time.perf_counter()
    with pytest.raises((Refused, TypeError, ValueError, OverflowError, RecursionError)) as error:
        evaluate(parse(expression), dict(VALUES))
    assert time.perf_counter() - began < 0.5
    assert "\n" not in str(error.value) or not isinstance(error.value, Refused)


def test_a_hostile_answer_is_simply_wrong():
    for expression in HOSTILE:
        assert check(expression, FUNCTIONS["math.floor"]) is False


def test_every_function_of_the_world_agrees_with_itself_and_with_the_library():
    for function in functions():
        assert check(function.expression, function), function.name
        for inputs in function.inputs:
            given_back = evaluate(parse(function.expression), dict(zip(("x", "y"), inputs, strict=False)))
            swapped = inputs[::-1] if "(y, x)" in function.expression else inputs
            assert repr(given_back) == repr(function.target(*swapped)), function.name


def test_other_ways_to_say_the_same_pass_and_near_misses_fail():
    assert check("x - y", FUNCTIONS["operator.sub"])
    assert check("sum(x) / len(x)", FUNCTIONS["statistics.fmean"])
    assert check("x[::-1].lower()[::-1]", FUNCTIONS["str.lower"])
    assert check("x if x > 0 else -x", FUNCTIONS["abs"])
    assert not check("y - x", FUNCTIONS["operator.sub"])
    assert not check("math.ceil(x)", FUNCTIONS["math.floor"])
    assert not check("x.lstrip()", FUNCTIONS["str.strip"])
    assert not check("float(sum(x))", FUNCTIONS["sum"])  # 6.0 is not 6
    assert not check("x", FUNCTIONS["str.upper"])


def test_no_constant_and_no_argument_passes_for_a_function():
    for function in functions():
        if function.name in ("operator.pos", "copy.deepcopy"):
            continue  # x is what they give
        for lazy in ("x", "y", "None", "True", "False", "0", "''", "[]"):
            assert not check(lazy, function), (function.name, lazy)


def test_inputs_stay_as_they_were():
    before = repr(FUNCTIONS["statistics.median"].inputs)
    check("sorted(x)", FUNCTIONS["statistics.median"])
    assert repr(FUNCTIONS["statistics.median"].inputs) == before


SAFE = st.recursive(
    st.integers(-9, 9).map(str) | st.just("x"),
    lambda inner: st.tuples(inner, st.sampled_from(["+", "-", "*", "//", "%", "<", "==", "and", "or"]), inner).map(
        lambda parts: f"({' '.join(parts)})"
    ),
    max_leaves=6,
)


@given(SAFE, st.integers(-9, 9))
def test_arithmetic_means_what_python_means(expression, x):
    """The interpreter against Python's own compiler, on expressions that this test itself made."""
    code = compile(ast.parse(expression, mode="eval"), "test", "eval")
    try:
        wanted = eval(code, {"__builtins__": {}}, {"x": x})
    except ZeroDivisionError:
        with pytest.raises(ZeroDivisionError):
            evaluate(parse(expression), {"x": x})
        return
    found = evaluate(parse(expression), {"x": x})
    assert found == wanted and type(found) is type(wanted)


def test_values_may_not_grow_step_by_step():
    with pytest.raises(Refused, match=str(MAX_LENGTH)):
        evaluate(parse("(x + x) + (x + x)"), {"x": "a" * 400})
    with pytest.raises(Refused, match=str(MAX_LENGTH)):
        evaluate(parse("x.replace('', x)"), {"x": "a" * 400})
