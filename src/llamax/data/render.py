"""Conversations to token ids and loss mask, together and piece by piece: training, evaluation and chat all come here.

<|im_start|> user \\n Hi <|im_end|> \\n <|im_start|> assistant \\n | Hello <|im_end|> | \\n
     .        .   .  .      .       .        .          .      .  |   x       x      |  .     loss_mask
\\_____________________ render_prompt ____________________________/
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from llamax.data.conversation import Conversation, Message
from llamax.data.encode import encode_continuations, encode_texts
from llamax.data.templates import Piece, Template


class Rendered(NamedTuple):
    """Token ids and, for each, whether it is a target: `[seq]` both."""

    input_ids: list[int]
    loss_mask: list[bool]


def render(conversation: Conversation, tokenizer: PreTrainedTokenizerBase, template: Template) -> Rendered:
    """Ids and loss mask of a conversation; targets are the assistant's words and the token that ends each turn.

    Raises: DataError: the template has no place for one of the messages.
    """
    return encode_pieces([template.pieces(conversation.messages)], tokenizer, template)[0]


def render_prompt(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, template: Template) -> list[int]:
    """Ids that the next assistant's answer is generated from: exactly what stands before it in `render`."""
    return encode_pieces([template.pieces(messages, prompt=True)], tokenizer, template)[0].input_ids


def encode_pieces(
    documents: Iterable[Sequence[Piece]], tokenizer: PreTrainedTokenizerBase, template: Template
) -> list[Rendered]:
    """Render many lists of pieces with one pass of the tokenizer over all their texts."""
    documents = [merge_texts(pieces) for pieces in documents]
    alone: list[str] = []
    joined: list[str] = []
    for pieces in documents:
        for piece, joins in zip(pieces, _joins(pieces, template), strict=True):
            if piece.token is None:
                (joined if joins else alone).append(piece.text)
    encoded = {
        False: iter(encode_texts(tokenizer, alone)),
        True: iter(encode_continuations(tokenizer, joined) if joined else ()),
    }
    return [_assemble(pieces, _joins(pieces, template), encoded) for pieces in documents]


def merge_texts(pieces: Iterable[Piece]) -> list[Piece]:
    """Neighbouring texts become one where both or neither are supervised, so that they are tokenized as one."""
    merged: list[Piece] = []
    for (special, supervised), group in groupby(pieces, key=lambda piece: (piece.token is not None, piece.supervised)):
        if special:
            merged.extend(group)
        elif text := "".join(piece.text for piece in group):
            merged.append(Piece(text, None, supervised))
    return merged


def _joins(pieces: Sequence[Piece], template: Template) -> Iterator[bool]:
    """For each piece, whether it has to be encoded as the continuation of what stands before it."""
    before = None
    for piece in pieces:
        yield before is not None and (
            template.joins.after_text if before.token is None else template.joins.after_special
        )
        before = piece


def _assemble(pieces: Sequence[Piece], joins: Iterable[bool], encoded: dict[bool, Iterator[list[int]]]) -> Rendered:
    """Lay the ids of special tokens and of encoded texts end to end."""
    rendered = Rendered([], [])
    for piece, joined in zip(pieces, joins, strict=True):
        ids = next(encoded[joined]) if piece.token is None else [piece.token]
        rendered.input_ids.extend(ids)
        rendered.loss_mask.extend([piece.supervised] * len(ids))
    return rendered
