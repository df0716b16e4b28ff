"""The loop: which rows, which loss, which errors."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from training_cases import PAD, gradients, new_config, new_model, new_rows

from llamax.data.packing import Documents, Rows
from llamax.errors import ParameterError, TrainingError
from llamax.training.config import LoraConfig, TrainConfig
from llamax.training.engines import make_engine
from llamax.training.history import training_flops
from llamax.training.loop import assert_plain_head, count_steps, fit, micro_batches, rows_of_step
from llamax.training.lora import apply_lora
from llamax.training.objectives import next_token_loss
from llamax.training.schedules import learning_rate


class Numbered(list):
    """Rows of which only the order matters."""

    visit = Rows.visit


@given(st.integers(1, 100), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(0, 5))
def test_every_epoch_visits_every_row_once_whatever_the_pieces(n, micro_batch, micro_steps, ranks, seed):
    engine = {"engine": "deepspeed"} if ranks > 1 else {}
    size = micro_batch * micro_steps * ranks
    config = new_config(batch_size=size, micro_batch=micro_batch, ranks=ranks, seed=seed, **engine)
    per_epoch, rows = math.ceil(n / size), Numbered(range(n))
    orders = []
    for epoch in range(2):
        seen = []
        for step in range(epoch * per_epoch, (epoch + 1) * per_epoch):
            shares = [micro_batches(rows_of_step(step, rows, config), config, rank) for rank in range(ranks)]
            assert {share.shape for share in shares} == {(micro_steps, micro_batch)}
            seen += [row for share in shares for row in share.flatten().tolist() if row >= 0]
        assert sorted(seen) == list(range(n))
        orders.append(np.concatenate([rows_of_step(s + epoch * per_epoch, rows, config) for s in range(per_epoch)]))
    if n > 20:
        assert (orders[0] != orders[1]).any()


def test_gradient_does_not_depend_on_how_the_batch_is_cut():
    """1 x 8 and 8 x 1; two ranks x 4 is in test_deepspeed.py."""
    found = {}
    for micro_batch in (8, 1):
        config, model = new_config(micro_batch=micro_batch), new_model()
        loss = gradients(make_engine(model, next_token_loss, config), new_rows(), config)
        found[micro_batch] = loss, [p.grad for p in model.parameters()]
    assert found[1][0] == pytest.approx(found[8][0], rel=1e-6)
    for one, eight in zip(found[1][1], found[8][1], strict=True):
        assert (one - eight).norm() / eight.norm() < 1e-5


def test_gradient_is_that_of_the_mean_over_supervised_tokens():
    """Against transformers' own loss on one unpacked row, labels given."""
    packed = Documents(16)
    packed.add(0, list(range(3, 13)), [False] * 4 + [True] * 6)
    rows, config = packed.rows(packing=False), new_config(batch_size=1, micro_batch=1)
    model, reference = new_model(), new_model()
    loss = gradients(make_engine(model, next_token_loss, config), rows, config)
    ids = torch.arange(3, 13)[None]
    expected = reference(input_ids=ids, labels=torch.where(torch.arange(10) < 4, -100, ids)).loss
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        assert (ours.grad - theirs.grad).norm() / theirs.grad.norm() < 1e-5


def test_fit_reports_each_step_and_learns(tmp_path):
    rows, config, seen = new_rows(), new_config(epochs=6, warmup_ratio=0.1), []
    history = fit(new_model(), rows, config, tmp_path, pad_id=PAD, on_step=seen.append)
    assert list(history.steps) == seen
    steps = count_steps(rows, config)
    assert [m.step for m in seen] == list(range(steps)) and steps == 6 * math.ceil(len(rows) / 8)
    assert sum(m.tokens for m in seen) == 6 * rows.report().real
    assert sum(m.supervised for m in seen) == 6 * rows.report().supervised
    assert [m.learning_rate for m in seen] == [learning_rate(step, steps, config) for step in range(steps)]
    assert np.mean(history.losses[-3:]) < history.losses[0] - 0.3
    assert list(history.frame()) == ["step", "loss", "learning_rate", "grad_norm", "tokens", "supervised", "seconds"]


def test_gradient_checkpointing_changes_nothing_but_memory(tmp_path):
    plain, checkpointed = new_model(), new_model()
    one = fit(plain, new_rows(), new_config(max_steps=3), tmp_path, pad_id=PAD)
    two = fit(checkpointed, new_rows(), new_config(max_steps=3, gradient_checkpointing=True), tmp_path, pad_id=PAD)
    assert two.losses == pytest.approx(one.losses, rel=1e-6)
    assert not checkpointed.is_gradient_checkpointing and not checkpointed.training


def test_bf16_with_masters_follows_fp32(tmp_path):
    fp32 = fit(new_model(), new_rows(), new_config(), tmp_path, pad_id=PAD)
    model = new_model()
    bf16 = fit(model, new_rows(), new_config(precision="bf16"), tmp_path, pad_id=PAD)
    assert bf16.losses == pytest.approx(fp32.losses, rel=2e-2)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert {b.dtype for b in model.buffers()} == {torch.float32}


def test_lora_trains_adapters_only(tmp_path):
    config = new_config(lora=LoraConfig(rank=4), learning_rate=2e-2)
    model = apply_lora(new_model(), config.lora)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    history = fit(model, new_rows(), config, tmp_path, pad_id=PAD)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if "lora_" in name}
    assert history.losses[-1] < history.losses[0]


@pytest.mark.parametrize(("wrapped", "asked"), [(True, None), (False, LoraConfig())])
def test_lora_must_be_asked_for_and_applied(tmp_path, wrapped, asked):
    model = apply_lora(new_model(), LoraConfig()) if wrapped else new_model()
    with pytest.raises(TrainingError, match="apply_lora"):
        fit(model, new_rows(), new_config(lora=asked), tmp_path, pad_id=PAD)


def test_divergence_stops_the_run(tmp_path):
    model = new_model()
    with torch.no_grad():
        model.model.norm.weight.fill_(float("inf"))
    with pytest.raises(TrainingError, match="step 0: loss nan"):
        fit(model, new_rows(), new_config(), tmp_path, pad_id=PAD)


def test_nothing_to_learn_is_an_error(tmp_path):
    packed = Documents(8)
    packed.add(0, [3, 4, 5], [False, True, True])
    rows = packed.rows(packing=True)
    rows.mask[:] = False
    with pytest.raises(TrainingError, match="row 0 has no supervised token"):
        fit(new_model(), rows, new_config(), tmp_path, pad_id=PAD)
    with pytest.raises(TrainingError, match="no rows"):
        fit(new_model(), Documents(8).rows(packing=True), new_config(), tmp_path, pad_id=PAD)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch_size": 10}, "batch_size 10 must be a multiple of micro_batch 4 x ranks 1"),
        ({"ranks": 2}, "engine 'torch' is one device"),
        ({"engine": "deepspeed", "offload_parameters": True}, "needs zero_stage 3"),
        ({"engine": "deepspeed", "offload_optimizer": True}, "needs zero_stage 1, 2 or 3"),
        ({"engine": "deepspeed", "precision": "bf16"}, "bf16 with engine 'deepspeed' needs zero_stage"),
        ({"learning_rate": 0}, "learning_rate"),
        ({"learning_rat": 1e-4}, "did you mean 'learning_rate'"),
    ],
)
def test_impossible_settings_are_named(changes, said):
    with pytest.raises(ParameterError, match=said):
        TrainConfig.parse(new_config().model_dump() | changes)


def test_weights_after_several_steps_do_not_depend_on_how_the_batch_is_cut(tmp_path):
    """In `fit` itself. A large eps makes Adam's update proportional to the gradient, so that a wrong scale shows."""
    rows, weights = new_rows(), []
    for micro in (8, 1):
        model = new_model()
        config = new_config(micro_batch=micro, epochs=1, eps=1.0, learning_rate=1.0, grad_clip=0.0)
        fit(model, rows, config, tmp_path / str(micro), pad_id=PAD)
        weights.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    start = torch.cat([parameter.detach().flatten() for parameter in new_model().parameters()])
    eight, one = (after - start for after in weights)
    assert eight.norm() > 0.01
    assert (eight - one).norm() / eight.norm() < 1e-4


def test_a_document_longer_than_the_window_is_an_error(tmp_path):
    packed = Documents(80)
    packed.add(0, list(range(3, 73)), [False] + [True] * 69)
    with pytest.raises(TrainingError, match="a document has 70 tokens, the model's window 64"):
        fit(new_model(), packed.rows(packing=True), new_config(), tmp_path, pad_id=PAD)


@pytest.mark.parametrize("name", ["final_logit_softcapping", "logit_scale", "logits_scaling"])
def test_a_model_that_changes_its_logits_is_refused(tmp_path, name):
    model = new_model()
    setattr(model.config, name, 1.0)
    assert_plain_head(model)
    setattr(model.config, name, 0.5)
    with pytest.raises(TrainingError, match=f"changes its logits .{name}."):
        fit(model, new_rows(), new_config(), tmp_path, pad_id=PAD)


@pytest.mark.parametrize("lora", [False, True])
def test_operations_of_a_training_are_those_that_torch_counts(lora):
    width, layers, tokens = 32, 40, 7
    stack = torch.nn.Sequential(*[torch.nn.Linear(width, width, bias=False) for _ in range(layers)])
    stack.requires_grad_(not lora)
    with FlopCounterMode(display=False) as counter:
        stack(torch.randn(tokens, width, requires_grad=True)).sum().backward()  # below a LoRA lies something to train
    parameters = sum(weight.numel() for weight in stack.parameters())
    assert counter.get_total_flops() == training_flops(parameters, tokens, lora=lora)
