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


class Event(NamedTuple):
    """A spike, and what was done about it.

    step: whose loss or gradient norm (`kind`) was `value`, above `threshold`. skipped: first and last step that were
    left out, the batches of the same numbers with them. back_to: the checkpoint that the run went back to.
    rows: the worst rows of the batch by name, with their mean loss (nats) under the weights of that checkpoint.
    """

    step: int
    kind: str
    value: float
    threshold: float
    skipped: tuple[int, int]
    back_to: int
    rows: tuple[tuple[str, float], ...]

    def __str__(self) -> str:
        (first, last), (row, loss) = self.skipped, self.rows[0]
        batches = f"batch {first}" if first == last else f"batches {first} to {last}"
        return (
            f"step {self.step}: {self.kind} {self.value:.4g} above {self.threshold:.4g}; went back to step "
            f"{self.back_to} and skips {batches}; the worst row is {row} with loss {loss:.4g}"
        )

    @classmethod
    def of(cls, values: list) -> "Event":
        """The event that was written as a JSON list."""
        *plain, skipped, back_to, rows = values
        return cls(*plain, tuple(skipped), back_to, tuple((name, loss) for name, loss in rows))


def training_flops(parameters: int, tokens: int, *, lora: bool) -> float:
    """Operations of training on so many tokens, 6 per parameter and token (Kaplan et al. 2020, section 2.1).

    With LoRA 4: frozen weights have no gradient of their own.
    """
    return (4.0 if lora else 6.0) * parameters * tokens


class History(NamedTuple):
    """All steps of a run, those before a resume included. resumed_from: first step of this process, 0 if fresh.

    events: spikes that the run met, in the order it met them; steps that they skipped are not among `steps`.
    """

    steps: tuple[StepMetrics, ...]
    resumed_from: int = 0
    events: tuple[Event, ...] = ()

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

    @property
    def earlier_seconds(self) -> float:
        """Wall time of the steps that earlier, interrupted processes took, in seconds."""
        return sum(metrics.seconds for metrics in self.steps if metrics.step < self.resumed_from)

    def frame(self) -> pd.DataFrame:
        """One row per step, columns as in `StepMetrics`."""
        return pd.DataFrame(self.steps, columns=list(StepMetrics._fields))

    def to_json(self) -> str:
        """Text that `from_json` reads back exactly."""
        return json.dumps({"resumed_from": self.resumed_from, "steps": self.steps, "events": self.events})

    @classmethod
    def from_json(cls, text: str) -> "History":
        """The history that `to_json` wrote."""
        values = json.loads(text)
        steps, events = values["steps"], values.get("events", [])
        return cls(tuple(StepMetrics(*step) for step in steps), values["resumed_from"], tuple(map(Event.of, events)))
