"""The study's numbers from hand-made outcomes."""

import numpy as np
import pandas as pd
import pytest

from llamax import statistics
from llamax.instruction_tuning import analysis, figures
from llamax.runs.records import Metric


def outcomes(method, task, table, protocol="chat"):
    """Rows of one method and task from a [replicates, items] table."""
    return [
        {
            "item": f"{task}-{i}",
            "task": task,
            "method": method,
            "protocol": protocol,
            "replicate": r,
            "outcome": float(value),
            "cluster": f"{task}-{i}",
        }
        for r, row in enumerate(table)
        for i, value in enumerate(row)
    ]


@pytest.fixture
def items():
    rows = outcomes("base", "a", [[0, 0, 1, 1]]) + outcomes("base", "b", [[0, 1]])
    rows += outcomes("full", "a", [[1, 0, 1, 1], [1, 1, 1, 0]]) + outcomes("full", "b", [[1, 1], [1, 1]])
    rows += outcomes("base", "text_loss", [[2.0, 3.0]], "text") + outcomes(
        "full", "text_loss", [[2.5, 3.0], [2.5, 3.5]], "text"
    )
    return pd.DataFrame(rows).sample(frac=1, random_state=0)


def value(items, name):
    (found,) = [m for m in analysis.metrics(items) if m.name == name]
    return found


def test_gain_pairs_each_item_with_the_base_model(items):
    assert value(items, "base.chat.a.accuracy").value == 0.5
    assert value(items, "full.chat.a.accuracy").value == 0.75
    gain = value(items, "full.chat.a.gain")
    expected = statistics.combine(np.array([[1, 0, 0, 0], [1, 1, 0, -1]]))
    assert gain.value == expected.value == 0.25
    assert (gain.low, gain.high, gain.n) == (expected.low, expected.high, 4)


def test_overall_gain_weighs_tasks_alike_whatever_their_size(items):
    overall = value(items, "full.chat.overall.gain")
    assert overall.value == pytest.approx((0.25 + 0.5) / 2)


def test_tasks_are_strata_their_differing_gains_are_no_noise():
    rows = outcomes("base", "a", [[0, 0, 0, 0]]) + outcomes("base", "b", [[0, 0]])
    rows += outcomes("full", "a", [[1, 1, 1, 1]] * 2) + outcomes("full", "b", [[0, 0]] * 2)
    overall = value(pd.DataFrame(rows), "full.chat.overall.gain")
    assert overall.value == 0.5
    assert overall.standard_error == pytest.approx(0)


def test_forgetting_is_the_rise_in_plain_text_loss(items):
    assert value(items, "full.forgetting").value == pytest.approx(0.375)
    assert value(items, "base.text_loss").unit == "nats/token"


def test_base_has_scores_but_no_gain(items):
    names = [m.name for m in analysis.metrics(items)]
    assert not any(name.startswith("base") and name.endswith(("gain", "forgetting")) for name in names)
    assert len(names) == len(set(names))


def test_a_missing_item_is_noticed(items):
    short = items.drop(items[(items.method == "base") & (items.item == "a-0")].index)
    with pytest.raises(ValueError):
        analysis.metrics(short)


def test_protocol_name_is_left_out_for_real_benchmarks(items):
    real = items.replace({"protocol": {"chat": "lm-eval"}})
    assert value(real, "full.a.gain").value == 0.25
    assert value(real, "full.overall.gain").value == pytest.approx(0.375)
    assert analysis.protocols(real) == [""]


def test_table_shows_points():
    metric = Metric(name="full.a.gain", value=0.125, n=8, standard_error=0.01, low=0.1, high=0.15, unit="fraction")
    shown = analysis.table([metric, metric.model_copy(update={"name": "full.forgetting", "value": 0.5})])
    assert shown.loc["full.a.gain", "value"] == 12.5
    assert list(shown.index) == ["full.a.gain"]


def test_one_item_alone_has_a_value_and_no_interval(items):
    alone = items[items.item.isin(("a-0", "b-0", "text_loss-0")) & (items.replicate == 0)]
    assert value(alone, "full.chat.a.gain") == Metric(name="full.chat.a.gain", value=1.0, n=1, unit="fraction")
    found = analysis.metrics(alone)
    shown = analysis.table(found)
    assert shown.loc["full.chat.a.gain", "value"] == 100 and np.isnan(shown.loc["full.chat.a.gain", "low"])
    assert figures.gains(found, "chat").axes and figures.trade_off(found, "chat").axes


def test_means_pool_replicates_and_count_items_once(items):
    shown = analysis.means(items)
    assert shown.loc[("chat", "a"), ["base", "full", "items"]].tolist() == [0.5, 0.75, 4]


def test_truthfulqa_counts_once_in_the_overall_gain():
    rows = []
    for task, gain in (("truthfulqa_mc1", 1.0), ("truthfulqa_mc2", 0.5), ("mmlu", 0.0)):
        rows += outcomes("base", task, [[0, 0]], "lm-eval") + outcomes("full", task, [[gain, gain]], "lm-eval")
    assert value(pd.DataFrame(rows), "full.overall.gain").value == 0.25
