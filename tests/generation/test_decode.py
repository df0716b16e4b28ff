import copy

import naive
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamax.errors import ModelError, ParameterError
from llamax.generation import attention, decode, prefixes
from llamax.generation.attention import out_of_memory
from llamax.generation.decode import generate, sample

PROMPTS = [[0, *range(10, 10 + n)] for n in (3, 17, 1, 9, 30, 5, 5, 12)]


def naive_greedy(model, prompt, steps):
    """One prompt, no cache, no padding: the definition of greedy decoding."""
    ids = list(prompt)
    for _ in range(steps):
        with torch.inference_mode():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_greedy_is_argmax_of_the_full_forward_pass(tiny_model, tiny_tokenizer, implementation):
    tiny_model.set_attn_implementation(implementation)
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
    inside, was = [], tiny_model.config._attn_implementation
    generate(
        tiny_model, tiny_tokenizer, PROMPTS[:1], max_new_tokens=1,
        on_answer=lambda *_: inside.append(tiny_model.training),
    )  # fmt: skip
    assert inside == [False] and tiny_model.training
    assert tiny_model.config._attn_implementation == was != attention.NAME


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


SHOTS = [0, *(range(20, 120)), *range(50, 150)]  # shared by enough prompts to be encoded once


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_a_shared_prefix_changes_nothing(tiny_model, tiny_tokenizer, batch_size):
    prompts = [[*SHOTS, *prompt[1:], 7 + n] for n, prompt in enumerate(PROMPTS)]
    answers = generate(tiny_model, tiny_tokenizer, prompts, max_new_tokens=9, batch_size=batch_size)
    for prompt, answer in zip(prompts, answers, strict=True):
        expected = naive_greedy(tiny_model, prompt, 9)
        eos = tiny_tokenizer.eos_token_id
        assert answer.token_ids == (expected[: expected.index(eos)] if eos in expected else expected)


def test_the_prefix_is_encoded_once(tiny_model, tiny_tokenizer, monkeypatch):
    seen, really = [], decode.encode_prefix
    monkeypatch.setattr(decode, "encode_prefix", lambda model, ids: seen.append(ids) or really(model, ids))
    generate(tiny_model, tiny_tokenizer, [[*SHOTS, 7 + n] for n in range(8)], max_new_tokens=2, batch_size=3)
    assert seen == [SHOTS]


def test_places_are_taken_again_as_soon_as_they_are_free(tiny_model, tiny_tokenizer, monkeypatch):
    """Twelve prompts through four places: no step is spent on fewer rows than there are prompts left for."""
    rows, really = [], decode.encode
    monkeypatch.setattr(
        decode, "encode", lambda model, ids, *rest: rows.append(tuple(ids.shape)) or really(model, ids, *rest)
    )
    prompts = [[0, 30 + n] for n in range(12)]
    told = {}
    answers = generate(
        tiny_model, tiny_tokenizer, prompts, max_new_tokens=8, temperature=1.5, stop_ids=range(256, 512), batch_size=4,
        on_answer=lambda number, answer: told.setdefault(number, answer),
    )  # fmt: skip
    assert [told[number] for number in range(12)] == answers
    lengths = [len(answer.token_ids) for answer in answers]
    assert len(set(lengths)) > 2
    steps = [shape for shape in rows if shape[1] == 1]
    assert sum(shape[0] for shape in steps) < 12 * max(lengths)  # what waiting for the longest would take
    assert all(shape[0] == 4 for shape in steps[:3])
    assert steps[-1][0] < 4  # no prompt is left: free places are given up


def test_when_memory_runs_out_the_batch_is_halved_and_nothing_is_lost(tiny_model, tiny_tokenizer, monkeypatch):
    expected = generate(tiny_model, tiny_tokenizer, PROMPTS, max_new_tokens=10, temperature=1.0)
    really, calls = decode.encode, []

    def tight(model, ids, *rest):
        calls.append(len(ids))
        if len(ids) > 2 and len(calls) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return really(model, ids, *rest)

    monkeypatch.setattr(decode, "encode", tight)
    sizes, room = [], decode.Room
    monkeypatch.setattr(decode, "Room", lambda model, rows, capacity: sizes.append(rows) or room(model, rows, capacity))
    told = []
    answers = generate(
        tiny_model, tiny_tokenizer, PROMPTS, max_new_tokens=10, temperature=1.0, on_answer=lambda n, a: told.append(n)
    )
    assert answers == expected
    assert sorted(told) == list(range(len(PROMPTS)))
    assert max(calls) > 2
    assert sizes == [8, 4, 2]


def test_answers_that_are_done_but_not_told_when_memory_runs_out_are_not_lost(tiny_model, tiny_tokenizer, monkeypatch):
    expected = generate(tiny_model, tiny_tokenizer, PROMPTS, max_new_tokens=4)
    really, failed, told = decode._Decoder._find_stop_strings, [], []

    def tight(self, answers):
        if not failed and any(answer.finish == "length" for answer in answers):
            failed.append(len(answers))
            raise MemoryError
        return really(self, answers)

    monkeypatch.setattr(decode._Decoder, "_find_stop_strings", tight)
    found = generate(tiny_model, tiny_tokenizer, PROMPTS, max_new_tokens=4, on_answer=lambda n, a: told.append(n))
    assert failed and found == expected and sorted(told) == list(range(len(PROMPTS)))


def test_memory_that_is_too_small_for_one_row_is_an_error(tiny_model, tiny_tokenizer, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(decode, "encode", full)
    with pytest.raises(torch.OutOfMemoryError):
        generate(tiny_model, tiny_tokenizer, PROMPTS, max_new_tokens=2)


def test_a_batch_holds_no_more_than_fits(tiny_model, tiny_tokenizer, monkeypatch):
    expected = generate(tiny_model, tiny_tokenizer, PROMPTS, max_new_tokens=10)
    monkeypatch.setattr(decode, "tokens_that_fit", lambda model: 90)
    sizes, really = [], decode.Room
    monkeypatch.setattr(
        decode, "Room", lambda model, rows, capacity: sizes.append(rows * capacity) or really(model, rows, capacity)
    )
    assert generate(tiny_model, tiny_tokenizer, PROMPTS, max_new_tokens=10) == expected
    assert sizes and max(sizes) <= 90


def test_samples_are_drawn_by_place(tiny_model, tiny_tokenizer):
    def run(prompts, places):
        return generate(tiny_model, tiny_tokenizer, prompts, max_new_tokens=8, temperature=1.0, places=places)

    whole = run([PROMPTS[0]] * 4, None)
    assert run([PROMPTS[0]] * 2, [3, 1]) == [whole[3], whole[1]]
    assert whole[0] != whole[1]
    assert run([PROMPTS[0]], [0]) == run([PROMPTS[0]], None) == whole[:1]
    assert run([], []) == run([], None) == []
    for places in ([], [1], [1, 2, 3]):
        with pytest.raises(ParameterError, match=rf"places: {len(places)} for 2 prompts"):
            run(PROMPTS[:2], places)


def test_a_sample_does_not_depend_on_how_long_it_may_get(tiny_model, tiny_tokenizer):
    def run(length):
        return generate(tiny_model, tiny_tokenizer, PROMPTS, max_new_tokens=length, temperature=1.0)

    for short, long in zip(run(5), run(30), strict=True):
        assert short.token_ids == long.token_ids[:5]


def test_little_groups_do_not_decode_by_themselves(tiny_model, tiny_tokenizer, monkeypatch):
    """Pairs that share 150 tokens: encoding them apart would cost less than decoding two at a time does."""
    monkeypatch.setattr(prefixes, "PRICE", 100)
    monkeypatch.setattr(decode, "PRICE", 100)
    prompts = [[0, *range(pair, pair + 149), 7 + n] for pair in range(1, 5) for n in range(2)]
    assert len(prefixes.group_by_prefix(prompts)) == 4
    steps, really = [], decode.encode
    monkeypatch.setattr(
        decode, "encode", lambda model, ids, *rest: steps.append(tuple(ids.shape)) or really(model, ids, *rest)
    )
    answers = generate(tiny_model, tiny_tokenizer, prompts, max_new_tokens=20, batch_size=8)
    assert max(steps) == (8, 151)
    monkeypatch.setattr(decode, "step_price", lambda model: 0)
    steps.clear()
    assert generate(tiny_model, tiny_tokenizer, prompts, max_new_tokens=20, batch_size=8) == answers
    assert max(steps)[0] == 2


def test_memory_that_is_asked_for_follows_the_prompts(tiny_model, tiny_tokenizer, monkeypatch):
    """A thousand short prompts beside a few long ones: no room is much larger than its own prompts need."""
    rooms, really = [], decode.Room
    monkeypatch.setattr(
        decode, "Room", lambda model, rows, capacity: rooms.append((rows, capacity)) or really(model, rows, capacity)
    )
    prompts = [[n % 500] * (1 + n % 7) for n in range(300)] + [[3] * 200] * 2
    generate(tiny_model, tiny_tokenizer, prompts, max_new_tokens=2, batch_size=16)
    assert rooms == [(16, 202), (16, 9), (16, 4)]  # the first has 14 of the short ones, to be full


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (ValueError("shape"), False),
    ],
)
def test_what_says_that_memory_ran_out(error, is_memory):
    assert out_of_memory(error) is is_memory


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_decode_by_their_own_forward_pass(tiny_tokenizer, dtype):
    """In fp64 all tokens are those of the definition; in bf16 each is within rounding of the best."""
    model = naive.lively_model().to(dtype)
    prompts = [[*SHOTS, *prompt[1:], 7 + n] for n, prompt in enumerate(PROMPTS)]
    for prompt, answer in zip(prompts, generate(model, tiny_tokenizer, prompts, max_new_tokens=6), strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + answer.token_ids])).logits[0, len(prompt) - 1 : -1].double()
        behind = logits.max(-1).values - logits.gather(1, torch.tensor(answer.token_ids)[:, None])[:, 0]
        assert behind.max() <= (0.04 * logits.abs().max() if dtype == torch.bfloat16 else 0)


def test_logits_that_are_not_numbers_are_an_error(tiny_model, tiny_tokenizer):
    with torch.no_grad():
        tiny_model.model.norm.weight[3] = float("nan")
    with pytest.raises(ModelError, match="not numbers"):
        generate(tiny_model, tiny_tokenizer, PROMPTS, max_new_tokens=2)


def test_a_sliding_window_is_refused(tiny_model, tiny_tokenizer):
    tiny_model.config.sliding_window = 16
    with pytest.raises(ModelError, match="sliding-window"):
        generate(tiny_model, tiny_tokenizer, PROMPTS, max_new_tokens=2)


def test_a_text_ends_at_the_first_of_several_stop_strings(tiny_tokenizer):
    ids = tiny_tokenizer.encode("one two three", add_special_tokens=False)
    for strings in ((" two", " three"), (" three", " two"), ("", " two")):
        assert decode.text_of(tiny_tokenizer, ids, strings) == "one"


def test_the_tail_that_is_looked_at_holds_stop_strings_of_many_bytes_a_letter(tiny_tokenizer):
    string = "日本語" * 5
    ids = tiny_tokenizer.encode("x " * 30 + string, add_special_tokens=False)
    tail = decode._stops(tiny_tokenizer, (), ("ab", string)).tail
    assert tail < len(ids)
    assert string in tiny_tokenizer.decode(ids[-tail:])


def test_a_stop_string_that_the_last_token_completes_is_a_stop(tiny_model, tiny_tokenizer):
    def said(length, **more):
        (answer,) = generate(tiny_model, tiny_tokenizer, PROMPTS[:1], max_new_tokens=length, temperature=1.0, **more)
        return answer

    whole = tiny_tokenizer.decode(said(6).token_ids)
    ids = said(20, stop_strings=[whole]).token_ids
    assert said(len(ids)).finish == "length"
    assert said(len(ids), stop_strings=[whole]) == ("", ids, "stop")


def test_no_two_places_and_seeds_draw_alike():
    assert len({decode.seed_of(seed, place) for seed in range(10) for place in range(100)}) == 1000
