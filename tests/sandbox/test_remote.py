"""Values between processes that do not trust each other: what crosses, as what, and what is thrown away."""

import contextlib
import json
import os
import threading
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamax.sandbox.inside.remote import MOST_BYTES, Lost, Opaque, Raised, Remote, decode, encode, receive, send, serve


class Node:
    def __init__(self, value, next=None):
        self.value, self.next = value, next


CLASSES = {"Node": Node}
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
scalars |= st.binary(max_size=5) | st.complex_numbers(allow_nan=False)
keys = st.recursive(scalars, lambda inner: st.tuples(inner, inner) | st.frozensets(inner), max_leaves=5)
values = st.recursive(
    keys | st.decimals(allow_nan=False) | st.fractions(),
    lambda inner: st.lists(inner) | st.dictionaries(scalars, inner) | st.sets(scalars) | inner.map(lambda v: (v, [v])),
    max_leaves=8,
)


def kinds(value):
    """The types within a value, in order where it has one."""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    inside = [kinds(part) for part in value] if isinstance(value, list | tuple) else []
    return type(value), inside


def cross(value):
    return decode(encode(value, CLASSES), CLASSES)


@given(values)
def test_plain_data_crosses_as_it_is(value):
    found = cross(value)
    assert found == value
    assert kinds(found) == kinds(value)


EDGES = [2**63, -(2**63), 2**63 - 1, 10**5000, -0.0, float("inf"), "\ud800", True, range(1, 9, 2), deque([1]), b"\xff"]


@pytest.mark.parametrize("value", EDGES, ids=[f"{type(value).__name__}{n}" for n, value in enumerate(EDGES)])
def test_values_at_the_edges(value):
    found = cross(value)
    assert (type(found), found) == (type(value), value)
    assert str(found) == str(value) if isinstance(value, float) else True


class Colour(IntEnum):
    RED = 1


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (Counter("aa"), {"a": 2}),
        (OrderedDict(a=1), {"a": 1}),
        (defaultdict(list, a=[1]), {"a": [1]}),
        (namedtuple("P", "x y")(1, 2), (1, 2)),
        (Colour.RED, 1),
        (type("S", (str,), {"__eq__": lambda self, other: True, "__hash__": str.__hash__})("x"), "x"),
        (type("L", (list,), {"__eq__": lambda self, other: True})([1]), [1]),
    ],
)
def test_subclasses_arrive_as_what_they_stand_for(value, plain):
    found = cross(value)
    assert (type(found), found) == (type(plain), plain)


def test_iterators_arrive_as_iterators():
    assert cross(x for x in [1, 2]) != [1, 2]
    assert list(cross(x for x in [1, 2])) == [1, 2]
    assert list(cross({1: 2}.values())) == [2]
    assert [*map(list, cross([iter("ab"), zip("a", "b", strict=True)]))] == [["a", "b"], [("a", "b")]]


@pytest.mark.parametrize("value", [object(), len, print, os, type, Opaque("x")])
def test_what_has_no_plain_form_equals_nothing(value):
    found = cross([value])[0]
    assert type(found) is Opaque
    assert found != value
    assert found != cross([value])[0]


def test_what_is_always_equal_is_equal_to_nothing_on_the_other_side():
    liar = type("Liar", (), {"__eq__": lambda self, other: True, "__hash__": lambda self: 0})()
    assert liar == 7
    assert cross(liar) != 7


def test_objects_of_known_classes_cross_with_their_attributes():
    found = cross(Node(1, Node(Fraction(1, 2))))
    assert type(found) is Node
    assert (found.value, found.next.value, found.next.next) == (1, Fraction(1, 2), None)


def test_sharing_and_cycles_are_kept():
    row = [0]
    grid = cross([row] * 3)
    grid[0][0] = 1
    assert grid == [[1]] * 3
    ring = Node(1)
    ring.next = Node(2, ring)
    assert cross(ring).next.next.value == 1
    loop = []
    loop.append((loop,))
    assert (found := cross(loop))[0][0] is found


def test_depth_is_no_matter():
    chain = None
    for value in range(5_000):
        chain = Node(value, chain)
    found, length = cross(chain), 0
    while found:
        found, length = found.next, length + 1
    assert length == 5_000
    nested = ()
    for _ in range(5_000):
        nested = (nested,)
    found = cross(nested)
    while found:
        (found,) = found


BAD = """
    [] | {} | 7 | null | "list" | [7] | [[]] | [["list"]] | [["dict", 1, 2]] | [["nonsense", 1]] | [["list", [5]]]
    [["list", ["a"]]] | [["tuple", [0]], ["list", [0]]] | [["int", "x"], ["list", [0]]] | [["int", 7], ["list", [0]]]
    [["dict", 1], ["list", [0]]] | [["list"], ["set", [0]], ["list", [1]]] | [["list"], ["dict", [0], 1], ["list", [1]]]
    [["object", "os"], ["list", [0]]] | [["object", "Node", "__class__ x", 1], ["list", [0]]] | [["bytes", "x"]]
    [["object", "Node", 3, 1], ["list", [0]]] | [["object", "Node", "a"], ["list", [0]]] | [["object"], ["list", [0]]]
    [["range", "a", 1, 2], ["list", [0]]] | [["range", 1, 2, 0], ["list", [0]]] | [["Decimal", "x"], ["list", [0]]]
    [["Fraction", "1/0"], ["list", [0]]] | [["bytes", "xyz"], ["list", [0]]] | [["tuple"], ["iterator", [0]], [["x"]]]
    [[["list"], 1]] | [["opaque"], ["list", [0]]] | [["tuple", 1], ["complex", [0]], ["list", [1]]]
"""


class TestBadMessages:
    @pytest.mark.parametrize(
        "table", [table.strip() for line in BAD.strip().splitlines() for table in line.split(" | ")]
    )
    def test_a_table_that_is_none(self, table):
        json.loads(table)
        with pytest.raises(Lost, match="not a message"):
            decode(table.encode(), CLASSES)

    @pytest.mark.parametrize(
        "text", [b"", b"\xff", b"{", b"[" * 100_000, b'[["list", 1' + b"0" * 9000 + b"]]"], ids=len
    )
    def test_bytes_that_are_no_table(self, text):
        with pytest.raises(Lost, match="not a message"):
            decode(text, CLASSES)

    def test_a_number_in_letters_cannot_reach_a_class_that_is_not_named(self):
        with pytest.raises(Lost):
            decode(b'[["object", "Node", "value", 1], ["list", [0]]]', {})

    def test_lengths(self):
        reading, writing = os.pipe()
        os.write(writing, (MOST_BYTES + 1).to_bytes(4, "big"))
        with pytest.raises(Lost, match="at most"):
            receive(reading)
        os.write(writing, b"\0\0\0\5abc")
        os.close(writing)
        with pytest.raises(Lost, match="the other side ended"):
            receive(reading)
        with pytest.raises(Lost, match="the other side ended"):
            receive(reading)
        os.close(reading)


@pytest.fixture
def call():
    """A function that serves another one in a thread and gives its stand-in."""
    with contextlib.ExitStack() as stack:

        def start(function):
            (calls_out, calls_in), (answers_out, answers_in) = os.pipe(), os.pipe()
            space = {"__name__": "space", "Node": Node}
            thread = threading.Thread(target=serve, args=(lambda: (function, space), calls_out, answers_in))
            thread.start()
            for handle in (calls_out, answers_in, answers_out):
                stack.callback(os.close, handle)
            stack.callback(thread.join)
            stack.callback(os.close, calls_in)  # which ends the thread
            remote = Remote(answers_out, calls_in, CLASSES)
            assert remote.answer() is None
            return remote

        yield start


def test_calls_with_positions_and_names(call):
    remote = call(lambda a, *, b: (a, b, None))
    assert remote([1], b={2}) == ([1], {2}, None)
    assert remote("x", b="y" * 1_000_000)[1] == "y" * 1_000_000
    assert remote.calls == 2


def test_objects_keep_their_class_on_either_side(call):
    remote = call(lambda node: type(node).__name__ + str(node.next.value))
    assert remote(Node(1, Node(2))) == "Node2"


@pytest.mark.parametrize(
    ("raised", "arrives", "text"),
    [
        (ValueError("why"), ValueError, "why"),
        (KeyError("k"), KeyError, "'k'"),
        (type("Own", (ValueError,), {})("why"), Raised, "Own: why"),
        (StopIteration(1), Raised, "StopIteration: 1"),
        (SystemExit(0), Raised, "SystemExit: 0"),
        (KeyboardInterrupt(), Raised, "KeyboardInterrupt: "),
        (UnicodeDecodeError("utf-8", b"x", 0, 1, "y"), Raised, "UnicodeDecodeError: 'utf-8' codec"),
    ],
)
def test_exceptions_arrive_as_pythons_own_or_as_raised(call, raised, arrives, text):
    def function():
        raise raised

    with pytest.raises(arrives) as caught:
        call(function)()
    assert type(caught.value) is arrives
    assert text in str(caught.value)


def test_nobody_there():
    reading, writing = os.pipe()
    os.close(reading)
    with pytest.raises(Lost, match="the other side ended"):
        send(writing, b"x")
    os.close(writing)


def test_decimals_keep_their_digits():
    assert str(cross(Decimal("1.10"))) == "1.10"
