"""Text to token ids in batches, where the text is only ever text.

A special token spelled out inside a user's message must not become that special token, or whoever writes the message
can end their turn and speak as somebody else. So text is encoded with special-token parsing off, and special tokens
enter a sequence by id alone.
"""

from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from llamax.errors import ModelError

ANCHOR = "\x01"  # a character that merges with nothing


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, without BOS or EOS, each as if it stood alone.

    Goes to the Rust tokenizer directly where there is one: the general path spends as long again on offsets and
    masks that nobody here asks for. It sets the same three switches that the general path sets on every call.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return [tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True) for text in texts]
    backend.no_padding()
    backend.no_truncation()
    backend.encode_special_tokens = True
    return [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)]


class Joins(NamedTuple):
    """Whether text is tokenized differently after a special token, or after other text, than when it stands alone.

    SentencePiece tokenizers put a space in front of a text that stands alone ("x" -> "▁x"); some also after every
    special token, some not. Byte-level ones never do.
    """

    after_special: bool
    after_text: bool


def joins(tokenizer: PreTrainedTokenizerBase) -> Joins:
    """Find out by trying, with the tokenizer's own EOS and a letter."""
    if tokenizer.eos_token is None:
        raise ModelError("the tokenizer has no EOS token; set one before rendering conversations")
    alone = encode_texts(tokenizer, ["x"])[0]
    continued = encode_continuations(tokenizer, ["x"])[0]
    parsed = tokenizer(tokenizer.eos_token + "x", add_special_tokens=False, split_special_tokens=False)["input_ids"]
    if parsed[1:] not in (alone, continued):
        raise ModelError(f"this tokenizer cannot be used piecewise: 'x' is {parsed[1:]} after EOS, {alone} by itself")
    return Joins(after_special=parsed[1:] != alone, after_text=continued != alone)


def encode_continuations(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text as it continues other text: encoded behind an anchor, which is then cut off.

    Raises: ModelError: the tokenizer merges the anchor with what follows.
    """
    anchor = encode_texts(tokenizer, [ANCHOR])[0]
    encoded = encode_texts(tokenizer, [ANCHOR + text for text in texts])
    for text, ids in zip(texts, encoded, strict=True):
        if ids[: len(anchor)] != anchor:
            raise ModelError(f"this tokenizer cannot continue a text with {text[:20]!r}: it merges U+0001 with it")
    return [ids[len(anchor) :] for ids in encoded]
