"""The nano suite: five tasks of the small world, one outcome per item.

Protocols
- `plain`: what a base model understands. The item is `Question: ...\\nAnswer:` (a function to complete stands as
  it is), zero-shot, after BOS. An answer ends with the line, or with any token that ends a turn or a text: a model
  that was tuned to close its answers with such a token is not punished for it.
- `chat`: the item is a user's message, rendered as training rendered it; an answer ends with the assistant's turn.

Scoring
- *Choices* (knowledge, truthfulness): an option's score is the summed log-probability of its text *and of the end of
  the answer*, in any of the ways in which it may end. That is the probability that the model says this option and
  nothing else: a proper probability over whole answers, so it needs no length normalisation, and an option that begins
  another (`franc`, `franc CFA`) has no advantage. Letters are not shown; their order cannot matter. Metric `acc`: the
  best option is the right one (MC1 of Lin et al. 2022 for truthfulness).
- *Generated* answers are greedy. open_qa, `exact_match`: equal to the answer or an alias after SQuAD's normalisation
  (Rajpurkar et al. 2016). arithmetic, `exact_match`: the last number said is the answer. code, `pass@1`: the expression
  agrees with the library on every test input (`code_check`).
"""

import re
import string
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llamax.data.conversation import Conversation, Message
from llamax.data.render import render, render_prompt
from llamax.data.templates import Template, get_template
from llamax.data.world.functions import Function, functions
from llamax.data.world.items import WorldItem, test_items
from llamax.data.world.phrases import code_request
from llamax.errors import ParameterError
from llamax.evaluation.code_check import check
from llamax.evaluation.wordings import AS_DEFINED, NANO, unknown
from llamax.generation.decode import generate
from llamax.generation.score import choice_logprobs

Protocol = Literal["plain", "chat"]
METRICS = {"knowledge": "acc", "truthfulness": "acc", "open_qa": "exact_match", "arithmetic": "exact_match",
           "code": "pass@1"}  # fmt: skip
MAX_NEW_TOKENS = {"open_qa": 24, "arithmetic": 48, "code": 32}
CHANCE = {"knowledge": 0.25, "truthfulness": 0.25, "open_qa": 0.0, "arithmetic": 0.0, "code": 0.0}
ENDS_OF_TURN = ("<|im_end|>", "<|eot_id|>")
COLUMNS = ["item", "task", "metric", "outcome", "cluster", "answer", "confidence"]


class Form(NamedTuple):
    """How a protocol says things: the tokenizer, the template in `chat`, the wording in `plain`, and how it decodes."""

    tokenizer: PreTrainedTokenizerBase
    template: Template | None
    wording: str = NANO[AS_DEFINED]
    temperature: float = 0.0
    seed: int = 0

    def prompt(self, item: WorldItem) -> list[int]:
        """Token ids that the model is asked to continue."""
        if self.template:
            return render_prompt((Message(role="user", content=_request(item)),), self.tokenizer, self.template)
        text = item.question if item.task == "code" else self.wording.format(question=item.question)
        bos = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
        return bos + self.tokenizer.encode(text, add_special_tokens=False)

    def answers(self, item: WorldItem, text: str) -> list[list[int]]:
        """Token ids of an answer and of its end, as they follow `prompt`: one list for each way to end."""
        if not self.template:
            line = self.tokenizer.encode(f" {text}\n", add_special_tokens=False)
            return [line, *([*line[:-1], end] for end in self.ends())]
        messages = (Message(role="user", content=_request(item)), Message(role="assistant", content=text))
        rendered = render(Conversation(messages=messages), self.tokenizer, self.template)
        targets = [place for place, target in enumerate(rendered.loss_mask) if target]
        return [list(rendered.input_ids[targets[0] : targets[-1] + 1])]

    def ends(self) -> list[int]:
        """Ids of the tokens, of those that this tokenizer has, that end a text or a turn."""
        vocabulary = self.tokenizer.get_vocab()
        return [vocabulary[token] for token in (self.tokenizer.eos_token, *ENDS_OF_TURN) if token in vocabulary]

    def stops(self) -> tuple[Sequence[int], Sequence[str]]:
        """Token ids and strings that end an answer."""
        return self.template.stop if self.template else (self.ends(), ("\n",))


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[WorldItem],
    *,
    protocol: Protocol,
    template: Template | None = None,
    wording: str = AS_DEFINED,
    temperature: float = 0.0,
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = False,
) -> pd.DataFrame:
    """Answer every item; one row each, in the order of `items`, independent of `batch_size` in fp32.

    Args:
        template: for `chat`; the tokenizer's own if not given.
        wording: for `plain`; one of `wordings.NANO`.
        temperature, seed: of generated answers; 0 is greedy, as the protocols say.
    Returns: columns item, task, metric, outcome (0.0 or 1.0), cluster, answer (what was chosen or said), confidence
        (of a choice: its probability among the options; else NaN).
    Raises: ParameterError: an unknown protocol or wording, or a template with `plain`.
    """
    if protocol not in ("plain", "chat") or (protocol == "plain" and template is not None):
        raise ParameterError(f"protocol {protocol!r} with template {template!r}: 'plain' has none, 'chat' may have one")
    if wording not in NANO:
        raise ParameterError(unknown(wording, NANO))
    chat = (template or get_template("tokenizer", tokenizer)) if protocol == "chat" else None
    form = Form(tokenizer, chat, NANO[wording], temperature, seed)
    said: dict[str, tuple[str, float]] = {}
    for task in METRICS:
        chosen = [item for item in items if item.task == task]
        answer = _choose if task in ("knowledge", "truthfulness") else _say
        said |= zip((item.id for item in chosen), answer(model, form, chosen, batch_size, progress), strict=True)
    rows = [
        (item.id, item.task, METRICS[item.task], float(right(item, answer)), item.cluster, answer, confidence)
        for item, (answer, confidence) in ((item, said[item.id]) for item in items)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


Answers = list[tuple[str, float]]


def _choose(model: PreTrainedModel, form: Form, items: list[WorldItem], batch_size: int, progress: bool) -> Answers:
    """The option of each item that the model finds most likely, of equals the first, and its share of all options."""
    answers = [[ids for option in item.choices for ids in form.answers(item, option)] for item in items]
    pairs = [(form.prompt(item), ways) for item, ways in zip(items, answers, strict=True)]
    scores = choice_logprobs(model, pairs, batch_size=batch_size, progress=progress) if items else []
    chosen = []
    for item, score in zip(items, scores, strict=True):
        by_option = np.logaddexp.reduce(np.reshape(score, (len(item.choices), -1)), axis=1)
        share = np.exp(by_option.max() - np.logaddexp.reduce(by_option))
        chosen.append((item.choices[int(by_option.argmax())], float(share)))
    return chosen


def _say(model: PreTrainedModel, form: Form, items: list[WorldItem], batch_size: int, progress: bool) -> Answers:
    """The model's answer to each item, without blanks around it; how sure it is, nobody asks."""
    if not items:
        return []
    ids, strings = form.stops()
    answers = generate(
        model, form.tokenizer, [form.prompt(item) for item in items], max_new_tokens=MAX_NEW_TOKENS[items[0].task],
        stop_ids=ids, stop_strings=strings, temperature=form.temperature, seed=form.seed, batch_size=batch_size,
        progress=progress,
    )  # fmt: skip
    return [(answer.text.strip(), float("nan")) for answer in answers]


def _request(item: WorldItem) -> str:
    """The item as a user would put it."""
    return code_request(item.question) if item.task == "code" else item.question


def select(limits: Mapping[str, int | None]) -> list[WorldItem]:
    """The first `limits[task]` test items of each task named, None for all. Raises: ParameterError: no such task."""
    if unknown := sorted(limits.keys() - METRICS.keys()):
        raise ParameterError(f"unknown task {unknown[0]!r}: valid here: {', '.join(METRICS)}")
    items = test_items()
    return [item for task, limit in limits.items() for item in [i for i in items if i.task == task][:limit]]


def right(item: WorldItem, said: str) -> bool:
    """Whether an answer is right, by the rule of its task."""
    if item.task == "arithmetic":
        found = re.findall(r"-?\d+", said.replace(",", ""))
        return bool(found) and found[-1] == item.answer
    if item.task == "open_qa":
        return normalise(said) in {normalise(answer) for answer in (item.answer, *item.aliases)}
    if item.task == "code":
        return check(expression(said), _functions()[item.id.partition("/")[2]])
    return said == item.answer


def normalise(text: str) -> str:
    """Lower case, without punctuation, articles and extra blanks: SQuAD's comparison (Rajpurkar et al. 2016)."""
    text = "".join(character for character in text.lower() if character not in set(string.punctuation))
    return " ".join(word for word in text.split() if word not in ("a", "an", "the"))


def expression(said: str) -> str:
    """The expression in an answer: its first line of code, without fence and `return`."""
    lines = [line.strip() for line in said.splitlines()]
    code = [line for line in lines if line and not line.startswith("```")]
    return code[0].removeprefix("return ").strip("` ") if code else ""


def _functions() -> dict[str, Function]:
    return {function.name: function for function in functions()}
