"""The hashes that decide the sides, and the detector of leaks."""

from hypothesis import given
from hypothesis import strategies as st

from llamax.data.world.split import NGRAM, Contamination, generator, unit, words

WORD = st.sampled_from(["alpha", "beta", "gamma", "delta", "one", "two", "three"])
TEXT = st.lists(WORD, min_size=1, max_size=40).map(" ".join)


def test_unit_is_uniform_and_never_changes():
    places = [unit("fact", number) for number in range(4_000)]
    assert abs(sum(places) / len(places) - 0.5) < 0.02
    assert all(0 <= place < 1 for place in places)
    assert unit("a", 1) != unit("a", 2)
    assert generator("a").random() == generator("a").random() != generator("b").random()
    # first 7 bytes of sha256(b"fact|currency:Brazil"), from `sha256sum`
    assert unit("fact", "currency:Brazil") == int("e64477422f8e35", 16) / 2**56


def naive(text: str, question: str) -> bool:
    """Overlap by definition: `NGRAM` words in a row, or all words of a shorter question, are in the text."""
    text, question = words(text), words(question)
    size = min(NGRAM, len(question))
    parts = [question[i : i + size] for i in range(len(question) - size + 1)]
    return any(text[i : i + size] == part for part in parts for i in range(len(text) - size + 1))


@given(TEXT, st.lists(TEXT, min_size=1, max_size=3))
def test_contamination_is_what_its_definition_says(text, questions):
    assert (Contamination(questions).find(text) is not None) == any(naive(text, question) for question in questions)


def test_case_and_punctuation_do_not_hide_a_leak_but_operators_count():
    leak = Contamination(["What is the currency of Brazil?", 'def f(x, y):\n    """Same as a == b."""\n    return'])
    assert leak.find("... WHAT is, the currency: of Brazil! ...") == "What is the currency of Brazil?"
    assert leak.find("The currency of Brazil is the real.") is None
    assert leak.find('def f(x, y):\n    """Same as a > b."""\n    return operator.gt(x, y)') is None
