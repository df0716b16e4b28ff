"""Does an expression that a model wrote do what a function of the standard library does?

The expression is never executed by Python. It is parsed, and its tree is walked by an interpreter that knows a short
list of pure operations: literals, arithmetic, comparisons, slices, and calls of the functions and methods that the
small world is made of. Everything else (attributes, lambdas, comprehensions, assignments, f-strings, starred
arguments, dunder names) is refused. Every value is measured as soon as it exists, and operations that can grow a value
are measured before they run, so neither time nor memory can run away.
"""

import ast
import math
import operator
from collections.abc import Callable
from copy import deepcopy
from typing import Any

from llamax.data.world.functions import Function, functions
from llamax.errors import LlamaxError

MAX_SOURCE = 200  # characters of an expression
MAX_DEPTH = 20
MAX_LENGTH = 1_000  # characters or items of a value, nested ones included
MAX_BITS = 2_048  # of an integer
MAX_ARGUMENT = 2_000  # integer argument of a function that builds something of that size
NAMES = ("x", "y")

# Functions and methods beyond those of the world that a right answer may well use.
ALSO_FUNCTIONS = {"int": int, "float": float, "str": str, "bool": bool, "list": list, "tuple": tuple, "set": set,
                  "dict": dict, "max": max, "min": min, "math.pow": math.pow}  # fmt: skip
ALSO_METHODS = frozenset({(str, "replace"), (str, "join"), (list, "count"), (list, "index")})
# What they build is as large as a number they are given.
GROWING = frozenset(
    "math.factorial math.comb math.perm str.center str.ljust str.rjust str.zfill str.expandtabs textwrap.wrap "  # noqa: SIM905
    "textwrap.fill textwrap.shorten heapq.nlargest heapq.nsmallest round statistics.quantiles".split()
)
# Methods and functions whose further arguments open other doors (codecs by name, hooks).
ONE_ARGUMENT = frozenset({"str.encode", "json.loads", "json.dumps", "copy.deepcopy"})
PLAIN = (type(None), bool, int, float, str, bytes)

UNARY: dict[type, Callable[[Any], Any]] = {
    ast.UAdd: operator.pos, ast.USub: operator.neg, ast.Invert: operator.invert, ast.Not: operator.not_,
}  # fmt: skip
COMPARE: dict[type, Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge, ast.In: lambda a, b: a in b, ast.NotIn: lambda a, b: a not in b,
    ast.Is: operator.is_, ast.IsNot: operator.is_not,
}  # fmt: skip
BINARY: dict[type, str] = {
    ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "truediv", ast.FloorDiv: "floordiv", ast.Mod: "mod",
    ast.Pow: "pow", ast.LShift: "lshift", ast.RShift: "rshift", ast.BitAnd: "and_", ast.BitOr: "or_",
    ast.BitXor: "xor",
}  # fmt: skip
OPERATIONS = {f"operator.{name}": name for name in BINARY.values()} | {"pow": "pow", "operator.concat": "add"}


class Refused(LlamaxError):
    """The expression is not one that the judge will look at; the message says why."""


def check(expression: str, function: Function) -> bool:
    """True if `expression` gives, on every test input of `function`, what the function itself gives."""
    try:
        tree = parse(expression)
        for inputs in function.inputs:
            wanted = _library(function.expression, inputs)
            if not _same(evaluate(tree, dict(zip(NAMES, deepcopy(inputs), strict=False))), wanted):
                return False
    except Exception:  # whatever a wrong expression raises, it is wrong
        return False
    return True


def _library(expression: str, inputs: tuple[Any, ...]) -> Any:
    """What the library gives: the function's own call, walked by the same interpreter."""
    return evaluate(parse(expression), dict(zip(NAMES, deepcopy(inputs), strict=False)))


def _same(value: Any, wanted: Any) -> bool:
    """Equal, and of one type; bools are no ints here. NaN equals NaN."""
    return type(value) is type(wanted) and (value == wanted or repr(value) == repr(wanted))


def parse(expression: str) -> ast.expr:
    """Parse one expression. Raises: Refused: too long, too deep, or not an expression."""
    if len(expression) > MAX_SOURCE:
        raise Refused(f"expression of {len(expression)} characters; at most {MAX_SOURCE}")
    try:
        tree = ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise Refused(f"not an expression: {error}") from None
    _check_depth(tree, 0)
    return tree


def _check_depth(node: ast.AST, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise Refused(f"nested deeper than {MAX_DEPTH}")
    for child in ast.iter_child_nodes(node):
        _check_depth(child, depth + 1)


def evaluate(node: ast.expr, values: dict[str, Any]) -> Any:
    """Value of a parsed expression, with `values` for its names.

    Raises: Refused: something outside the white list or too large; whatever the library itself raises.
    """
    handler = HANDLERS.get(type(node))
    if handler is None:
        raise Refused(f"{type(node).__name__} is not allowed")
    return _measured(handler(node, values))


def _constant(node: ast.Constant, values: dict[str, Any]) -> Any:
    if not isinstance(node.value, PLAIN):
        raise Refused(f"constant {node.value!r} is not allowed")
    return node.value


def _name(node: ast.Name, values: dict[str, Any]) -> Any:
    if node.id not in values:
        raise Refused(f"name {node.id!r} is not an argument")
    return values[node.id]


def _unary(node: ast.UnaryOp, values: dict[str, Any]) -> Any:
    return UNARY[type(node.op)](evaluate(node.operand, values))


def _binary(node: ast.BinOp, values: dict[str, Any]) -> Any:
    name = BINARY.get(type(node.op))
    if name is None:
        raise Refused(f"{type(node.op).__name__} is not allowed")
    return _operate(name, evaluate(node.left, values), evaluate(node.right, values))


def _operate(name: str, left: Any, right: Any) -> Any:
    """A binary operation, measured before it runs where its result can be larger than its operands."""
    integers = isinstance(left, int) and isinstance(right, int)
    if name == "mod" and isinstance(left, (str, bytes)):
        raise Refused("formatting is not allowed")
    if name == "mul" and not (isinstance(left, (int, float)) and isinstance(right, (int, float))):
        size = len(left) * right if isinstance(right, int) else len(right) * left
        if size > MAX_LENGTH:
            raise Refused(f"repetition to {size} items; at most {MAX_LENGTH}")
    if name == "pow" and integers and left.bit_length() * abs(right) > MAX_BITS:
        raise Refused(f"power with {left.bit_length() * abs(right)} bits; at most {MAX_BITS}")
    if name == "lshift" and integers and left.bit_length() + right > MAX_BITS:
        raise Refused(f"shift to {left.bit_length() + right} bits; at most {MAX_BITS}")
    return getattr(operator, name)(left, right)


def _boolean(node: ast.BoolOp, values: dict[str, Any]) -> Any:
    stop = isinstance(node.op, ast.Or)
    for part in node.values:
        value = evaluate(part, values)
        if bool(value) is stop:
            return value
    return value


def _compare(node: ast.Compare, values: dict[str, Any]) -> Any:
    left = evaluate(node.left, values)
    for sign, part in zip(node.ops, node.comparators, strict=True):
        right = evaluate(part, values)
        result = COMPARE[type(sign)](left, right)
        if not result:
            return result
        left = right
    return result


def _conditional(node: ast.IfExp, values: dict[str, Any]) -> Any:
    return evaluate(node.body if evaluate(node.test, values) else node.orelse, values)


def _sequence(node: ast.List | ast.Tuple | ast.Set, values: dict[str, Any]) -> Any:
    kind = {ast.List: list, ast.Tuple: tuple, ast.Set: set}[type(node)]
    return kind(evaluate(part, values) for part in node.elts)


def _mapping(node: ast.Dict, values: dict[str, Any]) -> Any:
    if any(key is None for key in node.keys):
        raise Refused("unpacking is not allowed")
    return {evaluate(k, values): evaluate(v, values) for k, v in zip(node.keys, node.values, strict=True)}


def _subscript(node: ast.Subscript, values: dict[str, Any]) -> Any:
    whole = evaluate(node.value, values)
    if not isinstance(node.slice, ast.Slice):
        return whole[evaluate(node.slice, values)]
    parts = (node.slice.lower, node.slice.upper, node.slice.step)
    return whole[slice(*(None if part is None else evaluate(part, values) for part in parts))]


def _call(node: ast.Call, values: dict[str, Any]) -> Any:
    """A call of a listed function (`math.floor(x)`) or of a listed method of a value (`x.upper()`)."""
    if node.keywords:
        raise Refused("keyword arguments are not allowed")
    name = _dotted(node.func)
    root = name.partition(".")[0]
    if name and root not in values:
        arguments = [evaluate(part, values) for part in node.args]
        if name not in ALLOWED_FUNCTIONS:
            raise Refused(f"function {name!r} is not allowed")
        return _apply(name, ALLOWED_FUNCTIONS[name], arguments)
    if not isinstance(node.func, ast.Attribute):
        raise Refused("only named functions and methods may be called")
    owner = evaluate(node.func.value, values)
    arguments = [evaluate(part, values) for part in node.args]
    if (type(owner), node.func.attr) not in ALLOWED_METHODS:
        raise Refused(f"method {node.func.attr!r} of {type(owner).__name__} is not allowed")
    return _apply(f"{type(owner).__name__}.{node.func.attr}", getattr(type(owner), node.func.attr), [owner, *arguments])


def _dotted(node: ast.expr) -> str:
    """`a.b.c` as text, or the empty string for anything that is not names and dots."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (head := _dotted(node.value)):
        return f"{head}.{node.attr}"
    return ""


def _apply(name: str, function: Callable[..., Any], arguments: list[Any]) -> Any:
    """Call with arguments that were measured; functions that grow get small numbers only."""
    if name in OPERATIONS and len(arguments) == 2:
        return _operate(OPERATIONS[name], *arguments)
    if (name in ONE_ARGUMENT and len(arguments) != 1) or name == "pow":
        raise Refused(f"{name} takes no further arguments here")
    if name in GROWING and any(isinstance(a, int) and abs(a) > MAX_ARGUMENT for a in arguments):
        raise Refused(f"an argument of {name} is too large; at most {MAX_ARGUMENT}")
    return function(*arguments)


def _measured(value: Any) -> Any:
    """The value itself, if it is plain data of a modest size."""
    if _size(value, 0) > MAX_LENGTH:
        raise Refused(f"a value grew beyond {MAX_LENGTH} items")
    return value


def _size(value: Any, depth: int) -> int:
    """Items and characters of a value, nested ones included."""
    if depth > MAX_DEPTH:
        raise Refused(f"a value is nested deeper than {MAX_DEPTH}")
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise Refused(f"an integer of {value.bit_length()} bits; at most {MAX_BITS}")
    if isinstance(value, (str, bytes)):
        return len(value)
    if isinstance(value, (list, tuple, set, frozenset)):
        return len(value) + sum(_size(part, depth + 1) for part in value)
    if isinstance(value, dict):
        return len(value) + sum(_size(part, depth + 1) for pair in value.items() for part in pair)
    if value is None or isinstance(value, (int, float)):
        return 1
    raise Refused(f"a {type(value).__name__} is not plain data")


HANDLERS: dict[type, Callable[[Any, dict[str, Any]], Any]] = {
    ast.Constant: _constant, ast.Name: _name, ast.UnaryOp: _unary, ast.BinOp: _binary, ast.BoolOp: _boolean,
    ast.Compare: _compare, ast.IfExp: _conditional, ast.List: _sequence, ast.Tuple: _sequence, ast.Set: _sequence,
    ast.Dict: _mapping, ast.Subscript: _subscript, ast.Call: _call,
}  # fmt: skip
ALLOWED_FUNCTIONS = ALSO_FUNCTIONS | {f.name: f.target for f in functions() if not f.is_method}
ALLOWED_METHODS = ALSO_METHODS | {(f.target.__objclass__, f.target.__name__) for f in functions() if f.is_method}
