"""The study itself, at profile `test`: every part is measured once, recorded whole, and drawn."""

import re

import pandas as pd
import pytest
from recorder import run_study

from llamax.infrastructure import figures, measure
from llamax.infrastructure import study as room
from llamax.infrastructure.study import Study
from llamax.infrastructure.waterfall import WAYS
from llamax.runs import parse_parameters

SMALL = {"waterfall.documents": 8, "waterfall.batch": 4, "lengths": [64, 128], "micro_batches": [1, 2]}


def run_in(scratch, **overrides):
    return run_study(Study, parse_parameters("infrastructure", "test", 0, SMALL | overrides), scratch)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    return run_in(tmp_path_factory.mktemp("study"))


def test_every_way_and_every_case_is_measured(done):
    study, run = done
    assert run.completed
    ways = run.frames["ways"]
    assert ways.groupby("key", sort=False).repeat.count().to_dict() == {way.key: 2 for way in WAYS}
    assert (ways.padded >= ways.real).all() and ways.real.nunique() == 1
    assert set(run.frames["cases"].case) == set(study.config.swept())
    assert run.metrics["waterfall.largest_difference.loss"] < 1e-5
    assert 0 < run.metrics["overhead.share"] < 1
    assert run.tokens == ways.real.sum() + run.frames["cases"].real.sum()
    assert run.flops > 0


def test_the_plan_is_within_a_tenth(done):
    assert done[1].metrics["plan.error.largest"] <= 0.10


def test_packed_rows_make_as_many_steps_as_documents(done):
    recipe = done[0].recipe
    assert -(-len(recipe.packed) // recipe.rows) == len(recipe.single) / recipe.batch == 2


def test_what_is_done_is_read_back(done, monkeypatch):
    _, run = done

    def never(*_, **__):
        raise AssertionError("measured again")

    for name in ("take_steps", "counted", "shares", "loop_seconds"):
        monkeypatch.setattr(measure, name, never)
    monkeypatch.setattr(room, "one_way", never)
    _, second = run_in(run.scratch)
    assert second.metrics == run.metrics
    pd.testing.assert_frame_equal(second.frames["items"], run.frames["items"])


def test_the_pictures_have_axes_with_units(done):
    tables = done[0].tables
    drawn = [
        figures.waterfall(tables["ways"], tables["memory"]),
        figures.by_size(tables["cases"]),
        figures.plan_against_measured(tables["cases"]),
        figures.breakdown(tables["parts"], tables["loop"]),
        figures.shardings(tables["cases"].assign(kind="ranks")),
    ]
    for figure in drawn:
        labels = [label for axes in figure.axes for label in (axes.get_xlabel(), axes.get_ylabel()) if label]
        assert labels and all(re.search(r"tokens/s|\((MiB|tokens|rows|s|%)\)|%", label) for label in labels), labels


@pytest.mark.slow
def test_one_start_of_the_ranks_goes_through_all_cases(tmp_path):
    study, run = run_in(tmp_path, **{"cases": ["ZeRO-0", "ZeRO-3, all offloaded"], "ranks.steps": 2})
    sharded = run.frames["sharded"]
    assert sharded.groupby("case", sort=False).step.count().to_dict() == {"ZeRO-0": 2, "ZeRO-3, all offloaded": 2}
    assert run.metrics["plan.error.largest"] <= 0.10
    assert len(list((study.run.scratch / "ranks").glob("found-*.json"))) == 2
