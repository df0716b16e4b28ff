"""Model states and ZeRO's buffers on one device, read off DeepSpeed 0.19.8 and `llamax.training.optimizer`. No torch.

`N` trainable and `F` frozen parameters, `W` ranks, `e` bytes of a weight:

                      torch     ZeRO-1      ZeRO-2      ZeRO-3
    weights           e (N+F)   e (N+F)     e (N+F)     e (N+F) / W
    master weights    4 N (*)   4 N / W     4 N / W     4 N / W          (*) none in fp32: a weight is its own master
    moments           8 N       8 N / W     8 N / W     8 N / W
    gradients         4 N       4 N         4 N / W     4 N / W          summed in fp32 (`grad_accum_dtype`)

The step turns a partition's gradients into one flat fp32 tensor beside them, sub-group by sub-group; torch's AdamW,
which DeepSpeed runs unless the optimizer lives on the host, takes another 4 bytes (8 on a CPU) for each of these.
With the optimizer offloaded, masters, moments and gradients are in host memory (`llamax.training.plan.host`).
"""

from typing import NamedTuple

from llamax.training.plan.setup import FP32, Setup
from llamax.training.plan.shapes import Shape

REDUCE_BUCKET = 5 * 10**8
"""Elements of a reduce bucket where the engine sets none, under ZeRO-1 and 2: DeepSpeed's default."""
OVERFLOW = 5
"""Bytes per gradient that `torch.isinf` takes when fp16 gradients are searched for overflow: their size, and a bool."""


class Counts(NamedTuple):
    """Parameters: `trainable` and `frozen`, together all of them."""

    trainable: int
    frozen: int


class States(NamedTuple):
    """Bytes on one device that last from step to step."""

    weights: float
    masters: float
    moments: float
    gradients: float


def counts(shape: Shape, setup: Setup) -> Counts:
    """With LoRA the adapters are trainable and all else is frozen."""
    if setup.lora is None:
        return Counts(shape.parameters, 0)
    return Counts(shape.adapters(setup.lora), shape.parameters)


def states(shape: Shape, setup: Setup) -> States:
    """Model states on one device. The gradients of engine torch are there once the backward is through."""
    n, frozen = counts(shape, setup)
    e, stage, shards = setup.element, setup.zero_stage, setup.shards
    weights = e * (n + frozen) / (setup.ranks if stage == 3 else 1)
    own_master = e == FP32 and not stage
    masters, moments = (0 if own_master else FP32 * n / shards), 2 * FP32 * n / shards
    gradients = FP32 * n / (shards if stage >= 2 else 1)
    if setup.offload_optimizer:
        masters = moments = gradients = 0
    return States(0 if setup.offload_parameters else weights, masters, moments, gradients)


def largest(shape: Shape, setup: Setup) -> int:
    """Elements of the largest matrix of a layer that has a gradient."""
    if setup.lora is None:
        return shape.largest_matrix
    return setup.lora.rank * max(shape.hidden, shape.intermediate, shape.q_width)


def live(shape: Shape, setup: Setup) -> float:
    """Bytes of whole parameters that ZeRO-3 keeps gathered: up to `stage3_max_live_parameters`, a matrix at least."""
    if setup.zero_stage != 3:
        return 0
    limit = setup.bucket("stage3_max_live_parameters", shape.hidden)
    return setup.element * min(sum(counts(shape, setup)), max(limit, shape.embedding, shape.largest_matrix))


def gather(shape: Shape, setup: Setup) -> float:
    """Bytes of the flat tensor in which prefetched parameters arrive, before they are copied apart."""
    if setup.zero_stage != 3:
        return 0
    ahead = setup.bucket("stage3_prefetch_bucket_size", shape.hidden) + shape.largest_matrix  # the last one overshoots
    return setup.element * min(ahead, sum(counts(shape, setup)))


def reduce(shape: Shape, setup: Setup) -> float:
    """Bytes of the buckets in which gradients wait to be reduced: two under ZeRO-1 and 2 on a GPU."""
    if not setup.zero_stage:
        return 0
    if setup.zero_stage < 3:
        return setup.element * (1 if setup.on_cpu else 2) * dict(setup.buckets).get("reduce_bucket_size", REDUCE_BUCKET)
    return setup.element * setup.bucket("reduce_bucket_size", shape.hidden)


def step_copy(shape: Shape, setup: Setup, *, on_cpu: bool) -> float:
    """Bytes that the optimizer step takes beside the states: a flat gradient and AdamW's intermediate, a sub-group."""
    if not setup.zero_stage or setup.offload_optimizer:
        return 0
    n = share = counts(shape, setup).trainable / setup.shards
    if setup.zero_stage == 3:
        n = min(n, setup.bucket("sub_group_size", shape.hidden))
    return max(n * (FP32 + (2 * FP32 if on_cpu else FP32)), overflow_check(setup, share))


def overflow_check(setup: Setup, share: float) -> float:
    """Bytes in which ZeRO-3 searches its `share` of fp16 gradients for infinities, all of them at once."""
    return OVERFLOW * share if setup.precision == "fp16" and setup.zero_stage == 3 else 0
