"""Spikes are found, undone, skipped and named; the run ends as a clean one does, killed or not."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import median_abs_deviation
from training_cases import PAD, Planted, new_config, new_model, new_rows, poisoned_loss, rows_of_steps
from transformers import LlamaConfig, LlamaForCausalLM

from llamax.data.shards import shard_texts
from llamax.data.stream import Windows, open_shards
from llamax.data.world.text import pretraining_texts
from llamax.errors import ParameterError, TrainingError
from llamax.training import monitors
from llamax.training.attention import documents_attention
from llamax.training.config import StabilityConfig, TrainConfig
from llamax.training.history import History, StepMetrics
from llamax.training.loop import fit
from llamax.training.objectives import next_token_loss

WATCH = {"fewest": 4, "window": 8, "grad_z": 0}
BAD = 14  # a step
QUICK = {"epochs": 1, "max_steps": 20, "learning_rate": 2e-2, "schedule": "constant"}
EVERY = new_config(**QUICK, checkpoint_every=4, keep_checkpoints=3, stability=WATCH)


class Stop(Exception):
    """Stands for whatever ends a run early."""


@pytest.fixture(scope="module")
def rows():
    return new_rows(documents=400)


def train(rows, out, config=EVERY, bad=(BAD,), on_step=None, objective=next_token_loss):
    """History and final weights of a run with noise for the batches of the steps `bad`."""
    model, data = new_model(), Planted(rows, rows_of_steps(rows, config, bad))
    history = fit(model, data, config, out, pad_id=PAD, on_step=on_step, objective=objective)
    return history, [p.detach().clone() for p in model.parameters()]


def assert_same(one, two):
    """Histories without their times, and weights, to the bit."""
    assert [m[:-1] for m in one[0].steps] == [m[:-1] for m in two[0].steps]
    assert one[0].events == two[0].events
    assert all(torch.equal(a, b) for a, b in zip(one[1], two[1], strict=True))


def test_robust_z_is_that_of_scipys_mad():
    before = np.random.default_rng(0).normal(3, 0.2, 31)
    scale = median_abs_deviation(before, scale="normal")
    assert monitors.robust_z(4.0, before, 0) == pytest.approx((4 - np.median(before)) / scale, rel=1e-4)
    before[3] = 1e6  # an outlier in the window hides nothing
    assert monitors.robust_z(4.0, before, 0) > 4
    assert monitors.robust_z(math.nan, before, 0) == math.inf
    assert monitors.robust_z(3.1, [3.0] * 9, 0.05) == pytest.approx(2)


def steps_of(losses, norms):
    return [StepMetrics(i, *pair, 1, 1, 1) for i, pair in enumerate(zip(losses, [1e-3] * 99, norms, strict=False))]


def test_what_is_a_spike():
    rng = np.random.default_rng(0)
    before = steps_of(rng.normal(3, 0.1, 40), rng.lognormal(0, 0.2, 40))
    config = StabilityConfig(loss_z=8, grad_z=8)

    def judged(loss, norm, config=config, before=before):
        found = monitors.find_spike(StepMetrics(40, loss, 1e-3, norm, 1, 1, 1), before, config)
        return found and found[0]

    assert judged(3.2, 1.2) is None and judged(0.5, 0.01) is None  # low is no spike
    assert judged(4.5, 1.0) == "loss" and judged(3.0, 30.0) == "grad_norm"
    assert judged(4.5, 30.0, StabilityConfig(loss_z=0, grad_z=0, not_finite="skip")) is None
    assert judged(4.5, 30.0, before=before[:31]) is None  # too few to judge by
    assert judged(math.nan, 1.0, before=[]) == "loss" and judged(1.0, math.inf, before=[]) == "grad_norm"
    known = steps_of([0.0] * 40, [1.0] * 40)  # rows that are known by heart
    assert judged(0.0, 1.0, before=known) is None and judged(0.5, 1.0, before=known) == "loss"
    _, value, threshold = monitors.find_spike(StepMetrics(40, 4.5, 1e-3, 1, 1, 1, 1), before, config)
    losses = [m.loss for m in before]
    scale = median_abs_deviation(losses, scale="normal")
    assert (value, threshold) == (4.5, pytest.approx(np.median(losses) + 8 * scale, rel=1e-3))


def test_watching_a_quiet_run_changes_no_bit(tmp_path, rows):
    quiet = EVERY.model_copy(update={"stability": None})
    one, two = train(rows, tmp_path / "a", bad=()), train(rows, tmp_path / "b", quiet, bad=())
    assert not one[0].events and len(one[0].steps) == 20
    assert_same(one, two)


def test_a_spike_is_undone_and_skipped_and_told(tmp_path, rows, capsys):
    history, _ = train(rows, tmp_path)
    (event,) = history.events
    bad = rows_of_steps(rows, EVERY, [BAD])
    assert (event.step, event.kind, event.skipped, event.back_to) == (BAD, "loss", (BAD, BAD), 12)
    assert event.value > event.threshold and sorted(n for n, _ in event.rows) == sorted(map(rows.name, bad))
    assert [m.step for m in history.steps] == [*range(BAD), *range(BAD + 1, 20)]
    assert str(event) in capsys.readouterr().err and rows.name(bad[0]).startswith(f"row {bad[0]} (inputs ")
    assert History.from_json(history.to_json()) == history

    # The later batches and rates are those that they would have been.
    calm = EVERY.model_copy(update={"stability": StabilityConfig(**WATCH | {"loss_z": 1e9})})
    clean, _ = train(rows, tmp_path / "clean", calm, bad=())
    assert [m[:-1] for m in history.steps[:BAD]] == [m[:-1] for m in clean.steps[:BAD]]
    assert [m.supervised for m in history.steps[BAD:]] == [m.supervised for m in clean.steps[BAD + 1 :]]
    assert [m.learning_rate for m in history.steps[BAD:]] == [m.learning_rate for m in clean.steps[BAD + 1 :]]


@pytest.mark.parametrize("moment", ["before the spike", "in the middle of going back", "after it", "at the end"])
def test_a_run_that_is_cut_ends_as_the_whole_one(tmp_path, rows, monkeypatch, moment):
    whole = train(rows, tmp_path / "whole")
    seen = []

    def on_step(metrics):
        seen.append(metrics.step)
        if (moment, seen[-1]) in [("before the spike", 13), ("at the end", 18)]:
            raise Stop
        if moment == "after it" and seen.count(13) == 2:
            raise Stop

    with monkeypatch.context() as patch, pytest.raises(Stop):
        if moment == "in the middle of going back":

            def stop(*arguments):
                raise Stop

            patch.setattr(monitors, "row_losses", stop)
        train(rows, tmp_path / "cut", on_step=on_step)
    resumed = train(rows, tmp_path / "cut")
    assert resumed[0].resumed_from > 0
    assert_same(resumed, whole)
    assert len(whole[0].events) == 1


def test_rewind_and_a_wider_skip(tmp_path, rows):
    wider = EVERY.stability.model_copy(update={"rewind": 4, "skip_before": 3, "skip_after": 2})
    history, _ = train(rows, tmp_path, EVERY.model_copy(update={"stability": wider}))
    (event,) = history.events
    assert (event.back_to, event.skipped) == (8, (BAD - 3, BAD + 2))
    assert [m.step for m in history.steps] == [*range(BAD - 3), *range(BAD + 3, 20)]
    left = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert left == [f"step-{step:08d}" for step in (4, 8, 20)]  # that of 12 knew nothing of the spike


def test_too_many_spikes_stop_the_run(tmp_path, rows):
    once = EVERY.model_copy(update={"stability": StabilityConfig(**WATCH, max_rollbacks=1)})
    with pytest.raises(TrainingError, match=r"step 16: loss .* spike 2, and stability.max_rollbacks is 1") as error:
        train(rows, tmp_path, once, bad=(14, 16))
    assert "\n" not in str(error.value)


def test_a_gradient_norm_out_of_line_is_a_spike(tmp_path, rows):
    norms = EVERY.model_copy(update={"stability": StabilityConfig(fewest=4, window=8, loss_z=0, grad_z=5)})
    history, _ = train(rows, tmp_path, norms)
    assert [(e.step, e.kind) for e in history.events] == [(BAD, "grad_norm")]


def test_no_number_stops_before_the_weights_are_touched_and_names_the_row(tmp_path, rows):
    config = new_config(epochs=1, micro_batch=2, max_steps=9)
    bad = int(rows_of_steps(rows, config, [5])[5])  # micro-batch 2 of step 5
    model, before = new_model(), {}

    def on_step(metrics):
        before.update({name: p.detach().clone() for name, p in model.named_parameters()})

    arguments = {"pad_id": PAD, "objective": poisoned_loss, "on_step": on_step}
    with pytest.raises(TrainingError) as error:
        fit(model, Planted(rows, [bad]), config, tmp_path, **arguments)
    where = f"rank 0, micro-batch 2, {rows.name(bad)}: nan"
    assert str(error.value) == f"step 5: loss nan: 1 of 8 rows: {where}: look at these rows"
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_no_number_can_be_skipped(tmp_path, rows):
    skip = EVERY.model_copy(update={"stability": StabilityConfig(**WATCH, not_finite="skip")})
    history, weights = train(rows, tmp_path, skip, objective=poisoned_loss)
    (event,) = history.events
    assert math.isnan(event.value) and event.step == BAD and math.isnan(event.rows[0][1])
    assert all(torch.isfinite(w).all() for w in weights) and len(history.steps) == 19


def test_going_back_needs_checkpoints_that_reach():
    for changes in ({"checkpoint_every": 0}, {"keep_checkpoints": 1, "stability": {"rewind": 1}}):
        with pytest.raises(ParameterError, match="stability goes back to checkpoints"):
            TrainConfig.parse(EVERY.model_dump() | {"stability": {}} | changes)
    with pytest.raises(ParameterError, match="fewest 32 must not exceed window 8"):
        TrainConfig.parse(EVERY.model_dump() | {"stability": {"window": 8}})


class TestPlanted:
    """Six batches of noise shortly before the end of a run over the small world's prose."""

    STEPS, NOISE = 64, range(57, 63)

    @pytest.fixture(scope="class")
    def windows(self, tmp_path_factory):
        from llamax.models.load import load_tokenizer

        found = []
        for seed, documents in ((0, 500), (1, 40)):
            texts = list(pretraining_texts(seed, documents=documents))
            folder = tmp_path_factory.mktemp("world")
            shard_texts(texts, load_tokenizer("nano"), folder, name=f"world {seed}")
            found.append(Windows.over([open_shards(folder)], 64))
        return found

    def run(self, windows, out, seed=0, noise=(), stability=None):
        """(loss on windows held out, history); no clipping, so that nothing but the monitor helps."""
        torch.manual_seed(seed)
        sizes = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=2048, **sizes, tie_word_embeddings=True))
        config = new_config(
            learning_rate=5e-3, schedule="constant", warmup_ratio=0.1, epochs=1, max_steps=self.STEPS, micro_batch=8,
            betas=(0.9, 0.95), grad_clip=0.0, seed=seed, stability=stability, checkpoint_every=10,
        )  # fmt: skip
        training, held_out = windows
        data = Planted(training, rows_of_steps(training, config, noise), tokens=(5, 2048))
        history = fit(model, data, config, out, pad_id=2)
        with documents_attention(model), torch.no_grad():
            loss, targets = next_token_loss(model, held_out.collate(range(len(held_out)), 2))
        return loss.item() / targets, history

    def test_noise_is_found_skipped_and_named_and_does_no_harm(self, tmp_path, windows):
        clean = [self.run(windows, tmp_path / f"clean-{seed}", seed)[0] for seed in range(3)]
        harmed, _ = self.run(windows, tmp_path / "harmed", noise=self.NOISE)
        watch = StabilityConfig(fewest=16, window=48)
        guarded, history = self.run(windows, tmp_path / "guarded", noise=self.NOISE, stability=watch)
        noise = np.std(clean, ddof=1)
        print(f"clean {clean}, with noise {harmed:.4f}, guarded {guarded:.4f}; standard deviation of seeds {noise:.4f}")
        assert abs(guarded - clean[0]) < 2 * noise and abs(guarded - np.mean(clean)) < 3 * noise
        assert harmed - clean[0] > 2 * noise  # else the monitor would have nothing to show
        assert [event.skipped for event in history.events] == [(step, step) for step in self.NOISE]
        config = new_config(batch_size=8, micro_batch=8)
        for event in history.events:
            rows = rows_of_steps(windows[0], config, [event.step])
            assert sorted(name for name, _ in event.rows) == sorted(map(windows[0].name, rows))
            assert min(loss for _, loss in event.rows) > event.threshold


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"loss_z": 0, "grad_z": 0}, "watch nothing"),
        ({"rewind": 2, "skip_before": 3}, "skip_before 3 must not exceed rewind 2"),
        ({"fewest": 9, "window": 8}, "fewest 9 must not exceed window 8"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(values, says):
    with pytest.raises(ParameterError, match=says):
        StabilityConfig.parse(values)
