"""What a training run reports: one line per optimizer step. No torch, so that a notebook can read it cheaply."""

import json
from typing import NamedTuple

import pandas as pd


class StepMetrics(NamedTuple):
    """One optimizer step.

    step: from 0. loss: nats per supervised token, over the whole batch of all ranks. learning_rate: as the optimizer
    used it. grad_norm: global L2 norm before clipping. tokens: real tokens seen, padding apart. supervised: targets.
    seconds: wall time, checkpoints apart.
    """

    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    supervised: int
    seconds: float


class History(NamedTuple):
    """All steps of a run, those before a resume included. resumed_from: first step of this process, 0 if fresh."""

    steps: tuple[StepMetrics, ...]
    resumed_from: int = 0

    @property
    def losses(self) -> list[float]:
        """Loss of every step, in nats per supervised token."""
        return [metrics.loss for metrics in self.steps]

    @property
    def tokens(self) -> int:
        """Real tokens trained on."""
        return sum(metrics.tokens for metrics in self.steps)

    @property
    def seconds(self) -> float:
        """Wall time of all steps, in seconds."""
        return sum(metrics.seconds for metrics in self.steps)

    def frame(self) -> pd.DataFrame:
        """One row per step, columns as in `StepMetrics`."""
        return pd.DataFrame(self.steps, columns=list(StepMetrics._fields))

    def to_json(self) -> str:
        """Text that `from_json` reads back exactly."""
        return json.dumps({"resumed_from": self.resumed_from, "steps": self.steps})

    @classmethod
    def from_json(cls, text: str) -> "History":
        """The history that `to_json` wrote."""
        values = json.loads(text)
        return cls(tuple(StepMetrics(*step) for step in values["steps"]), values["resumed_from"])
