"""Which words are numbers typed by hand, and which are names."""

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamax.papers import typed
from llamax.papers.source import Lines
from llamax.papers.typed import typed_numbers


@given(
    st.decimals(-1000, 1000, places=2, allow_nan=False),
    st.sampled_from(["{}", "({})", "{}%", "+{},", "**{}", "~{}", "{}.", "“{}”", "n={}", "p<{}", "{}x", "{}–2", "±{}"]),
)
def test_a_number_is_found_however_it_is_dressed(value, dress):
    text = dress.format(value) if "**" not in dress else str(value)
    assert typed_numbers(f"we gained {text} points")


@pytest.mark.parametrize(
    "text",
    [
        "SmolLM2-135M 7B GPT-4 LLaMA-7B v2 3.0.1 2.6M 8-bit A100 ZeRO-3 135M-Instruct",
        "see Section 4 and Table 12",
        "one two",
        "Step 99, p. 12, pp. 3–5, Issue #7 https://x.org/2023/4",
    ],
)
def test_names_pass(text):
    assert typed_numbers(text) == []


@pytest.mark.parametrize(
    "word",
    [
        "12k",
        "45percent",
        "12.3pt",
        "1.2σ",
        "0.3nats",
        "½",
        "1½",
        "€5",
        "£5",
        "$5",
        "0.45-ish",
        "12-fold",
        "45.2.0",
        "(45.2%).",
        "3/5",
        "F1:0.4",
        "10⁻⁵",
        "1,234",
        "−.5",
        "45th",
        "x2.4",
    ],
)
def test_a_number_with_a_unit_of_any_kind_is_found(word):
    assert len(typed_numbers(f"we gained {word} points")) == 1


@pytest.mark.parametrize(
    "text", ["Table 45.2", "table 45.2", "step 99", "Figure 45%", "Section 4k", "Step 1/2", "p = 0.05"]
)
def test_only_whole_numbers_are_places_and_only_after_their_names(text):
    assert len(typed_numbers(text)) == 1


def test_the_word_before_may_stand_in_another_node():
    assert typed_numbers("4", before="Section") == []
    assert typed_numbers("4", before="about") == ["4"]


def test_the_docstring_is_true():
    assert doctest.testmod(typed).failed == 0


def test_lines_run_along_the_text():
    lines = Lines("alpha 12\nbeta\n12 gamma “quoted” it’s\nalpha\n")
    assert [lines.at(word) for word in ("alpha", "12", "beta", "12", "missing", "gamma", "alpha")] == [
        1,
        1,
        2,
        3,
        3,
        3,
        4,
    ]
    assert lines.at("beta") == 4, "the cursor never goes back"
