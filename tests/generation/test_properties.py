"""Decoding and scoring against their naive definition, on random prompts that share, settings and batches."""

import itertools
import random

import naive
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamax.generation import decode, prefixes, score
from llamax.generation.decode import generate
from llamax.generation.score import score_choices

many = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
WINDOW = 40


@pytest.fixture(scope="module")
def model():
    found = naive.lively_model()
    found.config.max_position_embeddings = WINDOW
    return found


@pytest.fixture
def small(monkeypatch):
    """Sets what decides on groups and batches, by a random generator, to values that matter for small prompts."""

    def choose(rng):
        monkeypatch.setattr(prefixes, "SHORTEST", rng.choice([1, 4]))
        monkeypatch.setattr(prefixes, "STEP", rng.choice([0, 2]))
        monkeypatch.setattr(decode, "PRICE", rng.choice([0, 5, 1000]))
        monkeypatch.setattr(prefixes, "PRICE", rng.choice([0, 5, 1000]))
        monkeypatch.setattr(decode, "step_price", lambda model: 0)
        monkeypatch.setattr(decode, "REFILL_SHARE", rng.choice([0.01, 0.125, 0.5, 1.0]))
        monkeypatch.setattr(decode, "FINISHED_SHARE", rng.choice([0.01, 0.25, 1.0]))
        monkeypatch.setattr(decode, "SHRINK", rng.choice([0.0, 0.5, 1.0]))
        tokens = rng.choice([1, 30, 100, 4096])
        monkeypatch.setattr(decode, "batch_tokens", lambda model: tokens)
        monkeypatch.setattr(score, "batch_tokens", lambda model: tokens)
        monkeypatch.setattr(decode, "tokens_that_fit", lambda model: tokens)

    return choose


def sequences(rng, longest):
    """One to nine sequences, several of which begin alike; among them equal ones and beginnings of others."""
    stems, found = [[]], []
    for _ in range(rng.randint(1, 4)):
        stem = [*rng.choice(stems), *(rng.randrange(512) for _ in range(rng.randint(1, 14)))]
        stems.append(stem[: longest - 1])
    for _ in range(rng.randint(1, 9)):
        sequence = [*rng.choice(stems), *(rng.randrange(512) for _ in range(rng.choice([0, 0, 1, 2, 9])))]
        found.append(sequence[:longest] or [rng.randrange(512)])
    return found


def stops(rng, model, tokenizer, prompt, plan):
    """Token ids and strings, of which some are said: taken from what the model answers without them."""
    said = naive.answer(model, tokenizer, prompt, **plan)
    ids = [rng.choice(said.token_ids)] if said.token_ids and rng.random() < 0.3 else []
    start = rng.randrange(len(said.text) + 1)
    strings = [said.text[start : start + rng.randint(1, 5)], "zzzz", ""] if rng.random() < 0.5 else []
    return {"stop_ids": ids, "stop_strings": [string for string in strings if "\ufffd" not in string]}


@many
@given(seed=st.integers(0, 10**6))
def test_generate_is_what_it_means(model, tiny_tokenizer, small, seed):
    rng = random.Random(seed)
    small(rng)
    prompts, sampled = sequences(rng, WINDOW - 1), rng.random() < 0.5
    plan = {"max_new_tokens": rng.choice([1, 2, 7, 60])}
    if sampled:
        plan |= {"temperature": rng.choice([0.5, 1.5]), "top_p": rng.choice([0.6, 1.0]), "seed": rng.randrange(5)}
    places = [rng.randrange(10**9) for _ in prompts]
    plan |= stops(rng, model, tiny_tokenizer, rng.choice(prompts), plan)
    told = []
    answers = generate(
        model, tiny_tokenizer, prompts, **plan, places=places, batch_size=rng.choice([1, 2, 3, 50]),
        on_answer=lambda number, answer: told.append((number, answer)),
    )  # fmt: skip
    plan["stop_strings"] = [string for string in plan["stop_strings"] if string]
    for prompt, place, answer in zip(prompts, places, answers, strict=True):
        assert answer == naive.answer(model, tiny_tokenizer, prompt, **plan, place=place)
    assert sorted(told) == list(enumerate(answers))


@many
@given(seed=st.integers(0, 10**6))
def test_nothing_is_lost_or_told_twice_when_memory_runs_out(model, tiny_tokenizer, small, seed):
    """Memory runs out at any call of the model with more than one row, or while answers are decoded."""
    rng = random.Random(seed)
    small(rng)
    prompts, plan = sequences(rng, WINDOW - 8), {"max_new_tokens": 8, "temperature": 1.0, "stop_strings": ["a"]}
    expected, told = generate(model, tiny_tokenizer, prompts, **plan), []
    really, really_find = decode.encode, decode._Decoder._find_stop_strings
    calls, full = itertools.count(), set(rng.sample(range(30), 3))

    def tight(model, ids, *rest):
        if len(ids) > 1 and next(calls) in full:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return really(model, ids, *rest)

    def falling(lengths, tokens):
        assert lengths == sorted(lengths, reverse=True)
        return prefixes.alike(lengths, tokens)

    def tight_find(self, answers):
        if len(self.rows) > 1 and next(calls) in full:
            raise MemoryError
        return really_find(self, answers)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "encode", tight)
        patch.setattr(decode, "alike", falling)
        patch.setattr(decode._Decoder, "_find_stop_strings", tight_find)
        found = generate(
            model, tiny_tokenizer, prompts, **plan, batch_size=8,
            on_answer=lambda number, answer: told.append((number, answer)),
        )  # fmt: skip
    assert found == expected
    assert sorted(told) == list(enumerate(expected))


@many
@given(seed=st.integers(0, 10**6))
def test_a_score_is_what_it_means(model, small, seed):
    rng = random.Random(seed)
    small(rng)
    pairs = []
    for context in sequences(rng, WINDOW):
        room = WINDOW + 1 - len(context)
        best = int(model(torch.tensor([context])).logits[0, -1].argmax())
        choices = [[rng.choice([best, rng.randrange(512)])] for _ in range(rng.randint(1, 4))]
        longer = rng.randint(0, 1)
        choices = [[*c, *(rng.randrange(512) for _ in range(rng.choice([0, 3, 50]) * longer))][:room] for c in choices]
        pairs.append((context, choices))
    told = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(score, "SPOTS", rng.choice([1, 3, 1024]))
        patch.setattr(score, "SCORES", rng.choice([1, 5000, 2**26]))
        scored = score_choices(model, pairs, batch_size=rng.choice([1, 2, 50]), on_scored=told.__setitem__)
    assert [told[number] for number in range(len(pairs))] == scored
    for (context, choices), found in zip(pairs, scored, strict=True):
        wanted = [naive.logprob(model, context, choice) for choice in choices]
        assert [one.logprob for one in found] == pytest.approx([value for value, _ in wanted], abs=2e-4)
        assert [one.greedy for one in found] == [greedy for _, greedy in wanted]
