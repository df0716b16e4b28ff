"""From the original's recipe to ours, one switch at a time; each way is one bar of the waterfall.

Here is everything that `fit` no longer does: logits of every position, padded rows, attention one document at a time.
"""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from llamax.data.packing import Batch, Rows, collate, collate_flat
from llamax.infrastructure.measure import fresh
from llamax.training.attention import Extents, documents_attention
from llamax.training.config import TrainConfig
from llamax.training.engines import make_engine
from llamax.training.fused import fused
from llamax.training.loop import micro_batches, rows_of_step
from llamax.training.objectives import Objective, next_token_loss
from llamax.training.plan.compute import flops
from llamax.training.plan.setup import Setup
from llamax.training.plan.shapes import shape_of
from llamax.training.schedules import learning_rate


class Recipe(NamedTuple):
    """The same examples packed and one by one, the model to begin with, and how much of them makes a step.

    rows: packed rows per optimizer step, one per forward. batch: documents per optimizer step where nothing is packed,
    `micro` of them per forward.
    """

    packed: Rows
    single: Rows
    model: nn.Module
    pad_id: int
    rows: int
    batch: int
    rate: float
    micro: int = 8


class Way(NamedTuple):
    """One bar of the waterfall: `key` names it in records, `rows` is a field of `Recipe`."""

    key: str
    name: str
    objective: Objective
    rows: str = "single"
    documents: bool = False
    precision: str = "fp32"
    norms: bool = False
    rotary: bool = False


def all_logits(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, int]:
    """The loss as it is usually written: logits of every position, and the mask afterwards."""
    logits = model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits[:, :-1].float()
    labels = batch.input_ids.masked_fill(~batch.loss_mask, -100)[:, 1:]
    loss = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    return loss, int(batch.loss_mask.sum())


def targets_only(model: nn.Module, batch: Batch, short: int | None = None) -> tuple[torch.Tensor, int]:
    """The vocabulary's projection at the positions before targets alone, by torch's own loss.

    short: tokens up to which attention uses whole score matrices.
    """
    hidden = model.get_decoder()(
        input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False,
        documents=Extents.of(batch.position_ids[:1], short),
    ).last_hidden_state.flatten(0, 1)  # fmt: skip
    targets = batch.loss_mask.flatten().nonzero().squeeze(1)
    logits = model.get_output_embeddings()(hidden.index_select(0, targets - 1)).float()
    labels = batch.input_ids.flatten().index_select(0, targets)
    return functional.cross_entropy(logits, labels, reduction="sum"), len(targets)


_one_by_one = partial(targets_only, short=0)
WAYS = (
    Way("padded", "padded, all logits, fp32", all_logits),
    Way("targets", "logits of targets only", targets_only),
    Way("flat", "documents end to end, attention one by one", _one_by_one, documents=True),
    Way("packed", "packed into rows", _one_by_one, "packed", documents=True),
    Way("bf16", "bf16 over an fp32 master", _one_by_one, "packed", documents=True, precision="bf16"),
    Way("scores", "score matrices of short documents", targets_only, "packed", documents=True, precision="bf16"),
    Way("loss", "loss in the logits' memory", next_token_loss, "packed", documents=True, precision="bf16"),
    Way("norms", "norms by torch's kernels", next_token_loss, "packed", documents=True, precision="bf16", norms=True),
    Way("rotary", "rotary positions in three passes", next_token_loss, "packed", True, "bf16", norms=True, rotary=True),
)


def one_way(
    recipe: Recipe, way: Way, *, steps: int | None = None, on_step: Callable[[float], None] | None = None
) -> tuple[nn.Module, Callable[[], list[float]]]:
    """`fit` without its checks, so that a part of it can be taken out: the model, and what trains it for an epoch.

    The latter gives the loss of each step, in nats per supervised token. steps: stop after so many. on_step: called
    after each with the norm of its gradient.
    """
    rows = getattr(recipe, way.rows)
    size, micro = (recipe.rows, 1) if way.rows == "packed" else (recipe.batch, recipe.micro)
    config = TrainConfig(
        learning_rate=recipe.rate, epochs=1, batch_size=size, micro_batch=micro, precision=way.precision
    )
    model, lay = fresh(recipe.model), collate_flat if way.documents else collate
    engine, whole = make_engine(model, way.objective, config), -(-len(rows) // size)

    def run() -> list[float]:
        losses = []
        attention = documents_attention(model) if way.documents else nullcontext()
        with attention, fused(model, rotary=way.rotary) if way.norms else nullcontext():
            for step in range(min(whole, steps or whole)):
                indices = rows_of_step(step, rows, config)
                scale, total = 1 / rows.supervised(indices), 0.0
                for share in micro_batches(indices, config, 0):
                    if (chosen := share[share >= 0]).size:
                        batch = lay(rows, chosen, recipe.pad_id)
                        total += float(engine.loss_and_backward(batch, scale)[0])
                norm, _ = engine.step(learning_rate(step, whole, config))
                losses.append(total * scale)
                if on_step:
                    on_step(norm)
        return losses

    return model, run


def operations(model: nn.Module, rows: Rows) -> float:
    """Model FLOPs of one epoch over the real tokens."""
    lengths = np.diff(rows.offsets)
    pairs = (lengths * (lengths + 1) / 2).sum()
    setup = Setup(precision="bf16", engine="torch")
    return flops(shape_of(model.config.to_dict()), setup, lengths.sum(), pairs, rows.mask.sum()).model


def padded_tokens(recipe: Recipe, way: Way) -> int:
    """Tokens that go through the model in an epoch: the real ones, or each micro-batch as wide as its longest."""
    if way.documents:
        return len(recipe.single.tokens)
    rows, config, total = recipe.single, TrainConfig(batch_size=recipe.batch, micro_batch=recipe.micro), 0
    for step in range(-(-len(rows) // recipe.batch)):
        for share in micro_batches(rows_of_step(step, rows, config), config, 0):
            lengths = rows.lengths[share[share >= 0]]
            total += len(lengths) * int(lengths.max(initial=0))
    return total
