"""The training loop."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llamax.errors import TrainingError
from llamax.training.attention import documents_attention
from llamax.training.checkpoint import Checkpoints, seed_everything
from llamax.training.config import TrainConfig
from llamax.training.data import TrainingData
from llamax.training.engines import Engine, make_engine
from llamax.training.fused import fused
from llamax.training.history import History, StepMetrics
from llamax.training.monitors import Guard
from llamax.training.objectives import Objective, next_token_loss, objective_of
from llamax.training.schedules import assert_rate_moves, learning_rate

OnStep = Callable[[StepMetrics], None]


def fit(
    model: nn.Module,
    rows: TrainingData,
    config: TrainConfig,
    out: Path | str,
    *,
    pad_id: int,
    objective: Objective = next_token_loss,
    on_step: OnStep | None = None,
    meta: dict[str, Any] | None = None,
) -> History:
    """Train `model`, in place, on `rows`; go on from the newest checkpoint under `out/checkpoints` if there is one.

    The loss of a step is the sum over the supervised tokens of all ranks and micro-batches, divided by their number.
    A model to be trained with LoRA comes with its adapters on (`lora.apply_lora`). Under DeepSpeed every rank calls
    this, and afterwards the model holds whatever ZeRO leaves in it (`worker.whole_model`).

    meta: what else a checkpoint must share with this run to be resumed (fingerprints of model and template).
    Raises: TrainingError, CheckpointError, DiskFullError.
    """
    steps = count_steps(rows, config)
    assert_adapters(model, config)
    assert_window(model, rows)
    assert_plain_head(model)
    engine = make_engine(model, objective_of(objective, config), config)
    seed_everything(config.seed + engine.rank)
    checkpoints = Checkpoints(Path(out) / "checkpoints", identity(rows, config, meta), config.keep_checkpoints)
    resumed_from, *past = checkpoints.resume(engine)
    done, events = map(list, past)
    guard = Guard(config, engine, checkpoints, rows, pad_id, done, events)

    with documents_attention(model), fused(model):
        for step in guard.steps(resumed_from, steps):
            began = time.perf_counter()
            indices = rows_of_step(step, rows, config)
            supervised, share = rows.supervised(indices), micro_batches(indices, config, engine.rank)
            wanted, overflowed = learning_rate(step, steps, config), True
            while overflowed:  # in fp16 more than once: a step that DeepSpeed skips has taught nothing
                loss = engine.total(gradients(engine, rows, share, supervised, pad_id)) / supervised
                guard.check_loss(loss, step, share)
                grad_norm, applied = engine.step(wanted)
                overflowed = engine.overflowed and math.isfinite(loss)  # else no loss scale helps
                if overflowed and engine.rank == 0:
                    print(f"step {step}: a gradient overflowed in fp16: repeated at half the loss scale", flush=True)
            assert_rate_moves(applied, wanted, step)
            seconds = time.perf_counter() - began
            metrics = StepMetrics(step, loss, applied, grad_norm, rows.real(indices), supervised, seconds)
            if guard.goes_back(metrics, share):
                continue
            assert_finite(loss, grad_norm, step)
            done.append(metrics)
            if on_step:
                on_step(done[-1])
            if config.checkpoint_every and (step + 1) % config.checkpoint_every == 0:
                checkpoints.save(engine, step + 1, done, events)

    model.eval()
    if config.gradient_checkpointing:
        model.gradient_checkpointing_disable()
    return History(tuple(done), resumed_from, tuple(events))


def gradients(engine: Engine, rows: TrainingData, share: np.ndarray, supervised: int, pad_id: int) -> Tensor:
    """Backward of this rank's micro-batches `share` of one optimizer step; the sum of their losses, in nats."""
    losses = [engine.loss_and_backward(rows.collate(micro, pad_id), scale=1 / supervised)[0] for micro in share]
    return torch.stack(losses).sum()


def count_steps(rows: TrainingData, config: TrainConfig) -> int:
    """Optimizer steps of the run; the last batch of an epoch may be smaller but is not dropped.

    Raises: TrainingError: there are no rows, or one without a supervised token.
    """
    if not len(rows):
        raise TrainingError("there are no rows to train on")
    empty = rows.without_targets
    if len(empty):
        raise TrainingError(
            f"row {empty[0]} has no supervised token ({len(empty)} such rows): nothing to learn from it"
        )
    steps = config.epochs * math.ceil(len(rows) / config.batch_size)
    return min(steps, config.max_steps or steps)


def rows_of_step(step: int, rows: TrainingData, config: TrainConfig) -> np.ndarray:
    """Rows of one optimizer step, at most `batch_size`: a function of the step, so a checkpoint stores no position."""
    epoch, batch = divmod(step, math.ceil(len(rows) / config.batch_size))
    return rows.visit(config.seed, epoch, batch * config.batch_size, (batch + 1) * config.batch_size)


def micro_batches(indices: np.ndarray, config: TrainConfig, rank: int) -> np.ndarray:
    """This rank's share of a step, int64 [micro_steps, micro_batch]; -1 (an empty row) where the epoch ran out.

    Every rank gets the same number of micro-batches, because ZeRO's collectives need all of them to come along.
    """
    padded = np.full(config.batch_size, -1, dtype=np.int64)
    padded[: len(indices)] = indices
    return padded.reshape(config.micro_steps, config.ranks, config.micro_batch)[:, rank]


def identity(rows: TrainingData, config: TrainConfig, meta: dict[str, Any] | None) -> dict[str, Any]:
    """What makes two runs the same computation, to the bit."""
    train = config.model_dump(mode="json")
    if not config.stability:  # which goes back to checkpoints, so that it matters where they are
        del train["checkpoint_every"], train["keep_checkpoints"], train["stability"]
    if not config.z_loss:  # checkpoints of before there was one
        del train["z_loss"]
    return {"train": train, "rows": rows.fingerprint, "meta": meta or {}}


def assert_adapters(model: nn.Module, config: TrainConfig) -> None:
    """LoRA is trained if and only if it was asked for. Raises: TrainingError."""
    adapters = hasattr(model, "peft_config")
    if adapters != bool(config.lora):
        has, asks = ("has" if adapters else "has no"), ("asks" if config.lora else "does not ask")
        raise TrainingError(f"the model {has} adapters but the config {asks} for lora: apply_lora goes with it")


def assert_window(model: nn.Module, rows: TrainingData) -> None:
    """No document is longer than the positions that the model knows. Raises: TrainingError."""
    window, longest = model.config.max_position_embeddings, rows.longest_document
    if longest > window:
        raise TrainingError(f"a document has {longest} tokens, the model's window {window}: rows of at most {window}")


def assert_plain_head(model: nn.Module) -> None:
    """The logits are the head's product and nothing more, as the objective takes them. Raises: TrainingError."""
    scaled = ("final_logit_softcapping", "logit_scale", "logits_scaling")
    found = [name for name in scaled if getattr(model.config, name, None) not in (None, 1, 1.0)]
    if found:
        raise TrainingError(
            f"{type(model).__name__} changes its logits ({found[0]}), which the loss here does not know"
        )


def assert_finite(loss: float, grad_norm: float, step: int) -> None:
    """Stop at the first loss or gradient that is not a number. Raises: TrainingError."""
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        raise TrainingError(
            f"step {step}: loss {loss}, gradient norm {grad_norm}: the run has diverged; lower the learning rate"
        )
