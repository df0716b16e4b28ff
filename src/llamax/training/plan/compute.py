"""Floating-point operations of a run, and the time they take. No torch.

Model FLOPs only (Chowdhery et al. 2022, appendix B): 2 per parameter and token forwards, twice that backwards, the
vocabulary projection on supervised tokens alone (as `training.objectives` does it), and attention exactly: a document
of `n` tokens has `n (n + 1) / 2` pairs, each 4 operations per query width and layer. What gradient checkpointing
computes a second time is no progress and is shown apart. LoRA's frozen maps need no gradient of their own weights.
"""

import math
from typing import NamedTuple

from llamax.training.plan.hardware import Hardware
from llamax.training.plan.setup import FP32, PlanData, Setup
from llamax.training.plan.shapes import Shape
from llamax.training.plan.states import counts

HOST_BANDWIDTH = 100e9
"""Bytes per second that a node's memory moves during the host's AdamW; assumed."""
PCIE = 12e9
"""Bytes per second between host and each GPU; assumed (PCIe 3.0 x16 as measured by most)."""
ADAM_TRAFFIC = 28
"""Bytes per parameter of an AdamW step: reads 16 (gradient, master, moments), writes 12."""


class Flops(NamedTuple):
    """Operations of some tokens: forward and backward in `matrices`, `attention`, `head`; and what is `recomputed`."""

    matrices: float
    attention: float
    head: float
    recomputed: float

    @property
    def model(self) -> float:
        """All that count for MFU."""
        return self.matrices + self.attention + self.head


class Compute(NamedTuple):
    """A whole training. Seconds are None where the data's size is unknown.

    mfu: share of the peak. source: where it comes from. per_second: real tokens over all devices, the host's work
    included. offload: seconds of the host's optimizer and of the transfers. padded: seconds if every row were as long
    as `length` (rows that are not packed are padded in their batch).
    """

    flops: Flops
    per_token: float
    mfu: float
    source: str
    per_second: float
    seconds: float | None
    offload: float
    padded: float | None
    steps: int | None


def flops(shape: Shape, setup: Setup, tokens: float, pairs: float, targets: float) -> Flops:
    """Operations of a forward and backward over `tokens`, with `pairs` attended pairs and `targets` in the head."""
    adapters = counts(shape, setup).trainable if setup.lora else 0
    forward = 2 * tokens * shape.layers * shape.layer_matrices
    scores = 4 * pairs * shape.q_width * shape.layers
    head = 2 * targets * shape.embedding
    times = 2 if setup.lora else 3
    again = forward + scores + 2 * tokens * adapters if setup.gradient_checkpointing else 0
    return Flops(times * forward + 6 * tokens * adapters, 3 * scores, times * head, again)


def compute(shape: Shape, setup: Setup, hardware: Hardware, data: PlanData, mfu: float | None, source: str) -> Compute:
    """Operations and time of the whole run; without known data, those of one token in a full row."""
    gpu = hardware.gpu
    tokens = data.tokens
    mean = data.mean_document or data.length
    per_document = data.pairs if data.pairs is not None else mean * (mean + 1) / 2
    rate = mfu or gpu.mfu
    peak = (gpu.tflops32 if setup.element == FP32 else gpu.tflops16) * 1e12 * setup.ranks * rate
    row = flops(shape, setup, data.length, per_document * data.length / mean, data.length * data.supervised)
    per_token = row.model / data.length
    step_tokens = setup.batch_size * (data.length if data.packing else mean)
    step_seconds = step_tokens * per_token / peak
    offload = offload_seconds(shape, setup, hardware)
    where = source if mfu else f"assumed for {gpu.name}: {gpu.why}"
    per_second = step_tokens / (step_seconds + offload)
    if tokens is None:
        return Compute(row, per_token, rate, where, per_second, None, offload, None, setup.max_steps)
    rows = tokens / data.length if data.packing else data.documents
    every = setup.epochs * math.ceil(rows / setup.batch_size)
    steps = min(every, setup.max_steps or every)
    share = steps / every
    whole = tokens * setup.epochs * share
    all_flops = flops(shape, setup, whole, per_document * whole / mean, whole * data.supervised)
    seconds = all_flops.model / peak + steps * offload
    padded = None if data.packing else all_flops.model / peak * data.length / mean + steps * offload
    return Compute(all_flops, per_token, rate, where, per_second, seconds, offload, padded, steps)


def offload_seconds(shape: Shape, setup: Setup, hardware: Hardware) -> float:
    """Seconds per optimizer step for the host's AdamW and for what crosses the bus, were nothing of it hidden."""
    n, frozen = counts(shape, setup)
    seconds = 0.0
    if setup.offload_optimizer:
        share = n / setup.shards
        seconds += ADAM_TRAFFIC * n / hardware.nodes / HOST_BANDWIDTH
        seconds += (FP32 * share * (2 * setup.micro_steps - 1) + setup.element * share) / PCIE
    if setup.offload_parameters:
        seconds += 2 * setup.micro_steps * setup.element * (n + frozen) / setup.ranks / PCIE
    return seconds
