"""The learning rate of every step, known before the first one."""

import math

from llamax.errors import TrainingError
from llamax.training.config import TrainConfig


def learning_rate(step: int, steps: int, config: TrainConfig) -> float:
    """Rate of optimizer step `step` (from 0) of `steps`.

    Warm-up is linear and never spends a step at 0: `peak * (step + 1) / (warmup + 1)`. After it the rate starts at the
    peak and goes to 0, by half a cosine (Loshchilov & Hutter 2016, one cycle) or linearly, or stays.
    """
    warmup = math.ceil(config.warmup_ratio * steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, steps - warmup)
    if config.schedule == "cosine":
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
    if config.schedule == "linear":
        return config.learning_rate * (1 - done)
    return config.learning_rate


def assert_rate_moves(applied: float, wanted: float, step: int) -> None:
    """The optimizer stepped with the rate that the loop asked for.

    The original Llama-X trained with a rate stuck at 0 because two owners set it. Raises: TrainingError.
    """
    if applied <= 0 or not math.isclose(applied, wanted, rel_tol=1e-9):
        raise TrainingError(
            f"step {step}: learning rate {wanted:g} was asked for but the optimizer used {applied:g}; "
            "something else sets the rate (a second scheduler?)"
        )
