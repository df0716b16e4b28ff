"""What is minimised: functions of a model and a batch that give a sum and a count, never a mean.

Only the loop knows how many targets the whole optimizer step has, over all ranks and micro-batches, so only the loop
may divide (transformers PR 34191 is what happens otherwise).
"""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from llamax.data.packing import Batch
from llamax.training.attention import Extents
from llamax.training.config import TrainConfig
from llamax.training.cross_entropy import cross_entropy

Objective = Callable[[nn.Module, Batch], tuple[Tensor, int]]


def next_token_loss(model: nn.Module, batch: Batch, z_loss: float = 0.0) -> tuple[Tensor, int]:
    """Sum of `-log p(token t | its document before t)` over supervised tokens, in nats (fp32 scalar), and their count.

        document      0   0   0   1   1   1
        loss_mask     .   .   x   .   x   x        x: target
        hidden used       ^       ^   ^            the position before each target

    The vocabulary projection runs on the used positions alone: `[targets, vocab]` instead of `[batch, seq, vocab]`.
    Works for a plain causal LM and for one wrapped by peft. A batch without targets gives an exact 0 with a graph.

    z_loss: weight of `log(Z)^2` per target, Z the softmax's denominator, which keeps the logits from drifting
    (Chowdhery et al. 2022, section 5). Its gradient is added, its value is not: losses stay comparable.
    """
    causal_lm = model.get_base_model() if hasattr(model, "get_base_model") else model
    ids, positions = batch.input_ids.view(1, -1), batch.position_ids.view(1, -1)
    # use_cache=False matters: with a cache transformers no longer derives document boundaries from position_ids.
    output = causal_lm.get_decoder()(
        input_ids=ids, position_ids=positions, use_cache=False, documents=Extents.of(positions)
    )
    targets = batch.loss_mask.flatten().nonzero().squeeze(1)
    hidden = output.last_hidden_state[0].index_select(0, targets - 1)
    logits = causal_lm.get_output_embeddings()(hidden)
    return cross_entropy(logits, ids[0].index_select(0, targets), z_loss).sum(), targets.numel()


def objective_of(objective: Objective, config: TrainConfig) -> Objective:
    """The objective with what the config adds to it; one without a z-loss fails when it is first called."""
    return partial(objective, z_loss=config.z_loss) if config.z_loss else objective


class ObjectiveModule(nn.Module):
    """The objective as a module's forward, so that DeepSpeed's hooks see the whole computation, head included."""

    def __init__(self, model: nn.Module, objective: Objective):
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(self, batch_type: type[tuple], *fields: Tensor) -> tuple[Tensor, int]:
        """`fields` of a `batch_type`, apart because DeepSpeed rebuilds the tuples it finds and fails on named ones."""
        return self.objective(self.model, batch_type(*fields))
