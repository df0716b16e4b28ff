"""GPUs, nodes and bytes: what a run is planned for. No torch.

`memory` is what torch reports as a device's total memory (`get_device_properties`), which is less than the number on
the box (of B200 it is that number, quoted). `tflops` are dense peaks with accumulation in fp32, from data sheets of
NVIDIA:

    V100 SXM2   fp16 tensor 125, fp32 15.7; no bf16           "NVIDIA V100 Tensor Core GPU", data sheet, 2020
    T4          fp16 tensor 65, fp32 8.1; no bf16             "NVIDIA T4", data sheet, 2019
    A100 SXM    fp16/bf16 tensor 312, fp32 19.5               "NVIDIA A100", data sheet, 2021
    A10         fp16/bf16 tensor 125, fp32 31.2               "NVIDIA A10", data sheet, 2021
    RTX 3090    fp16/bf16 tensor with fp32 accumulation 71, fp32 35.6   "GA102 GPU architecture" white paper, table 3
    RTX 4090    fp16/bf16 tensor with fp32 accumulation 165, fp32 82.6  "Ada GPU architecture" white paper, appendix A
    L40S        fp16/bf16 tensor 362 (733 is with sparsity), fp32 91.6  "NVIDIA L40S", data sheet, 2023
    H100 SXM    fp16/bf16 tensor 989 (1,979 with sparsity), fp32 67     "NVIDIA H100", data sheet, 2023
    H200 SXM    as H100                                       "NVIDIA H200", data sheet, 2024
    B200        fp16/bf16 tensor 2,250 (4,500 with sparsity), fp32 75   "NVIDIA HGX B200", data sheet, 2024 (an eighth)

`mfu` is the share of the peak that model FLOPs reach. All are assumed for full rows in 16 bit without offload, and
`why` says from what; give the figure of a run of your own where there is one.
"""

import difflib
import re
from typing import NamedTuple

from llamax.errors import ParameterError

GB, GIB = 10**9, 2**30
UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": GB, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": GIB,
         "TIB": 2**40, "K": 10**3, "M": 10**6, "G": GB, "T": 10**12}  # fmt: skip

SIZE = re.compile(r"([-_ ]\d+)\s*(?:gi?b?)?$", re.IGNORECASE)
"""At the end of a GPU's name: its memory, with whatever unit. (A10G has none: it is another GPU.)"""


class Gpu(NamedTuple):
    """One device. memory: bytes; tflops16, tflops32: dense peak, 10^12 per second; mfu: assumed, for the reason why."""

    name: str
    memory: int
    tflops16: float
    tflops32: float
    bf16: bool
    mfu: float
    why: str


_A100 = "a little under what is quoted: fms-fsdp Llama-2 7B 56%, torchtitan Llama-3 8B 57-58%, TinyLlama 56%"
_HOPPER = "between what is quoted: fms-fsdp Llama-2 7B 36%, nanochat d24 about 50%"
_H200 = "measured: LLaMA-7B in full, two packed rows at once on one H200 (benchmarks/gpu.py)"
_VOLTA = "under the 29% that the original's 50k examples an hour on 8 V100 would be, were every row full"
_GUESS = "a guess: nothing quoted for training on it"


def _gib(value: float) -> int:
    return int(value * GIB)


_GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("V100-16GB", _gib(15.77), 125, 15.7, False, 0.25, _VOLTA),
        Gpu("V100-32GB", _gib(31.74), 125, 15.7, False, 0.25, _VOLTA),
        Gpu("A100-40GB", _gib(39.39), 312, 19.5, True, 0.50, _A100),
        Gpu("A100-80GB", _gib(79.15), 312, 19.5, True, 0.50, _A100),
        Gpu("H100-80GB", _gib(79.11), 989, 67, True, 0.40, _HOPPER),
        Gpu("H200-141GB", _gib(139.7), 989, 67, True, 0.43, _H200),
        Gpu("B200-180GB", 180 * GB, 2250, 75, True, 0.35, _GUESS),
        Gpu("A10-24GB", _gib(22.05), 125, 31.2, True, 0.35, _GUESS),
        Gpu("L40S-48GB", _gib(44.4), 362, 91.6, True, 0.35, _GUESS),
        Gpu("RTX3090-24GB", _gib(23.68), 71, 35.6, True, 0.45, _GUESS),
        Gpu("RTX4090-24GB", _gib(23.63), 165, 82.6, True, 0.45, _GUESS),
        Gpu("T4-16GB", _gib(14.58), 65, 8.1, False, 0.25, _GUESS),
    )
}
CPU = Gpu("CPU", 0, 0.37, 0.13, True, 0.5, "measured on two cores with AVX512-BF16; no GPU")
"""A machine without GPU: the same formulas, without a CUDA context, in host memory."""


class Hardware(NamedTuple):
    """`nodes` machines with `per_node` devices each; host memory of one node and disk in bytes, None: not said."""

    gpu: Gpu
    nodes: int
    per_node: int
    host_memory: int | None = None
    disk: int | None = None

    @property
    def gpus(self) -> int:
        """All devices together."""
        return self.nodes * self.per_node

    def __str__(self) -> str:
        """As one would write it on the command line."""
        return f"{f'{self.nodes}x' if self.nodes > 1 else ''}{self.per_node}x{self.gpu.name}"


def gpus() -> list[str]:
    """Names of the GPUs that are known."""
    return list(_GPUS)


def parse_hardware(text: str, host_memory: str | None = None, disk: str | None = None) -> Hardware:
    """`8xV100-32GB`, or `3x8xA100-40GB` for three nodes of eight, and sizes such as `300GB`; host memory is a node's.

    One node may also be written as clouds do, `V100-32GB:8`.

    Raises: ParameterError: what is wrong, and how it is written.
    """
    as_clouds = re.fullmatch(r"([A-Za-z][^:]*):\s*(\d+)", text.strip())
    said = f"{as_clouds[2]}x{as_clouds[1]}" if as_clouds else text.strip()
    found = re.fullmatch(r"(?:(\d+)\s*[xX*]\s*)?(\d+)\s*[xX*]\s*([A-Za-z].*)", said)
    counts = [int(part) for part in found.groups()[:2] if part] if found else []
    if not found or 0 in counts:
        raise ParameterError(f"--gpus {text!r}: write COUNTxGPU such as 8xV100-32GB, or 3x8xA100-40GB for three nodes")
    nodes, per_node = counts if len(counts) == 2 else (1, *counts)
    gpu = find_gpu(found[3].strip())
    sizes = [size and parse_bytes(size, option) for size, option in ((host_memory, "--host-memory"), (disk, "--disk"))]
    return Hardware(gpu, nodes, per_node, sizes[0] or None, sizes[1] or None)


def find_gpu(name: str) -> Gpu:
    """The GPU called `name`; its memory may be left out where there is one size. Raises: ParameterError."""
    key = _plain(SIZE.sub(r"\1", name))
    matches = [known for known in _GPUS if _plain(known) == key] or _family(name)
    if len(matches) == 1:
        return _GPUS[matches[0]]
    if matches:
        raise ParameterError(f"--gpus: {name!r} comes in several sizes: write {' or '.join(matches)}")
    if family := _family(SIZE.sub("", name)):
        raise ParameterError(f"--gpus: no GPU {name!r}: that one has {' or '.join(family)}")
    near = difflib.get_close_matches(name.upper(), gpus(), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ParameterError(f"--gpus: no GPU {name!r}: {hint}known: {', '.join(gpus())}")


def _family(name: str) -> list[str]:
    """Known GPUs, whatever their memory, whose name without it is `name`."""
    return [known for known in _GPUS if _plain(known.split("-")[0]) == _plain(name)]


def _plain(name: str) -> str:
    """A name without what people write in several ways."""
    return re.sub(r"[^a-z0-9]", "", name.lower()).removeprefix("nvidia").removeprefix("rtx").removesuffix("gb")


def parse_bytes(text: str, option: str) -> int:
    """`300GB` (10^9), `256GiB` (2^30), `2TB` as bytes. Raises: ParameterError: no unit, or not a size."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)", text.strip())
    if not found or found[2].upper() not in UNITS or not (size := int(float(found[1]) * UNITS[found[2].upper()])):
        raise ParameterError(f"{option} {text!r}: write a size with its unit, such as 300GB, 256GiB or 2TB")
    return size


def show_bytes(size: float) -> str:
    """A size in GiB (MiB when small)."""
    return f"{size / GIB:,.2f} GiB" if abs(size) >= GIB / 20 else f"{size / 2**20:,.1f} MiB"
