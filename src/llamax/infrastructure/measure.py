"""What a step really takes: the most bytes alive, the rate of the machine's own matrix product, where the time goes."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch._C._profiler import _EventType
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile, record_function

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


def counted(run: Callable[[Callable[[Any], None]], Any]) -> int:
    """Most bytes that torch's allocator had given out during the second step of `run(on_step)`, by its CPU events.

    `run` makes its model itself, so that this is counted, and calls `on_step` after each of two steps.
    """

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
