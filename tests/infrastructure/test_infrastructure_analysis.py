"""The study's numbers from hand-made tables."""

import numpy as np
import pandas as pd
import pytest

from llamax.infrastructure import analysis


@pytest.fixture
def ways():
    rows = [
        {"key": key, "repeat": repeat, "seconds": seconds * (1 + repeat), "real": 100, "supervised": 40,
         "padded": padded, "flops": 1000.0, "rate": 2000.0, "bf16_rate": 4000.0}
        for key, seconds, padded in (("padded", 2.0, 300), ("loss", 0.5, 100))
        for repeat in (0, 1)
    ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.fixture
def cases():
    return pd.DataFrame([
        {"kind": kind, "case": case, "step": step, "seconds": seconds, "real": 100, "supervised": 40, "flops": flops,
         "rate": 100.0, "length": 8, "micro_batch": 1, "peak": 2**20, "planned": planned * 2**20, "at": "loss"}
        for kind, case, seconds, flops, planned in (
            ("sweep", "base", 1.0, 50.0, 1.0),
            ("sweep", "length 4", 1.0, 25.0, 1.1),
            ("ranks", "ZeRO-3", 2.0, 20.0, 0.8),
        )
        for step in (0, 1)
    ])  # fmt: skip


def test_rates_are_pairwise_and_per_second(ways):
    found = analysis.rates(ways).set_index(["key", "repeat"])
    assert found.loc[("padded", 0), ["real", "supervised", "padded"]].tolist() == [50, 20, 150]
    assert found.loc[("loss", 1), "mfu"] == 1000 / 1.0 / 2000
    assert found.loc[("loss", 1), "mfu_of_bf16"] == 1000 / 1.0 / 4000
    assert found.loc["padded"].speedup.tolist() == [1, 1]
    assert found.loc["loss"].speedup.tolist() == [4, 4]  # the machine was twice as slow for both in the second repeat


def test_a_metric_is_positive_with_an_interval_that_holds_it():
    found = analysis.metric("x", pd.Series([1.0, 4.0]), "tokens/s")
    assert found.value == pytest.approx(2)
    assert 0 < found.low < found.value < found.high
    assert found.n == 2


def test_plan_and_time_against_measured(cases):
    memory = analysis.throughput(cases).set_index("case")
    assert memory.error.tolist() == pytest.approx([0, 0.1, -0.2])
    assert memory.tokens_per_second.tolist() == [100, 100, 50]
    times = analysis.planned_seconds(cases).set_index("case")
    assert times.error.tolist() == pytest.approx([0, -0.5, 0])  # each kind has a first case of its own


def test_shares_add_up_and_the_loops_own_is_a_part_of_pythons():
    parts = pd.DataFrame({"kind": ["attention", "Python"], "seconds": [3.0, 1.0]})
    loop = pd.DataFrame({"alone": [0.1, 0.1], "whole": [1.0, 1.0]})
    found = analysis.breakdown(parts, loop)
    assert found.to_dict() == pytest.approx({"attention": 0.75, "model's Python": 0.15, "loop": 0.1})


def test_metrics_have_names_of_their_own(ways, cases):
    tables = {
        "ways": ways, "cases": cases, "memory": pd.DataFrame({"key": ["padded", "loss"], "peak": [10, 5]}),
        "parity": pd.DataFrame({"key": ["padded", "loss"], "loss": [1.0, 1.00001], "norm": [2.0, 2.0]}),
        "parts": pd.DataFrame({"kind": ["attention", "Python"], "seconds": [3.0, 1.0]}),
        "loop": pd.DataFrame({"alone": [0.1, 0.2], "whole": [1.0, 1.0]}),
    }  # fmt: skip
    found = analysis.metrics(tables)
    by_name = {metric.name: metric.value for metric in found}
    assert len(by_name) == len(found)
    assert by_name["plan.error.largest"] == pytest.approx(0.2)
    assert by_name["waterfall.largest_difference.loss"] == pytest.approx(1e-5)
    assert by_name["waterfall.loss.memory"] == 5
    assert by_name["overhead.share"] == pytest.approx(np.sqrt(0.02))
    assert by_name["ranks.zero_3.tokens_per_second"] == pytest.approx(50)


def test_outcomes_pair_by_repeat(ways):
    frame = analysis.outcomes(ways)
    assert frame.groupby("item").method.count().tolist() == [2, 2]
    assert not frame.duplicated(["item", "method", "task"]).any()
