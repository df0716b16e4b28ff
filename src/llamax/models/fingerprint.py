"""The content of a model as one hash, without loading it and without torch: a part of every run's key."""

import contextlib
import json
import os
import re
from pathlib import Path
from typing import Any

from filelock import FileLock

from llamax.errors import DiskFullError, ModelError
from llamax.files import sha256_file, sha256_json, write_atomic
from llamax.hub import commit_of
from llamax.models.source import Source, cache_folder, find

# Everything that changes what a model computes or how its text is cut into tokens; not its README, not our notes.
PARTS = (
    "*.safetensors",
    "*.bin",
    "*.pth",
    "*.json",
    "*.jinja",
    "*.model",
    "*.txt",
)
NOT_PARTS = {"llamax.json"}


def fingerprint(spec: str, *, ask: bool = True) -> str:
    """Hex sha256 of weights, configuration and tokenizer; of id and commit for a hub id.

    ask: the hub for the commit of what is not on this disk, so that a download changes nothing.
    Raises: ModelError: as `source.find`; a hub id that is not here and may not, or cannot, be asked for.
    """
    source = find(spec)
    if source.kind == "hub":
        if not ask:
            raise ModelError(f"model {spec}: not on this disk")
        source = source._replace(commit=commit_of(spec, "model", ModelError, "Connect, or give a local folder"))
    if source.commit:
        return sha256_json(f"hub:{spec}@{source.commit}")
    return sha256_json({name: file_hash(path) for name, path in sorted(parts(source).items())})


def parts(source: Source) -> dict[str, Path]:
    """Name and path of each file of a local model that counts."""
    if source.kind == "gguf":
        return {"model.gguf": source.path}
    files = {file.name: file for pattern in PARTS for file in source.path.glob(pattern) if file.name not in NOT_PARTS}
    beside = source.path.parent / "tokenizer.model"
    if source.kind == "meta" and "tokenizer.model" not in files and beside.is_file():
        files["tokenizer.model"] = beside
    return files


def file_hash(path: Path) -> str:
    """sha256 of a file, remembered under the cache folder by path, size and time of change.

    Where the memory is damaged or cannot be written, the hash is computed every time.
    """
    path = path.resolve()
    status = path.stat()
    known = cache_folder() / "hashes.json"
    stamp = [status.st_size, status.st_mtime_ns]
    entry = _read(known).get(str(path), [])
    if entry[:2] == stamp:
        return entry[2]
    value = sha256_file(path)
    with contextlib.suppress(OSError, DiskFullError):
        known.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{known}.lock"):
            kept = {name: old for name, old in _read(known).items() if os.path.exists(name)}
            write_atomic(known, json.dumps(kept | {str(path): [*stamp, value]}))
    return value


def _read(known: Path) -> dict[str, list]:
    """The remembered hashes; none if the file is missing, and no entry that is damaged: they can be computed again."""
    try:
        entries = json.loads(known.read_text(encoding="utf-8")).items()
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}
    return {name: entry for name, entry in entries if _is_entry(entry)}


def _is_entry(entry: Any) -> bool:
    """Whether this is [size, time of change, sha256]."""
    return isinstance(entry, list) and len(entry) == 3 and re.fullmatch("[0-9a-f]{64}", str(entry[2])) is not None
