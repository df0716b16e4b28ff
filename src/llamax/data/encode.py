"""Text to token ids in batches, where the text is only ever text.

A special token spelled out inside a user's message must not become that special token, or whoever writes the message
can end their turn and speak as somebody else. So text is encoded with special-token parsing off, and special tokens
enter a sequence by id alone.
"""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, without BOS or EOS, each as if it stood alone."""
    if not texts:
        return []
    return tokenizer(
        list(texts),
        add_special_tokens=False,
        split_special_tokens=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )["input_ids"]
