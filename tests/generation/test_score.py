import math

import numpy as np
import pytest
import torch

from llamax.errors import ParameterError
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
    scored = choice_logprobs(tiny_model, tiny_tokenizer, PAIRS, batch_size=batch_size)
    for (context, choices), values in zip(PAIRS, scored, strict=True):
        for choice, value in zip(choices, values, strict=True):
            assert value == pytest.approx(naive(tiny_model, context, choice)[0], abs=1e-4)


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
        choice_logprobs(tiny_model, tiny_tokenizer, pairs)


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
