"""Checkpoints of other formats as Hugging Face models: GGUF files, and Meta's original `consolidated.*.pth`.

The rules for Meta's format are those of `transformers`' own script, convert_llama_weights_to_hf.py (its wheels of
version 5 no longer carry it): each shard holds a slice of every matrix, and the rows of the query and key projections
are reordered because Meta rotates neighbouring pairs of a head's dimensions and `transformers` rotates halves.
"""

import base64
import json
import pickle
import zipfile
from pathlib import Path
from textwrap import shorten
from typing import Self

import torch
from pydantic import ConfigDict, PositiveFloat, PositiveInt, model_validator
from tokenizers import normalizers
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.convert_slow_tokenizer import TikTokenConverter

from llamax.config import Config
from llamax.errors import ModelError, ParameterError
from llamax.files import sha256_file
from llamax.models.precision import cast
from llamax.models.save import save
from llamax.models.vocabulary import check_special_tokens, set_pad_token

# Special tokens that published models never use in text, to pad with where PAD is EOS (SmolLM2's was for notebooks).
UNUSED = ("<empty_output>", "<|finetune_right_pad_id|>", "<|reserved_special_token_0|>", "<unk>")


class MetaParams(Config):
    """What params.json says of a model's shape; it says more, which nothing here needs."""

    model_config = ConfigDict(extra="ignore")

    dim: PositiveInt
    n_layers: PositiveInt
    n_heads: PositiveInt
    n_kv_heads: PositiveInt | None = None
    norm_eps: PositiveFloat
    rope_theta: PositiveFloat = 10000.0
    use_scaled_rope: bool = False
    rope_scaling_factor: PositiveFloat = 8.0
    max_seq_len: PositiveInt | None = None

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.dim % (2 * self.n_heads) or self.n_heads % (self.n_kv_heads or self.n_heads):
            raise ValueError("dim should be an even multiple of n_heads, and n_heads a multiple of n_kv_heads")
        return self


def convert_gguf(file: Path, folder: Path) -> None:
    """Write the GGUF `file` as a folder in the Hugging Face format, weights dequantised to fp32.

    Raises: ModelError: not a GGUF file, or of an architecture that `transformers` cannot read.
    """
    where = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name, "local_files_only": True}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**where)
        quantised = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    except Exception as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{file}: cannot be read as GGUF: {line}") from error
    # A model that carries a quantisation refuses to be saved: its weights go into a fresh one.
    settings = quantised.config.to_dict()
    settings.pop("quantization_config", None)
    model = LlamaForCausalLM(LlamaConfig.from_dict(settings))
    model.load_state_dict(quantised.state_dict())
    choose_pad(tokenizer, model)
    notes = {"source": file.name, "source_sha256": sha256_file(file), "quantisation": quantisation(file)}
    save(model, tokenizer, folder, notes=notes)


def choose_pad(tokenizer: PreTrainedTokenizerBase, model: LlamaForCausalLM) -> None:
    """Where PAD is missing or equals EOS or BOS, pad with a special token that the vocabulary has but text has not."""
    try:
        check_special_tokens(tokenizer)
    except ModelError:
        vocabulary = tokenizer.get_vocab()
        token = next((token for token in UNUSED if token in vocabulary), None)
        if token is not None:
            set_pad_token(tokenizer, token, model)


def quantisation(file: Path) -> dict[str, int]:
    """How many tensors of a GGUF file are stored in which type."""
    from gguf import GGUFReader

    kinds = [tensor.tensor_type.name for tensor in GGUFReader(file).tensors]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


def convert_meta(folder: Path, dtype: torch.dtype) -> LlamaForCausalLM:
    """The model in a folder of Meta's `consolidated.*.pth` and `params.json`.

    The window is `max_seq_len` of params.json where given, else 131,072, 8,192 (Llama 3.1+, Llama 3) or 2,048: nothing
    else in a folder tells Llama 2 (4,096) from Llama 1.

    Raises: ModelError: unsafe pickle, missing shards, shapes that do not fit params.json.
    """
    params = read_params(folder / "params.json")
    shards = read_shards(folder)
    heads, kv_heads = params.n_heads, params.n_kv_heads or params.n_heads
    if kv_heads % len(shards) or heads % len(shards):
        raise ModelError(f"{folder}: {len(shards)} shards cannot hold {kv_heads} key heads evenly; is one missing?")
    weights = {}
    for name in [name for name in shards[0] if name != "rope.freqs"]:
        new = hf_name(name)
        try:
            weights[new] = merge(name, [shard.pop(name) for shard in shards], params.dim).to(dtype)
            if name.endswith((".wq.weight", ".wk.weight")):
                weights[new] = halves(weights[new], heads if ".wq." in name else kv_heads)
        except (RuntimeError, ValueError, IndexError) as error:
            line = str(error).splitlines()[0]
            raise ModelError(f"{folder}: the shape of tensor {name} does not fit params.json: {line}") from None
    tied = "lm_head.weight" not in weights
    config = meta_config(params, weights, tied)
    if tied:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        line = shorten(str(error).splitlines()[-1], 200)
        raise ModelError(f"{folder}: the weights do not fit params.json: {line}") from None
    return with_buffers(model, dtype)


def with_buffers(model: LlamaForCausalLM, dtype: torch.dtype) -> LlamaForCausalLM:
    """A model made on the meta device, with its rotary frequencies computed and its tied weights tied."""
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    model.tie_weights()
    return cast(model, dtype)


def read_params(file: Path) -> MetaParams:
    """Raises: ModelError: not JSON, or parameters that are missing or cannot be."""
    try:
        return MetaParams.parse(json.loads(file.read_text(encoding="utf-8")), str(file))
    except ParameterError as error:
        raise ModelError(str(error)) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file}: not a JSON file of parameters ({error}); get it again") from None


def read_shards(folder: Path) -> list[dict[str, torch.Tensor]]:
    """All shards. Raises: ModelError: one is damaged or lacks a tensor."""
    files = sorted(folder.glob("consolidated.*.pth"))
    shards = [read_pth(file) for file in files]
    needed = {"tok_embeddings.weight", "layers.0.feed_forward.w1.weight"}.union(*shards) - {"rope.freqs"}
    for file, shard in zip(files, shards, strict=True):
        if absent := needed - shard.keys():
            raise ModelError(f"{file}: lacks {len(absent)} tensors, the first is {min(absent)}; get it again")
    return shards


def read_pth(file: Path) -> dict[str, torch.Tensor]:
    """One shard, tensors only, all of them under Meta's names.

    Raises: ModelError: damaged, of another model, or it holds anything that pickle would have to run.
    """
    try:
        if not zipfile.is_zipfile(file):
            raise ModelError(f"{file}: damaged, or not a .pth file; get it again")
        shard = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        raise ModelError(
            f"{file}: holds more than tensors, and loading it could run code; get a checkpoint of tensors only"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        line = shorten(str(error), 100)
        raise ModelError(f"{file}: damaged or not a .pth file ({line}); get it again") from None
    if not (isinstance(shard, dict) and all(isinstance(tensor, torch.Tensor) for tensor in shard.values())):
        raise ModelError(f"{file}: holds something else than tensors by name; is it a checkpoint of Meta's format?")
    for name in shard.keys() - {"rope.freqs"}:
        try:
            hf_name(str(name))
        except ModelError as error:
            raise ModelError(f"{file}: {error}") from None
    return shard


def hf_name(name: str) -> str:
    """Name of one of Meta's tensors in `transformers`."""
    outer = {
        "tok_embeddings.weight": "model.embed_tokens.weight",
        "norm.weight": "model.norm.weight",
        "output.weight": "lm_head.weight",
    }
    if name in outer:
        return outer[name]
    inner = {
        "attention.wq": "self_attn.q_proj",
        "attention.wk": "self_attn.k_proj",
        "attention.wv": "self_attn.v_proj",
        "attention.wo": "self_attn.o_proj",
        "feed_forward.w1": "mlp.gate_proj",
        "feed_forward.w2": "mlp.down_proj",
        "feed_forward.w3": "mlp.up_proj",
        "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
    }
    try:
        _, layer, part = name.removesuffix(".weight").split(".", 2)
        return f"model.layers.{int(layer)}.{inner[part]}.weight"
    except (ValueError, KeyError):
        raise ModelError(f"tensor {name!r} does not belong to a LLaMA checkpoint of Meta's format") from None


def merge(name: str, slices: list[torch.Tensor], dim: int) -> torch.Tensor:
    """Put the shards' slices of one matrix together.

    Column-parallel matrices (queries, keys, values, gate, up, head) are cut along dimension 0, row-parallel ones (wo,
    w2) along 1; the embeddings along 1 up to Llama 2 and along 0 since Llama 3; norms are copied to every shard.
    """
    if len(slices) == 1 or slices[0].dim() == 1:
        return slices[0]
    embedding_columns = name == "tok_embeddings.weight" and slices[0].shape[1] != dim
    return torch.cat(slices, 1 if embedding_columns or name.endswith((".wo.weight", ".w2.weight")) else 0)


def halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Reorder each head's rows from pairs (0 1)(2 3)... to halves 0 2 ... 1 3 ...; `weight` `[heads * size, dim]`."""
    rows, dim = weight.shape
    return weight.view(heads, rows // heads // 2, 2, dim).transpose(1, 2).reshape(rows, dim)


def meta_config(params: MetaParams, weights: dict[str, torch.Tensor], tied: bool) -> LlamaConfig:
    """Configuration from params.json, sizes from the weights themselves."""
    vocabulary = weights["model.embed_tokens.weight"].shape[0]
    scaled = params.use_scaled_rope
    rope = {"rope_type": "default", "rope_theta": params.rope_theta}
    if scaled:  # Llama 3.1, section 3.4.2 of the report; 3.2 sets its own factor
        rope |= {"rope_type": "llama3", "factor": params.rope_scaling_factor}
        rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    third = vocabulary >= 128000
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=params.dim,
        intermediate_size=weights["model.layers.0.mlp.gate_proj.weight"].shape[0],
        num_hidden_layers=params.n_layers,
        num_attention_heads=params.n_heads,
        num_key_value_heads=params.n_kv_heads or params.n_heads,
        rms_norm_eps=params.norm_eps,
        rope_parameters=rope,
        max_position_embeddings=params.max_seq_len or (131072 if scaled else 8192 if third else 2048),
        tie_word_embeddings=tied,
        bos_token_id=128000 if third else 1,
        eos_token_id=128001 if third else 2,
    )


def meta_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer.model in `folder` or the one above it: SentencePiece (Llama 1, 2) or tiktoken (Llama 3).

    Raises: ModelError: there is none, or it is damaged.
    """
    places = [place / "tokenizer.model" for place in (folder, folder.parent)]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise ModelError(f"{folder}: tokenizer.model is neither here nor in the folder above")
    head = file.read_bytes()[:256].split(b"\n")[0].split()
    try:
        if not file.stat().st_size:
            raise ValueError("it is empty")
        if len(head) == 2 and head[1].isdigit():
            return tiktoken_tokenizer(file)
        return sentencepiece_tokenizer(file)
    except Exception as error:  # the readers of either format share no base class
        raise ModelError(
            f"{file}: damaged, or of neither SentencePiece nor tiktoken ({shorten(str(error), 100)}); get it again"
        ) from None


def sentencepiece_tokenizer(file: Path) -> PreTrainedTokenizerBase:
    """Llama 1's and 2's tokenizer, with the normaliser of the hub's own conversion (meta-llama/Llama-2-7b-hf).

    `LlamaTokenizer` of transformers 5 swallows a blank at the start of a text; SentencePiece and the hub's file do not.
    """
    read = LlamaTokenizer.from_pretrained(file.parent, local_files_only=True, add_bos_token=True)
    raw = read.backend_tokenizer
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.pre_tokenizer = None
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


class _Ranks(TikTokenConverter):
    """The converter of `transformers`, reading the file itself: lines of a token in base64 and its rank."""

    @staticmethod
    def load_tiktoken_bpe(tiktoken_url: str) -> dict[bytes, int]:
        lines = (line.split() for line in Path(tiktoken_url).read_bytes().splitlines() if line)
        ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
        if len(ranks) < 256:
            raise ValueError(f"{len(ranks)} tokens do not even hold every byte")
        return ranks


def tiktoken_tokenizer(file: Path) -> PreTrainedTokenizerBase:
    """Llama 3's tokenizer: byte-level BPE by rank, then 256 special tokens (meta-llama/llama-models, tokenizer.py)."""
    named = ["<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>"]
    named += ["<|finetune_right_pad_id|>", "<|reserved_special_token_2|>", "<|start_header_id|>", "<|end_header_id|>"]
    named += ["<|eom_id|>", "<|eot_id|>", "<|python_tag|>"]
    specials = named + [f"<|reserved_special_token_{i}|>" for i in range(3, 256 - len(named) + 3)]
    raw = _Ranks(str(file), extra_special_tokens=specials).converted()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<|begin_of_text|>",
        eos_token="<|end_of_text|>",
        pad_token="<|finetune_right_pad_id|>",
    )
    begin = ("<|begin_of_text|>", tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A <|begin_of_text|>:1 $B:1", special_tokens=[begin]
    )
    return tokenizer
