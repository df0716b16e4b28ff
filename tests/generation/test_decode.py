import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamax.errors import ParameterError
from llamax.generation.decode import generate, sample

PROMPTS = [[0, *range(10, 10 + n)] for n in (3, 17, 1, 9, 30, 5, 5, 12)]


def naive_greedy(model, prompt, steps):
    """One prompt, no cache, no padding: the definition of greedy decoding."""
    ids = list(prompt)
    for _ in range(steps):
        with torch.inference_mode():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_greedy_is_argmax_of_the_full_forward_pass(tiny_model, tiny_tokenizer, attention):
    tiny_model.set_attn_implementation(attention)
    answers = generate(tiny_model, tiny_tokenizer, PROMPTS, max_new_tokens=12)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        expected = naive_greedy(tiny_model, prompt, 12)
        eos = tiny_tokenizer.eos_token_id
        expected = expected[: expected.index(eos)] if eos in expected else expected
        assert answer.token_ids == expected
        assert answer.finish == ("length" if len(expected) == 12 else "stop")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_answer_does_not_depend_on_its_neighbours(tiny_model, tiny_tokenizer, temperature):
    def run(prompts, batch_size):
        return generate(
            tiny_model, tiny_tokenizer, prompts, max_new_tokens=16, temperature=temperature, batch_size=batch_size
        )

    one_by_one, together = run(PROMPTS, 1), run(PROMPTS, 8)
    assert one_by_one == together == run(PROMPTS, 3)
    assert run(PROMPTS[:2], 8) == together[:2]


def test_rows_that_finish_early_leave_the_others_as_they_are(tiny_model, tiny_tokenizer):
    free = generate(tiny_model, tiny_tokenizer, PROMPTS, max_new_tokens=20, temperature=1.0)
    # Stop on a token that some answers contain early: those rows are dropped while the rest go on.
    stop = free[0].token_ids[2]
    stopped = generate(tiny_model, tiny_tokenizer, PROMPTS, max_new_tokens=20, temperature=1.0, stop_ids=[stop])
    for before, after in zip(free, stopped, strict=True):
        ids = before.token_ids
        assert after.token_ids == (ids[: ids.index(stop)] if stop in ids else ids)
    assert stopped[0].finish == "stop"


def test_stop_string_across_tokens_is_cut_from_the_text(tiny_model, tiny_tokenizer):
    free = generate(tiny_model, tiny_tokenizer, PROMPTS[:1], max_new_tokens=20, temperature=1.0)[0]
    middle = tiny_tokenizer.decode(free.token_ids[5:7])
    stopped = generate(
        tiny_model, tiny_tokenizer, PROMPTS[:1], max_new_tokens=20, temperature=1.0, stop_strings=[middle]
    )[0]
    assert stopped.finish == "stop"
    assert len(stopped.token_ids) <= 7
    assert middle not in stopped.text
    assert free.text.startswith(stopped.text)


def test_the_window_ends_an_answer(tiny_model, tiny_tokenizer):
    window = tiny_model.config.max_position_embeddings
    prompts = [[10] * (window - 3), [11] * 5]
    first, second = generate(tiny_model, tiny_tokenizer, prompts, max_new_tokens=10)
    assert len(first.token_ids) <= 3
    assert second == generate(tiny_model, tiny_tokenizer, prompts[1:], max_new_tokens=10)[0]


def test_sampling_has_a_generator_of_its_own(tiny_model, tiny_tokenizer):
    def run(seed):
        return generate(tiny_model, tiny_tokenizer, PROMPTS, max_new_tokens=8, temperature=1.0, seed=seed)

    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = run(3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert run(3) == first
    assert run(4) != first
    same = generate(tiny_model, tiny_tokenizer, [PROMPTS[0]] * 6, max_new_tokens=8, temperature=1.0)
    assert len({tuple(answer.token_ids) for answer in same}) > 1


def test_training_mode_is_restored(tiny_model, tiny_tokenizer):
    tiny_model.train()
    generate(tiny_model, tiny_tokenizer, PROMPTS[:1], max_new_tokens=1)
    assert tiny_model.training


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.floats(-4, 4), min_size=2, max_size=6),
    st.floats(0.3, 2.0),
    st.floats(0.05, 1.0),
)
def test_sample_draws_from_the_nucleus_in_proportion(logits, temperature, top_p):
    logits = torch.tensor(logits, dtype=torch.float64)
    probabilities = torch.softmax(logits / temperature, 0)
    order = probabilities.argsort(descending=True, stable=True)
    nucleus, mass = [], 0.0
    for token in order.tolist():
        if mass < top_p:
            nucleus.append(token)
            mass += float(probabilities[token])
    n = 4000
    uniform = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    drawn = sample(logits.expand(n, -1), uniform, temperature, top_p)
    share = torch.bincount(drawn, minlength=len(logits)) / n
    for token in range(len(logits)):
        expected = float(probabilities[token]) / mass if token in nucleus else 0.0
        assert share[token] == pytest.approx(expected, abs=2 / n)


@pytest.mark.parametrize(
    ("prompts", "settings", "message"),
    [
        ([[1], []], {}, "prompt 1 has 0 tokens"),
        ([[1] * 256], {}, "prompt 0 has 256 tokens"),
        ([[1]], {"top_p": 0.0}, "top_p=0.0"),
        ([[1]], {"temperature": -1.0}, "temperature=-1.0"),
    ],
)
def test_bad_input_is_one_clear_line(tiny_model, tiny_tokenizer, prompts, settings, message):
    with pytest.raises(ParameterError, match=message):
        generate(tiny_model, tiny_tokenizer, prompts, max_new_tokens=4, **settings)


def test_eos_ends_an_answer(tiny_model, tiny_tokenizer):
    """The token that greedy decoding says third is made the end of text."""
    free = generate(tiny_model, tiny_tokenizer, PROMPTS[:1], max_new_tokens=8)[0]
    third = free.token_ids[2]
    assert third not in free.token_ids[:2]
    other = copy.deepcopy(tiny_tokenizer)
    other.eos_token = other.convert_ids_to_tokens(third)
    ended = generate(tiny_model, other, PROMPTS[:1], max_new_tokens=8)[0]
    assert (ended.token_ids, ended.finish) == (free.token_ids[:2], "stop")


def test_a_stop_string_is_found_across_any_two_tokens(tiny_model, tiny_tokenizer):
    free = generate(tiny_model, tiny_tokenizer, PROMPTS[:1], max_new_tokens=20, temperature=1.0)[0]
    found = 0
    for place in range(1, len(free.token_ids)):
        left, right = (tiny_tokenizer.decode([token]) for token in free.token_ids[place - 1 : place + 1])
        string = left[-1:] + right[:1]
        if len(string) == 2 and string.isascii() and free.text.find(string) >= 0:
            found += 1
            arguments = {"max_new_tokens": 20, "temperature": 1.0, "stop_strings": [string]}
            stopped = generate(tiny_model, tiny_tokenizer, PROMPTS[:1], **arguments)[0]
            assert stopped.finish == "stop"
            assert stopped.text == free.text.split(string)[0]
    assert found
