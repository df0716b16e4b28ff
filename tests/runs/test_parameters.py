import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamax.errors import ParameterError, RunError
from llamax.runs import parameters
from llamax.runs.parameters import parse_parameters, read_value


def test_a_profile_and_a_seed_make_a_config(home):
    config = parse_parameters("toy", "nano", 3)
    assert (config.profile, config.seed, config.train.learning_rate) == ("nano", 3, 0.01)


def test_a_profile_extends_another_group_by_group(home):
    config = parse_parameters("toy", "test")
    assert (config.data.size, config.train.learning_rate) == (1, 0.01)


@pytest.mark.parametrize(
    "overrides", [{"learning_rate": 2}, {"train.learning_rate": 2}, {"train": {"learning_rate": 2}}]
)
def test_overrides_may_be_short_dotted_or_nested(home, overrides):
    config = parse_parameters("toy", "nano", 0, overrides)
    assert config.train.learning_rate == 2
    assert config.train.rank == 1


def test_overriding_one_field_of_a_group_keeps_the_groups_own_default(home):
    assert parse_parameters("toy", "nano", 0, {"limits": {"a": 1}}).data.size == 5


def test_a_group_that_is_off_is_switched_on_by_its_field(home):
    assert parse_parameters("toy", "nano", 0, {"adapter.rank": 8}).train.adapter.rank == 8


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: parse_parameters("toy", "nan"), "no profile 'nan': there are nano, other, test"),
        (lambda: parse_parameters("toy", "../nano"), "no profile '../nano'"),
        (lambda: parse_parameters("toy", 7), "no profile 7"),
        (lambda: parse_parameters("toy", "other"), "profile 'other' has no section 'toy': it has else"),
        (lambda: parse_parameters("toy", "nano", 1e-3), "parameter 'seed' = 0.001"),
        (lambda: parse_parameters("toy", "nano", 0, {"learning_rat": 1}), "did you mean 'train.learning_rate'?"),
        (
            lambda: parse_parameters("toy", "nano", 0, {"zzz": 1}),
            "valid: mode, data.size, data.limits, train.learning_rate",
        ),
        (lambda: parse_parameters("toy", "nano", 0, {"train": {"zzz": 1}}), "unknown parameter 'train.zzz'"),
        (lambda: parse_parameters("toy", "nano", 0, {"rank": 1}), "give one of train.rank, train.adapter.rank"),
        (lambda: parse_parameters("toy", "nano", 0, {"size": "big"}), "parameter 'data.size' = 'big'"),
        (lambda: parse_parameters("toy", "nano", 0, {"learning_rate": 1e999}), "parameter 'train.learning_rate' = inf"),
        (lambda: parse_parameters("toy", "nano", 0, {"train": 5}), "parameter 'train' = 5"),
        (lambda: parse_parameters("toy", "nano", 0, {"seed": 1}), "set seed = 1"),
        (lambda: parse_parameters("toy", "nano", 0, "rank=1"), "overrides = 'rank=1': give a mapping"),
    ],
)
def test_bad_input_is_one_line_that_says_what_is_right(home, call, says):
    with pytest.raises(ParameterError) as caught:
        call()
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_profiles_in_a_circle_and_broken_profiles_are_named(home):
    folder = home / "notebooks" / "profiles"
    (folder / "a.yaml").write_text("extends: b\n")
    (folder / "b.yaml").write_text("extends: a\n")
    with pytest.raises(ParameterError, match="circle: a -> b -> a"):
        parse_parameters("toy", "a")
    (folder / "a.yaml").write_text("toy: {}\ntoy: {mode: x}\n")
    with pytest.raises(ParameterError, match=r"profiles/a.yaml, line 2: .*'toy' is given twice"):
        parse_parameters("toy", "a")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("-2E+3", -2000.0),
        ("5", 5),
        ("0.5", 0.5),
        ("true", True),
        ("null", None),
        ("", None),
        ("no", "no"),
        ("007", "007"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("chatml", "chatml"),
        ("[full, lora]", ["full", "lora"]),
        ('{"rank": 8, "rate": 1e-4}', {"rank": 8, "rate": 1e-4}),
    ],
)
def test_command_line_values_are_read_as_yaml_1_2(text, value):
    read = read_value(text)
    assert read == value
    assert type(read) is type(value)


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers())
def test_every_number_that_python_prints_is_read_back(number):
    read = read_value(repr(number))
    assert read == number
    assert type(read) is type(number)


def test_differences_are_the_overrides_that_lead_back(home):
    plain = parse_parameters("toy", "nano", 1)
    chosen = {"train.rank": 9, "train.adapter": {"rank": 2}, "data.limits": {"a": 1}, "mode": "x"}
    config = parse_parameters("toy", "nano", 1, chosen)
    assert parameters.differences(plain, config) == chosen
    assert parse_parameters("toy", "nano", 1, parameters.differences(config, plain)) == plain


def test_parameters_that_papermill_injected_under_other_names_stop_the_notebook(home, monkeypatch):
    cells = ['profile = "nano"', '# Parameters\nprofile = "nano"\nlearning_rate = 0.1\n']
    shell = types.SimpleNamespace(user_ns={"In": cells})
    monkeypatch.setitem(parameters.sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    with pytest.raises(
        ParameterError, match=r"'learning_rate': the notebook takes profile, seed, overrides.*train\.rank"
    ):
        parse_parameters("toy")
    cells[-1] = '# Parameters\nprofile = "nano"\nseed = 1\n'
    assert parse_parameters("toy").seed == 0


def test_what_is_no_direction_is_said(home):
    for name in ("toy.x", "../toy", "x."):
        with pytest.raises(RunError, match=r"no direction .*: there are toy"):
            parse_parameters(name)


def test_a_section_of_no_direction_is_a_misspelt_one(home):
    folder = home / "notebooks" / "profiles"
    (folder / "mine.yaml").write_text("extends: nano\ntoyy: {train: {learning_rate: 9}}\n")
    with pytest.raises(ParameterError, match="has a section 'toyy': did you mean 'toy'"):
        parse_parameters("toy", "mine")
    (folder / "mine.yaml").write_text("extends: nano\ntoy: {data: 5}\n")
    with pytest.raises(ParameterError, match="parameter 'data' = 5"):
        parse_parameters("toy", "mine")
    (folder / "mine.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(ParameterError, match=r"mine.yaml: cannot be read"):
        parse_parameters("toy", "mine")
    (folder / "mine.yaml").write_text("? [a]\n: 1\n")
    with pytest.raises(ParameterError, match="a name is not a text"):
        parse_parameters("toy", "mine")
