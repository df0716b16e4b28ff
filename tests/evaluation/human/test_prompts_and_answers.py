"""Prompts and answers: every shape that is read, and one clear line for whatever cannot be."""

import json
from collections import Counter

import pytest
from human_cases import write_rows

from llamax.errors import DataError, ParameterError
from llamax.evaluation.human.answers import generate_answers, read_answers, write_answers
from llamax.evaluation.human.prompts import Prompt, prompts_hash, read_prompts


def fails(message, call, *args, **kwargs):
    with pytest.raises((DataError, ParameterError), match=message) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)


def test_nano_prompts_are_the_worlds_questions_mixed_by_task():
    prompts = read_prompts("nano", limit=50)
    assert Counter(prompt.id.split("/")[0] for prompt in prompts) == {
        "knowledge": 10, "arithmetic": 10, "open_qa": 10, "truthfulness": 10, "code": 10
    }  # fmt: skip
    assert prompts == read_prompts("nano")[:50]
    assert next(p for p in prompts if p.id.startswith("code/")).turns[0].startswith("Complete this function")


def test_mt_bench_and_self_instruct_from_the_local_copy(shared_data, monkeypatch):
    monkeypatch.setenv("LLAMAX_DATA", str(shared_data))
    both, first = read_prompts("mt_bench", turns=2), read_prompts("mt_bench")
    assert len(both) == 80 and {len(p.turns) for p in both} == {2} and {len(p.turns) for p in first} == {1}
    assert [p.turns[0] for p in both] == [p.turns[0] for p in first]
    tasks = read_prompts("self_instruct")
    assert len({p.id for p in tasks}) == 252
    rows = (shared_data / "self_instruct/human_eval/user_oriented_instructions.jsonl").read_text().splitlines()
    row = json.loads(rows[0])
    assert tasks[0].turns[0] == row["instruction"] + "\n\n" + row["instances"][0]["input"]


def test_real_systems_answers_are_read_by_the_text_of_the_prompt(shared_data, monkeypatch):
    monkeypatch.setenv("LLAMAX_DATA", str(shared_data))
    tasks = read_prompts("self_instruct")
    file = shared_data / "self_instruct/human_eval/predictions/text-davinci-003_predictions.jsonl"
    answers = read_answers(file, tasks)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [answers[task.id][0] for task in tasks] == [row["response"].strip() for row in rows]


def test_mt_bench_answers_in_fastchats_shape(shared_data, monkeypatch):
    monkeypatch.setenv("LLAMAX_DATA", str(shared_data))
    file = shared_data / "mt_bench/mt_bench/reference_answer/gpt-4.jsonl"
    known = {f"mt_bench/{json.loads(line)['question_id']}" for line in file.read_text().splitlines()}
    prompts = [p for p in read_prompts("mt_bench", turns=2) if p.id in known]
    assert len(prompts) == 30 and {len(texts) for texts in read_answers(file, prompts).values()} == {2}
    fails(
        r"gpt-4\.jsonl: no answer to 50 of 80 prompts, the first is 'mt_bench/81'",
        read_answers,
        file,
        read_prompts("mt_bench"),
    )


def test_prompts_without_local_data_say_what_to_set(monkeypatch):
    monkeypatch.delenv("LLAMAX_DATA", raising=False)
    fails(
        "mt_bench: is read from a local copy: set LLAMAX_DATA to a folder that holds mt_bench/",
        read_prompts,
        "mt_bench",
    )
    fails("no prompts 'mtbench': give nano, mt_bench, self_instruct, or a .jsonl file", read_prompts, "mtbench")
    fails("turns = 0", read_prompts, "nano", turns=0)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            [{"id": "a", "prompt": "x"}, {"id": "a", "prompt": "y"}],
            r"line 2: prompt 'a' is given twice, first at .*line 1",
        ),
        ([{"id": "a", "text": "x"}], r"line 1: should have id and prompt, found id, text"),
        ([{"id": "a", "prompt": 7}], r"line 1: parameter 'turns.0'"),
        ([{"id": "a", "prompt": ""}], r"line 1: parameter 'turns.0' = ''"),
        ([["a", "b"]], r"line 1: should be an object with id and prompt, found list"),
        ([{"id": ["a"], "prompt": "x"}], r"line 1: parameter 'id'"),
        ([{"id": "a", "instruction": 7, "instances": [{"input": ""}]}], r"line 1: instruction should be a text, found"),
        ([{"id": "a", "instruction": "x", "instances": []}], r"line 1: instances should be a list, of which the first"),
        ([{"id": "a", "instruction": "x", "instances": {"input": ""}}], r"line 1: instances should be a list"),
        ([{"id": "a", "instruction": "x", "instances": [{"input": None}]}], r"line 1: input should be a text, found N"),
        ([], r"no prompts in it"),
    ],
)
def test_malformed_prompts_are_named(tmp_path, rows, said):
    fails(said, read_prompts, str(write_rows(tmp_path / "prompts.jsonl", rows)))


PROMPTS = [Prompt(id="a", turns=("one?", "two?")), Prompt(id="b", turns=("three?", "four?"))]
GOOD = [{"id": "a", "answer": ["1", "2"]}, {"id": "b", "answer": ["3", "4"]}]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (GOOD[:1], r"no answer to 1 of 2 prompts, the first is 'b'"),
        ([*GOOD, GOOD[0]], r"line 3: a second answer to prompt 'a', the first is at line 1"),
        ([{"id": "a", "answer": "1"}, GOOD[1]], r"line 1: 1 answers to prompt 'a', which has 2 turns"),
        ([{"id": "a", "answer": 7}, GOOD[1]], r"line 1: an answer should be a text"),
        ([{"id": "a", "text": "1"}, GOOD[1]], r"line 1: should have id and answer, found id, text"),
        ([{"id": ["a"], "answer": "1"}], r"line 1: id should be a text, found list"),
        ([*GOOD, {"id": None, "answer": "1"}], r"line 3: id should be a text, found NoneType"),
        ([{"question_id": 81, "choices": {"turns": "1"}}], r"line 1: choices should be a list, of which the first has"),
        ([{"question_id": 81, "choices": []}], r"line 1: choices should be a list"),
        ([{"question_id": 81, "choices": ["1"]}], r"line 1: choices should be a list"),
        ([{"instruction": 7, "input": "", "response": "1"}], r"line 1: instruction should be a text, found int"),
        ([{"instruction": "x", "input": None, "response": "1"}], r"line 1: input should be a text, found NoneType"),
    ],
)
def test_malformed_answers_are_named(tmp_path, rows, said):
    fails(said, read_answers, write_rows(tmp_path / "answers.jsonl", rows), PROMPTS)


def test_answers_come_back_as_they_were_written(tmp_path):
    answers = {"a": ("ein Ä\n\n${x}", "2"), "b": ("", "4")}
    assert read_answers(write_answers(tmp_path / "answers.jsonl", answers), PROMPTS) == answers
    more = write_rows(tmp_path / "more.jsonl", [*GOOD, {"id": "c", "answer": "5"}])
    assert list(read_answers(more, PROMPTS)) == ["a", "b"]


def test_the_hash_is_of_ids_texts_and_order():
    hashes = {prompts_hash(PROMPTS), prompts_hash(PROMPTS[::-1]), prompts_hash(PROMPTS[:1])}
    assert len(hashes) == 3 and prompts_hash(list(PROMPTS)) in hashes


def test_a_model_answers_each_turn_knowing_what_it_said():
    from llamax.data.conversation import assistant, user
    from llamax.data.render import render_prompt
    from llamax.data.templates import get_template
    from llamax.generation.decode import generate
    from llamax.models.load import load

    prompt = Prompt(id="a", turns=("What is 2 plus 3?", "And 4 plus 4?"))
    (said,) = generate_answers("nano", [prompt], max_new_tokens=8).values()
    loaded = load("nano")
    form = get_template("chatml", loaded.tokenizer)
    history = ()
    for turn, answer in zip(prompt.turns, said, strict=True):
        ids = render_prompt((*history, user(turn)), loaded.tokenizer, form)
        (alone,) = generate(
            *loaded, [ids], max_new_tokens=8, stop_ids=form.stop.token_ids, stop_strings=form.stop.strings
        )
        assert answer == alone.text.strip() != ""
        history = (*history, user(turn), assistant(answer))
