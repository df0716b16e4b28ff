"""Functions of the world against the library that they come from."""

import inspect

from llamax.data.world.functions import MAX_WORDS, first_sentence, functions, side
from llamax.data.world.split import NGRAM, words


def test_docstrings_are_the_librarys_own():
    for function in functions():
        doc = " ".join((inspect.getdoc(function.target) or "").split())
        assert words(function.doc)[0] in doc.lower()
        assert len(set(words(function.doc)) - set(words(doc))) == 0, function.name
    assert next(f.doc for f in functions() if f.name == "math.floor") == "Return the floor of x as an Integral."


def test_names_and_docstrings_are_unique_and_enough():
    names, docs = [f.name for f in functions()], [f.doc for f in functions()]
    assert len(set(names)) == len(names) and len(set(docs)) == len(docs)
    tests = [f for f in functions() if side(f) == "test"]
    assert len(tests) >= 60 and len(functions()) - len(tests) >= 100
    assert MAX_WORDS + 3 <= NGRAM
    assert all(len(words(f.doc)) <= MAX_WORDS for f in tests)


def test_a_prompt_is_the_head_of_a_function():
    function = next(f for f in functions() if f.name == "math.gcd")
    assert function.prompt == 'def f(x, y):\n    """Greatest Common Divisor."""\n    return'
    assert function.module == "math" and not function.is_method
    assert next(f for f in functions() if f.name == "str.upper").is_method


def test_first_sentence():
    assert first_sentence("sqrt(x)\n\nReturn the root. More here.") == "Return the root."
    assert first_sentence("max(a, b) -> value\n\nwith two") != "max(a, b) -> value."
    assert first_sentence("Größe") == "" == first_sentence("")
