"""The numbers that a LLaMA's architecture consists of, and the parameter counts that follow from them. No torch."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from llamax.errors import ParameterError
from llamax.files import locate
from llamax.training.config import LoraConfig

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Shape(NamedTuple):
    """Architecture of a LLaMA: widths in elements, `tied` when the embedding is the vocabulary projection too."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool = False

    @property
    def q_width(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Width of all key heads together (and of all value heads)."""
        return self.kv_heads * self.head_dim

    def linear(self, name: str) -> tuple[int, int]:
        """(inputs, outputs) of a layer's linear map `name`, one of `LINEARS`."""
        h, q, kv, f = self.hidden, self.q_width, self.kv_width, self.intermediate
        return {
            "q_proj": (h, q), "k_proj": (h, kv), "v_proj": (h, kv), "o_proj": (q, h),
            "gate_proj": (h, f), "up_proj": (h, f), "down_proj": (f, h),
        }[name]  # fmt: skip

    @property
    def layer_matrices(self) -> int:
        """Parameters of one layer's linear maps: what is multiplied with every token."""
        return sum(inputs * outputs for inputs, outputs in map(self.linear, LINEARS))

    @property
    def layer_parameters(self) -> int:
        """Parameters of one layer, its two norms included."""
        return self.layer_matrices + 2 * self.hidden

    @property
    def embedding(self) -> int:
        """Parameters of the embedding."""
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        """All parameters, a tied matrix counted once."""
        return self.layers * self.layer_parameters + self.hidden + self.embedding * (1 if self.tied else 2)

    @property
    def largest_matrix(self) -> int:
        """Parameters of a layer's largest linear map."""
        return max(inputs * outputs for inputs, outputs in map(self.linear, LINEARS))

    def adapters(self, lora: LoraConfig) -> int:
        """Parameters of LoRA's `A` [rank, in] and `B` [out, rank] on its targets (all linear maps, or those named)."""
        pairs = (self.linear(name) for name in targets(lora))
        return self.layers * sum(lora.rank * (inputs + outputs) for inputs, outputs in pairs)


def targets(lora: LoraConfig) -> tuple[str, ...]:
    """The linear maps of a layer that get an adapter. Raises: ParameterError: a name that LLaMA does not have."""
    if lora.targets == "all-linear":
        return LINEARS
    names = (lora.targets,) if isinstance(lora.targets, str) else lora.targets
    for name in names:
        if name not in LINEARS:
            raise ParameterError(f"lora.targets: {name!r} cannot be planned: all-linear, or of {', '.join(LINEARS)}")
    return tuple(names)


_LLAMA = {
    # Touvron et al. 2023a (LLaMA), table 2; the width of the MLP from the released params.json / config.json.
    "llama-7b": Shape("llama-7b", 4096, 32, 32, 32, 128, 11008, 32000),
    "llama-13b": Shape("llama-13b", 5120, 40, 40, 40, 128, 13824, 32000),
    "llama-33b": Shape("llama-33b", 6656, 60, 52, 52, 128, 17920, 32000),
    "llama-65b": Shape("llama-65b", 8192, 80, 64, 64, 128, 22016, 32000),
    # Touvron et al. 2023b (Llama 2): 7B and 13B as above, 70B with 8 groups of keys and values.
    "llama-2-7b": Shape("llama-2-7b", 4096, 32, 32, 32, 128, 11008, 32000),
    "llama-2-13b": Shape("llama-2-13b", 5120, 40, 40, 40, 128, 13824, 32000),
    "llama-2-70b": Shape("llama-2-70b", 8192, 80, 64, 8, 128, 28672, 32000),
    # Grattafiori et al. 2024 (Llama 3), table 3.
    "llama-3-8b": Shape("llama-3-8b", 4096, 32, 32, 8, 128, 14336, 128256),
    "llama-3-70b": Shape("llama-3-70b", 8192, 80, 64, 8, 128, 28672, 128256),
    # SmolLM2-135M's config.json; ours (models/nano/config.json).
    "smol": Shape("smol", 576, 30, 9, 3, 64, 1536, 49152, tied=True),
    "nano": Shape("nano", 256, 3, 8, 4, 32, 640, 2048, tied=True),
}
_ALSO = {
    "7b": "llama-7b", "13b": "llama-13b", "33b": "llama-33b", "65b": "llama-65b", "30b": "llama-33b",
    "llama-30b": "llama-33b", "70b": "llama-2-70b", "llama3-8b": "llama-3-8b", "llama3-70b": "llama-3-70b",
    "meta-llama-3-8b": "llama-3-8b", "meta-llama-3-70b": "llama-3-70b", "llama-3.1-8b": "llama-3-8b",
    "llama-3.1-70b": "llama-3-70b", "meta-llama-3.1-8b": "llama-3-8b", "meta-llama-3.1-70b": "llama-3-70b",
    "smollm2-135m": "smol",
}  # fmt: skip
_ENDINGS = ("-hf", "-instruct", "-chat", "-hf-chat")


def shapes() -> list[str]:
    """Names of the shapes that are known by heart."""
    return list(_LLAMA)


def find_shape(spec: str) -> Shape:
    """The shape that `spec` means: a known name, a hub id of one, a `config.json`, or a folder that holds one.

    Raises: ParameterError: none of these, or a configuration that is not a LLaMA's.
    """
    name = spec.rsplit("/", 1)[-1].lower()
    for ending in _ENDINGS * 2:
        name = name.removesuffix(ending)
    name = _ALSO.get(name, name)
    path = locate(spec)
    file = path / "config.json" if path.is_dir() else path
    if file.is_file():
        return _read(file)
    if name in _LLAMA:
        return _LLAMA[name]
    raise ParameterError(
        f"model {spec!r}: no shape of that name, config.json or model folder; shapes: {', '.join(shapes())}"
    )


def _read(file: Path) -> Shape:
    try:
        return shape_of(json.loads(file.read_text(encoding="utf-8")), file.parent.name or str(file))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        fault = f"{error} is missing" if isinstance(error, KeyError) else str(error).splitlines()[0]
        raise ParameterError(f"{file}: not the config.json of a LLaMA: {fault}") from None


def shape_of(config: dict[str, Any], name: str = "model") -> Shape:
    """The shape that a Hugging Face configuration describes. Raises: KeyError, ValueError: not a LLaMA's."""
    if config.get("model_type", "llama") != "llama":
        raise ValueError(f"model_type is {config['model_type']!r}, should be 'llama'")
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    shape = Shape(
        name,
        hidden=hidden,
        layers=config["num_hidden_layers"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or hidden // heads,
        intermediate=config["intermediate_size"],
        vocab=config["vocab_size"],
        tied=bool(config.get("tie_word_embeddings", False)),
    )
    for field, value in zip(Shape._fields[1:-1], shape[1:-1], strict=True):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{field} is {value!r}, should be a number of at least 1")
    return shape
