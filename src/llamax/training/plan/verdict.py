"""Does it fit, and if not, what is the smallest change that does? No torch."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

from llamax.training.config import LoraConfig
from llamax.training.plan.device import Device, device
from llamax.training.plan.hardware import Hardware, show_bytes
from llamax.training.plan.host import Host, disk, host
from llamax.training.plan.setup import PlanData, Setup
from llamax.training.plan.shapes import Shape

ROUNDING_OFF = "PYTORCH_ALLOC_CONF=pinned_max_round_threshold_mb:1"
NODES = (1, 2, 3, 4, 6, 8, 12, 16, 32)
SHORTEST_ROW = 512
"""Rows are not planned shorter than this, nor than twice the mean document."""


class Needs(NamedTuple):
    """What a run takes, and each thing that there is not enough of (or cannot be), one line each."""

    device: Device
    host: Host
    disk: dict[str, float]
    problems: tuple[str, ...]


class Way(NamedTuple):
    """Changes that make a run fit, in words, and what it is and takes with them."""

    changes: tuple[str, ...]
    setup: Setup
    hardware: Hardware
    needs: Needs


class Verdict(NamedTuple):
    """answer: 'fits', 'fits with offload' or 'does not fit'. why: the numbers that decide, one line each.

    ways: the smallest change that makes it fit; then, if that is LoRA, the smallest that still trains all weights.
    Empty if it fits, and if nothing that was tried does.
    """

    answer: str
    why: tuple[str, ...]
    ways: tuple[Way, ...] = ()


def needs(shape: Shape, setup: Setup, hardware: Hardware, data: PlanData) -> Needs:
    """Measure a run against a machine."""
    on_device, on_host = device(shape, setup, hardware), host(shape, setup, hardware, data)
    on_disk, gpu = disk(shape, setup), hardware.gpu
    problems = []
    if setup.precision == "bf16" and not gpu.bf16:
        problems.append(f"{gpu.name} has no bf16: precision fp16 is its 16-bit format")
    if gpu.memory and on_device.peak > gpu.memory:
        problems.append(f"GPU memory: {_over(on_device.peak, gpu.memory)} of {gpu.name}, in the {on_device.at}")
    if hardware.host_memory and on_host.peak > hardware.host_memory:
        problems.append(f"host memory of a node: {_over(on_host.peak, hardware.host_memory)}, in the {on_host.at}")
    if hardware.disk and sum(on_disk.values()) > hardware.disk:
        problems.append(f"disk: {_over(sum(on_disk.values()), hardware.disk)}")
    return Needs(on_device, on_host, on_disk, tuple(problems))


def judge(shape: Shape, setup: Setup, hardware: Hardware, data: PlanData) -> Verdict:
    """The verdict on a run as it is configured."""
    found = needs(shape, setup, hardware, data)
    if not found.problems:
        return Verdict("fits with offload" if offloaded(setup) else "fits", (_room(found, hardware),))
    ways: list[Way] = []
    for changes, other, machine in alternatives(setup, hardware, data):
        if ways and other.lora:
            continue
        then = needs(shape, other, machine, data)
        if not then.problems:
            ways.append(Way(changes, other, machine, then))
            if not other.lora or setup.lora:
                break
    return Verdict("does not fit", found.problems, tuple(ways))


def alternatives(setup: Setup, hardware: Hardware, data: PlanData) -> Iterator[tuple[tuple[str, ...], Setup, Hardware]]:
    """All combinations of changes, the cheapest first; a dearer kind of change outweighs every cheaper one.

    From cheap to dear: the precision that the GPU has, pinned memory not rounded, smaller micro-batches, gradient
    checkpointing, ZeRO-3, shorter rows, offloaded optimizer, offloaded parameters, LoRA, more nodes.
    """
    kinds = (
        _precisions(setup, hardware),
        _rounding(setup),
        _micro_batches(setup),
        _switch(setup.gradient_checkpointing, "gradient_checkpointing", 64),
        _stages(setup),
        _lengths(setup, data),
        _switch(setup.offload_optimizer, "offload_optimizer", 2048),
        _switch(setup.offload_parameters, "offload_parameters", 4096),
        _loras(setup),
    )
    sized = [(nodes, *_nodes(hardware, nodes)) for nodes in NODES if nodes == 1 or hardware.gpu.memory]
    options = []
    for choice in itertools.product(*kinds):
        for nodes, cost, words in sized:
            total = cost + sum(one[0] for one in choice)
            options.append((total, len(options), [one[1:] for one in choice], nodes, words))
    for _, _, chosen, nodes, words in sorted(options, key=lambda option: option[:2]):
        changed = setup._replace(**{k: v for fields, _ in chosen for k, v in fields.items()})
        changed = changed._replace(ranks=setup.ranks * nodes)
        if possible(changed):
            machine = hardware._replace(nodes=hardware.nodes * nodes)
            yield tuple(text for _, text in [*chosen, ({}, words)] if text), changed, machine


def possible(setup: Setup) -> bool:
    """Whether `TrainConfig` would take it: the batch divides, and the engine has what is asked of it."""
    if setup.batch_size % (setup.micro_batch * setup.ranks):
        return False
    if setup.engine == "torch":
        return setup.ranks == 1 and setup.precision != "fp16" and not setup.zero_stage and not offloaded(setup)
    needed = 3 if setup.offload_parameters else 1 if setup.offload_optimizer or setup.precision != "fp32" else 0
    return setup.zero_stage >= needed


def _precisions(setup: Setup, hardware: Hardware) -> list[tuple]:
    if setup.precision == "bf16" and not hardware.gpu.bf16:
        return [(0, {"precision": "fp16"}, "precision fp16")]
    same = [(0, {}, "")]
    if setup.precision == "fp32":
        better = "bf16" if hardware.gpu.bf16 else "fp16"
        same.append((32768, {"precision": better}, f"precision {better}"))
    return same


def _rounding(setup: Setup) -> list[tuple]:
    options = [(0, {}, "")]
    if setup.pinned_rounding:
        options.append((1, {"pinned_rounding": False}, f"pinned memory not rounded up ({ROUNDING_OFF})"))
    return options


def _micro_batches(setup: Setup) -> list[tuple]:
    options, micro = [(0, {}, "")], setup.micro_batch
    while micro % 2 == 0:
        micro //= 2
        options.append((2 * len(options), {"micro_batch": micro}, f"micro_batch {micro}"))
    return options


def _switch(on: bool, name: str, cost: int) -> list[tuple]:
    return [(0, {}, "")] if on else [(0, {}, ""), (cost, {name: True}, name)]


def _stages(setup: Setup) -> list[tuple]:
    if setup.zero_stage == 3:
        return [(0, {}, "")]
    words = "zero_stage 3" if setup.engine == "deepspeed" else "engine deepspeed with zero_stage 3"
    return [(0, {}, ""), (128, {"zero_stage": 3, "engine": "deepspeed"}, words)]


def _lengths(setup: Setup, data: PlanData) -> list[tuple]:
    options, length = [(0, {}, "")], setup.length
    fewest = max(SHORTEST_ROW, 2 * (data.mean_document or 0))
    while data.packing and length // 2 >= fewest:
        length //= 2
        options.append((256 * len(options), {"length": length}, f"rows of {length} tokens"))
    return options


def _loras(setup: Setup) -> list[tuple]:
    if setup.lora is not None:
        return [(0, {}, "")]
    return [(0, {}, ""), (8192, {"lora": LoraConfig()}, "LoRA (rank 16)")]


def _nodes(hardware: Hardware, nodes: int) -> tuple[int, str]:
    if nodes == 1:
        return 0, ""
    return 16384 + nodes, f"{hardware._replace(nodes=hardware.nodes * nodes)} ({nodes} times the GPUs)"


def offloaded(setup: Setup) -> str:
    """What lives on the host, in words; empty for nothing."""
    places = {"optimizer": setup.offload_optimizer, "parameters": setup.offload_parameters}
    return " and ".join(name for name, on in places.items() if on)


def _over(size: float, limit: float) -> str:
    return f"{show_bytes(size)} of {show_bytes(limit)}"


def _room(found: Needs, hardware: Hardware) -> str:
    """The numbers that say that it fits."""
    parts = []
    if hardware.gpu.memory:
        parts.append(f"GPU memory: {_over(found.device.peak, hardware.gpu.memory)}, in the {found.device.at}")
    if hardware.host_memory:
        parts.append(f"host memory of a node: {_over(found.host.peak, hardware.host_memory)}, in the {found.host.at}")
    if hardware.disk:
        parts.append(f"disk: {_over(sum(found.disk.values()), hardware.disk)}")
    return "; ".join(parts)
