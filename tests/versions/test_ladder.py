import json

import pytest

from llamax.errors import GateError, ParameterError
from llamax.versions import ladder as ladders
from llamax.versions.ladder import Ladder, ladder, number


def test_the_rungs_are_those_of_the_programme():
    rungs = ladder().rungs
    assert [rung.version for rung in rungs] == [
        *("3.0.0", "3.1.0", "3.2.0", "3.3.0", "3.5.0"),
        *("3.6.0", "3.7.0", "3.8.0", "3.9.0", "4.0.0"),
    ]
    assert [rung.gap for rung in rungs[4:]] == [None, 0.8, 0.6, 0.4, 0.2, 0.0]
    assert ladder().rung("3.7.0").requirement() == "60% of the average gap to GPT-4 left, at most"
    assert ladder().rung("3.0.1") is None
    assert [getattr(ladder().reached(v), "version", None) for v in ("3.0.1", "3.1.0", "3.4.9", "3.9.9")] == [
        None, "3.1.0", "3.3.0", "3.9.0",
    ]  # fmt: skip


def test_type_b_is_required_from_3_6_0_on():
    names = {
        version: [one.name for one in ladder().required(version)] for version in (None, "3.5.9", "3.6.0", "3.10.0")
    }
    assert names[None] == names["3.5.9"] == ["mmlu", "humaneval", "gsm8k", "nq_open", "truthfulqa_mc1"]
    assert (
        names["3.6.0"]
        == names["3.10.0"]
        == [
            *names[None],
            *("leetcode", "gre_like", "ap_like", "jmmlu", "cmmlu", "puzzlevqa"),
        ]
    )


def test_the_rule_is_the_one_the_issue_states():
    rule = ladder().rule
    assert (rule.gain, rule.level, rule.power) == (1.0, 0.05, 0.8)


@pytest.mark.parametrize("version", ["3.0.0", "2.9.9", "4.0.1"])
def test_a_candidate_lies_above_llama_and_not_beyond_the_top(version):
    with pytest.raises(GateError, match=f"version {version}: a candidate's lies above 3.0.0"):
        ladder().check(version)


@pytest.mark.parametrize("version", ["3.1", "three", "3.0.1-rc1", "", "3.0.01", "3.06.0", "\u0663.1.0"])
def test_a_version_is_three_numbers(version):
    with pytest.raises(GateError, match=r"write three numbers, such as 3\.0\.1"):
        number(version)


def test_versions_sort_as_numbers():
    assert sorted(["3.10.0", "3.9.0", "3.0.12", "3.0.2"], key=number) == ["3.0.2", "3.0.12", "3.9.0", "3.10.0"]


def test_rungs_out_of_order_are_refused():
    values = json.loads(ladder().model_dump_json())
    values["rungs"].reverse()
    with pytest.raises(ParameterError, match="in the order of their versions"):
        Ladder.parse(values, "ladder.yaml")


def test_no_status_is_typed_into_the_ladder():
    text = (ladders.Path(ladders.__file__).parent / "ladder.yaml").read_text()
    assert not {"released", "open", "reached", "rejected"} & set(text.replace(":", " ").split())
