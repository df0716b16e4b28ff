"""A plan as text for people and as JSON values for programs. No torch."""

from typing import Any

from llamax.training.plan.hardware import Hardware, show_bytes
from llamax.training.plan.planning import Plan
from llamax.training.plan.setup import Setup
from llamax.training.plan.verdict import Needs, offloaded

ASSUMED = {"fragmentation reserve", "CUDA context and NCCL", "processes"}


def report(plan: Plan) -> str:
    """The plan as lines: what is planned, memory per GPU and node, disk, operations and time, the verdict."""
    return "\n".join([*_head(plan), "", *_memory(plan.needs, plan), "", *_compute(plan), "", *_verdict(plan)])


def _head(plan: Plan) -> list[str]:
    n = plan.counts
    size = f"{n.trainable + n.frozen:,} parameters" + (f", {n.trainable:,} of them trained" if n.frozen else "")
    rows = f"rows of {plan.data.length} tokens, " + ("packed" if plan.data.packing else "one document each, padded")
    return [
        f"{plan.shape.name}: {size}",
        f"{plan.hardware}: {settings(plan.setup)}",
        f"{rows}; micro_batch {plan.setup.micro_batch} x {plan.setup.ranks} ranks x {plan.setup.micro_steps} "
        f"accumulated = batch_size {plan.setup.batch_size}",
    ]


def settings(setup: Setup) -> str:
    """Precision, engine, offload, checkpointing, adapters, in a few words."""
    parts = [setup.precision, f"ZeRO-{setup.zero_stage}" if setup.zero_stage else f"engine {setup.engine}"]
    parts += [f"{offloaded(setup)} offloaded"] if offloaded(setup) else []
    parts += ["gradient checkpointing"] if setup.gradient_checkpointing else ["no gradient checkpointing"]
    parts += [f"LoRA rank {setup.lora.rank}"] if setup.lora else []
    return ", ".join(parts)


def _memory(needs: Needs, plan: Plan) -> list[str]:
    """Two columns for the GPU, since the largest moment of the backward and the step need different things."""
    backward = {name: terms for name, terms in needs.device.moments.items() if name != "optimizer step"}
    worst = max(backward, key=lambda name: sum(backward[name].values()))
    both = [backward[worst], needs.device.moments["optimizer step"]]
    names = [name for name in dict.fromkeys(name for terms in both for name in terms) if any(t.get(name) for t in both)]
    title = f"memory of one {plan.hardware.gpu.name}"
    lines = [f"{title:48} {'backward':>12} {'step':>12}   (backward: its largest moment, {worst})"]
    for name in names:
        lines.append(f"  {_marked(name):46} {_cell(both[0].get(name, 0))} {_cell(both[1].get(name, 0))}")
    lines.append(
        f"  {'total':46} {_cell(sum(both[0].values()))} {_cell(sum(both[1].values()))}" + _of(plan.hardware.gpu.memory)
    )
    lines += ["", f"host memory of a node, in the {needs.host.at}"]
    lines += [f"  {_marked(name):46} {_cell(size)}" for name, size in needs.host.terms.items() if size]
    lines.append(f"  {'total':46} {_cell(needs.host.peak)}" + _of(plan.hardware.host_memory))
    lines += ["", "disk"]
    lines += [f"  {name:46} {_cell(size)}" for name, size in needs.disk.items()]
    lines.append(f"  {'total':46} {_cell(sum(needs.disk.values()))}" + _of(plan.hardware.disk))
    return lines


def _compute(plan: Plan) -> list[str]:
    found, flops = plan.compute, plan.compute.flops
    what = f"of {plan.setup.epochs} epochs" if found.seconds is not None else "of one full row (data's size unknown)"
    lines = [
        f"operations {what}",
        f"  model {flops.model:.3g} (matrices {flops.matrices:.3g}, attention {flops.attention:.3g}, "
        f"head {flops.head:.3g}); recomputed, not counted: {flops.recomputed:.3g}",
        f"  MFU {found.mfu:.0%}, {found.source}",
        f"  {found.per_second:,.0f} tokens/s"
        + (f"; host optimizer and bus {found.offload:.1f} s a step" if found.offload else ""),
    ]
    if found.seconds is None:
        return [*lines, "  time: say how much data there is (--examples with --mean-tokens, or --tokens)"]
    lines.append(f"  time {duration(found.seconds)} for {found.steps:,} steps, without loading, evaluation and saving")
    if found.padded:
        lines.append(f"  up to {duration(found.padded)} where rows are padded to {plan.data.length}: pack them")
    return lines


def _verdict(plan: Plan) -> list[str]:
    verdict = plan.verdict
    lines = [
        f"verdict: {verdict.answer}" + (f" ({offloaded(plan.setup)})" if verdict.answer == "fits with offload" else "")
    ]
    lines += [f"  {line}" for line in verdict.why]
    for number, way in enumerate(verdict.ways):
        what = "the smallest that trains all weights" if number else "the smallest change that fits"
        lines.append(f"{what}: {'; '.join(way.changes)}")
        device, gpu, limit = way.needs.device, way.hardware.gpu, way.hardware.host_memory
        lines.append(f"  GPU memory: {show_bytes(device.peak)} of {show_bytes(gpu.memory)}, in the {device.at}")
        of = f" of {show_bytes(limit)}" if limit else ""
        lines.append(f"  host memory of a node: {show_bytes(way.needs.host.peak)}{of}, in the {way.needs.host.at}")
    if verdict.answer == "does not fit" and not verdict.ways:
        lines.append("no change that was tried makes it fit: another GPU, or more host memory or disk")
    if not plan.hardware.host_memory:
        lines.append("  host memory was not given (--host-memory), so it was not judged")
    return lines


def as_json(plan: Plan) -> dict[str, Any]:
    """All of it as JSON values, sizes in bytes."""
    verdict, flops = plan.verdict, plan.compute.flops
    return {
        "shape": plan.shape._asdict(),
        "setup": _setup(plan.setup),
        "hardware": _hardware(plan.hardware),
        "data": plan.data._asdict(),
        "parameters": plan.counts._asdict(),
        **_needs(plan.needs),
        "compute": plan.compute._asdict() | {"flops": flops._asdict() | {"model": flops.model}},
        "verdict": {
            "answer": verdict.answer,
            "why": list(verdict.why),
            "ways": [
                {
                    "changes": list(way.changes),
                    "setup": _setup(way.setup),
                    "hardware": _hardware(way.hardware),
                    **_needs(way.needs),
                }
                for way in verdict.ways
            ],
        },
    }


def _needs(needs: Needs) -> dict[str, Any]:
    return {"device": needs.device._asdict(), "host": needs.host._asdict(), "disk": needs.disk}


def _setup(setup: Setup) -> dict[str, Any]:
    return setup._asdict() | {"lora": setup.lora and setup.lora.model_dump(mode="json")}


def _hardware(hardware: Hardware) -> dict[str, Any]:
    return hardware._asdict() | {"gpu": hardware.gpu._asdict()}


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _marked(name: str) -> str:
    return f"{name} (assumed)" if name in ASSUMED else name


def _cell(size: float) -> str:
    return f"{show_bytes(size) if size else '-':>12}"


def _of(limit: float | None) -> str:
    return f"   of {show_bytes(limit)}" if limit else ""
