"""What a step really takes: the most bytes alive, the rate of the machine's own matrix product, where the time goes."""

import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch._C._profiler import _EventType
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile, record_function

from llamax.data.packing import Batch, Rows
from llamax.training.config import TrainConfig
from llamax.training.history import History, StepMetrics
from llamax.training.loop import fit, micro_batches, rows_of_step
from llamax.training.plan.device import device
from llamax.training.plan.hardware import CPU, Hardware
from llamax.training.plan.host import offloaded
from llamax.training.plan.setup import PlanData, Setup
from llamax.training.plan.shapes import shape_of

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler logs each of its starts and stops otherwise

MARK = "llamax: a step is over"
LARGE = {"cpu": 2048, "cuda": 8192}
"""Rows of the square matrices whose product is taken for all that a device can do."""
KINDS = {
    "attention": ("ShortDocuments", "attention", "softmax", "bmm"),
    "loss": ("CrossEntropy", "cross_entropy", "nll", "logsumexp", "log_softmax"),
    "optimizer": ("adamw", "Optimizer.step", "_foreach_norm", "linalg_vector_norm"),
    "matrix products": ("aten::mm", "aten::addmm", "aten::matmul", "aten::linear", "MmBackward", "AddmmBackward"),
}
"""What a profiler's event is part of, by pieces of its name; the outermost that is known decides."""
NORMS = ("aten::_foreach_norm", "aten::linalg_vector_norm")
"""Of the gradient: with it the optimizer's part of a step begins."""


def counted(run: Callable[[Callable[[Any], None]], Any]) -> int:
    """Most bytes that torch's allocator had given out during the second step of `run(on_step)`.

    `run` makes its model itself, so that this is counted, and calls `on_step` after each of two steps. On a GPU the
    allocator counts for itself; on a CPU its events in torch's profiler are added up.
    """
    if torch.cuda.is_available():
        peaks = []

        def note(_: Any) -> None:
            peaks.append(torch.cuda.max_memory_allocated())
            torch.cuda.reset_peak_memory_stats()

        run(note)
        return peaks[1]

    def mark(_: Any) -> None:
        with record_function(MARK):
            pass

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run(mark)
    waiting, blocks, marks = list(profiler.profiler.kineto_results.experimental_event_tree()), [], []
    while waiting:
        event = waiting.pop()
        waiting.extend(event.children)
        if event.typed[0] == _EventType.Allocation:
            blocks.append((event.start_time_ns, event.typed[1].ptr, event.typed[1].alloc_size))
        elif event.name == MARK:
            marks.append(event.start_time_ns)
    first, second = sorted(marks)
    return most(sorted(blocks), first, second)


def most(blocks: list[tuple[int, int, int]], first: int, second: int) -> int:
    """Most bytes alive between two times, of (time, address, bytes given out or, negative, back).

    gloo's threads give blocks back too, which the profiler does not see (a sum of all events drifts by up to a seventh,
    another amount in every run): an address that is given out again was free.
    """
    alive: dict[int, int] = {}
    now = peak = 0
    for when, address, size in blocks:
        now -= alive.pop(address, 0)
        if size > 0:
            alive[address] = size
            now += size
        if first < when < second:
            peak = max(peak, now)
    return peak


def matmul_rate(dtype: torch.dtype, size: int | None = None, seconds: float = 1.0) -> float:
    """Operations per second of a square matrix product, the best of several; on the GPU where there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = size or LARGE[device]
    a, b = (torch.randn(size, size).to(device, dtype) for _ in range(2))
    best, until = 0.0, time.perf_counter() + seconds
    while not best or time.perf_counter() < until:
        start = time.perf_counter()
        functional.linear(a, b)
        synchronise()
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def synchronise() -> None:
    """Wait until the GPU has done all it was given; nothing without one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Steps(NamedTuple):
    """What steps of `fit` took: peak bytes of one, and of each timed one the seconds, real and supervised tokens."""

    peak: int
    seconds: list[float]
    tokens: list[int]
    supervised: list[int]


def take_steps(model: nn.Module, rows: Rows, config: TrainConfig, pad_id: int) -> Steps:
    """Peak memory of the second step, then the time of all of a second training but its first two steps."""
    with tempfile.TemporaryDirectory() as out:

        def run(steps: int, on_step: Callable[[StepMetrics], None] | None) -> History:
            config_of = config.model_copy(update={"max_steps": steps})
            return fit(fresh(model), rows, config_of, Path(out) / str(steps), pad_id=pad_id, on_step=on_step)

        peak = counted(lambda on_step: run(2, on_step))
        steps = run(config.max_steps, None).steps[2:]
    return Steps(peak, *([getattr(step, name) for step in steps] for name in Steps._fields[1:]))


def fresh(model: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A copy of `model` in `dtype`, in training mode."""
    copy = type(model)(model.config).to(dtype)
    copy.load_state_dict(model.state_dict())
    return copy.train()


def largest_forward(rows: Rows, config: TrainConfig, step: int = 1) -> tuple[np.ndarray, int]:
    """Of a step's forwards, over all ranks, the one with most tokens: its documents' lengths, and its targets."""
    indices, found = rows_of_step(step, rows, config), []
    for rank in range(config.ranks):
        for micro in micro_batches(indices, config, rank):
            chosen = micro[micro >= 0]
            documents = np.concatenate([rows.members[row] for row in chosen]) if len(chosen) else np.zeros(0, int)
            found.append((np.diff(rows.offsets)[documents], rows.supervised(chosen)))
    return max(found, key=lambda forward: forward[0].sum())


def planned(model: nn.Module, rows: Rows, config: TrainConfig) -> tuple[float, str]:
    """Peak bytes of the second step by the plan, and the moment that decides. On a CPU what is offloaded counts."""
    lengths, targets = largest_forward(rows, config)
    tokens = int(lengths.sum())
    shape = shape_of(model.config.to_dict())
    setup = Setup.of(
        config, PlanData(tokens), length=tokens, micro_batch=1, batch_size=config.micro_steps * config.ranks,
        document=float((lengths**2).sum() / tokens), supervised=targets / tokens, pinned_rounding=False,
    )  # fmt: skip
    on_gpu = torch.cuda.is_available()
    found = device(shape, setup, Hardware(CPU._replace(name="GPU") if on_gpu else CPU, 1, config.ranks))
    uncounted = sum(found.terms.get(name, 0) for name in ("fragmentation reserve", "CUDA context and NCCL"))
    return found.peak - uncounted + (0 if on_gpu else sum(offloaded(shape, setup).values())), found.at


def shares(model: nn.Module, rows: Rows, config: TrainConfig, pad_id: int) -> dict[str, float]:
    """Seconds of the second step of `fit` by kind, as torch's profiler saw them, and `Python`: between operations."""
    with tempfile.TemporaryDirectory() as out, profile(activities=[ProfilerActivity.CPU]) as profiler:

        def mark(_: Any) -> None:
            with record_function(MARK):
                pass

        fit(fresh(model), rows, config.model_copy(update={"max_steps": 2}), out, pad_id=pad_id, on_step=mark)
    roots = sorted(profiler.profiler.kineto_results.experimental_event_tree(), key=lambda event: event.start_time_ns)
    first, second = (event.start_time_ns for event in roots if event.name == MARK)
    found, total = dict.fromkeys([*KINDS, "elementwise", "Python"], 0.0), (second - first) / 1e9
    updating = False
    for event in roots:
        if first < event.start_time_ns < second and event.name != MARK:
            updating = updating or event.name in NORMS
            add_seconds(event, "optimizer" if updating else None, found)
    found["Python"] = max(0.0, total - sum(found.values()))
    return found


def add_seconds(event: Any, kind: str | None, found: dict[str, float]) -> None:
    """Add the seconds of an event and all below it; what is known of an event holds for all that it calls."""
    kind = kind or next((kind for kind, names in KINDS.items() if any(name in event.name for name in names)), None)
    inside = 0
    for child in event.children:
        inside += child.duration_time_ns
        add_seconds(child, kind, found)
    found[kind or "elementwise"] += max(0, event.duration_time_ns - inside) / 1e9


def loop_seconds(model: nn.Module, rows: Rows, config: TrainConfig, pad_id: int) -> list[float]:
    """Seconds of each step of `fit` where the model does nothing: what the loop itself takes, and a little more.

    Rows are chosen, laid end to end and counted, the rate and the metrics made, a line logged, and one norm's weight
    goes through backward and AdamW. The first two steps are left out.
    """
    small = fresh(model).requires_grad_(False)
    weight = small.get_decoder().norm.weight.requires_grad_(True)
    stamps = []

    def nothing(_: nn.Module, batch: Batch) -> tuple[torch.Tensor, int]:
        return weight.sum(), int(batch.loss_mask.sum())

    with tempfile.TemporaryDirectory() as out, open(Path(out) / "steps.jsonl", "w", buffering=1) as log:

        def on_step(metrics: StepMetrics) -> None:
            log.write(json.dumps(metrics) + "\n")
            stamps.append(time.perf_counter())

        fit(small, rows, config, out, pad_id=pad_id, objective=nothing, on_step=on_step)
    return np.diff(stamps)[1:].tolist()
