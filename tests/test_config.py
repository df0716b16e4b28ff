"""Parameters that people write by hand are what they seem to be."""

import pytest
from pydantic import Field

from llamax.config import Parameters
from llamax.errors import ParameterError


class Inner(Parameters):
    rank: int = 1


class Example(Parameters):
    rate: float = 1.0
    steps: int | None = None
    packing: bool = True
    name: str = "a"
    either: int | str = 1
    sizes: tuple[int, ...] = ()
    inner: Inner = Field(Inner())


@pytest.mark.parametrize(
    "values", [{"rate": 1}, {"steps": 3}, {"packing": False}, {"either": "x"}, {"sizes": [1]}, {"inner": {"rank": 2}}]
)
def test_what_is_right_passes(values):
    assert Example.parse(values)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"rate": True}, "parameter 'rate' = True: should be a number"),
        ({"rate": "1e-4"}, "parameter 'rate' = '1e-4': should be a number"),
        ({"steps": True}, "parameter 'steps' = True: should be a number"),
        ({"steps": 2.5}, "parameter 'steps' = 2.5"),
        ({"packing": 1}, "parameter 'packing' = 1: should be true or false"),
        ({"packing": "yes"}, "parameter 'packing' = 'yes': should be true or false"),
        ({"name": 5}, "parameter 'name' = 5"),
        ({"rate": float("nan")}, "parameter 'rate' = nan"),
        ({"rate": float("inf")}, "parameter 'rate' = inf"),
        ({"inner": {"rank": "2"}}, "parameter 'inner.rank' = '2': should be a number"),
    ],
)
def test_what_only_looks_right_is_named(values, says):
    with pytest.raises(ParameterError) as caught:
        Example.parse(values)
    assert says in str(caught.value)
