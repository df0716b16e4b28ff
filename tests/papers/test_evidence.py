"""What a name stands for: one run's own numbers, or several runs together with an interval over items and trainings."""

from types import SimpleNamespace

import numpy as np
import pytest
from synthetic_results import NANO_TASKS, REAL_TASKS, outcomes

from llamax import statistics
from llamax.errors import PaperError
from llamax.instruction_tuning import analysis
from llamax.papers.evidence import Evidence, Value, spread_of_runs
from llamax.papers.show import fact, number, show
from llamax.runs.records import Metric
from llamax.runs.store import Store


@pytest.fixture(scope="module")
def evidence(made_up):
    home, runs = made_up
    return Evidence({**runs, "one": runs["nano"][:1]}, Store(home))


def test_one_run_gives_what_the_direction_recorded_computed_anew_from_the_items(evidence):
    for golden in analysis.metrics(outcomes(0, NANO_TASKS, ("plain", "chat"), 40, 2)):
        found = evidence.value(f"one:{golden.name}")
        assert found[1:7] == pytest.approx(
            (golden.value, golden.n, golden.standard_error, golden.low, golden.high, golden.unit)
        ), golden.name


def test_a_real_benchmark_gives_what_the_direction_recorded(evidence):
    for golden in analysis.metrics(outcomes(5, REAL_TASKS, ("lm-eval",), 40, 1)):
        assert evidence.value(f"smol:{golden.name}").value == pytest.approx(golden.value), golden.name


def test_several_runs_are_all_their_trainings_together(evidence):
    parts = [outcomes(seed, NANO_TASKS, ("plain", "chat"), 40, 2) for seed in (0, 1)]
    tables = [part[(part.method == "lora") & (part.protocol == "chat") & (part.task == "code")] for part in parts]
    table = np.concatenate([t.pivot(index="replicate", columns="item", values="outcome").to_numpy() for t in tables])
    columns = tables[0].pivot(index="replicate", columns="item", values="outcome").columns
    clusters = tables[0].drop_duplicates("item").set_index("item").cluster.reindex(columns)
    golden = statistics.combine_scores([table], [clusters.tolist()])
    found = evidence.value("nano:lora.chat.code.accuracy")
    assert (found.value, found.low, found.high) == pytest.approx((golden.value, golden.low, golden.high))
    assert (found.n, found.seeds) == (40, 4)


def test_replicates_are_counted_on_and_the_base_is_kept_once(evidence):
    items = evidence.items("nano")
    assert sorted(items[items.method == "full"].replicate.unique()) == [0, 1, 2, 3]
    assert list(items[items.method == "base"].replicate.unique()) == [0]
    assert sorted(evidence.series("nano", "curves").replicate.unique()) == [0, 1, 2, 3]
    assert len(items) == len(items.drop_duplicates(["item", "method", "protocol", "replicate"]))


def test_a_comparison_of_two_methods_is_paired_and_turns_with_them(evidence):
    one = evidence.compare("nano", "full.chat.overall", "lora.chat.overall")
    two = evidence.compare("nano", "lora.chat.overall", "full.chat.overall")
    assert (one.value, one.low, one.high) == pytest.approx((-two.value, -two.high, -two.low))
    wide = evidence.compare("nano", "full.chat.overall", "lora.chat.overall", level=0.99)
    assert wide.low < one.low < one.high < wide.high


def test_runs_that_do_not_ask_the_same_items_are_not_compared(evidence, monkeypatch):
    items = evidence.items("nano").copy()
    rows = (items.method == "lora") & (items.item == "code-3")
    items.loc[rows, "item"] = "code-99"
    monkeypatch.setattr(evidence, "_kept", {("items", "nano"): items})
    with pytest.raises(PaperError, match="do not share their items"):
        evidence.compare("nano", "full.chat.code", "lora.chat.code")


class ItemsOnly:
    """A store that knows nothing of its runs but their items."""

    def __init__(self, frames):
        self.frames = frames

    def load(self, run):
        return SimpleNamespace(run=run)

    def items(self, record):
        return self.frames[record.run]


def pooled(change):
    """Items of two runs whose base outcomes of the second are what `change` makes of them."""
    frames = {run: outcomes(seed, ("code",), ("chat",), 10, 1) for seed, run in enumerate(("a", "b"))}
    base = frames["b"].method == "base"
    frames["b"].loc[base, "outcome"] = change(frames["b"][base])
    return Evidence({"x": ["a", "b"]}, ItemsOnly(frames)).items("x")


def test_the_base_of_two_machines_is_their_mean():
    losses = [
        pooled(lambda base, f=f: base.outcome.where(base.task != "text_loss", base.outcome * f))
        .query("method == 'base' and task == 'text_loss'")
        .outcome.mean()
        for f in (1, 1.0008)
    ]
    assert losses[1] == pytest.approx(losses[0] * 1.0004, rel=1e-9)


@pytest.mark.parametrize(
    "change",
    [
        lambda base: base.outcome.where(base.item != "code-3", 1 - base.outcome),
        lambda base: base.outcome.where(base.item != "code-3", base.outcome + 1e-2),
        lambda base: base.outcome.where(base.task != "text_loss", base.outcome * 1.002),
    ],
)
def test_runs_of_different_bases_are_not_pooled(change):
    with pytest.raises(PaperError, match=r"do not share their base model's outcomes \(b differs\)"):
        pooled(change)


def test_items_of_another_form_are_one_line():
    frame = outcomes(0, ("code",), ("chat",), 10, 1).rename(columns={"method": "model"})
    with pytest.raises(PaperError, match=r"^run a: its items have no column 'method', by which papers select$"):
        Evidence({"x": ["a"]}, ItemsOnly({"a": frame})).items("x")


def test_a_run_pinned_twice_is_no_second_training(made_up):
    home, runs = made_up
    with pytest.raises(PaperError, match=r"lock.json pins run nano-s0-00000000 twice for 'nano'"):
        Evidence({"nano": runs["nano"][:1] * 2}, Store(home)).value("nano:full.chat.overall.gain")


def test_outcomes_are_named_with_their_task(evidence):
    with pytest.raises(PaperError, match="'full' names no task"):
        evidence.compare("nano", "full")


def test_without_a_protocol_two_protocols_are_ambiguous(evidence):
    with pytest.raises(PaperError, match="name the protocol"):
        evidence.compare("nano", "full.overall")
    assert evidence.compare("smol", "full.overall", "base.overall").n == 120


def test_facts_are_the_same_in_all_runs_and_costs_are_averaged(evidence):
    assert evidence.fact("nano:parameters.train.learning_rate") == 5e-4
    assert evidence.fact("nano:cost.wall_seconds") == 110
    assert evidence.fact("nano:runs") == 2
    with pytest.raises(PaperError, match="is not a single value"):
        evidence.fact("nano:parameters.train")


def test_metrics_without_items_spread_over_the_runs():
    alone = Metric(name="speed", value=3.0, standard_error=0.5, low=2.0, high=4.0, n=9, unit="tokens/s")
    assert spread_of_runs("a:speed", [alone])[1:7] == (3.0, 9, 0.5, 2.0, 4.0, "tokens/s")
    bare = [Metric(name="speed", value=value) for value in (1.0, 2.0, 4.0)]
    golden = statistics.mean([1.0, 2.0, 4.0])
    assert spread_of_runs("a:speed", bare)[3:6] == pytest.approx(golden[1:4])
    same = spread_of_runs("a:speed", [alone, alone])
    assert same.standard_error == pytest.approx(0.5)
    assert spread_of_runs("a:speed", [alone, alone.model_copy(update={"value": 9.0})]).standard_error > 3


@pytest.mark.parametrize(
    ("value", "how", "text"),
    [
        (Value("a:full.gain", 0.1234, 5, 0.01, 0.1, 0.149, "fraction"), "ci", "+12.3 [+10.0, +14.9]"),
        (Value("a:full.gain", -0.0004, 5, 0.01, -0.1, 0.1, "fraction"), "ci", "0.0 [−10.0, +10.0]"),
        (Value("a:full.accuracy", 0.5, 1200, 0.01, 0.1, 0.9, "fraction"), "se", "50.0 ± 1.0"),
        (Value("a:full.accuracy", 0.5, 1200, 0.01, 0.1, 0.9, "fraction"), "n", "1,200"),
        (Value("a:base.text_loss", 2.41267, 5, unit="nats/token"), "value", "2.413"),
        (Value("a:x", 1, p_value=0.0004), "p", "p < 0.001"),
        (Value("a:x", 1, p_value=0.0123), "p", "p = 0.012"),
    ],
)
def test_how_values_are_written(value, how, text):
    assert show(value, how).replace("\N{NO-BREAK SPACE}", " ") == text


@pytest.mark.parametrize("how", ["ci", "se", "p", "n"])
def test_what_was_not_recorded_is_not_shown(how):
    with pytest.raises(PaperError, match="'a:x'"):
        show(Value("a:x", 1.0), how)


def test_how_facts_are_written():
    texts = [fact(v).replace("\N{NO-BREAK SPACE}", " ") for v in (52002, 2e-5, 0.05, 1.0, True, "cosine", 0, -0.5)]
    assert texts == ["52,002", "2 × 10⁻⁵", "0.05", "1", "yes", "cosine", "0", "−0.5"]
    assert fact(150.0, "minutes") == "2" and fact(150.0, "minutes", 1) == "2.5"
    assert number(-0.04, 1) == "0.0" and number(-0.06, 1) == "−0.1"
