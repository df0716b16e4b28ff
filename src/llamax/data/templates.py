"""How a conversation is written down for a model: as a list of pieces, special tokens by id and text as text.

Every template is built the same way, so that what comes before an answer is, by construction, exactly what generation
is prompted with:

    opening | context ... | header | answer | closing | context ... | header | answer | closing
                            \\________prompt ends here
                                     \\______/ supervised, the end-of-turn token included
"""

import re
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from llamax.data.conversation import Message, assistant, user
from llamax.data.encode import encode_texts, joins
from llamax.errors import DataError, ModelError
from llamax.files import sha256_json

TODAY = "{%- macro strftime_now(form) -%}26 Jul 2024{%- endmacro -%}"
"""Put before a tokenizer's own template, so that one that asks for the day is told Llama 3's default: no text ages."""


class Piece(NamedTuple):
    """A stretch of text, or (with `token`) one special token that `text` only spells."""

    text: str
    token: int | None = None
    supervised: bool = False


class Stop(NamedTuple):
    """What ends an assistant's turn."""

    token_ids: tuple[int, ...]
    strings: tuple[str, ...] = ()


class Template:
    """Base of all templates; a subclass says what stands around messages.

    `stop` holds the token ids and the strings that end an assistant's turn; `fingerprint` changes whenever anything
    about the rendering does, since it is taken over what the template makes of sample conversations.
    """

    name: str
    markers: tuple[str, ...] = ()  # special tokens that the tokenizer must have beside BOS and EOS

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self.joins = joins(tokenizer)
        self.tokens = {marker: self._special(marker) for marker in self._known_markers()}
        self.eos = Piece(tokenizer.eos_token, tokenizer.eos_token_id)
        has_bos = tokenizer.bos_token is not None
        self.bos = [Piece(tokenizer.bos_token, tokenizer.bos_token_id)] if has_bos else []

    def _known_markers(self) -> tuple[str, ...]:
        """`markers`, once it is certain that the tokenizer has them all."""
        vocabulary = self.tokenizer.get_vocab()
        missing = [marker for marker in self.markers if marker not in vocabulary]
        if missing:
            raise ModelError(
                f"template {self.name!r} needs the tokens {', '.join(missing)}, which this tokenizer lacks; add them "
                f"with llamax.models.vocabulary.add_tokens(model, tokenizer, {missing}) or choose another template"
            )
        return self.markers

    def _special(self, marker: str) -> Piece:
        """The piece of a special token, which no text may be able to spell."""
        token = self.tokenizer.convert_tokens_to_ids(marker)
        if token in encode_texts(self.tokenizer, [marker])[0]:
            raise ModelError(f"token {marker} is not declared special, so any message could forge a turn with it")
        return Piece(marker, token)

    def opening(self) -> list[Piece]:
        """What stands before the first message."""
        return []

    def context(self, messages: Sequence[Message], i: int) -> list[Piece]:
        """Message `i`, which is not the assistant's."""
        raise NotImplementedError

    def header(self) -> list[Piece]:
        """What opens an assistant's turn; the last of every prompt."""
        raise NotImplementedError

    def answer(self, content: str) -> list[Piece]:
        """An assistant's words and the end of the turn: the supervised part."""
        raise NotImplementedError

    def closing(self) -> list[Piece]:
        """What follows an assistant's turn without belonging to it."""
        return []

    def check(self, messages: Sequence[Message]) -> None:
        """Raise `DataError` if this template has no place for one of the messages."""

    def pieces(self, messages: Sequence[Message], *, prompt: bool = False) -> list[Piece]:
        """Pieces of the messages; with `prompt`, those that the next assistant's answer is generated from."""
        self.check(messages)
        pieces = self.opening()
        for i, message in enumerate(messages):
            if message.role == "assistant":
                answer = [piece._replace(supervised=True) for piece in self.answer(message.content)]
                pieces += [*self.header(), *answer, *self.closing()]
            else:
                pieces += self.context(messages, i)
        return [*pieces, *self.header()] if prompt else pieces

    def rendered(self, messages: Sequence[Message], *, prompt: bool = False) -> list[list[str | bool]]:
        """What `pieces` gives, for a fingerprint: text, whether it is a special token, whether it is a target."""
        pieces = self.pieces(messages, prompt=prompt)
        return [[piece.text, piece.token is not None, piece.supervised] for piece in pieces]

    @property
    def stop(self) -> Stop:
        return Stop((self.eos.token,))

    @cached_property
    def fingerprint(self) -> str:
        """Hex sha256 of the template's name, its stops and its rendering of `SAMPLES`, special tokens spelled out."""
        rendered = [self.rendered(sample, prompt=prompt) for sample, prompt in SAMPLES]
        return sha256_json({"name": self.name, "samples": rendered, "stop": self.stop.strings})


_TURNS = [user("Question?"), assistant("Answer."), user("Do it.", "With this.")]
SAMPLES = [
    (_TURNS[:2], False),
    (_TURNS, True),
    ([Message(role="system", content="Rules."), *_TURNS, assistant("Done.")], False),
    ([_TURNS[2]], True),
]


def check_alternation(messages: Sequence[Message], name: str) -> None:
    """Raise `DataError` unless the messages are: at most one system message, then user and assistant in turn."""
    start = int(messages[0].role == "system")
    for i, message in enumerate(messages[start:], start):
        if message.role != ("user", "assistant")[(i - start) % 2]:
            raise DataError(
                f"message {i} is the {message.role}'s, but template {name!r} wants user and assistant in turn after at "
                "most one system message; template 'chatml' takes any order"
            )


def system_of(messages: Sequence[Message]) -> str | None:
    """Content of the leading system message, if there is one."""
    return messages[0].content if messages[0].role == "system" else None


class Alpaca(Template):
    """Stanford Alpaca's two prompts (`train.py` of tatsu-lab/stanford_alpaca).

    A system message replaces their preamble. Later turns repeat the instruction block after the EOS of the one before.
    """

    name = "alpaca"
    with_input = (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request."
    )
    without_input = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    )

    def check(self, messages: Sequence[Message]) -> None:
        check_alternation(messages, self.name)

    def opening(self) -> list[Piece]:
        return list(self.bos)

    def context(self, messages: Sequence[Message], i: int) -> list[Piece]:
        message, system = messages[i], system_of(messages)
        if message.role == "system":
            return []
        first = i == (system is not None)
        preamble = (self.with_input if message.input else self.without_input) if system is None else system
        block = f"### Instruction:\n{message.instruction}\n\n"
        block += f"### Input:\n{message.input}\n\n" if message.input else ""
        return [Piece(f"{preamble}\n\n{block}" if first else block)]

    def header(self) -> list[Piece]:
        return [Piece("### Response:")]

    def answer(self, content: str) -> list[Piece]:
        return [Piece(content), self.eos]

    @property
    def stop(self) -> Stop:
        return Stop((self.eos.token,), ("### Instruction:",))


class Vicuna(Template):
    """Vicuna v1.1 (`vicuna_v1.1` in lm-sys/FastChat's `conversation.py`: ADD_COLON_TWO, separators " " and EOS)."""

    name = "vicuna"
    system = (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions."
    )

    def check(self, messages: Sequence[Message]) -> None:
        check_alternation(messages, self.name)

    def opening(self) -> list[Piece]:
        return list(self.bos)

    def context(self, messages: Sequence[Message], i: int) -> list[Piece]:
        message, system = messages[i], system_of(messages)
        if message.role == "system":
            return []
        first = i == (system is not None)
        return [Piece(f"{(self.system if system is None else system) + ' ' if first else ''}USER: {message.content} ")]

    def header(self) -> list[Piece]:
        return [Piece("ASSISTANT:")]

    def answer(self, content: str) -> list[Piece]:
        return [Piece(f" {content}"), self.eos]

    @property
    def stop(self) -> Stop:
        return Stop((self.eos.token,), ("USER:",))


class ChatML(Template):
    """OpenAI's ChatML as in OpenHermes 2.5 and Qwen: every role is a turn between `<|im_start|>` and `<|im_end|>`."""

    name = "chatml"
    markers = ("<|im_start|>", "<|im_end|>")

    def context(self, messages: Sequence[Message], i: int) -> list[Piece]:
        start, end = self.tokens.values()
        return [start, Piece(f"{messages[i].role}\n{messages[i].content}"), end, Piece("\n")]

    def header(self) -> list[Piece]:
        return [self.tokens["<|im_start|>"], Piece("assistant\n")]

    def answer(self, content: str) -> list[Piece]:
        return [Piece(content), self.tokens["<|im_end|>"]]

    def closing(self) -> list[Piece]:
        return [Piece("\n")]

    @property
    def stop(self) -> Stop:
        return Stop(tuple(dict.fromkeys([self.tokens["<|im_end|>"].token, self.eos.token])))


class Llama2(Template):
    """Llama-2-chat (`chat_completion` in meta-llama/llama): BOS [INST] user [/INST] answer EOS, for every pair.

    `[INST]` and `<<SYS>>` are plain text in this format: a message can imitate them.
    """

    name = "llama2"

    def check(self, messages: Sequence[Message]) -> None:
        check_alternation(messages, self.name)

    def context(self, messages: Sequence[Message], i: int) -> list[Piece]:
        message, system = messages[i], system_of(messages)
        if message.role == "system":
            return []
        first = system is not None and i == 1
        content = f"<<SYS>>\n{system}\n<</SYS>>\n\n{message.content}" if first else message.content
        return [*self.bos, Piece(f"[INST] {content.strip()} [/INST]")]

    def header(self) -> list[Piece]:
        return []

    def answer(self, content: str) -> list[Piece]:
        return [Piece(f" {content.strip()} "), self.eos]


class Llama3(Template):
    """Llama-3-Instruct (`ChatFormat` in meta-llama/llama3's tokenizer.py)."""

    name = "llama3"
    markers = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")

    def opening(self) -> list[Piece]:
        return list(self.bos)

    def _header(self, role: str) -> list[Piece]:
        start, end, _ = self.tokens.values()
        return [start, Piece(role), end, Piece("\n\n")]

    def context(self, messages: Sequence[Message], i: int) -> list[Piece]:
        message = messages[i]
        return [*self._header(message.role), Piece(message.content.strip()), self.tokens["<|eot_id|>"]]

    def header(self) -> list[Piece]:
        return self._header("assistant")

    def answer(self, content: str) -> list[Piece]:
        return [Piece(content.strip()), self.tokens["<|eot_id|>"]]

    @property
    def stop(self) -> Stop:
        return Stop(tuple(dict.fromkeys([self.tokens["<|eot_id|>"].token, self.eos.token])))


class Own(Template):
    """The tokenizer's own chat template (Jinja), cut into segments by rendering prefixes of the conversation.

    An answer is what the text gains between the prompt for it and the conversation with it. A template that rewrites
    earlier turns, or prompts with something that its full text lacks, has no such answer and is refused.
    """

    name = "tokenizer"

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        super().__init__(tokenizer)
        if not tokenizer.chat_template:
            names = ", ".join(TEMPLATES.keys() - {self.name})
            raise ModelError(f"this tokenizer has no chat template of its own; choose one of: {names}")
        added = tokenizer.added_tokens_decoder
        self.specials = {str(token): i for i, token in added.items() if token.special}
        longest_first = sorted(self.specials, key=len, reverse=True)
        self.special_pattern = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    def pieces(self, messages: Sequence[Message], *, prompt: bool = False) -> list[Piece]:
        guards = self._guards([message.content for message in messages])
        turns = [{"role": message.role, "content": self._guard(message.content, guards)} for message in messages]
        whole = self._text(turns, prompt)
        pieces: list[Piece] = []
        end = 0
        for i, message in enumerate(messages):
            if message.role == "assistant":
                start, end = end, self._length(turns[:i], whole, prompt=True)
                pieces += self._split(whole[start:end], guards)
                start, end = end, self._length(turns[: i + 1], whole, prompt=False)
                pieces += supervise_turn(self._split(whole[start:end], guards))
        return pieces + self._split(whole[end:], guards)

    def _guards(self, texts: Sequence[str]) -> dict[str, str]:
        """A private-use character found in no text for each special token; nothing if no text spells one."""
        if not any(self.special_pattern.search(text) for text in texts):
            return {}
        used = set().union(*texts)
        unused = (chr(code) for code in range(0xF0000, 0xFFFFE) if chr(code) not in used)
        return dict(zip(self.specials, unused, strict=False))

    def _guard(self, text: str, guards: dict[str, str]) -> str:
        """`text` with every special token that it spells replaced by its guard."""
        return self.special_pattern.sub(lambda match: guards[match[0]], text) if guards else text

    def _text(self, turns: list[dict[str, str]], prompt: bool) -> str:
        """What the Jinja template makes of `turns`."""
        try:
            return self.tokenizer.apply_chat_template(
                turns,
                chat_template=TODAY + self.tokenizer.get_chat_template(),
                tokenize=False,
                add_generation_prompt=prompt,
            )
        except (TemplateError, ValueError) as error:
            roles = ", ".join(turn["role"] for turn in turns) or "none"
            raise DataError(f"the tokenizer's chat template refuses messages of roles {roles}: {error}") from None

    def _length(self, turns: list[dict[str, str]], whole: str, prompt: bool) -> int:
        """Length of the text of `turns`, which must be how `whole` begins."""
        text = self._text(turns, prompt)
        if not whole.startswith(text):
            what = "prompt for" if prompt else "conversation up to"
            raise ModelError(
                f"the tokenizer's chat template is not built from segments: its {what} message "
                f"{len(turns) - (not prompt)} is not how the whole conversation begins; choose another template"
            )
        return len(text)

    def _split(self, text: str, guards: dict[str, str]) -> list[Piece]:
        """Pieces of a stretch of the template's output; what is guarded is a message's, hence text."""
        spelled = {ord(guard): token for token, guard in guards.items()}
        parts = enumerate(self.special_pattern.split(text))
        return [Piece(part, self.specials[part]) if k % 2 else Piece(part.translate(spelled)) for k, part in parts]

    @cached_property
    def stop(self) -> Stop:
        *_, last = (piece for piece in self.pieces([user("Question?"), assistant("Answer.")]) if piece.supervised)
        if last.token is not None:
            return Stop(tuple(dict.fromkeys([last.token, self.eos.token])))
        tail = last.text.partition("Answer.")[2]
        return Stop((self.eos.token,), (tail,) if tail.strip() else ())

    @cached_property
    def fingerprint(self) -> str:
        """Hex sha256 of the Jinja source, of the special tokens it may use, and of what becomes a target."""
        facts = {"name": self.name, "jinja": self.tokenizer.chat_template, "sample": self.rendered(_TURNS[:2])}
        return sha256_json(facts | {"specials": str(self.tokenizer.special_tokens_map), "stop": self.stop.strings})


def supervise_turn(pieces: list[Piece]) -> list[Piece]:
    """Mark an answer's pieces up to its last special token, which ends the turn; all of them if it has none."""
    ends = [k for k, piece in enumerate(pieces) if piece.token is not None]
    last = ends[-1] if ends else len(pieces)
    return [piece._replace(supervised=k <= last) for k, piece in enumerate(pieces)]


TEMPLATES: dict[str, type[Template]] = {t.name: t for t in (Alpaca, Vicuna, ChatML, Llama2, Llama3, Own)}


def get_template(name: str, tokenizer: PreTrainedTokenizerBase) -> Template:
    """The template `name`, bound to the special tokens of `tokenizer`.

    Raises: ModelError: no such template, or the tokenizer lacks what it needs.
    """
    if name not in TEMPLATES:
        raise ModelError(f"unknown template {name!r}; there are: {', '.join(TEMPLATES)}")
    return TEMPLATES[name](tokenizer)
