"""What a forward keeps for its backward, tensor by tensor, and what the backward needs beside it. No torch.

Read off transformers 5.23's `modeling_llama` and checked with `torch.autograd.graph.saved_tensors_hooks`. `e` is the
bytes of an element (4 in fp32, 2 in 16 bit), `h` the width, `f` the MLP's, `q` and `kv` those of queries and keys:

    RMSNorm (two)   its input in fp32 4h, the inverse root 4, the normed input eh, its output (which q, k, v read) eh
    attention       q and k after rotation, v, the output: e (2q + 2kv); the log of the softmax's sums 4 per head
    MLP             gate, silu(gate), up, silu(gate) * up: 4ef

In fp32 the norm's input is the residual stream itself. With a mask transformers repeats keys and values for every
query head (kv becomes q), and torch turns the boolean mask into numbers in each layer: e bytes for each earlier token.
Frozen weights (LoRA) need no input of theirs; adapters keep theirs and e * rank for each adapted map.
"""

from typing import NamedTuple

from llamax.training.plan.setup import FP32, Setup
from llamax.training.plan.shapes import Shape, targets


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
    norms = 2 * (FP32 * h + FP32 + e * h + (0 if setup.lora else e * h))
    keys = shape.q_width if setup.masked or setup.attention == "eager" else shape.kv_width
    attention = e * (2 * shape.q_width + 2 * keys)
    if setup.attention == "eager":
        # softmax in fp32, and what the product with v reads: the same in fp32, a rounded copy otherwise
        attention += shape.heads * setup.length * (FP32 if e == FP32 else FP32 + e)
    else:
        attention += FP32 * shape.heads + (e * setup.length if setup.masked else 0)
    return Layer(norms, attention + _adapters(shape, setup), 4 * e * shape.intermediate)


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
    """Bytes per token outside the layers: ids, positions, loss mask, cos and sin, the boolean mask."""
    return 17 + 2 * setup.element * shape.head_dim + (setup.length if setup.masked else 0)


def final_norm(shape: Shape, setup: Setup) -> float:
    """Bytes per token that the last norm keeps."""
    return FP32 * shape.hidden + FP32 + (0 if setup.lora else setup.element * shape.hidden)


def logits(shape: Shape, setup: Setup) -> float:
    """Bytes at the loss's backward: the log-probabilities, and the two gradients through them, on targets alone."""
    return 3 * FP32 * shape.vocab * setup.tokens * setup.supervised


def mlp_backward(shape: Shape, setup: Setup) -> float:
    """Bytes per token beside what is kept, when the MLP's product is taken apart: the largest moment of a layer.

    The product itself has gone; its gradient and those of its two factors are there, and that of the residual.
    """
    return setup.element * (shape.hidden + 2 * shape.intermediate)


def recomputed(shape: Shape, setup: Setup) -> float:
    """Bytes per token of the one layer whose backward runs; in fp32 its first norm reads the kept input itself."""
    shared = setup.gradient_checkpointing and setup.element == FP32
    return layer(shape, setup).total - (FP32 * shape.hidden if shared else 0)
