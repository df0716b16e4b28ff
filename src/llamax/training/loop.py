"""The training loop."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from llamax.data.packing import Rows, collate_flat, epoch_order
from llamax.errors import TrainingError
from llamax.training.attention import documents_attention
from llamax.training.checkpoint import Checkpoints, seed_everything
from llamax.training.config import TrainConfig
from llamax.training.engines import make_engine
from llamax.training.history import History, StepMetrics
from llamax.training.objectives import Objective, next_token_loss
from llamax.training.schedules import assert_rate_moves, learning_rate

OnStep = Callable[[StepMetrics], None]


def fit(
    model: nn.Module,
    rows: Rows,
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
    engine = make_engine(model, objective, config)
    seed_everything(config.seed + engine.rank)
    checkpoints = Checkpoints(Path(out) / "checkpoints", identity(rows, config, meta), config.keep_checkpoints)
    done = checkpoints.resume(engine)
    resumed_from = len(done)

    with documents_attention(model):
        for step in range(resumed_from, steps):
            began = time.perf_counter()
            indices = rows_of_step(step, len(rows), config)
            supervised = rows.supervised(indices)
            wanted = learning_rate(step, steps, config)
            while True:  # once; in fp16 until nothing overflows, because a step that DeepSpeed skips has taught nothing
                batches = [collate_flat(rows, micro, pad_id) for micro in micro_batches(indices, config, engine.rank)]
                loss_sum = sum(engine.loss_and_backward(batch, scale=1 / supervised)[0] for batch in batches)
                grad_norm, applied = engine.step(wanted)
                if not engine.overflowed:
                    break
                if engine.rank == 0:
                    print(f"step {step}: a gradient overflowed in fp16: repeated at half the loss scale", flush=True)
            loss = engine.total(loss_sum) / supervised
            assert_rate_moves(applied, wanted, step)
            assert_finite(loss, grad_norm, step)
            seconds = time.perf_counter() - began
            done.append(
                StepMetrics(step, loss, applied, grad_norm, int(rows.lengths[indices].sum()), supervised, seconds)
            )
            if on_step:
                on_step(done[-1])
            if config.checkpoint_every and (step + 1) % config.checkpoint_every == 0:
                checkpoints.save(engine, step + 1, done)

    model.eval()
    if config.gradient_checkpointing:
        model.gradient_checkpointing_disable()
    return History(tuple(done), resumed_from)


def count_steps(rows: Rows, config: TrainConfig) -> int:
    """Optimizer steps of the run; the last batch of an epoch may be smaller but is not dropped.

    Raises: TrainingError: there are no rows, or one without a supervised token.
    """
    if not len(rows):
        raise TrainingError("there are no rows to train on")
    empty = np.flatnonzero(rows.supervised_lengths == 0)
    if len(empty):
        raise TrainingError(
            f"row {empty[0]} has no supervised token ({len(empty)} such rows): nothing to learn from it"
        )
    steps = config.epochs * math.ceil(len(rows) / config.batch_size)
    return min(steps, config.max_steps or steps)


def rows_of_step(step: int, n_rows: int, config: TrainConfig) -> np.ndarray:
    """Rows of one optimizer step, at most `batch_size`: a function of the step, so a checkpoint stores no position."""
    epoch, batch = divmod(step, math.ceil(n_rows / config.batch_size))
    order = epoch_order(n_rows, config.seed, epoch)
    return order[batch * config.batch_size : (batch + 1) * config.batch_size]


def micro_batches(indices: np.ndarray, config: TrainConfig, rank: int) -> np.ndarray:
    """This rank's share of a step, int64 [micro_steps, micro_batch]; -1 (an empty row) where the epoch ran out.

    Every rank gets the same number of micro-batches, because ZeRO's collectives need all of them to come along.
    """
    padded = np.full(config.batch_size, -1, dtype=np.int64)
    padded[: len(indices)] = indices
    return padded.reshape(config.micro_steps, config.ranks, config.micro_batch)[:, rank]


def identity(rows: Rows, config: TrainConfig, meta: dict[str, Any] | None) -> dict[str, Any]:
    """What makes two runs the same computation, to the bit."""
    train = config.model_dump(mode="json", exclude={"checkpoint_every", "keep_checkpoints"})
    return {"train": train, "rows": rows.fingerprint, "meta": meta or {}}


def assert_adapters(model: nn.Module, config: TrainConfig) -> None:
    """LoRA is trained if and only if it was asked for. Raises: TrainingError."""
    adapters = hasattr(model, "peft_config")
    if adapters != bool(config.lora):
        has, asks = ("has" if adapters else "has no"), ("asks" if config.lora else "does not ask")
        raise TrainingError(f"the model {has} adapters but the config {asks} for lora: apply_lora goes with it")


def assert_window(model: nn.Module, rows: Rows) -> None:
    """No document is longer than the positions that the model knows. Raises: TrainingError."""
    window, longest = model.config.max_position_embeddings, int(np.diff(rows.offsets).max())
    if longest > window:
        raise TrainingError(f"a document has {longest} tokens, the model's window {window}: rows of at most {window}")


def assert_finite(loss: float, grad_norm: float, step: int) -> None:
    """Stop at the first loss or gradient that is not a number. Raises: TrainingError."""
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        raise TrainingError(
            f"step {step}: loss {loss}, gradient norm {grad_norm}: the run has diverged; lower the learning rate"
        )
