"""Our decoding and scoring as an `lm_eval` model: any of lm-eval's tasks can run on it."""

import json
from typing import Any

import numpy as np
from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, has_bos_prefix, normalize_gen_kwargs
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llamax.errors import ParameterError
from llamax.generation.decode import generate
from llamax.generation.score import score_choices

MAX_NEW_TOKENS = 256  # lm-eval's own default for tasks that generate and name no number


class Backend(TemplateLM):
    """An lm-eval model on `llamax.generation`: contexts encoded once, whatever the number of choices or shared shots.

    Encodes, cuts and stops as lm-eval's own `hf` backend does, so that item by item both give the same outcomes (fp32).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int = 32,
        progress: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        self.batch_size, self.progress = batch_size, progress

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
        return self.model.config.max_position_embeddings

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        if add_special_tokens is None:
            # The tokenizer decides about BOS, but never puts it there twice.
            begun = has_bos_prefix(string, self.tokenizer.decode([self.prefix_token_id]))
            return self.tokenizer.encode(string, **({"add_special_tokens": False} if begun else {}))
        return self.tokenizer.encode(string, add_special_tokens=add_special_tokens)

    def _loglikelihood_tokens(self, requests: list, **kwargs: Any) -> list[tuple[float, bool]]:
        """Score `(text pair, context ids, continuation ids)`; too long a context loses its beginning."""
        contexts: dict[tuple[int, ...], dict[tuple[int, ...], int]] = {}
        places = []
        for _, context, continuation in requests:
            room = self.max_length + 1 - len(continuation)
            choices = contexts.setdefault(tuple(context[-room:]), {})
            places.append((tuple(context[-room:]), choices.setdefault(tuple(continuation), len(choices))))
        pairs = [(list(context), [list(c) for c in choices]) for context, choices in contexts.items()]
        scored = score_choices(self.model, pairs, batch_size=self.batch_size, progress=self.progress)
        by_context = dict(zip(contexts, scored, strict=True))
        return [tuple(by_context[context][place]) for context, place in places]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

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
            answers = self._generate([requests[place].args[0] for place in places], requests[places[0]].args[1])
            for place, text in zip(places, answers, strict=True):
                texts[place] = text
        return texts

    def _generate(self, contexts: list[str], settings: dict[str, Any]) -> list[str]:
        settings = normalize_gen_kwargs(settings, MAX_NEW_TOKENS)
        eos = self.tokenizer.decode([self.eot_token_id])
        until = handle_stop_sequences(settings.get("until"), eos=eos)
        room = self.max_length - settings["max_gen_toks"]
        if room < 1:
            raise ParameterError(
                f"max_gen_toks={settings['max_gen_toks']} leaves no room in a window of {self.max_length}"
            )
        answers = generate(
            self.model,
            self.tokenizer,
            [self.tok_encode(context)[-room:] for context in contexts],
            max_new_tokens=settings["max_gen_toks"],
            stop_strings=until,
            temperature=settings.get("temperature", 0.0),
            top_p=settings.get("top_p", 1.0),
            batch_size=self.batch_size,
            progress=self.progress,
        )
        return [answer.text for answer in answers]
