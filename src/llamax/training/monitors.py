"""What watches a run: steps that are out of line, what is done about them, and who is to blame.

Chowdhery et al. 2022 (PaLM, section 5.1) met loss spikes with gradients clipped, went back to a checkpoint of about
100 steps before the spike and skipped 200 to 500 batches, those seen before and during it; the spikes did not come
again, although the same batches did no harm elsewhere. Here the same is done at once and by rule: a step whose loss or
gradient norm lies far above those of the steps before it takes the run back to a checkpoint, and its batch is left out.

A step keeps its number, its batch and its learning rate whatever is skipped, so the later batches are those they would
have been. Every decision is a function of the steps and events that a checkpoint holds. A run that is killed, even in
the middle of going back, therefore repeats what it forgot and ends as the undisturbed one.
"""

import math
import sys
from collections.abc import Iterator, Sequence

import numpy as np

from llamax.errors import TrainingError
from llamax.training.checkpoint import Checkpoints
from llamax.training.config import StabilityConfig, TrainConfig
from llamax.training.data import TrainingData
from llamax.training.engines import Engine
from llamax.training.history import Event, StepMetrics

MAD_TO_SIGMA = 1.4826  # of a normal distribution (Rousseeuw & Croux 1993)
LEAST_LOSS_SPREAD = 0.01  # of the median: steps on data all alike would make anything a spike
LEAST_LOSS = 0.1  # nats; below it the median, which may be 0, is no measure
LEAST_LOG_NORM_SPREAD = 0.1
WORST_ROWS = 16  # recorded of a batch
SHOWN_ROWS = 3


def robust_z(value: float, before: Sequence[float], least_spread: float) -> float:
    """How many standard deviations `value` lies above the median of `before`, the deviation taken from the MAD.

    Median and median absolute deviation, because the window may hold outliers itself. Infinite for what is no number.
    """
    if not math.isfinite(value):
        return math.inf
    median, spread = _location(before, least_spread)
    return (value - median) / spread


def find_spike(metrics: StepMetrics, before: Sequence[StepMetrics], config: StabilityConfig) -> tuple | None:
    """(kind, value, threshold) of a step that is out of line with the last `window` steps; None if it is not.

    The norm is judged by its logarithm, having a long tail upwards. Until there are `fewest` steps only a loss or norm
    that is not finite is out of line.
    """
    for kind, value in (("loss", metrics.loss), ("grad_norm", metrics.grad_norm)):
        if not math.isfinite(value):
            return kind, value, math.inf
    recent = before[-config.window :]
    if len(recent) < config.fewest:
        return None
    losses, norms = [m.loss for m in recent], [math.log(max(m.grad_norm, 1e-30)) for m in recent]
    log_norm = math.log(max(metrics.grad_norm, 1e-30))
    loss_spread = LEAST_LOSS_SPREAD * max(LEAST_LOSS, abs(float(np.median(losses))))
    if config.loss_z and robust_z(metrics.loss, losses, loss_spread) > config.loss_z:
        return "loss", metrics.loss, _threshold(losses, loss_spread, config.loss_z)
    if config.grad_z and robust_z(log_norm, norms, LEAST_LOG_NORM_SPREAD) > config.grad_z:
        return "grad_norm", metrics.grad_norm, math.exp(_threshold(norms, LEAST_LOG_NORM_SPREAD, config.grad_z))
    return None


def _threshold(before: Sequence[float], least_spread: float, z: float) -> float:
    """The value whose robust z-score is `z`."""
    median, spread = _location(before, least_spread)
    return median + z * spread


def _location(before: Sequence[float], least_spread: float) -> tuple[float, float]:
    """Median, and a standard deviation by the MAD, at least `least_spread`."""
    median = float(np.median(before))
    return median, max(MAD_TO_SIGMA * float(np.median(np.abs(np.asarray(before) - median))), least_spread)


class Guard:
    """Decides for one run which step comes next. Without a `StabilityConfig`: one after the other, and nothing else.

    done, events: the run's own lists; going back shortens the one and adds to the other.
    """

    def __init__(
        self,
        config: TrainConfig,
        engine: Engine,
        checkpoints: Checkpoints,
        data: TrainingData,
        pad_id: int,
        done: list[StepMetrics],
        events: list[Event],
    ):
        self.config, self.engine, self.checkpoints = config, engine, checkpoints
        self.data, self.pad_id, self.done, self.events = data, pad_id, done, events
        self.next = 0

    def steps(self, start: int, stop: int) -> Iterator[int]:
        """The steps to do, in order; some again after `goes_back`, none of those that are skipped."""
        if self.config.stability and not self.checkpoints.complete():
            self.checkpoints.save(self.engine, 0, self.done, self.events)
        self.next = start
        while self.next < stop:
            step, self.next = self.next, self.next + 1
            if not any(first <= step <= last for first, last in (event.skipped for event in self.events)):
                yield step

    def check_loss(self, loss: float, step: int, share: np.ndarray) -> None:
        """Before the weights are touched: stop at a loss that is not finite, naming rank, micro-batch and row.

        share: this rank's rows of the step, int64 [micro_steps, micro_batch]. Every rank calls it.
        Raises: TrainingError.
        """
        skip = self.config.stability is not None and self.config.stability.not_finite == "skip"
        if math.isfinite(loss) or skip:
            return
        found = row_losses(self.engine, self.data, share, self.pad_id)
        raise TrainingError(f"step {step}: loss {loss}: {blame(found, self.data)}")

    def goes_back(self, metrics: StepMetrics, share: np.ndarray) -> bool:
        """Whether this step was out of line; then the run is at an older checkpoint already, and does not count it.

        Rank 0 decides for all. Raises: TrainingError: it has gone back too often.
        """
        config = self.config.stability
        if config is None:
            return False
        spike = self.engine.gather(find_spike(metrics, self.done, config))[0]
        if spike is None or (not math.isfinite(spike[1]) and config.not_finite == "stop"):
            return False
        kind, value, threshold = spike
        past = self.checkpoints.go_back(self.engine, metrics.step - config.rewind)
        rows = row_losses(self.engine, self.data, share, self.pad_id)
        self.checkpoints.restore_random_state(self.engine, past.step)
        skipped = (max(past.step, metrics.step - config.skip_before), metrics.step + config.skip_after)
        worst = tuple((self.data.name(row), loss) for *_, row, loss in rows[:WORST_ROWS])
        self.events.append(Event(metrics.step, kind, value, threshold, skipped, past.step, worst))
        if self.engine.rank == 0:
            print(self.events[-1], file=sys.stderr, flush=True)  # who watches a run should know at once
        self._stop_if_hopeless(config)
        self.done[:] = past.steps
        self.next = past.step
        return True

    def _stop_if_hopeless(self, config: StabilityConfig) -> None:
        """Raise `TrainingError` when the run has gone back more often than it may."""
        if len(self.events) > config.max_rollbacks:
            raise TrainingError(
                f"{self.events[-1]}; that is spike {len(self.events)}, and stability.max_rollbacks is "
                f"{config.max_rollbacks}: lower the learning rate, look at the rows named, or raise the limit"
            )


def row_losses(engine: Engine, data: TrainingData, share: np.ndarray, pad_id: int) -> list[tuple[int, int, int, float]]:
    """(rank, micro-batch, row, mean loss) of each row of a step over all ranks, worst first; nothing is learned.

    Every rank calls it, with its share; each does the same number of forwards, which ZeRO needs.
    """
    mine = []
    for micro, rows in enumerate(share.tolist()):
        for row in rows:
            loss = engine.loss(data.collate([row], pad_id))
            if row >= 0:
                mine.append((engine.rank, micro, row, loss / data.supervised([row])))
    found = [each for part in engine.gather(mine) for each in part]
    return sorted(found, key=lambda each: (math.isfinite(each[3]), -each[3] if math.isfinite(each[3]) else 0.0))


def blame(found: Sequence[tuple[int, int, int, float]], data: TrainingData) -> str:
    """One clause: which rows have a loss that is not finite."""
    bad = [each for each in found if not math.isfinite(each[3])]
    if not bad:
        rank, micro, row, loss = found[0]
        return f"no row alone has one; the worst is {data.name(row)} with {loss:.3g}, rank {rank}, micro-batch {micro}"
    if len(bad) == len(found):
        where = ", ".join(data.name(row) for *_, row, _ in bad[:SHOWN_ROWS])
        ranks = sorted({rank for rank, *_ in bad})
        return (
            f"every one of its {len(bad)} rows ({where}, ...; ranks {', '.join(map(str, ranks))}, micro-batches 0 to "
            f"{max(micro for _, micro, *_ in bad)}): the run has diverged; lower the learning rate"
        )
    named = [f"rank {rank}, micro-batch {micro}, {data.name(row)}: {loss}" for rank, micro, row, loss in bad]
    more = f"; and {len(bad) - SHOWN_ROWS} more" if len(bad) > SHOWN_ROWS else ""
    return f"{len(bad)} of {len(found)} rows: {'; '.join(named[:SHOWN_ROWS])}{more}: look at these rows"
