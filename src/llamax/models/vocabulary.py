"""New tokens, and the three special ones that must differ."""

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llamax.errors import ModelError

# Matrix sizes that are multiples of 64 keep tensor cores busy (NVIDIA, Matrix Multiplication Background Guide).
MULTIPLE = 64


def add_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: list[str], *, special: bool = True
) -> int:
    """Add `tokens` to the vocabulary; returns how many were new.

    The embeddings grow to a multiple of 64. New rows, of input and output embeddings alike, are the mean of the old
    ones: a new token then starts with about the mean's probability and disturbs no prediction (Hewitt 2021,
    "Initializing New Word Embeddings for Pretrained Language Models").
    """
    known = len(tokenizer)
    added = tokenizer.add_tokens(tokens, special_tokens=special)
    if not added:
        return 0
    rows = model.get_input_embeddings().weight.shape[0]
    wanted = rows_for(rows, len(tokenizer))
    if wanted != rows:
        model.resize_token_embeddings(wanted, mean_resizing=False)
    # Rows past the old vocabulary were padding until now: they are new as well.
    matrices = {id(m.weight): m.weight for m in (model.get_input_embeddings(), model.get_output_embeddings())}
    for weight in matrices.values():
        fill_new_rows(weight, min(known, rows), known)
    return added


def rows_for(rows: int, tokens: int) -> int:
    """Rows of embeddings that had `rows` and are to hold `tokens`, rounded up to a multiple of 64."""
    return -(-max(rows, tokens) // MULTIPLE) * MULTIPLE


@torch.no_grad()
def fill_new_rows(weight: torch.Tensor, old: int, known: int) -> None:
    """Put the mean of the first `old` rows of `weight` [vocabulary, hidden] into those from `known` on."""
    weight[known:] = weight[:old].float().mean(0).to(weight.dtype)


def set_pad_token(tokenizer: PreTrainedTokenizerBase, token: str, model: PreTrainedModel | None = None) -> None:
    """Make `token` the PAD token; it is added, to the model's embeddings too, if the vocabulary lacks it."""
    if token not in tokenizer.get_vocab():
        if model is None:
            tokenizer.add_tokens([token], special_tokens=True)
        else:
            add_tokens(model, tokenizer, [token])
    tokenizer.pad_token = token
    if model is not None:
        model.config.pad_token_id = tokenizer.pad_token_id
        model.generation_config.pad_token_id = tokenizer.pad_token_id


def check_special_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    """BOS, EOS and PAD must be three tokens: where PAD is EOS, masking one hides the other and no stop is learnt.

    Raises: ModelError: names the fault and the remedy.
    """
    ids = {name: getattr(tokenizer, f"{name.lower()}_token_id") for name in ("BOS", "EOS", "PAD")}
    remedy = 'give one with pad_token, such as "<unk>" if the vocabulary has it, or a new one, "<pad>"'
    for name, value in ids.items():
        if value is None:
            what = remedy if name == "PAD" else f"set {name.lower()}_token in the tokenizer's tokenizer_config.json"
            raise ModelError(f"the tokenizer has no {name} token: {what}")
    for one, other in (("EOS", "PAD"), ("BOS", "PAD"), ("BOS", "EOS")):
        if ids[one] == ids[other]:
            what = remedy if other == "PAD" else "correct bos_token or eos_token in the tokenizer_config.json"
            token = tokenizer.convert_ids_to_tokens(ids[one])
            raise ModelError(f"the tokenizer's {one} and {other} are the same token, {token!r}: {what}")
