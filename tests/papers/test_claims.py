"""Claims are judged by the bounds of their interval, not by the estimate; their fields have bounds of their own."""

from types import SimpleNamespace

import pytest

from llamax.errors import PaperError, ParameterError
from llamax.papers.claims import judge
from llamax.papers.evidence import Value
from llamax.papers.source import Claim


def judged(op, threshold, low, high, **fields):
    """The verdict on a difference with the interval [low, high]."""
    fields = {"id": "x", "sentence": "So it is.", "runs": "nano", "of": "full.code", "minus": "base.code", **fields}
    claim = Claim.parse({"test": "paired_difference", "op": op, "threshold": threshold, **fields})
    found = Value("nano:full.code", (low + high) / 2, 9, 0.1, low, high, "", 0.5, 1)
    return judge(claim, SimpleNamespace(compare=lambda *_: found))


@pytest.mark.parametrize(
    ("op", "threshold", "low", "high", "true"),
    [
        (">", 0.1, 0.11, 0.5, True),
        (">", 0.1, 0.09, 0.5, False),  # the estimate lies above
        (">", 0.1, -0.5, 0.09, False),
        ("<", 0.1, -0.5, 0.09, True),
        ("<", 0.1, -0.5, 0.11, False),  # estimate and lower bound lie below
        ("<", 0.1, 0.11, 0.5, False),
        ("within", 0.1, -0.09, 0.09, True),
        ("within", 0.1, -0.11, 0.09, False),
        ("within", 0.1, -0.09, 0.11, False),
        ("within", 0.1, -0.5, 0.5, False),
    ],
)
def test_the_whole_interval_must_lie_where_the_claim_says(op, threshold, low, high, true):
    assert judged(op, threshold, low, high).true is true


def test_another_level_than_the_usual_one_is_printed():
    assert "[+1.0, +3.0], 9 items" in judged(">", 0, 0.01, 0.03).evidence()
    assert "[+1.0, +3.0] at the 99.5% level, 9 items" in judged(">", 0, 0.01, 0.03, level=0.995).evidence()


@pytest.mark.parametrize("level", [0, 1, -0.5, 95, "nan", float("inf")])
def test_a_level_lies_between_0_and_1(level):
    with pytest.raises(ParameterError, match="parameter 'level'"):
        judged(">", 0, 0, 1, level=level)


@pytest.mark.parametrize("threshold", [float("nan"), float("-inf"), "inf", ".nan"])
def test_a_threshold_is_a_finite_number(threshold):
    with pytest.raises(ParameterError, match="parameter 'threshold'"):
        judged(">", threshold, 0, 1)


def test_nothing_lies_within_zero():
    with pytest.raises(PaperError, match="give a threshold above 0"):
        judged("within", 0, 0, 1)
