"""What answers the requests of an evaluation: a model in this process, one per rank, or vLLM. All have one interface.

An engine scores choices and continues prompts, and says of each as soon as it is done. Nothing in it knows of
benchmarks: `backend.Backend` speaks lm-eval's language on one side and this one on the other.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llamax.generation.decode import generate
from llamax.generation.score import Pair, Scored, score_choices


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
    """

    def __init__(self, spec: str, tokenizer: PreTrainedTokenizerBase, *, dtype: str = "bfloat16", **settings: Any):
        import vllm

        self.vllm, self.tokenizer = vllm, tokenizer
        self.model = vllm.LLM(model=spec, dtype=dtype, enable_prefix_caching=True, **settings)
        self.window = self.model.llm_engine.model_config.max_model_len

    def score(self, pairs: list[Pair], done: OnScored) -> None:
        flat = [(number, context, choice) for number, (context, choices) in enumerate(pairs) for choice in choices]
        asked = self.vllm.SamplingParams(max_tokens=1, prompt_logprobs=1, temperature=0.0)
        prompts = [{"prompt_token_ids": [*context, *choice]} for _, context, choice in flat]
        found: dict[int, list[Scored]] = {}
        for (number, context, choice), output in zip(flat, self.model.generate(prompts, asked), strict=True):
            places = output.prompt_logprobs[len(context) :]
            tokens = [place[token] for place, token in zip(places, choice, strict=True)]
            scored = Scored(sum(token.logprob for token in tokens), all(token.rank == 1 for token in tokens))
            found.setdefault(number, []).append(scored)
        for number, scored in found.items():
            done(number, scored)

    def say(self, asks: list[Ask], how: How, done: OnSaid) -> None:
        settings = [
            self.vllm.SamplingParams(
                max_tokens=how.max_new_tokens,
                stop=list(how.stop_strings),
                temperature=how.temperature,
                top_p=how.top_p,
                seed=how.seed + ask.place if how.temperature else None,
            )
            for ask in asks
        ]
        outputs = self.model.generate([{"prompt_token_ids": ask.ids} for ask in asks], settings)
        for number, output in enumerate(outputs):
            done(number, Said(output.outputs[0].text, len(output.outputs[0].token_ids)))
