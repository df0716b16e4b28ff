"""Parameters of direction 07: every profile's cases can be trained, and bad input is one line."""

import pytest

from llamax.errors import ParameterError
from llamax.infrastructure.config import SHARDINGS
from llamax.runs import parse_parameters


def parse(overrides=None, profile="nano"):
    return parse_parameters("infrastructure", profile, 0, overrides)


@pytest.mark.parametrize("profile", ["test", "nano", "smol"])
def test_every_profile_makes_its_cases(profile):
    config = parse(profile=profile)
    assert config.profile == profile
    assert next(iter(config.swept())) == "base"
    assert set(config.sharded()) == set(config.ranks.cases)
    assert (config.datasets(), config.models()) == ([config.data.source], [config.model])


def test_one_thing_changes_at_a_time():
    config = parse()
    swept = config.swept()
    length, packed, train = swept["base"]
    assert (length, packed, train.micro_batch, train.gradient_checkpointing) == (256, True, 4, False)
    assert swept["length 64"] == (64, True, train)
    assert swept["micro-batch 8"] == (256, True, train.model_copy(update={"micro_batch": 8}))
    assert swept["not packed"] == (256, False, train)
    assert swept["checkpointing"] == (256, True, train.model_copy(update={"gradient_checkpointing": True}))
    assert len(swept) == 1 + 2 + 2 + 2


def test_shardings_are_those_that_they_are_called():
    sharded = parse().sharded()
    assert [sharded[f"ZeRO-{stage}"].zero_stage for stage in range(4)] == [0, 1, 2, 3]
    assert {name for name, train in sharded.items() if train.offload_optimizer} == {n for n in SHARDINGS if "," in n}
    assert [name for name, train in sharded.items() if train.offload_parameters] == ["ZeRO-3, all offloaded"]
    assert {train.micro_steps for train in sharded.values()} == {1}


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"waterfall.batch": 60}, "batch 60 must be a multiple of micro_batch 8"),
        ({"waterfall.documents": 32}, "documents 32 must be a multiple of batch 32, twice it at least"),
        ({"waterfall.repeats": 1}, "parameter 'waterfall.repeats' = 1"),
        ({"micro_batches": [3]}, "rows 8 must be a multiple of every micro-batch, 3 among them"),
        ({"lengths": []}, "parameter 'sweep.lengths'"),
        ({"cases": ["ZeRO-4"]}, "cases: 'ZeRO-4' is none of ZeRO-0; ZeRO-1"),
        ({"ranks.precision": "bf16"}, "ZeRO-0 takes precision fp32 alone"),
        ({"max_examples": 50}, "data.max_examples 50: waterfall.documents wants more"),
    ],
)
def test_bad_input_is_one_line(overrides, says):
    with pytest.raises(ParameterError) as caught:
        parse(overrides)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_a_profile_without_a_section_says_so():
    with pytest.raises(ParameterError, match="profile '7b' has no section 'infrastructure': it has"):
        parse(profile="7b")
