"""The one schema that every source is read into and every template renders from."""

from typing import Literal, Self

from pydantic import field_validator, model_validator

from llamax.config import Config

Role = Literal["system", "user", "assistant", "tool"]


class Message(Config):
    """One turn.

    `input` is Alpaca's second field, the material that an instruction works on. It is the tail of `content` too, after
    an empty line, so that only a template with a place of its own for it need know of it.
    """

    role: Role
    content: str
    input: str = ""

    @model_validator(mode="after")
    def _input_is_the_tail(self) -> Self:
        if self.input and not self.content.endswith("\n\n" + self.input):
            raise ValueError("input must be the end of content, after an empty line")
        if self.role == "user" and not self.content.strip():
            raise ValueError("a user message is empty")
        return self

    @property
    def instruction(self) -> str:
        """`content` without `input`."""
        return self.content[: -len(self.input) - 2] if self.input else self.content


def user(instruction: str, input: str = "") -> Message:
    """A user's message, with Alpaca's optional `input`."""
    return Message(role="user", content=f"{instruction}\n\n{input}" if input else instruction, input=input)


def assistant(content: str) -> Message:
    """An assistant's message; an empty one teaches to end the turn at once."""
    return Message(role="assistant", content=content)


class Conversation(Config):
    """Messages in order, at least one of them the assistant's. `id` says where it came from (file:row)."""

    messages: tuple[Message, ...]
    id: str = ""

    @field_validator("messages")
    @classmethod
    def _has_an_answer(cls, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        if not messages:
            raise ValueError("no messages")
        if not any(message.role == "assistant" for message in messages):
            raise ValueError("no assistant turn: nothing to learn")
        return messages


class Preference(Config):
    """Two answers to one prompt, the first preferred; each answer is one or more messages, the last the assistant's."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    id: str = ""

    @field_validator("chosen", "rejected")
    @classmethod
    def _ends_with_an_answer(cls, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        if not messages or messages[-1].role != "assistant":
            raise ValueError("does not end with an assistant turn")
        return messages

    @field_validator("prompt")
    @classmethod
    def _asks_something(cls, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        if not messages or messages[-1].role == "assistant":
            raise ValueError("does not end with a turn to answer")
        return messages
