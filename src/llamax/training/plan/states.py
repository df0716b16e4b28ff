"""Model states and ZeRO's buffers on one device, read off DeepSpeed 0.19.8 and `llamax.training.optimizer`. No torch.

`N` trainable and `F` frozen parameters, `W` ranks, `e` bytes of a weight:

                      torch     ZeRO-1      ZeRO-2      ZeRO-3
    weights           e (N+F)   e (N+F)     e (N+F)     e (N+F) / W
    master weights    4 N (*)   4 N / W     4 N / W     4 N / W (*)      (*) none in fp32: a weight is its own master
    moments           8 N       8 N / W     8 N / W     8 N / W
    gradients         4 N       4 N         4 N / W     4 N / W          summed in fp32 (`grad_accum_dtype`)

The step turns a partition's gradients into one flat fp32 tensor beside them, sub-group by sub-group; torch's AdamW,
which DeepSpeed runs unless the optimizer lives on the host, takes another 4 bytes (8 on a CPU) for each of these.
With the optimizer offloaded, masters, moments and gradients are in host memory (`llamax.training.plan.host`).
"""

from typing import NamedTuple

from llamax.training.buckets import zero_buckets
from llamax.training.plan.setup import FP32, Setup
from llamax.training.plan.shapes import Shape


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
    own_master = e == FP32 and stage in (0, 3)
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
    limit = zero_buckets(shape.hidden)["stage3_max_live_parameters"]
    return setup.element * min(sum(counts(shape, setup)), max(limit, shape.embedding, shape.largest_matrix))


def gather(shape: Shape, setup: Setup) -> float:
    """Bytes of the flat tensor in which prefetched parameters arrive, before they are copied apart."""
    return setup.element * _within(shape, setup, "stage3_prefetch_bucket_size") if setup.zero_stage == 3 else 0


def reduce(shape: Shape, setup: Setup) -> float:
    """Bytes of the buckets in which gradients wait to be reduced: two under ZeRO-1 and 2 on a GPU, which overlap."""
    if not setup.zero_stage:
        return 0
    buckets = 1 if setup.zero_stage == 3 else 2
    return setup.element * buckets * zero_buckets(shape.hidden)["reduce_bucket_size"]


def _within(shape: Shape, setup: Setup, bucket: str) -> int:
    """Elements of a bucket, no more than there are parameters."""
    return min(zero_buckets(shape.hidden)[bucket], sum(counts(shape, setup)))


def step_copy(shape: Shape, setup: Setup, *, on_cpu: bool) -> float:
    """Bytes that the optimizer step takes beside the states: a flat gradient and AdamW's intermediate, a sub-group."""
    if not setup.zero_stage or setup.offload_optimizer:
        return 0
    n = counts(shape, setup).trainable / setup.shards
    if setup.zero_stage == 3:
        n = min(n, zero_buckets(shape.hidden)["sub_group_size"])
    return n * (FP32 + (2 * FP32 if on_cpu else FP32))
