"""Save a model so that it surely loads again, in plain `transformers` too."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from llamax.errors import ModelError
from llamax.files import atomic_folder, sha256_file, write_atomic

NOTES = "llamax.json"


def save(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path | str,
    *,
    notes: dict[str, Any] | None = None,
) -> Path:
    """Write weights as safetensors, configuration and tokenizer; reload them; only if they are the same, publish.

    `llamax.json` beside them holds the sha256 of every file, which `load` checks, and `notes` (template, source, ...).
    Raises: ModelError: what was read back differs, or the model is a LoRA wrapper; `folder` stays as it was.
    Raises: DiskFullError: likewise.
    """
    folder = Path(folder)
    if not isinstance(model, PreTrainedModel):
        raise ModelError(f"cannot save a {type(model).__name__}: merge the adapter into its base model first")
    with atomic_folder(folder) as work:
        model.save_pretrained(work)
        tokenizer.save_pretrained(work)
        for file in work.iterdir():
            file.chmod(0o644)  # safetensors writes for its owner only
        compare(model, tokenizer, work)
        write_notes(work, notes or {})
    return folder


def write_notes(folder: Path, notes: dict[str, Any]) -> None:
    """Write `llamax.json` with `notes` and the sha256 of every file in the folder."""
    hashes = {file.name: sha256_file(file) for file in sorted(folder.iterdir()) if file.name != NOTES}
    write_atomic(folder / NOTES, json.dumps({"format": 1, "notes": notes, "sha256": hashes}, indent=2) + "\n")


def read_notes(folder: Path | str) -> dict[str, Any]:
    """The `notes` of a model that `save` wrote; empty for a model of other making. Raises: ModelError: damaged."""
    return _read_part(Path(folder) / NOTES, "notes")


def _read_part(file: Path, part: str) -> dict[str, Any]:
    """The mapping `part` of `llamax.json`; empty where there is no such file. Raises: ModelError: damaged."""
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_text(encoding="utf-8"))[part])
    except (ValueError, LookupError, TypeError, RecursionError):
        raise ModelError(f"{file}: damaged; save the model again, or delete this file to load it unchecked") from None


def check_files(folder: Path) -> None:
    """Compare every file with the sha256 that `save` noted; a folder of other making passes.

    Raises: ModelError: names the file that is damaged or missing.
    """
    hashes = _read_part(folder / NOTES, "sha256")
    for name, expected in hashes.items():
        part = folder / name
        if not part.is_file():
            raise ModelError(f"{part}: missing; the model folder is incomplete")
        if sha256_file(part) != expected:
            raise ModelError(f"{part}: damaged (its sha256 is not the one noted when it was saved)")


def compare(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Load `folder` and compare it with the model and tokenizer in memory: shapes, logits, token ids, specials.

    Raises: ModelError: names what differs.
    """
    again = AutoModelForCausalLM.from_pretrained(
        folder, dtype=model.dtype, local_files_only=True, attn_implementation=model.config._attn_implementation
    )
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name, tensor in again.state_dict().items():
        if shapes.pop(name, None) != tuple(tensor.shape):
            raise ModelError(f"saving failed: {name} read back as {tuple(tensor.shape)} differs from the model's shape")
    if shapes:
        raise ModelError(f"saving failed: {', '.join(shapes)} not written")
    ids = torch.arange(min(64, model.config.vocab_size), device=model.device)[None]
    before, after = logits(model, ids), logits(again.to(model.device), ids)
    # Same weights, same code, same input: only the order of additions may differ.
    bound = 1e-2 if model.dtype in (torch.float16, torch.bfloat16) else 1e-4
    difference = (before - after).abs().max().item() / max(1.0, before.abs().max().item())
    if not difference <= bound:
        raise ModelError(f"saving failed: logits read back differ by {difference:.2g} of their size (bound {bound:g})")
    _compare_tokenizers(tokenizer, AutoTokenizer.from_pretrained(folder, local_files_only=True))


def _compare_tokenizers(tokenizer: PreTrainedTokenizerBase, again: PreTrainedTokenizerBase) -> None:
    probe = "Llama-X: 3.0.0 → 4.0.0\n  2 + 2 = 4, über naïve 東京 🦙"
    same = {
        "token ids": tokenizer(probe).input_ids == again(probe).input_ids,
        "special tokens": tokenizer.special_tokens_map == again.special_tokens_map,
        "chat template": tokenizer.chat_template == again.chat_template,
        "size": len(tokenizer) == len(again),
    }
    for what, equal in same.items():
        if not equal:
            raise ModelError(f"saving failed: the tokenizer's {what} changed when read back")


def logits(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """Logits `[batch, seq, vocab]` in fp32 for `ids` `[batch, seq]`, without dropout; the model's mode is kept."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            return model(input_ids=ids, use_cache=False).logits.float()
    finally:
        model.train(was_training)
