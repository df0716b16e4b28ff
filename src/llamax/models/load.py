"""Get a model and its tokenizer from anywhere; see `llamax.models.source` for what a name may be.

Whatever is on this disk is loaded without asking the hub: no call, no wait for a network that is not there.
"""

import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from llamax.errors import LlamaxError, ModelError
from llamax.models.convert import convert_gguf, convert_meta, meta_tokenizer
from llamax.models.fingerprint import file_hash
from llamax.models.save import check_files
from llamax.models.source import Source, cache_folder, find
from llamax.models.vocabulary import check_special_tokens, set_pad_token

if not shutil.which("nvidia-smi"):
    # transformers imports DeepSpeed, which would warn that it saw no GPU.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

__all__ = ["Loaded", "check_special_tokens", "load", "load_tokenizer"]


class Loaded(NamedTuple):
    """A model, in evaluation mode, and its tokenizer with three distinct BOS, EOS and PAD tokens."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def load(spec: str, *, dtype: torch.dtype = torch.float32, pad_token: str | None = None) -> Loaded:
    """Load the model `spec` in `dtype`. `pad_token`: an existing token, or a new one, to serve as PAD.

    Raises: ModelError: nothing there, weights missing or damaged, unsafe pickle, special tokens that coincide.
    """
    source = _converted(find(spec))
    tokenizer = _tokenizer(spec, source)
    try:
        model = convert_meta(source.path, dtype) if source.kind == "meta" else _from_pretrained(spec, source, dtype)
    except LlamaxError:
        raise
    except Exception as error:
        raise ModelError(f"model {spec}: cannot be loaded: {first_line(error)}") from error
    if pad_token is not None:
        set_pad_token(tokenizer, pad_token, model)
    check_special_tokens(tokenizer)
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        rows = model.get_input_embeddings().weight.shape[0]
        raise ModelError(f"model {spec}: the tokenizer has {len(tokenizer)} tokens, the embeddings only {rows} rows")
    return Loaded(model.eval(), tokenizer)


def load_tokenizer(spec: str, *, pad_token: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of `load`, without the weights. Raises: ModelError: as `load`."""
    tokenizer = _tokenizer(spec, _converted(find(spec)))
    if pad_token is not None:
        set_pad_token(tokenizer, pad_token)
    check_special_tokens(tokenizer)
    return tokenizer


def _converted(source: Source) -> Source:
    """A GGUF file as a folder of safetensors, converted at the first call and cached by content; others as they are."""
    if source.kind != "gguf":
        return source
    folder = cache_folder() / "models" / f"{source.path.stem}-{file_hash(source.path)[:16]}"
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
        raise ModelError(f"model {spec}: its tokenizer cannot be loaded: {first_line(error)}") from error


def _from_pretrained(spec: str, source: Source, dtype: torch.dtype) -> PreTrainedModel:
    if source.path is not None:
        check_files(source.path)
    model, report = AutoModelForCausalLM.from_pretrained(**_where(spec, source), dtype=dtype, output_loading_info=True)
    absent = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if absent:
        raise ModelError(f"model {spec}: {len(absent)} weights missing or of another shape, the first is {absent[0]}")
    return model


def _where(spec: str, source: Source) -> dict[str, Any]:
    """Arguments of `from_pretrained`: a folder, loaded offline, or the hub."""
    path: Path | None = source.path
    if path is None:
        return {"pretrained_model_name_or_path": spec}
    return {"pretrained_model_name_or_path": path, "local_files_only": True}


def first_line(error: Exception) -> str:
    """An exception as one line."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
