"""Rows of the usual data formats as conversations and preferences; what does not fit is a `RowError` that says why.

| format | fields of a row |
|---|---|
| alpaca | instruction, output, input (may be empty), system, history |
| sharegpt | conversations: list of {from, value}; system |
| messages | messages: list of {role, content} (ChatML, OpenAI) |
| prompt-completion | prompt and completion, or question and answer: texts or lists of messages |
| preference | chosen and rejected with prompt or conversations, or two transcripts with a common beginning |

Other fields of a row are not looked at.
"""

import re
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from llamax.data.conversation import Conversation, Message, Preference, assistant, user

Row = dict[str, Any]

SPEAKERS = {
    **dict.fromkeys(["user", "human"], "user"),
    **dict.fromkeys(["assistant", "gpt", "chatgpt", "bing", "bard", "function_call"], "assistant"),
    **dict.fromkeys(["tool", "observation", "function", "function_response", "ipython"], "tool"),
    "system": "system",
}
PAIRS = (("prompt", "completion"), ("prompt", "response"), ("question", "answer"))
DETECTED_BY = "instruction+output, messages, conversations, prompt+completion, question+answer, or chosen+rejected"


class RowError(ValueError):
    """A row that fits no format: which field, what is wrong with it, what would be right."""

    def __init__(self, field: str, wrong: str, right: str):
        self.field, self.wrong, self.right = field, wrong, right
        super().__init__(f"field {field!r} {wrong}, should be {right}" if field else f"{wrong}, should be {right}")


def detect(row: Any) -> str | None:
    """Name of the format that a first row's fields speak for."""
    if not isinstance(row, dict):
        return None
    fields = row.keys()
    if {"chosen", "rejected"} <= fields:
        return "preference"
    if "messages" in fields:
        return "messages"
    if "conversations" in fields:
        return "sharegpt"
    if {"instruction", "output"} <= fields:
        return "alpaca"
    return "prompt-completion" if any(set(pair) <= fields for pair in PAIRS) else None


def describe(value: Any) -> str:
    """What a wrong value is, in a few words."""
    if value is None:
        return "is missing"
    if value == "" or value == []:
        return "is empty"
    return f"is {type(value).__name__} {shown(value)}"


def shown(value: Any) -> str:
    """The beginning of a value as Python writes it."""
    try:
        return cut(repr(value))
    except (ValueError, RecursionError):  # an integer of thousands of digits, thousands of brackets
        return "that is too large to show"


def cut(text: str) -> str:
    """At most 40 characters of a text, for a message."""
    return text if len(text) <= 40 else text[:37] + "..."


def text(row: Row, field: str) -> str:
    """A text that must be there, though it may be empty."""
    value = row.get(field)
    if not isinstance(value, str):
        raise RowError(field, describe(value), "a text")
    return value


def optional_text(row: Row, field: str) -> str:
    """A text that may be absent or null."""
    return "" if row.get(field) is None else text(row, field)


def spoken(row: Row, field: str) -> str:
    """A text that must not be empty."""
    if not text(row, field).strip():
        raise RowError(field, "is empty", "a text")
    return row[field]


def system_of(row: Row) -> list[Message]:
    """The row's system message, if it has one."""
    content = optional_text(row, "system")
    return [Message(role="system", content=content)] if content.strip() else []


def turns(value: Any, field: str) -> list[Message]:
    """A list of {from, value} or {role, content} as messages."""
    if not isinstance(value, list) or not value:
        raise RowError(field, describe(value), "a list of messages")
    messages = []
    for k, turn in enumerate(value):
        if not isinstance(turn, dict):
            raise RowError(f"{field}[{k}]", describe(turn), "a message with its speaker and text")
        who, what = ("from", "value") if "from" in turn else ("role", "content")
        speaker, content = turn.get(who), turn.get(what)
        if not isinstance(speaker, str) or speaker not in SPEAKERS:
            raise RowError(f"{field}[{k}].{who}", describe(speaker), f"one of {', '.join(SPEAKERS)}")
        if not isinstance(content, str):
            raise RowError(f"{field}[{k}].{what}", describe(content), "a text")
        if SPEAKERS[speaker] == "user" and not content.strip():
            raise RowError(f"{field}[{k}].{what}", "is empty", "a text")
        messages.append(Message(role=SPEAKERS[speaker], content=content))
    return messages


def with_answer(messages: list[Message], field: str) -> list[Message]:
    """The messages, if the assistant speaks among them."""
    if not any(message.role == "assistant" for message in messages):
        raise RowError(field, "has no assistant turn", "a conversation with at least one")
    return messages


def from_alpaca(row: Row) -> list[Message]:
    messages = system_of(row)
    history = row.get("history") or []
    if not isinstance(history, list):
        raise RowError("history", describe(history), "a list of pairs of texts: instruction, output")
    for k, turn in enumerate(history):
        if not (
            isinstance(turn, list)
            and len(turn) == 2
            and all(isinstance(words, str) for words in turn)
            and turn[0].strip()
        ):
            raise RowError(f"history[{k}]", describe(turn), "a pair of texts: instruction, output")
        messages += [user(turn[0]), assistant(turn[1])]
    return [*messages, user(spoken(row, "instruction"), optional_text(row, "input")), assistant(text(row, "output"))]


def from_sharegpt(row: Row) -> list[Message]:
    return [*system_of(row), *with_answer(turns(row.get("conversations"), "conversations"), "conversations")]


def from_messages(row: Row) -> list[Message]:
    return [*system_of(row), *with_answer(turns(row.get("messages"), "messages"), "messages")]


def from_prompt_completion(row: Row) -> list[Message]:
    asked, answered = next((pair for pair in PAIRS if row.keys() >= set(pair)), PAIRS[0])
    prompt = row.get(asked)
    question = turns(prompt, asked) if isinstance(prompt, list) else [user(spoken(row, asked))]
    completion = row.get(answered)
    answer = turns(completion, answered) if isinstance(completion, list) else [assistant(text(row, answered))]
    return [*system_of(row), *question, *with_answer(answer, answered)]


FORMATS: dict[str, Callable[[Row], list[Message]]] = {
    "alpaca": from_alpaca,
    "sharegpt": from_sharegpt,
    "messages": from_messages,
    "prompt-completion": from_prompt_completion,
}


def conversation(row: Any, format: str, where: str) -> Conversation:
    """A row of `format` as a conversation with `where` as its id. Raises: RowError."""
    return _validated(Conversation, {"messages": FORMATS[format](_fields(row)), "id": where})


def preference(row: Any, where: str) -> Preference:
    """A row of a preference pair. Raises: RowError."""
    row = _fields(row)
    chosen, rejected = (_answer(row.get(field), field) for field in ("chosen", "rejected"))
    prompt = _prompt(row)
    if not prompt:
        shared = _common_beginning(chosen, rejected)
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    elif chosen[: len(prompt)] == prompt and rejected[: len(prompt)] == prompt:
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    return _validated(Preference, {"prompt": prompt, "chosen": chosen, "rejected": rejected, "id": where})


def _fields(row: Any) -> Row:
    if not isinstance(row, dict):
        raise RowError("", describe(row), "an object with named fields")
    return row


def _validated(schema: type[Conversation] | type[Preference], values: dict[str, Any]) -> Any:
    """An instance of `schema`; its own complaint as a `RowError`."""
    for field, messages in values.items():
        if field != "id" and not all(is_unicode(message.content) for message in messages):
            raise RowError(field, "has a lone surrogate (half a character)", "text that UTF-8 can write")
    try:
        return schema(**values)
    except ValidationError as error:
        fault = error.errors()[0]
        raise RowError(str(fault["loc"][0]), fault["msg"].removeprefix("Value error, "), "as the schema says") from None


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can write `text`: JSON can spell half a character, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _prompt(row: Row) -> list[Message]:
    """The prompt of a preference pair, if it stands apart from the answers."""
    system = system_of(row)
    for field in ("conversations", "messages", "prompt"):
        if isinstance(row.get(field), list):
            return [*system, *turns(row[field], field)]
    return [*system, user(spoken(row, "prompt"))] if row.get("prompt") is not None else []


def _answer(value: Any, field: str) -> list[Message]:
    """One answer of a preference pair: a text, a message, messages, or a "Human: ... Assistant: ..." transcript."""
    if isinstance(value, str) and value:
        return _transcript(value, field) or [assistant(value)]
    return turns([value] if isinstance(value, dict) else value, field)


def _transcript(value: str, field: str) -> list[Message]:
    """Messages of an HH-RLHF transcript; none if `value` is not one."""
    parts = re.split(r"\n\n(Human|Assistant): ?", value)
    if parts[0].strip() or len(parts) < 3:
        return []
    pairs = zip(parts[1::2], parts[2::2], strict=True)
    speakers = {"Human": "human", "Assistant": "assistant"}
    return turns([{"from": speakers[who], "value": words} for who, words in pairs], field)


def _common_beginning(chosen: list[Message], rejected: list[Message]) -> int:
    """Number of messages that both begin with, the last of them to be answered, leaving each something of its own."""
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    while shared and chosen[shared - 1].role == "assistant":
        shared -= 1
    return shared


def known_formats() -> str:
    """The names of the formats, for a message."""
    return ", ".join((*FORMATS, "preference"))
