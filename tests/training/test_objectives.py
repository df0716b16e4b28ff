"""The loss is what one would compute document by document, and no more of it."""

import numpy as np
import pytest
import torch
from torch.nn import functional
from training_cases import PAD, new_config, new_model, new_rows

from llamax.data.packing import collate
from llamax.training.config import LoraConfig
from llamax.training.lora import apply_lora, merge_lora
from llamax.training.objectives import next_token_loss, objective_of


def by_document(model, rows, indices) -> tuple[float, int]:
    """The loss the slow way: each document alone through the whole model, log-probabilities picked one by one."""
    total, count = 0.0, 0
    for row in indices:
        for document in rows.members[row]:
            span = slice(rows.offsets[document], rows.offsets[document + 1])
            ids = torch.from_numpy(rows.tokens[span].astype(np.int64))
            logprobs = functional.log_softmax(model(input_ids=ids[None]).logits[0].double(), dim=-1)
            for t in np.flatnonzero(rows.mask[span]):
                total, count = total - logprobs[t - 1, ids[t]].item(), count + 1
    return total, count


def test_packed_loss_is_the_sum_over_documents_alone():
    model, rows = new_model().eval(), new_rows()
    expected, count = by_document(model, rows, [0, 1, 2, 3])
    loss, targets = next_token_loss(model, collate(rows, [0, 1, 2, 3], PAD))
    assert targets == count == rows.supervised([0, 1, 2, 3])
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_vocabulary_projection_runs_on_supervised_tokens_only():
    model, rows = new_model(), new_rows()
    shapes = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape)))
    _, targets = next_token_loss(model, collate(rows, [0, 1], PAD))
    assert shapes == [(targets, model.config.vocab_size)]


def test_empty_rows_add_nothing_and_still_have_a_gradient():
    model, rows = new_model(), new_rows()
    loss, targets = next_token_loss(model, collate(rows, [-1, -1], PAD))
    loss.backward()
    assert (loss.item(), targets) == (0.0, 0)
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
    full, _ = next_token_loss(model, collate(rows, [0], PAD))
    padded, _ = next_token_loss(model, collate(rows, [0, -1], PAD))
    assert padded.item() == pytest.approx(full.item(), rel=1e-6)


def test_z_loss_adds_its_gradient_and_not_its_value():
    """Against finite differences of cross-entropy + w log(Z)^2, both written out here in fp64."""
    rows, weight, model = new_rows(), 0.1, new_model().double()
    batch = collate(rows, [0, 1], PAD)

    def written_out():
        logits = model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits
        used = batch.loss_mask.flatten().nonzero().squeeze(1)
        logits, targets = logits.flatten(0, 1)[used - 1], batch.input_ids.flatten()[used]
        log_z = torch.log(logits.exp().sum(-1))
        return (log_z - logits.gather(1, targets[:, None])[:, 0] + weight * log_z**2).sum().item()

    plain, _ = next_token_loss(model, batch)
    loss, _ = next_token_loss(model, batch, z_loss=weight)
    assert loss.item() == plain.item()
    loss.backward()
    parameter = model.model.layers[0].mlp.up_proj.weight
    direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)).double()
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            parameter.add_(direction, alpha=sign * 1e-4)
            values.append(written_out())
            parameter.sub_(direction, alpha=sign * 1e-4)
    numeric = (values[0] - values[1]) / 2e-4
    assert (parameter.grad * direction).sum().item() == pytest.approx(numeric, rel=1e-3)


def test_the_config_turns_z_loss_on():
    calls = []
    objective = objective_of(lambda model, batch, **more: calls.append(more), new_config(z_loss=1e-4))
    objective(None, None)
    assert calls == [{"z_loss": 1e-4}] and objective_of(next_token_loss, new_config()) is next_token_loss


def test_adapters_start_as_the_identity_train_alone_and_merge():
    rows = new_rows()
    batch = collate(rows, [0, 1], PAD)
    before = next_token_loss(new_model(), batch)[0].item()
    model = apply_lora(new_model(), LoraConfig(rank=4))
    loss, _ = next_token_loss(model, batch)
    assert loss.item() == before
    loss.backward()
    assert {name.split(".")[-3] for name, p in model.named_parameters() if p.grad is not None} == {"lora_A", "lora_B"}
    assert not any("lm_head" in name or "embed" in name for name, p in model.named_parameters() if p.requires_grad)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.5)
    adapted = next_token_loss(model.eval(), batch)[0].item()
    merged = merge_lora(model)
    assert abs(adapted / before - 1) > 1e-3
    assert next_token_loss(merged, batch)[0].item() == pytest.approx(adapted, rel=1e-5)
    assert type(merged) is type(new_model())
