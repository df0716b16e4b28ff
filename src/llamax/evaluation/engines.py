"""What answers the requests of an evaluation: a model in this process, one per rank, or vLLM. All have one interface.

An engine scores choices and continues prompts, and says of each as soon as it is done. Nothing in it knows of
benchmarks: `backend.Backend` speaks lm-eval's language on one side and this one on the other.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llamax.errors import ParameterError
from llamax.generation.decode import generate, seed_of, text_of
from llamax.generation.score import Pair, Scored, score_choices

VLLM_PROMPTS = 1024  # asked of vLLM at once: enough to keep it busy, few enough to lose when the process is killed


class Ask(NamedTuple):
    """A prompt to continue. `place` tells samples of one prompt apart; greedy answers do not look at it."""

    ids: list[int]
    place: int


class Said(NamedTuple):
    """An answer: its text without the stop string, and how many tokens it took."""

    text: str
    tokens: int


class How(NamedTuple):
    """How prompts are continued."""

    max_new_tokens: int
    stop_strings: tuple[str, ...]
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


OnScored = Callable[[int, list[Scored]], None]
OnSaid = Callable[[int, Said], None]


class Engine(Protocol):
    """Anything that can answer. Both methods call `done` with a request's number, in any order, once for each."""

    tokenizer: PreTrainedTokenizerBase
    window: int

    def score(self, pairs: list[Pair], done: OnScored) -> None:
        """Log-probabilities of choices after contexts, as `llamax.generation.score.score_choices` defines them."""

    def say(self, asks: list[Ask], how: How, done: OnSaid) -> None:
        """Continue prompts, as `llamax.generation.decode.generate` defines it."""


class TorchEngine:
    """A model in this process."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int = 32,
        progress: bool = False,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.window = model.config.max_position_embeddings
        self.batch_size, self.progress = batch_size, progress

    def score(self, pairs: list[Pair], done: OnScored) -> None:
        score_choices(self.model, pairs, batch_size=self.batch_size, on_scored=done, progress=self.progress)

    def say(self, asks: list[Ask], how: How, done: OnSaid) -> None:
        generate(
            self.model,
            self.tokenizer,
            [ask.ids for ask in asks],
            places=[ask.place for ask in asks],
            **how._asdict(),
            batch_size=self.batch_size,
            on_answer=lambda number, answer: done(number, Said(answer.text, len(answer.token_ids))),
            progress=self.progress,
        )


class VllmEngine:
    """vLLM, where it is installed (it is not among the locked packages: it brings a torch of its own).

    vLLM computes in batches of its own making and in the model's precision: near ties may fall otherwise than here.
    What ends an answer and what its text is are ours: the tokenizer's EOS only, and no special token in the text.
    """

    def __init__(self, spec: str, tokenizer: PreTrainedTokenizerBase, *, dtype: str = "bfloat16", **settings: Any):
        """`settings`: of `vllm.LLM`. Raises: ParameterError: vLLM is not installed."""
        try:
            import vllm
        except ModuleNotFoundError as error:
            raise ParameterError(f"the vllm engine needs vLLM ({error}); `pip install vllm`, or take ours") from None
        self.vllm, self.tokenizer = vllm, tokenizer
        self.model = vllm.LLM(model=spec, dtype=dtype, enable_prefix_caching=True, **settings)
        # It wants room for a new token even where none is asked for, and a choice's last token in the prompt.
        self.window = self.model.llm_engine.model_config.max_model_len - 2

    def score(self, pairs: list[Pair], done: OnScored) -> None:
        asked = self.vllm.SamplingParams(max_tokens=1, prompt_logprobs=1, temperature=0.0, detokenize=False)
        for numbers in _cut([len(choices) for _, choices in pairs]):
            flat = [(n, pairs[n][0], choice) for n in numbers for choice in pairs[n][1]]
            outputs = self.model.generate([_tokens([*context, *choice]) for _, context, choice in flat], asked)
            found: dict[int, list[Scored]] = {}
            for (number, context, choice), output in zip(flat, outputs, strict=True):
                found.setdefault(number, []).append(_scored(output.prompt_logprobs[len(context) :], choice))
            for number, scored in found.items():
                done(number, scored)

    def say(self, asks: list[Ask], how: How, done: OnSaid) -> None:
        eos = self.tokenizer.eos_token_id
        same = {
            "max_tokens": how.max_new_tokens,
            "stop": [string for string in how.stop_strings if string],
            # Its own EOS may be another one, or several; and a stop string may be a special token, which it would hide.
            "ignore_eos": True,
            "stop_token_ids": [] if eos is None else [eos],
            "skip_special_tokens": False,
            "temperature": how.temperature,
            "top_p": how.top_p,
        }
        for numbers in _cut([1] * len(asks)):
            settings = [
                self.vllm.SamplingParams(**same, seed=seed_of(how.seed, asks[n].place) if how.temperature else None)
                for n in numbers
            ]
            outputs = self.model.generate([_tokens(asks[n].ids) for n in numbers], settings)
            for number, output in zip(numbers, outputs, strict=True):
                said = list(output.outputs[0].token_ids)
                said = said[:-1] if said and said[-1] == eos else said
                done(number, Said(text_of(self.tokenizer, said, how.stop_strings), len(said)))


def _tokens(ids: list[int]) -> dict[str, list[int]]:
    """vLLM's `TokensPrompt`."""
    return {"prompt_token_ids": ids}


def _cut(prompts: list[int]) -> Iterator[range]:
    """Requests' numbers, as many at a time as make up about `VLLM_PROMPTS` prompts."""
    start = total = 0
    for number, count in enumerate(prompts, start=1):
        total += count
        if total >= VLLM_PROMPTS or number == len(prompts):
            yield range(start, number)
            start, total = number, 0


def _scored(places: list[dict[int, Any]], choice: list[int]) -> Scored:
    """A choice from vLLM's log-probabilities of the token that is at each place, and of the most probable one there."""
    found = [(place[token].logprob, place.values()) for place, token in zip(places, choice, strict=True)]
    greedy = all(value >= max(other.logprob for other in others) for value, others in found)
    return Scored(sum(value for value, _ in found), greedy)
