"""Peak memory of one device, moment by moment of a step. No torch.

A step's largest moment is one of these: the loss; its head's backward; the backward of a layer's MLP, of the last layer
(all activations are there) or of the first (all gradients are); the last layer's attention; the end of the first layer;
the embedding's backward; the optimizer step. Each is a sum of named terms, so the plan says which one decides.
"""

from typing import NamedTuple

from llamax.training.plan import activations, states
from llamax.training.plan.hardware import Hardware
from llamax.training.plan.setup import FP32, Setup
from llamax.training.plan.shapes import Shape

CONTEXT = 2**30
"""Bytes of the CUDA context, its kernels and NCCL's buffers; assumed (0.4 to 0.6 GiB for the context alone)."""
FRAGMENTATION = 0.05
"""Share of what is allocated that the caching allocator holds beside it; assumed."""


class Device(NamedTuple):
    """Bytes on one device: `moments[name][term]`; `peak` is the largest moment, named `at`."""

    moments: dict[str, dict[str, float]]
    at: str
    peak: float

    @property
    def terms(self) -> dict[str, float]:
        """Those of the largest moment."""
        return self.moments[self.at]


def device(shape: Shape, setup: Setup, hardware: Hardware) -> Device:
    """Memory of one device. On a machine without GPU there is neither a context nor a reserve."""
    on_cpu = hardware.gpu.name == "CPU"
    setup = setup._replace(on_cpu=on_cpu)
    always = _always(shape, setup)
    found = {}
    for name, terms in {**_backward(shape, setup), "optimizer step": _step(shape, setup, on_cpu)}.items():
        terms = always | terms
        if not on_cpu:
            terms["fragmentation reserve"] = FRAGMENTATION * sum(terms.values())
            terms["CUDA context and NCCL"] = CONTEXT
        found[name] = terms
    at = max(found, key=lambda name: sum(found[name].values()))
    return Device(found, at, sum(found[at].values()))


def _always(shape: Shape, setup: Setup) -> dict[str, float]:
    """Terms that every moment has."""
    found = states.states(shape, setup)
    return {
        "weights": found.weights,
        "gradients": found.gradients if setup.zero_stage else 0,
        "optimizer: master weights": found.masters,
        "optimizer: moments": found.moments,
        "ZeRO reduce bucket": states.reduce(shape, setup),
        "ZeRO-3 live parameters": states.live(shape, setup),
    }


def _step(shape: Shape, setup: Setup, on_cpu: bool) -> dict[str, float]:
    """Terms of the optimizer step; ZeRO-3 has given the live parameters back."""
    return {
        "gradients": states.states(shape, setup).gradients,
        "ZeRO-3 live parameters": 0,
        "optimizer step: flat gradient and AdamW": states.step_copy(shape, setup, on_cpu=on_cpu),
    }


def _backward(shape: Shape, setup: Setup) -> dict[str, dict[str, float]]:
    """Terms of the moments of the backward. Frozen weights (LoRA) have no gradients to wait for."""
    n, h, e, layers = setup.tokens, shape.hidden, setup.element, shape.layers
    keep, this, stem = (f(shape, setup) * n for f in (activations.kept, activations.recomputed, activations.stem))
    mlp = activations.layer(shape, setup).mlp * n
    matrix = states.largest(shape, setup)
    embedding = 0 if setup.lora else shape.embedding
    waiting = e * embedding if shape.tied else 0  # autograd holds the head's gradient until the embedding's comes
    behind = 0 if shape.tied else embedding
    layer_n = states.counts(shape, setup).trainable / layers if setup.lora else shape.layer_parameters
    mlp_n = 0 if setup.lora else 3 * h * shape.intermediate
    held = 1 if setup.gradient_checkpointing else 0
    targets = n * setup.supervised

    def at(kept: float, logits: float, layer: float, done: float, flight: float) -> dict[str, float]:
        """One moment: activations kept, loss, the layer at work, gradients done (elements), and in flight (bytes)."""
        return {
            "activations": kept + stem,
            "logits and their gradients": logits,
            "layer at work": layer,
            "gradients in flight": flight + _gathering(shape, setup),
            **_gradients(shape, setup, done),
        }

    norm = activations.norm(shape, setup) * n + targets * h * e
    first, last = at_layer(held, 0), at_layer(held, layers - 1)
    backward = this + activations.mlp_backward(shape, setup) * n
    attention = this - mlp + activations.attention_backward(shape, setup)
    end = this - mlp + 3 * e * h * n
    return {
        "loss": at(keep * layers + norm, activations.loss(shape, setup), 0, 0, 0),
        "head": at(keep * layers + norm, activations.logits(shape, setup), 0, behind, e * embedding),
        "last layer": at(keep * last, 0, backward, behind + mlp_n / 3, waiting + e * matrix),
        "last layer's attention": at(keep * last, 0, attention, behind + mlp_n, waiting + e * matrix),
        "first layer": at(keep * first, 0, backward, behind + (layers - 1) * layer_n + mlp_n / 3, waiting + e * matrix),
        "first layer's end": at(keep * first, 0, end, behind + layers * layer_n, waiting + e * matrix),
        "embedding": at(0, 0, e * h * n, behind + layers * layer_n, _embedding(shape, setup)),
    }


def at_layer(held: int, index: int) -> int:
    """How many layers' kept activations are there when layer `index` is at work: those before it, and its own input."""
    return index + held


def _gradients(shape: Shape, setup: Setup, done: float) -> dict[str, float]:
    """fp32 sums of engine torch (ZeRO's own are always there): `done` elements, all with several micro-batches."""
    if setup.zero_stage:
        return {}
    whole = states.states(shape, setup).gradients
    return {"gradients": whole if setup.micro_steps > 1 else min(whole, FP32 * done)}


def _gathering(shape: Shape, setup: Setup) -> float:
    """Bytes that ZeRO's reduce takes: gradients waiting beside the bucket, laid end to end to be scattered.

    ZeRO-1 and 2 reduce the bucket where it lies, which is seen on a CPU; for a GPU the larger size is planned.
    """
    if not setup.zero_stage:
        return 0
    if setup.zero_stage < 3 and setup.on_cpu:
        return states.largest(shape, setup) * setup.element
    waiting = max(states.largest(shape, setup) * setup.element, states.reduce(shape, setup))
    return 2 * waiting + states.gather(shape, setup)


def _embedding(shape: Shape, setup: Setup) -> float:
    """Bytes of the embedding's gradient while it is made: dense; when tied, beside the head's and their sum."""
    if setup.lora:
        return 0
    e = setup.element
    made = 3 * e if shape.tied else e
    if setup.zero_stage:
        return shape.embedding * max(made, 2 * e)
    return shape.embedding * max(made, (e + FP32) if e < FP32 else FP32)
