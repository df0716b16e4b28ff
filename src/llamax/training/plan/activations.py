"""What a forward keeps for its backward, tensor by tensor, and what the backward needs beside it. No torch.

Read off transformers 5.23's `modeling_llama` and checked with `torch.autograd.graph.saved_tensors_hooks`. `e` is the
bytes of an element (4 in fp32, 2 in 16 bit), `h` the width, `f` the MLP's, `q` and `kv` those of queries and keys:

    RMSNorm (two)   its input eh, the inverse root 4, its output (which q, k, v read) eh
    attention       q and k after rotation, v, the output: e (2q + 2kv); the log of the softmax's sums 4 per head
    MLP             gate, silu(gate), up, silu(gate) * up: 4ef

The norms are `llamax.training.fused`'s. Attention (`llamax.training.attention`) stays within documents and has no mask:
on a GPU torch's flash kernel; on a CPU documents of at most `SHORT` tokens keep their softmax weights, e for each head
and key, in place of the sums, and of several longer ones the output is kept twice (pieces, and joined).
Frozen weights (LoRA) need no input of theirs; adapters keep theirs and e * rank for each adapted map.
"""

from typing import NamedTuple

from llamax.training.plan.setup import FP32, Setup
from llamax.training.plan.shapes import Shape, targets

SHORT = 512
"""Tokens of a document up to which a CPU keeps whole score matrices: `llamax.training.attention.SHORT`."""
AT_ONCE = {"cpu": 2**20, "cuda": 2**22}
"""Logits that the loss turns to fp32 at a time: `llamax.training.cross_entropy.AT_ONCE`."""


class Layer(NamedTuple):
    """Bytes per token that one layer keeps: `mlp` is the part that its MLP's backward gives back first."""

    norms: float
    attention: float
    mlp: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.norms + self.attention + self.mlp


def layer(shape: Shape, setup: Setup) -> Layer:
    """What one layer keeps per token, without gradient checkpointing."""
    e, h = setup.element, shape.hidden
    norms = 2 * (norm(shape, setup) + e * h)
    attention = e * (2 * shape.q_width + 2 * shape.kv_width)
    if keeps_scores(setup):
        attention += e * shape.heads * setup.mean_document
    else:
        several = setup.on_cpu and setup.mean_document < setup.tokens
        attention += FP32 * shape.heads + (e * shape.q_width if several else 0)
    return Layer(norms, attention + _adapters(shape, setup), 4 * e * shape.intermediate)


def keeps_scores(setup: Setup) -> bool:
    """Whether the softmax weights of every document are kept for the backward."""
    return setup.on_cpu and setup.mean_document <= SHORT


def _adapters(shape: Shape, setup: Setup) -> float:
    """Bytes per token that the adapters of one layer keep: `A x`, and with dropout `x` anew (and its mask)."""
    if setup.lora is None:
        return 0.0
    names = targets(setup.lora)
    kept = setup.element * setup.lora.rank * len(names)
    if setup.lora.dropout:
        kept += sum(shape.linear(name)[0] for name in names) * (setup.element + 1)
    return kept


def kept(shape: Shape, setup: Setup) -> float:
    """Bytes per token that a layer keeps until its backward: all, or its input alone with gradient checkpointing."""
    return setup.element * shape.hidden if setup.gradient_checkpointing else layer(shape, setup).total


def stem(shape: Shape, setup: Setup) -> float:
    """Bytes per token outside the layers: ids, positions, loss mask, cos and sin."""
    return 17 + 2 * setup.element * shape.head_dim


def norm(shape: Shape, setup: Setup) -> float:
    """Bytes per token that a norm keeps, its output left out."""
    return FP32 + setup.element * shape.hidden


def logits(shape: Shape, setup: Setup) -> float:
    """Bytes of the logits, on targets alone, in which the loss leaves their gradient."""
    return setup.element * shape.vocab * setup.tokens * setup.supervised


def loss(shape: Shape, setup: Setup) -> float:
    """Bytes at the loss: the logits, and a part of them in fp32 before (if they are not) and after the softmax."""
    part = min(AT_ONCE["cpu" if setup.on_cpu else "cuda"], shape.vocab * setup.tokens * setup.supervised)
    return logits(shape, setup) + FP32 * part * (1 if setup.element == FP32 else 2)


def mlp_backward(shape: Shape, setup: Setup) -> float:
    """Bytes per token beside what is kept, when the MLP's product is taken apart: the largest moment of a layer.

    The product itself has gone; its gradient and those of its two factors are there, and that of the residual.
    """
    return setup.element * (shape.hidden + 2 * shape.intermediate)


def attention_backward(shape: Shape, setup: Setup) -> float:
    """Bytes beside what is kept when attention's backward is at its last document: gradients of q, k, v, of the output
    and of the residual, and where scores are kept, the gradients of that document's weights and scores."""
    e, n = setup.element, setup.mean_document
    gradients = e * (2 * shape.q_width + 2 * shape.kv_width + shape.hidden) * setup.tokens
    return gradients + (2 * e * shape.heads * n * n if keeps_scores(setup) else 0)


def recomputed(shape: Shape, setup: Setup) -> float:
    """Bytes per token of the one layer whose backward runs; its first norm reads the input that is kept."""
    return layer(shape, setup).total - (setup.element * shape.hidden if setup.gradient_checkpointing else 0)
