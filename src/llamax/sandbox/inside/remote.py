"""A function in one process, called from another, of which at least one trusts the other in nothing.

Values cross as plain data: numbers, texts, lists, tuples, dicts, sets, and instances of named classes as their
attributes. A table of values that name each other by number keeps what is shared shared, needs no recursion, and is
checked piece by piece when it is read. What has no plain form arrives as an object that equals nothing.

This file is sent as text into sandboxes, so it stands alone.
"""

import builtins
import itertools
import json
import os
import struct
from collections import deque
from decimal import Decimal
from fractions import Fraction
from typing import Any

SCALARS = (str, int, float, type(None))  # bool is an int
LONG = 1 << 63  # integers from here on cross in hexadecimal, which has no limit of digits
MOST_ITEMS = 1_000_000  # of an iterator
MOST_BYTES = 32 << 20  # of a message
CHANGING = {"list": list, "set": set, "dict": dict, "deque": deque}
FIXED = {"tuple": tuple, "frozenset": frozenset, "iterator": iter}
WRITTEN = {"int": lambda text: int(text, 16), "bytes": bytes.fromhex, "bytearray": bytearray.fromhex,
           "complex": complex, "Decimal": Decimal, "Fraction": Fraction}  # fmt: skip


class Lost(Exception):
    """The other side ended, or said something that is no message."""


class Raised(Exception):
    """The function raised an exception that is none of Python's own."""


class Opaque:
    """A value that has no plain form: equal to nothing but itself."""

    def __init__(self, kind: str):
        self.kind = kind

    def __repr__(self) -> str:
        return f"<a {self.kind}>"


def describe(value: Any, classes: dict[str, type]) -> tuple[str, list[Any]]:
    """Kind and parts of a value that is no scalar."""
    if isinstance(value, int):
        return "int", [hex(value)]
    for kind, form in (CHANGING | {"tuple": tuple, "frozenset": frozenset}).items():
        if isinstance(value, form):
            return kind, list(itertools.chain.from_iterable(value.items())) if kind == "dict" else list(value)
    if isinstance(value, (bytes, bytearray)):
        return type(value).__name__, [value.hex()]
    if isinstance(value, range):
        return "range", [value.start, value.stop, value.step]
    name = type(value).__name__
    if isinstance(value, (complex, Decimal, Fraction)):
        return name, [str(value)]
    if name in classes and hasattr(value, "__dict__"):
        return "object", [name, *itertools.chain.from_iterable(vars(value).items())]
    if hasattr(value, "__next__") or name in ("dict_keys", "dict_values", "dict_items"):
        return "iterator", list(itertools.islice(value, MOST_ITEMS))
    return "opaque", [name]


def is_scalar(value: Any) -> bool:
    """Whether JSON has a word for it."""
    return isinstance(value, SCALARS) and not (isinstance(value, int) and abs(value) >= LONG)


def encode(root: Any, classes: dict[str, type]) -> bytes:
    """The table of a value: parts before the whole, the whole last.

    A part is a scalar, or [number of a row]; a row is a kind and its parts.
    """
    opened: dict[int, tuple[str, list[Any]]] = {}
    rows: dict[int, int] = {}
    root = [root]
    stack: list[Any] = [root]
    while stack:
        value = stack[-1]
        if id(value) not in opened:
            opened[id(value)] = described = describe(value, classes)
            stack += [part for part in described[1] if not is_scalar(part) and id(part) not in opened]
            continue
        stack.pop()
        rows.setdefault(id(value), len(rows))
    table = []
    for key in rows:
        kind, parts = opened[key]
        table.append([kind, *(part if is_scalar(part) else [rows[id(part)]] for part in parts)])
    return json.dumps(table).encode()


def decode(message: bytes, classes: dict[str, type]) -> Any:
    """The value of a table, rebuilt from nothing but builtin types and `classes`.

    Raises: Lost: it is no table.
    """
    try:
        table = json.loads(message)
        values = [_empty(row, classes) for row in table]
        ready = [row[0] in CHANGING or row[0] == "object" for row in table]

        def part(cell: Any) -> Any:
            if not isinstance(cell, list):
                return cell
            if not ready[cell[0]]:
                raise ValueError("a part that comes after its whole")
            return values[cell[0]]

        for number, row in enumerate(table):
            if not ready[number]:
                values[number] = _fixed(row[0], [part(cell) for cell in row[1:]])
                ready[number] = True
        for row, value in zip(table, values, strict=True):
            _fill(row[0], value, [part(cell) for cell in row[1:]])
        return values[-1][0]
    except (ValueError, TypeError, KeyError, IndexError, ArithmeticError, RecursionError) as error:
        raise Lost(f"not a message: {type(error).__name__}: {str(error)[:200]}") from None


def _empty(row: list[Any], classes: dict[str, type]) -> Any:
    kind = row[0]
    if kind == "object":
        return object.__new__(classes[row[1]])
    return CHANGING[kind]() if kind in CHANGING else None


def _fixed(kind: str, parts: list[Any]) -> Any:
    if kind in FIXED:
        return FIXED[kind](parts)
    if kind == "range":
        return range(*parts)
    if kind == "opaque":
        return Opaque(str(parts[0]))
    (text,) = parts
    if type(text) is not str:
        raise TypeError(f"{kind} of {type(text).__name__}")
    return WRITTEN[kind](text)


def _fill(kind: str, value: Any, parts: list[Any]) -> None:
    if kind in ("list", "deque"):
        value.extend(parts)
    elif kind == "set":
        value.update(parts)
    elif kind == "dict":
        value.update(zip(parts[::2], parts[1::2], strict=True))
    elif kind == "object":
        vars(value).update(zip(map(_attribute, parts[1::2]), parts[2::2], strict=True))


def _attribute(name: Any) -> str:
    if type(name) is not str or not name.isidentifier():
        raise TypeError("an attribute without a name")
    return name


def send(handle: int, message: bytes) -> None:
    """Write a message, its length first. Raises: Lost: nobody reads any more."""
    data = memoryview(struct.pack("!I", len(message)) + message)
    try:
        while data:
            data = data[os.write(handle, data) :]
    except OSError as error:
        raise Lost(f"the other side ended: {error.strerror}") from None


def receive(handle: int) -> bytes:
    """Read a message. Raises: Lost: the other side ended, or the message is too long."""
    (size,) = struct.unpack("!I", _exactly(handle, 4))
    if size > MOST_BYTES:
        raise Lost(f"a message of {size:,} bytes; at most {MOST_BYTES:,}")
    return _exactly(handle, size)


def _exactly(handle: int, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        block = os.read(handle, min(size - len(data), 1 << 20))
        if not block:
            raise Lost("the other side ended")
        data += block
    return bytes(data)


def own_classes(namespace: dict[str, Any]) -> dict[str, type]:
    """The classes that the code of a namespace defines, by name."""
    here = namespace["__name__"]
    return {name: value for name, value in namespace.items() if isinstance(value, type) and value.__module__ == here}


class Remote:
    """The function of the other process: calls are sent to `out`, answers are read from `into`."""

    def __init__(self, into: int, out: int, classes: dict[str, type]):
        self.into, self.out, self.classes, self.calls = into, out, classes, 0

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.calls += 1
        send(self.out, encode((arguments, named), self.classes))
        return self.answer()

    def answer(self) -> Any:
        """The next answer. Raises: Lost; what the function raised: Python's own exceptions as they are."""
        answer = decode(receive(self.into), self.classes)
        if type(answer) is not tuple or len(answer) not in (1, 2):
            raise Lost("an answer that is none")
        if len(answer) == 1:
            return answer[0]
        kind, text = (str(part)[:1000] for part in answer)
        own = getattr(builtins, kind, None)
        # StopIteration would end a test's `all(map(...))` early instead of failing it.
        usable = isinstance(own, type) and issubclass(own, Exception) and own not in (StopIteration, StopAsyncIteration)
        try:
            error = own(text) if usable else Raised(f"{kind}: {text}")
        except TypeError:  # UnicodeDecodeError wants more than a text
            error = Raised(f"{kind}: {text}")
        raise error


def serve(make: Any, into: int, out: int) -> None:
    """Make a function (`make()` gives it and its namespace), say that it is there, answer calls until they end."""
    try:
        function, namespace = make()
    except BaseException as error:
        send(out, encode(_told(error), {}))
        return
    send(out, encode((None,), {}))
    while True:
        classes = {name: value for name, value in namespace.items() if isinstance(value, type)}
        try:
            arguments, named = decode(receive(into), classes)
        except Lost:
            return
        try:
            answer = encode((function(*arguments, **named),), own_classes(namespace))
        except BaseException as error:
            answer = encode(_told(error), {})
        send(out, answer)


def _told(error: BaseException) -> tuple[str, str]:
    try:
        return type(error).__name__, str(error)[:1000]
    except Exception:
        return type(error).__name__, ""
