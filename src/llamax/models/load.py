"""Get a model and its tokenizer from anywhere; see `llamax.models.source` for what a name may be.

Whatever is on this disk is loaded without asking the hub: no call, no wait for a network that is not there.
"""

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from filelock import FileLock
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from llamax.errors import LlamaxError, ModelError
from llamax.files import sha256_json
from llamax.hub import asked
from llamax.models import convert
from llamax.models.convert import convert_gguf, convert_meta, meta_tokenizer
from llamax.models.fingerprint import file_hash
from llamax.models.save import check_files
from llamax.models.source import Source, cache_folder, find
from llamax.models.vocabulary import check_special_tokens, set_pad_token

if not shutil.which("nvidia-smi"):
    # transformers imports DeepSpeed, which would warn that it saw no GPU.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

# A bar for every model that is loaded or saved, a second each, would bury what a notebook has to say.
transformers.utils.logging.disable_progress_bar()
HUB_REMEDY = "Connect, or give a local folder"
TOKENIZERS = ("tokenizer.json", "*.model", "vocab.*")  # a folder needs one of them
OBJECTS = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")

__all__ = ["Loaded", "check_special_tokens", "load", "load_config", "load_tokenizer"]


class Loaded(NamedTuple):
    """A model, in evaluation mode, and its tokenizer with three distinct BOS, EOS and PAD tokens."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def load(spec: str, *, dtype: torch.dtype = torch.float32, pad_token: str | None = None) -> Loaded:
    """Load the model `spec` in `dtype`. `pad_token`: an existing token, or a new one, to serve as PAD.

    Raises: ModelError: nothing there, weights missing or damaged, unsafe pickle, special tokens that coincide.
    """
    source = _ready(spec)
    tokenizer = _tokenizer(spec, source)
    try:
        model = convert_meta(source.path, dtype) if source.kind == "meta" else _from_pretrained(spec, source, dtype)
    except LlamaxError:
        raise
    except Exception as error:
        raise ModelError(f"model {spec}: cannot be loaded: {reason(error, source)}") from error
    if pad_token is not None:
        set_pad_token(tokenizer, pad_token, model)
    check_special_tokens(tokenizer)
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        rows = model.get_input_embeddings().weight.shape[0]
        raise ModelError(f"model {spec}: the tokenizer has {len(tokenizer)} tokens, the embeddings only {rows} rows")
    return Loaded(model.eval(), tokenizer)


def load_tokenizer(spec: str, *, pad_token: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of `load`, without the weights. Raises: ModelError: as `load`."""
    tokenizer = _tokenizer(spec, _ready(spec))
    if pad_token is not None:
        set_pad_token(tokenizer, pad_token)
    check_special_tokens(tokenizer)
    return tokenizer


def count_tokens(spec: str) -> int:
    """Tokens of the tokenizer as it is stored. Raises: ModelError: as `load`."""
    return len(_tokenizer(spec, _ready(spec)))


def load_config(spec: str) -> PretrainedConfig:
    """The configuration of `load`'s model; Meta's own format has it only with its weights. Raises: ModelError."""
    source = _ready(spec)
    if source.kind == "meta":
        return convert_meta(source.path, torch.bfloat16).config
    return AutoConfig.from_pretrained(**_where(spec, source))


def fetch(spec: str) -> Source:
    """Where the files of `spec` are on this disk, fetched from the hub if need be. Raises: ModelError: as `load`."""
    source = _ready(spec)
    if source.path is not None:
        return source
    from huggingface_hub import snapshot_download

    with asked(spec, "model", ModelError, HUB_REMEDY):
        folder = Path(snapshot_download(spec, allow_patterns=["*.json", "*.model", "*.safetensors", "*.jinja"]))
        if not any(folder.glob("*.safetensors")):
            snapshot_download(spec, allow_patterns=["pytorch_model*.bin"])
    return Source("folder", folder)


def _ready(spec: str) -> Source:
    """Where `spec` is, once nothing that can be seen without loading speaks against it."""
    source = _converted(find(spec))
    if source.path is None:
        with asked(spec, "model", ModelError, HUB_REMEDY):
            return source
    if source.kind == "folder":
        _check_heads(source.path / "config.json")
        if not any(any(source.path.glob(name)) for name in TOKENIZERS):
            raise ModelError(f"{source.path}: no tokenizer here: tokenizer.json is missing; copy it beside the weights")
    return source


def _check_heads(file: Path) -> None:
    """Raise `ModelError` if config.json is no JSON object or its numbers of heads cannot be."""
    if (broken := not_an_object(file)) is not None:
        raise ModelError(broken)
    config = json.loads(file.read_text())
    heads = config.get("num_attention_heads", 1)
    groups = config.get("num_key_value_heads")
    groups = heads if groups is None else groups
    if not (isinstance(heads, int) and isinstance(groups, int) and heads > 0 and groups > 0 and heads % groups == 0):
        raise ModelError(
            f"{file}: num_attention_heads {heads!r} should be a multiple of num_key_value_heads {groups!r}, above 0"
        )


def not_an_object(file: Path) -> str | None:
    """What is wrong with a file that should be a JSON object, if anything."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        return f"{file}: not JSON ({str(error).splitlines()[0]}); get the file again"
    return None if isinstance(value, dict) else f"{file}: a JSON {type(value).__name__}, should be an object"


def _converted(source: Source) -> Source:
    """A GGUF file as a folder of safetensors, cached by its content and by what converted it; others as they are."""
    if source.kind != "gguf":
        return source
    made_of = [file_hash(source.path), file_hash(Path(convert.__file__)), transformers.__version__]
    folder = cache_folder() / "models" / f"{source.path.stem}-{sha256_json(made_of)[:16]}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Two runs at once: the second waits, then finds the folder there.
        with FileLock(f"{folder}.lock"):
            if not folder.is_dir():
                convert_gguf(source.path, folder)
    return Source("folder", folder)


def _tokenizer(spec: str, source: Source) -> PreTrainedTokenizerBase:
    try:
        if source.kind == "meta":
            return meta_tokenizer(source.path)
        return AutoTokenizer.from_pretrained(**_where(spec, source))
    except LlamaxError:
        raise
    except Exception as error:
        raise ModelError(f"model {spec}: its tokenizer cannot be loaded: {reason(error, source)}") from error


def _from_pretrained(spec: str, source: Source, dtype: torch.dtype) -> PreTrainedModel:
    if source.path is not None:
        check_files(source.path)
    # Tensors of other shapes are let through to be reported here, by name and shape.
    model, report = AutoModelForCausalLM.from_pretrained(
        **_where(spec, source), dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
    )
    for name, stored, wanted in sorted(report["mismatched_keys"]):
        shapes = f"{list(stored)} in the weights, {list(wanted)} by config.json"
        raise ModelError(f"model {spec}: {name} is {shapes}; the two do not belong together")
    for names, where in (
        (report["missing_keys"], "missing"),
        (_unknown(report), "without a place in the model that config.json describes"),
    ):
        if names:
            raise ModelError(f"model {spec}: {len(names)} weights {where}, the first is {min(names)}")
    return model


def _unknown(report: dict[str, Any]) -> list[str]:
    """Weights that the model has no place for, but the frequencies that old LLaMA checkpoints carry."""
    return [name for name in report["unexpected_keys"] if not name.endswith("rotary_emb.inv_freq")]


def _where(spec: str, source: Source) -> dict[str, Any]:
    """Arguments of `from_pretrained`: a folder, loaded offline, or the hub."""
    path: Path | None = source.path
    if path is None:
        return {"pretrained_model_name_or_path": spec}
    return {"pretrained_model_name_or_path": path, "local_files_only": True}


def reason(error: Exception, source: Source) -> str:
    """Why a model could not be loaded, in one line."""
    files = [source.path / name for name in OBJECTS] if source.path is not None else []
    broken = next((fault for file in files if file.is_file() and (fault := not_an_object(file)) is not None), None)
    if broken is not None:
        return broken
    if isinstance(error, pickle.UnpicklingError):
        return "its pickle holds more than tensors, and loading it could run code; get the model as safetensors"
    if isinstance(error, EOFError):
        return "a file of weights is empty or cut short; get it again"
    if isinstance(error, SafetensorError):
        return f"a .safetensors file is damaged ({str(error).splitlines()[0]}); get it again"
    if isinstance(error, LookupError | ArithmeticError | TypeError | AttributeError):  # their text alone says little
        error = ValueError(f"{type(error).__name__}: {error}")
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    end = next((k for k, line in enumerate(lines) if not line.endswith(":")), len(lines) - 1)
    return " ".join(lines[: end + 1]) + (f" ({HUB_REMEDY})" if source.path is None else "")
