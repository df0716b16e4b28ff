"""Our engines as an `lm_eval` model: any of lm-eval's tasks can run on them."""

import hashlib
import json
from typing import Any, Literal

import numpy as np
from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, has_bos_prefix, normalize_gen_kwargs
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llamax.errors import ParameterError
from llamax.evaluation.engines import Ask, Engine, How, TorchEngine
from llamax.evaluation.window import check_window
from llamax.generation.score import Scored

KNOWN = {"until", "max_gen_toks", "do_sample", "temperature", "top_p"}
NEUTRAL = {"num_beams": 1, "num_return_sequences": 1, "repetition_penalty": 1.0, "use_cache": True}
MAX_NEW_TOKENS = 256  # lm-eval's own default for tasks that generate and name no number


class Backend(TemplateLM):
    """An lm-eval model on one of our engines: contexts encoded once, whatever the number of choices or shared shots.

    Encodes and stops as lm-eval's own `hf` backend does, so that item by item both give the same outcomes (fp32). Where
    that one cuts a prompt that is longer than the model's window, this one refuses, unless told to cut as well.
    """

    def __init__(self, engine: Engine, *, over_long: Literal["error", "cut"] = "error", seed: int = 0) -> None:
        """seed: of answers that are sampled."""
        super().__init__()
        self.engine, self.tokenizer, self.over_long, self.seed = engine, engine.tokenizer, over_long, seed

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        over_long: Literal["error", "cut"] = "error",
        seed: int = 0,
        **settings: Any,
    ) -> "Backend":
        """On a model in this process; `settings` as those of `TorchEngine`."""
        return cls(TorchEngine(model, tokenizer, **settings), over_long=over_long, seed=seed)

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What an empty context is replaced by: BOS, or EOS where there is none."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def max_length(self) -> int:
        return self.engine.window

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        if add_special_tokens is None:
            # The tokenizer decides about BOS, but never puts it there twice.
            begun = has_bos_prefix(string, self.tokenizer.decode([self.prefix_token_id]))
            return self.tokenizer.encode(string, **({"add_special_tokens": False} if begun else {}))
        return self.tokenizer.encode(string, add_special_tokens=add_special_tokens)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        encoded = [self._encode(request.args) for request in requests]
        cut = self.over_long == "cut"  # what is cut is the context, down to one token
        self._check(requests, [(1 if cut else len(context)) + len(choice) - 1 for _, context, choice in encoded])
        return self._loglikelihood_tokens(encoded)

    def _encode(self, texts: tuple[str, str]) -> tuple[tuple[str, str], list[int], list[int]]:
        """Texts, context ids and continuation ids, as lm-eval splits them."""
        if texts[0]:
            return texts, *self._encode_pair(*texts)
        ids = self.tok_encode(texts[1], add_special_tokens=False)
        return texts, *((ids[:1], ids[1:]) if ids[0] == self.prefix_token_id else ([self.prefix_token_id], ids))

    def _check(self, requests: list[Instance], lengths: list[int]) -> None:
        """Raises: ModelError that names the items that need more tokens than the window has."""
        check_window([item_of(request) for request in requests], lengths, self.max_length)

    def _loglikelihood_tokens(self, requests: list, **kwargs: Any) -> list[tuple[float, bool]]:
        """Score `(text pair, context ids, continuation ids)`; too long a context loses its beginning."""
        contexts: dict[tuple[int, ...], dict[tuple[int, ...], int]] = {}
        places = []
        for _, context, continuation in requests:
            room = self.max_length + 1 - len(continuation)
            choices = contexts.setdefault(tuple(context[-room:]), {})
            places.append((tuple(context[-room:]), choices.setdefault(tuple(continuation), len(choices))))
        pairs = [(list(context), [list(c) for c in choices]) for context, choices in contexts.items()]
        scored: list[list[Scored]] = [[]] * len(pairs)
        self.engine.score(pairs, scored.__setitem__)
        by_context = dict(zip(contexts, scored, strict=True))
        return [tuple(by_context[context][place]) for context, place in places]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Log-likelihood of whole texts, in disjoint windows that each see as much context as fits."""
        windows, owners = [], []
        for owner, request in enumerate(requests):
            for window in utils.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            ):
                windows.append((None, *utils.make_disjoint_window(window)))
                owners.append(owner)
        values = [value for value, _ in self._loglikelihood_tokens(windows)]
        return np.bincount(owners, weights=values, minlength=len(requests)).tolist()

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        texts = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(place)
        for places in groups.values():
            for place, text in zip(places, self._generate([requests[place] for place in places]), strict=True):
                texts[place] = text
        return texts

    def _generate(self, requests: list[Instance]) -> list[str]:
        """Continue prompts that are continued alike."""
        settings = normalize_gen_kwargs(requests[0].args[1], MAX_NEW_TOKENS)
        odd = [f"{key}={value}" for key, value in settings.items() if key not in KNOWN and NEUTRAL.get(key) != value]
        if odd:
            raise ParameterError(
                f"{requests[0].task_name}: generation_kwargs {', '.join(odd)}: known are {', '.join(sorted(KNOWN))}"
            )
        room = self.max_length - settings["max_gen_toks"]
        if room < 1:
            raise ParameterError(
                f"max_gen_toks={settings['max_gen_toks']} leaves no room in a window of {self.max_length}"
            )
        prompts = [self.tok_encode(request.args[0]) for request in requests]
        if self.over_long == "error":
            self._check(requests, [len(prompt) + settings["max_gen_toks"] for prompt in prompts])
        how = How(
            max_new_tokens=settings["max_gen_toks"],
            stop_strings=tuple(
                handle_stop_sequences(settings.get("until"), eos=self.tokenizer.decode([self.eot_token_id]))
            ),
            temperature=settings.get("temperature", 0.0),
            top_p=settings.get("top_p", 1.0),
            seed=self.seed,
        )
        said: dict[int, str] = {}
        asks = [Ask(prompt[-room:], place_of(request)) for prompt, request in zip(prompts, requests, strict=True)]
        self.engine.say(asks, how, lambda number, answer: said.update({number: answer.text}))
        return [said[number] for number in range(len(asks))]


def item_of(request: Instance) -> str:
    """Id of the item that a request belongs to."""
    return f"{request.task_name}/{request.doc_id}"


def place_of(request: Instance) -> int:
    """A number for a request's item and sample, the same whatever else is asked: sampled answers are drawn by it."""
    name = f"{item_of(request)}/{request.idx}"
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big")
