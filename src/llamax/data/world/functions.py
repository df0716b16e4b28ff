"""Functions of the standard library: their docstrings as problems, the library itself as the judge."""

import builtins
import functools
import importlib
import inspect
import re
from typing import Any, NamedTuple

from llamax.data.world.split import popularity, unit, words

MAX_WORDS = 10  # of a docstring that may become a problem: statements of it are then shorter than `split.NGRAM`

FLOATS = [(0.5,), (2.25,), (7.75,), (1.5,), (3.0,)]
SIGNED = [(-2.5,), (0.0,), (2.25,), (7.75,), (-0.5,)]
STRANGE = [(1.0,), (float("inf"),), (float("-inf"),), (float("nan"),)]
UNITS = [(0.0,), (0.25,), (0.5,), (0.9,)]
INTS = [(0,), (3,), (6,), (10,)]
NUMBERS = [(-7,), (0,), (5,), (12,)]
CODES = [(65,), (97,), (48,), (8364,)]
LISTS = [([3, 1, 2],), ([5, 5, 1, 2],), ([2, 8, 4, 4, 9],), ([7, 3],)]
PAIRS = [(40, 2), (12, 18), (7, 3), (10, 4), (9, 9), (20, 6)]
FLOAT_PAIRS = [(2.5, 1.5), (3.0, 2.0), (-4.0, 3.0), (7.5, 0.5)]
STRINGS = [("Hello World",), ("  abc ",), ("ABC",), ("12",), ("a-b_c",), ("héllo",), ("Aa Bb\nCc",), (" ",), ("",)]
STRING_PAIRS = [("banana", "an"), ("banana", "ba"), ("hello", "lo"), ("abcabc", "abc"), ("a-b-a", "-"), ("x", "y")]
PRESENT = [("banana", "an"), ("hello", "lo"), ("abcabc", "c"), ("a-b-a", "-")]
WIDTHS = [("abc", 7), ("-5", 6), ("hello", 3), ("a\tb", 4)]
BYTES = [(b"hello",), (b"",), (b"A b&c",), (bytes([0, 250, 7]),)]
PATHS = [("/usr/lib/a.tar.gz",), ("docs/readme.md",), ("name",), ("/a/../b//c",), ("a/",)]
PATH_PAIRS = [("/usr", "lib"), ("a/", "b.txt"), ("docs", "/etc"), ("", "x")]
HTML = [("a < b & c",), ('say "hi"',), ("&lt;p&gt; &amp;",), ("plain",)]
YEARS = [(1900,), (2000,), (2023,), (2024,)]
MONTHS = [(2023, 2), (2024, 2), (2024, 12), (2000, 5)]
MAPS = [({"b": 1, "a": 2},), ({},), ({"x": [1, 2]},)]
SETS = [({1, 2, 3}, {2, 3, 4}), ({1}, {2}), (set(), {5}), ({1, 2}, {1, 2, 3}), ({1, 2, 3}, {1, 2})]
MEMBER = [([3, 1, 2, 1], 1), ([5, 5, 5], 5), ([2, 8], 8)]
SORTED = [([1, 2, 4, 4, 9], 4), ([3, 5], 1), ([2, 8], 9), ([1, 1, 2], 1)]
INDEX = [([3, 1, 2], 0), ([5, 6], 1), ([2, 8, 4], -1)]
LETTERS = [("a",), ("A",), ("5",), ("é",), (" ",), ("\u0301",), ("(",)]
DIGITS = [("5",), ("9",), ("0",)]

# (expression with {} for the name, inputs, names). The docstring is the library's own.
FAMILIES: tuple[tuple[str, list[tuple[Any, ...]], str], ...] = (
    ("math.{}(x)", SIGNED, "ceil floor trunc cbrt exp exp2 expm1 sin cos tan atan asinh sinh cosh tanh erf erfc"),
    ("math.{}(x)", SIGNED, "degrees radians fabs modf frexp ulp"),
    ("math.{}(x)", FLOATS, "sqrt log1p log2 log10 gamma lgamma"),
    ("math.{}(x)", STRANGE, "isfinite isinf isnan"),
    ("math.{}(x)", UNITS, "asin acos atanh"),
    ("math.{}(x)", INTS, "factorial isqrt"),
    ("math.{}(x)", LISTS, "fsum prod"),
    ("math.{}(x, y)", PAIRS, "gcd lcm comb perm"),
    ("math.{}(x, y)", FLOAT_PAIRS, "fmod remainder copysign hypot atan2 nextafter"),
    ("statistics.{}(x)", LISTS, "mean fmean geometric_mean harmonic_mean median median_low median_high median_grouped"),
    ("statistics.{}(x)", LISTS, "mode multimode stdev pstdev variance pvariance quantiles"),
    ("x.{}()", STRINGS, "upper lower title capitalize swapcase casefold strip lstrip rstrip split splitlines encode"),
    ("x.{}()", STRINGS, "isalpha isdigit isalnum isdecimal isnumeric isspace islower isupper istitle isidentifier"),
    ("x.{}()", STRINGS, "isascii isprintable"),
    ("x.{}(y)", STRING_PAIRS, "startswith endswith count find rfind partition rpartition removeprefix removesuffix"),
    ("x.{}(y)", PRESENT, "index rindex rsplit"),
    ("x.{}(y)", WIDTHS, "center ljust rjust zfill expandtabs"),
    ("{}(x)", LISTS, "sum sorted len"),
    ("{}(x)", [([0, 1],), ([1, 1],), ([],), ([0],)], "any all"),
    ("{}(x)", NUMBERS, "abs bin oct hex"),
    ("{}(x)", CODES, "chr"),
    ("{}(x)", LETTERS, "ord"),
    ("{}(x)", [("héllo",), ([1, "ü"],), (3,)], "ascii repr"),
    ("{}(x, y)", PAIRS, "divmod pow"),
    ("{}(x, y)", [(2.567, 1), (-3.14159, 2), (1234.5, 0)], "round"),
    ("operator.{}(x, y)", PAIRS, "add sub mul truediv floordiv mod eq ne lt le gt ge and_ or_ xor lshift rshift pow"),
    ("operator.{}(x)", NUMBERS, "neg pos invert not_ truth"),
    ("operator.{}(x, y)", MEMBER, "countOf indexOf"),
    ("operator.{}(x, y)", [*MEMBER, ([2, 8], 3), ([], 0)], "contains"),
    ("operator.{}(x, y)", INDEX, "getitem"),
    ("operator.{}(x, y)", [([1], [2]), ("ab", "c"), ([], [3])], "concat"),
    ("bisect.{}(x, y)", SORTED, "bisect_left bisect_right"),
    ("heapq.{}(y, x)", [([3, 1, 2], 2), ([5, 6], 1), ([2, 8, 4], 3)], "nlargest nsmallest"),
    ("calendar.{}(x)", YEARS, "isleap"),
    ("calendar.{}(x, y)", [(1990, 2000), (2000, 2024), (1896, 1905)], "leapdays"),
    ("calendar.{}(x, y)", MONTHS, "monthrange monthcalendar"),
    ("html.{}(x)", HTML, "escape unescape"),
    ("string.{}(x)", STRINGS, "capwords"),
    ("textwrap.{}(x)", [("  a\n  b",), ("a\n b",), ("    x",)], "dedent"),
    ("textwrap.{}(x, y)", [("one two three", 7), ("hello world", 5), ("a b c d", 3)], "wrap fill"),
    ("textwrap.{}(x, y)", [("one two three", 9), ("hello  world", 40), ("a b c d e f", 8)], "shorten"),
    ("textwrap.{}(x, y)", [("a\nb", "> "), ("x", "  "), ("a\n\nb", "#")], "indent"),
    ("posixpath.{}(x)", PATHS, "basename dirname splitext split normpath isabs"),
    ("posixpath.{}(x, y)", PATH_PAIRS, "join"),
    ("urllib.parse.{}(x)", [("a b&c",), ("x/y?z",), ("caf\u00e9",)], "quote quote_plus"),
    ("urllib.parse.{}(x)", [("a%20b",), ("x+y%26",), ("plain",)], "unquote unquote_plus"),
    ("base64.{}(x)", BYTES, "b64encode b32encode b16encode urlsafe_b64encode standard_b64encode b85encode"),
    ("base64.{}(x)", [(b"aGVsbG8=",), (b"YWJj",)], "b64decode urlsafe_b64decode"),
    ("binascii.{}(x)", BYTES, "hexlify crc32 b2a_base64"),
    ("zlib.{}(x)", BYTES, "adler32"),
    ("re.{}(x)", [("a.b",), ("(x)*",), ("plain",)], "escape"),
    ("shlex.{}(x)", [("a b",), ("it's",), ("plain",)], "quote"),
    ("shlex.{}(x)", [("a 'b c' d",), ("one",), ("x  y",)], "split"),
    ("json.{}(x)", MAPS, "dumps"),
    ("json.{}(x)", [("[1, 2]",), ('{"a": null}',), ("3.5",)], "loads"),
    ("unicodedata.{}(x)", LETTERS, "name category bidirectional combining mirrored decomposition"),
    ("unicodedata.{}(x)", DIGITS, "decimal digit numeric"),
    ("x.{}(y)", SETS, "union intersection difference symmetric_difference issubset issuperset isdisjoint"),
    ("x.{}(y)", [({"a": 1}, "a"), ({"a": 1}, "b"), ({}, "x")], "get"),
    ("x.{}()", NUMBERS, "bit_length bit_count as_integer_ratio"),
    ("x.{}()", FLOATS, "is_integer hex"),
    ("copy.{}(x)", MAPS, "deepcopy"),
)


class Function(NamedTuple):
    """`name` is unique (`math.floor`, `str.upper`); `expression` calls it on `x` (and `y`); `inputs` are its tests."""

    name: str
    expression: str
    doc: str
    inputs: tuple[tuple[Any, ...], ...]
    target: Any  # the function itself

    @property
    def weight(self) -> float:
        """How often the function is spoken of, relative to others."""
        return popularity(self.name)

    @property
    def is_method(self) -> bool:
        return self.expression.startswith("x.")

    @property
    def arguments(self) -> str:
        return "x, y" if len(self.inputs[0]) == 2 else "x"

    @property
    def prompt(self) -> str:
        """The problem: everything up to the expression. It has no blank at its end, where tokenizers differ."""
        return f'def f({self.arguments}):\n    """{self.doc}"""\n    return'

    @property
    def module(self) -> str:
        return self.name.rpartition(".")[0] or "builtins"


def side(function: Function) -> str:
    """`test` or `train`; a long docstring is always `train`."""
    short = len(words(function.doc)) <= MAX_WORDS
    return "test" if short and unit("function", function.name) < 0.45 else "train"


@functools.cache
def functions() -> tuple[Function, ...]:
    """Every function of the small world, in a fixed order; of several with one docstring only the first."""
    found: dict[str, Function] = {}
    for pattern, inputs, names in FAMILIES:
        for name in names.split():
            target, full = _resolve(pattern, inputs[0][0], name)
            doc = first_sentence(inspect.getdoc(target) or "")
            if doc:
                found.setdefault(doc, Function(full, pattern.format(name), doc, tuple(inputs), target))
    return tuple(found.values())


def _resolve(pattern: str, value: Any, name: str) -> tuple[Any, str]:
    """The function that a pattern calls, and its full name."""
    if pattern.startswith("x."):
        return getattr(type(value), name), f"{type(value).__name__}.{name}"
    module = pattern.partition("{")[0].rstrip(".")
    if not module:
        return getattr(builtins, name), name
    return getattr(importlib.import_module(module), name), f"{module}.{name}"


def first_sentence(doc: str) -> str:
    """First sentence of a docstring on one line, without signature lines, in plain ASCII; empty if nothing is left."""
    doc = re.sub(r"\A[\w.]+\(.*?\)( ->.*)?\n+", "", doc)
    paragraph = " ".join(doc.strip().split("\n\n")[0].split())
    sentence = re.split(r"(?<=[a-z)\].])\. (?=[A-Z])", paragraph)[0].rstrip(".:") + "."
    sentence = sentence.replace('"', "'").replace("\\", "/")
    plain = sentence.isascii() and not re.search("->|__", sentence)
    return sentence if plain and 8 <= len(sentence) <= 160 else ""
