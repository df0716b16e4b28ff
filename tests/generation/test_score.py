import math

import numpy as np
import pytest
import torch

from llamax.errors import ModelError, ParameterError
from llamax.generation import score
from llamax.generation.score import choice_logprobs, score_choices, text_loss

SHARED = list(range(20, 60))
PAIRS = [
    ([0, 10, 11, 12], [[13], [14]]),
    ([0, *SHARED, 99, 98], [[5, 6, 7], [5], [8, 9]]),
    ([0, *SHARED, 97], [[5, 6, 7], [5, 6, 8]]),
    ([0, *SHARED], [[99, 98, 5]]),
    ([0, *SHARED, 97], [[1]]),
    ([0], [[300, 301, 302, 303], [300]]),
]


def naive(model, context, choice):
    """Log-probability and greediness of one choice by one full forward pass."""
    with torch.inference_mode():
        logits = model(torch.tensor([context + choice])).logits[0].log_softmax(-1)
    predicted = logits[len(context) - 1 : -1]
    value = predicted.gather(1, torch.tensor(choice)[:, None]).sum().item()
    return value, predicted.argmax(-1).tolist() == choice


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("batch_size", [1, 32])
def test_equals_the_full_forward_pass(tiny_model, tiny_tokenizer, attention, batch_size):
    tiny_model.set_attn_implementation(attention)
    scored = choice_logprobs(tiny_model, PAIRS, batch_size=batch_size)
    for (context, choices), values in zip(PAIRS, scored, strict=True):
        for choice, value in zip(choices, values, strict=True):
            assert value == pytest.approx(naive(tiny_model, context, choice)[0], abs=1e-4)


def test_a_shared_prefix_changes_nothing(tiny_model, monkeypatch):
    """Long shots, short questions, choices of one token (a causal mask does) and of several (a tree)."""
    shots = [0, *range(20, 120)]
    pairs = [([*shots, 7 + n, 8], [[5], [6], [5 + n % 3]]) for n in range(4)]
    pairs += [([*shots, 90 + n], [[5, 6, 7], [5, 6], [9]]) for n in range(4)]
    prefixes, really = [], score.encode_prefix
    monkeypatch.setattr(score, "encode_prefix", lambda model, ids: prefixes.append(ids) or really(model, ids))
    told = {}
    scored = score_choices(tiny_model, pairs, batch_size=3, on_scored=told.__setitem__)
    assert prefixes == [shots]
    assert [told[number] for number in range(8)] == scored
    for (context, choices), values in zip(pairs, scored, strict=True):
        for choice, value in zip(choices, values, strict=True):
            assert value.logprob == pytest.approx(naive(tiny_model, context, choice)[0], abs=1e-4)


def test_when_memory_runs_out_the_batch_is_halved(tiny_model, monkeypatch):
    expected, really = score_choices(tiny_model, PAIRS), score.encode

    def tight(model, ids, *rest):
        if len(ids) > 1:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 2 GB")
        return really(model, ids, *rest)

    monkeypatch.setattr(score, "encode", tight)
    for one, two in zip(score_choices(tiny_model, PAIRS), expected, strict=True):
        assert [s.logprob for s in one] == pytest.approx([s.logprob for s in two], abs=1e-5)
    monkeypatch.setattr(score, "encode", lambda *_: (_ for _ in ()).throw(RuntimeError("something else")))
    with pytest.raises(RuntimeError, match="something else"):
        score_choices(tiny_model, PAIRS)


def test_logits_that_are_not_numbers_are_an_error(tiny_model):
    with torch.no_grad():
        tiny_model.model.norm.weight[3] = float("nan")
    with pytest.raises(ModelError, match="pair 0: the model's logits are not numbers"):
        score_choices(tiny_model, PAIRS[:1])


def test_logits_are_taken_in_pieces(tiny_model, monkeypatch):
    expected = score_choices(tiny_model, PAIRS)
    monkeypatch.setattr(score, "SPOTS", 2)
    for one, two in zip(score_choices(tiny_model, PAIRS), expected, strict=True):
        assert [s.logprob for s in one] == pytest.approx([s.logprob for s in two], abs=1e-5)
        assert [s.greedy for s in one] == [s.greedy for s in two]


def test_greedy_is_told(tiny_model):
    context = PAIRS[1][0]
    best = int(tiny_model(torch.tensor([context])).logits[0, -1].argmax())
    (scored,) = score_choices(tiny_model, [(context, [[best], [best, 4], [(best + 1) % 512]])])
    assert [s.greedy for s in scored] == [naive(tiny_model, context, c)[1] for c in ([best], [best, 4], [best + 1])]
    assert scored[0].greedy and not scored[2].greedy


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([([1], [[2]]), ([], [[2]])], "pair 1"),
        ([([1], [[]])], "pair 0"),
        ([([1], [])], "pair 0"),
        ([([1] * 256, [[2, 3]])], "257 tokens exceed the model's window of 256"),
    ],
)
def test_bad_input_is_one_clear_line(tiny_model, tiny_tokenizer, pairs, message):
    with pytest.raises(ParameterError, match=message):
        choice_logprobs(tiny_model, pairs)


def test_text_loss_of_packed_rows_equals_the_loss_of_each_text(tiny_model, tiny_tokenizer):
    from llamax.data.packing import plain_text_rows

    texts = ["The quick brown fox jumps over the lazy dog.", "hello", "Question: what is 12 + 30?", "user", "abc " * 30]
    rows = plain_text_rows(texts, tiny_tokenizer, length=64)
    loss = text_loss(tiny_model, rows, tiny_tokenizer.pad_token_id)
    expected = np.zeros(len(texts))
    for document, source in enumerate(rows.sources):
        ids = rows.tokens[rows.offsets[document] : rows.offsets[document + 1]].tolist()
        expected[source] -= naive(tiny_model, ids[:1], ids[1:])[0]
    np.testing.assert_allclose(loss.input_nats, expected, rtol=1e-5)
    assert loss.tokens == loss.input_tokens.sum() == rows.mask.sum()
    assert loss.nats == pytest.approx(expected.sum(), rel=1e-5)
    assert loss.nats / loss.tokens == pytest.approx(math.log(512), rel=0.1)


def test_a_text_may_fill_the_window_but_for_its_last_token(tiny_model, tiny_tokenizer):
    context, choice = [1 + n % 400 for n in range(255)], [2, 3]  # 256 tokens are looked at, the 257th is predicted only
    ((found,),) = choice_logprobs(tiny_model, [(context, [choice])])
    assert found == pytest.approx(naive(tiny_model, context, choice)[0], abs=1e-4)


def test_text_loss_is_the_same_however_many_rows_are_read_at_once(tiny_model, tiny_tokenizer, monkeypatch):
    from llamax.data.packing import plain_text_rows

    rows = plain_text_rows([f"text {n} " * (n + 2) for n in range(12)], tiny_tokenizer, length=64)
    whole = text_loss(tiny_model, rows, tiny_tokenizer.pad_token_id)
    monkeypatch.setattr(score, "batch_tokens", lambda model: 2 * rows.length)
    assert len(rows) > 4  # three batches and more
    parts = text_loss(tiny_model, rows, tiny_tokenizer.pad_token_id)
    np.testing.assert_allclose(parts.input_nats, whole.input_nats, rtol=1e-5)
    np.testing.assert_array_equal(parts.input_tokens, whole.input_tokens)
