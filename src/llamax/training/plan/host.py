"""Host memory of one node, and disk. No torch.

With the optimizer offloaded ZeRO-3 keeps on the host, per trainable parameter and in fp32, the master weight (4), two
moments (8), the gradients as they are summed (4) and as the optimizer reads them (4); ZeRO-1 and 2 keep 4 + 8 + 4 and
a 16-bit copy on its way to the GPU (2). Offloaded parameters are another 2. What the GPU copies from is pinned, and
torch rounds a pinned block up to a power of two unless `PYTORCH_ALLOC_CONF=pinned_max_round_threshold_mb:1`
(`CachingHostAllocatorImpl::allocate`): up to twice the size, a term of its own here.

Loading: ZeRO-3 fills its shards tensor by tensor; any other way every rank reads the whole model. The final save
gathers the model on rank 0 and rebuilds it: two copies beside whatever training keeps.
"""

from typing import NamedTuple

from llamax.training.plan.hardware import GIB, Hardware
from llamax.training.plan.setup import FP32, PlanData, Setup
from llamax.training.plan.shapes import Shape
from llamax.training.plan.states import counts, overflow_check

PROCESS = int(2.5 * GIB)
"""Host bytes of one rank's Python, torch and CUDA libraries; assumed."""
TOKEN = 5  # bytes of a token in `Rows`: int32 and a bool


class Host(NamedTuple):
    """Bytes on one node: `moments[name][term]`; `peak` is the largest moment, named `at`."""

    moments: dict[str, dict[str, float]]
    at: str
    peak: float

    @property
    def terms(self) -> dict[str, float]:
        """Those of the largest moment."""
        return self.moments[self.at]


def host(shape: Shape, setup: Setup, hardware: Hardware, data: PlanData) -> Host:
    """Memory of the busiest node, that of rank 0."""
    ranks = max(1, setup.ranks // hardware.nodes)
    always = {"processes": PROCESS * ranks, "data set": TOKEN * ranks * (data.tokens or 0)}
    training = {name: size * ranks for name, size in offloaded(shape, setup).items()}
    step = (
        overflow_check(setup, counts(shape, setup).trainable / setup.shards) * ranks if setup.offload_optimizer else 0
    )
    model = setup.element * sum(counts(shape, setup))
    if setup.zero_stage == 3:
        share = setup.element * sum(counts(shape, setup)) / setup.ranks if setup.offload_parameters else 0
        loading = share * ranks + setup.element * max(shape.embedding, shape.largest_matrix)
    else:
        loading = model * ranks * (FP32 / setup.element if setup.engine == "torch" else 1)
    saving = 2 * setup.element * shape.parameters
    moments = {
        "loading": always | {"model while loading": loading},
        "optimizer step": always | training | ({"search for fp16 overflow": step} if step else {}),
        "final save": always | training | {"model gathered and rebuilt on rank 0": saving},
    }
    at = max(moments, key=lambda name: sum(moments[name].values()))
    return Host(moments, at, sum(moments[at].values()))


def offloaded(shape: Shape, setup: Setup) -> dict[str, float]:
    """Host bytes of one rank's offloaded states."""
    n, frozen = counts(shape, setup)
    share = n / setup.shards
    found: dict[str, float] = {}
    pinned: list[float] = []
    if setup.offload_optimizer:
        groups = sub_groups(share, setup.bucket("sub_group_size", shape.hidden)) if setup.zero_stage == 3 else [share]
        found |= {"offloaded master weights": FP32 * share, "offloaded moments": 2 * FP32 * share}
        if setup.zero_stage == 3:
            found["offloaded gradients, summed (pinned)"] = FP32 * share
            found["offloaded gradients, for the optimizer (pinned)"] = FP32 * share
            pinned += [FP32 * share, *(FP32 * group for group in groups)]
        else:
            found["offloaded gradients (pinned)"] = FP32 * share
            found["16-bit weights on their way (pinned)"] = setup.element * share
            pinned += [FP32 * share, FP32 * share, setup.element * share]  # the master weights are pinned, too
    if setup.offload_parameters:
        found["offloaded parameters (pinned)"] = setup.element * (n + frozen) / setup.ranks
        pinned.append(found["offloaded parameters (pinned)"])
    if setup.pinned_rounding and pinned:
        found["pinned blocks rounded up to powers of two"] = sum(map(rounding, pinned))
    return found


def sub_groups(share: float, size: int) -> list[float]:
    """Elements of ZeRO-3's sub-groups of one rank's share: full ones and the rest."""
    full, rest = divmod(share, size)
    return [float(size)] * int(full) + ([rest] if rest else [])


def rounding(size: float) -> float:
    """Bytes that torch's pinned allocator adds to a block of `size`."""
    return (1 << max(0, int(size) - 1).bit_length()) - size if size >= 1 else 0


def disk(shape: Shape, setup: Setup) -> dict[str, float]:
    """Bytes on disk by what they are for; a new checkpoint is whole before an old one goes."""
    n = counts(shape, setup).trainable
    one = 3 * FP32 * n + (setup.element * n if setup.zero_stage in (1, 2) else 0)
    weights = (2 if setup.precision != "fp32" else FP32) * shape.parameters
    found = {"final model": float(weights), "base model, cached": 2.0 * shape.parameters}
    if setup.checkpoint_every:
        found[f"checkpoints ({setup.keep_checkpoints} kept, and one being written)"] = one * (
            setup.keep_checkpoints + 1
        )
    return found
