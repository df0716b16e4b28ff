"""Our backend beside lm-eval's own; prompts, answers and scores of benchmarks, in little copies of their files."""

import re
import sys
from itertools import combinations
from types import ModuleType, SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from llamax.errors import DataError, ModelError, ParameterError

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from llamax.evaluation import harness
from llamax.evaluation.backend import Backend
from llamax.evaluation.definitions import Settings, find
from llamax.evaluation.harness import (
    build_requests,
    evaluate_tasks,
    load_tasks,
    measured,
    outcomes,
    pass_at,
    prepare,
    select,
)
from llamax.generation.decode import generate


def requests(kind, arguments):
    return [Instance(kind, {}, args, i) for i, args in enumerate(arguments)]


@pytest.fixture
def peers(tiny_model, tiny_tokenizer):
    return Backend.of(tiny_model, tiny_tokenizer, over_long="cut"), HFLM(
        pretrained=tiny_model, tokenizer=tiny_tokenizer, batch_size=2
    )


PAIRS = [
    ("Question: what is 12 + 30? Answer:", " 42"),
    ("Question: what is 12 + 30? Answer:", " 43."),
    ("Question: what is 12 + 30? Answer: ", "42"),
    ("", "The quick brown fox"),
    ("<s>The quick brown", " fox jumps"),
    ("system user assistant tool " * 60, " hello"),
]


def test_loglikelihood_equals_lm_evals_own(peers):
    ours, theirs = (peer.loglikelihood(requests("loglikelihood", PAIRS)) for peer in peers)
    for (value, greedy), (expected, expected_greedy) in zip(ours, theirs, strict=True):
        assert value == pytest.approx(expected, abs=1e-4)
        assert greedy == expected_greedy


def test_rolling_loglikelihood_equals_lm_evals_own(peers):
    texts = [("hello world",), ("The quick brown fox jumps over the lazy dog. " * 30,)]
    ours, theirs = (peer.loglikelihood_rolling(requests("loglikelihood_rolling", texts)) for peer in peers)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_generation_equals_lm_evals_own(peers):
    settings = {"until": ["e", "\n\n"], "max_gen_toks": 20, "do_sample": False}
    arguments = [(context, settings) for context, _ in PAIRS if context]
    arguments.append((PAIRS[0][0], {"until": ["fox"], "max_gen_toks": 5}))
    ours, theirs = (peer.generate_until(requests("generate_until", arguments)) for peer in peers)
    assert ours == theirs


def test_another_seed_draws_other_answers(tiny_model, tiny_tokenizer):
    settings = {"until": ["\n\n"], "max_gen_toks": 20, "do_sample": True, "temperature": 1.0}

    def said(**seed):
        backend = Backend.of(tiny_model, tiny_tokenizer, over_long="cut", **seed)
        return backend.generate_until(requests("generate_until", [(PAIRS[0][0], settings)]))

    assert said(seed=1) == said(seed=1) != said(seed=2)
    assert said() == said(seed=0)


def test_the_edges_of_the_window_are_lm_evals_own(peers, tiny_model, tiny_tokenizer):
    """Continuations that fill the window to the last token, contexts cut down to one token, texts of any length."""
    ours, theirs = peers
    tiny_model.config.max_position_embeddings = 24
    words = "The quick brown fox jumps over the lazy dog. 0123456789 Question: what is 12 + 30? Answer: 42." * 3
    ids = tiny_tokenizer.encode(words)
    assert len(ids) > 50
    pairs = [(None, ids[:context], ids[context : context + n]) for context in (1, 20, 25) for n in (1, 2, 23, 24)]
    ours = Backend.of(tiny_model, tiny_tokenizer, over_long="cut")  # its window is read once
    theirs._max_length = 24
    for one, two in zip(ours._loglikelihood_tokens(pairs), theirs._loglikelihood_tokens(pairs), strict=True):
        assert one[0] == pytest.approx(two[0], abs=1e-4)
        assert one[1] == two[1]
    texts = [(words[:length],) for length in (1, 30, 60, 61, 62, 63, 120, 180)]
    found = [peer.loglikelihood_rolling(requests("loglikelihood_rolling", texts)) for peer in (ours, theirs)]
    np.testing.assert_allclose(*found, rtol=1e-5)
    assert ours.loglikelihood_rolling(requests("loglikelihood_rolling", [("",)])) == [0]
    settings = {"until": ["x"], "max_gen_toks": 23, "do_sample": False}
    asked = requests("generate_until", [(words, settings), (words[:9], settings)])
    assert ours.generate_until(asked) == theirs.generate_until(asked)


def test_what_fits_to_the_last_token_is_asked(tiny_model, tiny_tokenizer):
    """A choice's last token is not looked at by the model; an answer's last token has a place in the window."""
    context, choice = (len(tiny_tokenizer.encode(text)) for text in ("Question:", " 42"))

    def asked(kind, arguments, window):
        tiny_model.config.max_position_embeddings = window
        backend = Backend.of(tiny_model, tiny_tokenizer)
        made = requests(kind, [arguments])
        made[0].task_name = "a_task"
        return getattr(backend, kind)(made)

    for kind, arguments, need in [
        ("loglikelihood", ("Question:", " 42"), context + choice - 1),
        ("generate_until", ("Question:", {"until": ["e"], "max_gen_toks": 5}), context + 5),
    ]:
        assert len(asked(kind, arguments, need)) == 1
        with pytest.raises(ModelError, match=rf"window of {need - 1}: a_task/\S+ \({need}\)"):
            asked(kind, arguments, need - 1)


def test_a_continuation_longer_than_the_window_is_named(peers):
    request = requests("loglikelihood", [("Question:", " hello" * 300)])
    request[0].task_name = "a_task"
    with pytest.raises(ModelError, match=r"1 of 1 items need more tokens than the model's window of 256: a_task/"):
        peers[0].loglikelihood(request)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"top_k": 5, "do_sample": True, "temperature": 1.0}, "top_k=5: known are"),
        ({"num_beams": 4, "repetition_penalty": 1.2}, "num_beams=4, repetition_penalty=1.2: known are do_sample, max"),
        ({"max_gen_toks": 256}, "max_gen_toks=256 leaves no room in a window of 256"),
    ],
)
def test_generation_settings_that_would_be_passed_over_are_refused(peers, settings, says):
    with pytest.raises(ParameterError, match=says):
        peers[0].generate_until(requests("generate_until", [("Question:", {"until": ["e"]} | settings)]))
    neutral = {"num_beams": 1, "repetition_penalty": 1, "max_gen_toks": 3}
    assert len(peers[0].generate_until(requests("generate_until", [("Question:", {"until": ["e"]} | neutral)]))) == 1


def test_greedy_continuations_are_known_as_such(peers, tiny_model, tiny_tokenizer):
    """lm-eval's `is_greedy`, on what the model itself says."""
    said = generate(tiny_model, tiny_tokenizer, [tiny_tokenizer.encode("hello world")], max_new_tokens=3)[0].token_ids
    context = tiny_tokenizer.encode("hello world")
    pairs = [(None, context, said), (None, context, said[:1]), (None, context, [*said[:2], said[2] ^ 1])]
    ours, theirs = (peer._loglikelihood_tokens(pairs) for peer in peers)
    assert [bool(greedy) for _, greedy in ours] == [bool(greedy) for _, greedy in theirs] == [True, True, False]


def test_outcomes_are_per_item_and_carry_no_text(local_data, tiny_model, tiny_tokenizer):
    tasks = {"mmlu_anatomy": None, "gsm8k": 3, "truthfulqa_mc1": 2, "truthfulqa_mc2": 2}
    tiny_model.config.max_position_embeddings = 4096
    table = evaluate_tasks(tiny_model, tiny_tokenizer, tasks, settings=Settings(max_new_tokens=4))
    assert list(table.columns) == ["benchmark", "metric", "item", "sample", "outcome", "cluster"]
    assert table.groupby(["benchmark", "metric"]).size().to_dict() == {
        ("mmlu_anatomy", "acc"): 7,
        ("gsm8k", "exact_match,strict-match"): 3,
        ("gsm8k", "exact_match,flexible-extract"): 3,
        ("truthfulqa_mc1", "acc"): 2,
        ("truthfulqa_mc2", "acc"): 2,
    }
    assert table.item.str.fullmatch(r"[a-z0-9_]+/\d+").all()
    assert table.outcome.between(0, 1).all() and (table["sample"] == 0).all()
    truthful = table[table.benchmark.str.startswith("truthfulqa")]
    assert truthful[truthful.benchmark.str.endswith("1")].item.str[-1].tolist() == (
        truthful[truthful.benchmark.str.endswith("2")].item.str[-1].tolist()
    )
    assert "4 new tokens" in table.attrs["protocol"]["gsm8k"]
    again = evaluate_tasks(tiny_model, tiny_tokenizer, tasks, settings=Settings(max_new_tokens=4))
    pd.testing.assert_frame_equal(table, again)


def answer(part, say):
    """Fill in every request's answer: `say(request)`."""
    for request in part.requests:
        request.resps.append(say(request))
    return part


def scores(part):
    return {(row.item, row.metric, row.sample): row.outcome for row in outcomes(part)}


def test_a_perfect_and_a_wrong_answer_score_one_and_zero(local_data):
    (part,) = prepare("gsm8k", 2)
    first, second = (item for item in (f"gsm8k/{request.doc_id}" for request in part.requests))
    right = f" So it is.\n#### {part.requests[0].doc_id}"
    got = scores(answer(part, lambda r: right if r is part.requests[0] else " #### 99, no: 98"))
    assert got[first, "exact_match,strict-match", 0] == got[first, "exact_match,flexible-extract", 0] == 1
    assert got[second, "exact_match,strict-match", 0] == got[second, "exact_match,flexible-extract", 0] == 0


def test_the_likeliest_option_is_the_answer(local_data):
    (part,) = prepare("mmlu_anatomy")
    got = scores(answer(part, lambda request: (-1.0 if request.args[1] == " B" else -2.0, False)))
    assert [got[f"mmlu_anatomy/{n}", "acc", 0] for n in range(7)] == [n % 4 == 1 for n in range(7)]
    parts = prepare("mmlu_two")
    rows = [row for part in parts for row in outcomes(answer(part, lambda request: (0.0, False)))]
    assert {(row.item.split("/")[0], row.cluster) for row in rows} == {
        ("mmlu_anatomy", "anatomy"),
        ("mmlu_virology", "virology"),
    }
    (part,) = prepare("truthfulqa_mc2", 1)
    likelihood = dict(zip([" Yes.", " Yep.", " No."], [0.3, 0.1, 0.2], strict=True))
    (row,) = outcomes(answer(part, lambda request: (float(np.log(likelihood[request.args[1]])), False)))
    assert row.outcome == pytest.approx(0.4 / 0.6) and row.cluster == row.item
    (part,) = prepare("gre_like")
    got = scores(answer(part, lambda request: (-float(len(request.args[1])), False)))
    assert {key: outcome for key, outcome in got.items() if key[0].endswith("/0")} == {
        ("agieval_aqua_rat/0", "acc", 0): 0.0,  # (A)1 is shortest
        ("agieval_aqua_rat/0", "acc_norm", 0): 1.0,  # per letter, (B)22 loses the leading space's weight least
    }


def test_confidence_is_the_share_of_the_likeliest_option(local_data):
    """One option at p = 0.4, whichever it is, the three others at 0.1: 0.4 / 0.7."""
    for best in " A", " B", " D":
        (part,) = prepare("mmlu_anatomy")
        answer(part, lambda request, best=best: (float(np.log(0.4 if request.args[1] == best else 0.1)), False))
        found = list(harness.confidences(part))
        assert [one[:2] for one in found] == [("mmlu_anatomy", f"mmlu_anatomy/{n}") for n in range(7)]
        assert [share for _, _, share, _, _ in found] == pytest.approx([4 / 7] * 7)
        assert [right for *_, right, _ in found] == [n % 4 == "ABCD".index(best.strip()) for n in range(7)]
    (shared,) = prepare("truthfulqa_mc2", 1)
    assert list(harness.confidences(answer(shared, lambda request: (-1.0, False)))) == []  # several answers are right
    (said,) = prepare("gsm8k", 1)
    assert list(harness.confidences(answer(said, lambda request: " 1"))) == []


def test_our_japanese_task_clusters_by_the_subject_of_its_file(local_data):
    (part,) = prepare("jmmlu")
    assert part.requests[4].args == ("目は？\nA. a\nB. b\nC. c\nD. d\n答え：", " A")
    rows = list(outcomes(answer(part, lambda request: (0.0 if request.args[1] == " D" else -1.0, False))))
    assert [(row.item, row.outcome, row.cluster) for row in rows] == [
        ("jmmlu/0", 0, "anatomy"),
        ("jmmlu/1", 1, "anatomy"),
        ("jmmlu/2", 0, "virology"),
    ]


def prompts(name, items=None, **changes):
    tasks, _ = load_tasks(find(name), Settings(**changes))
    (task,) = tasks.values()
    chosen = range(len(task.eval_docs)) if items is None else items
    return {request.doc_id: request.args[0] for request in build_requests(task, list(chosen))}


@pytest.mark.parametrize("name", ["gsm8k", "nq_open"])
def test_an_items_examples_do_not_depend_on_which_items_run(local_data, name):
    tasks, _ = load_tasks(find(name), Settings())
    (task,) = tasks.values()
    task.build_all_requests()  # lm-eval's own, on one rank
    expected = {request.doc_id: request.args[0] for request in task.instances}
    assert prompts(name) == expected
    assert prompts(name, [2]) == {2: expected[2]}
    assert [request.args[0] for request in build_requests(task, [2, 0])] == [expected[0], expected[2]]
    assert len({prompt.split("1")[0] for prompt in expected.values()}) > 1, "the examples are the same for all items"
    odd, even = prompts(name, range(1, len(expected), 2)), prompts(name, range(0, len(expected), 2))
    assert odd | even == expected, "two ranks that share the items see other examples"


def test_mmlu_shows_the_first_development_rows(local_data):
    (part,) = prepare("mmlu_anatomy", 1)
    prompt = part.requests[0].args[0]
    assert prompt.startswith("The following are multiple choice questions (with answers) about anatomy.\n\nOdd")
    assert re.findall(r"Answer: ([ABCD])", prompt) == list("ABCDA")
    assert [request.args[1] for request in part.requests] == [" A", " B", " C", " D"]
    (part,) = prepare("mmlu_anatomy", 1, Settings(shots=2))
    assert re.findall(r"Answer: ([ABCD])", part.requests[0].args[0]) == list("AB")


def test_worked_examples_that_a_prompt_brings_along_stay(local_data):
    (part,) = prepare("gsm8k_cot", 1, Settings(shots=2))
    assert part.requests[0].args[0].count("\nA:") == 9
    (part,) = prepare("truthfulqa_mc1", 1, Settings(shots=2))
    assert part.requests[0].args[0].count("\nA:") == 7 and part.task.config.num_fewshot == 0


# -- programs ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def judge(monkeypatch):
    """A judge that only reads: a program passes if it ends in the canonical solution. It keeps what it was handed."""
    handed = []

    def judge_all(submissions, *, workers=None, progress=False):
        handed.append(submissions)
        return [SimpleNamespace(passed=program == problem) for program, problem in submissions]

    fake = ModuleType("llamax.evaluation.judge")
    fake.humaneval = lambda doc: doc["prompt"] + doc["canonical_solution"]
    fake.leetcode = lambda doc: doc["completion"]
    fake.judge_all = judge_all
    monkeypatch.setitem(sys.modules, "llamax.evaluation.judge", fake)
    monkeypatch.setattr("llamax.evaluation.judge", fake, raising=False)
    return handed


def test_humaneval_prompts_stops_and_greedy_score(local_data, judge):
    (part,) = prepare("humaneval")
    prompt, settings = part.requests[1].args
    assert prompt == 'def f1():\n    """Return 1."""\n'
    assert settings["until"] == ["\nclass", "\ndef", "\n#", "\nif", "\nprint"]
    assert settings["max_gen_toks"] == 1024 and not settings["do_sample"]
    rows = list(outcomes(answer(part, lambda request: "    return 1\n")))
    assert [(row.metric, row.item, row.outcome) for row in rows] == [
        ("pass@1", "humaneval/0", 0),
        ("pass@1", "humaneval/1", 1),
        ("pass@1", "humaneval/2", 0),
    ]
    assert [len(submissions) for submissions in judge] == [3], "judged together, once"


def test_pass_at_k_from_samples(local_data, judge):
    (part,) = prepare("humaneval", 2, Settings(samples=5, temperature=0.8))
    assert len(part.requests) == 10 and part.requests[0].args[1]["temperature"] == 0.8
    assert part.requests[0].args[1]["do_sample"] is True
    right = {part.requests[0].doc_id: 2, part.requests[5].doc_id: 0}  # how many of the five are right
    answer(part, lambda r: f"    return {r.doc_id if r.idx < right[r.doc_id] else 99}\n")
    got = scores(part)
    first, second = (f"humaneval/{number}" for number in right)
    assert [got[first, "pass@1", sample] for sample in range(5)] == [1, 1, 0, 0, 0]
    assert got[first, "pass@2", 0] == pytest.approx(1 - 3 / 10)  # of the ten pairs, three have no right one
    assert got[first, "pass@5", 0] == 1 and got[second, "pass@2", 0] == 0
    assert {metric for _, metric, _ in got} == {"pass@1", "pass@2", "pass@5"}
    assert {row.cluster for row in outcomes(part)} == {first, second}
    (one,) = measured([part])
    assert (one.metric, one.samples, one.temperature, one.items, one.total) == ("pass@1", 5, 0.8, 2, 3)


@given(st.integers(1, 7).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(case):
    n, c, k = case
    subsets = list(combinations(range(n), k))  # the first c of n samples are right
    assert pass_at(k, n, c) == pytest.approx(sum(min(subset) < c for subset in subsets) / len(subsets))


def test_leetcode_continues_the_starter_code(local_data, judge):
    (part,) = prepare("leetcode")
    assert part.requests[1].args[0] == (
        'import math\n\n"""\nReturn 1.\n\nConstraints:\n"""\n\nclass Solution:\n    def f(self) -> int:\n'
    )
    rows = list(outcomes(answer(part, lambda request: f"        return {request.doc_id}\n")))
    assert [row.outcome for row in rows] == [1, 1]
    assert judge[0][1][0] == "class Solution:\n    def f(self) -> int:\n        return 1\n"


def test_the_real_judge_runs_the_tests(local_data):
    (part,) = prepare("humaneval")
    right = {0: "    return 0\n", 1: "    return None\n", 2: "    return 2 +\n"}
    assert list(scores(answer(part, lambda request: right[request.doc_id])).values()) == [1, 0, 0]
    (part,) = prepare("leetcode")
    got = scores(answer(part, lambda request: f"        return {request.doc_id * 2}\n"))
    assert list(got.values()) == [1, 0]


# -- what a score means -----------------------------------------------------------------------------------------------


def test_measured_says_what_was_run(local_data):
    settings = Settings(max_new_tokens=64, protocol="llamax")
    parts = [part for name in ("mmlu_anatomy", "gsm8k") for part in prepare(name, 3, settings)]
    anatomy, sums = measured(parts, precision="bf16")
    assert (anatomy.benchmark, anatomy.metric, anatomy.shots, anatomy.max_new_tokens) == (
        "mmlu_anatomy",
        "acc",
        5,
        None,
    )
    assert (sums.metric, sums.shots, sums.max_new_tokens) == ("exact_match,flexible-extract", 5, 64)
    assert (sums.items, sums.total, sums.protocol, sums.precision) == (3, 4, "llamax", "bf16")
    (other,) = measured(prepare("gsm8k", 2, settings))
    assert other.item_set != sums.item_set and other.prompts == sums.prompts


@hypothesis_settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow]
)  # the clock is no part of the property
@given(
    st.dictionaries(st.text("abcdefgh", min_size=1, max_size=3), st.integers(1, 40), min_size=1, max_size=8),
    st.integers(1, 100),
    st.integers(0, 5),
)
def test_selection_is_balanced_distinct_and_repeatable(sizes, limit, seed):
    chosen = select(sizes, limit, seed)
    assert chosen == select(sizes, limit, seed)
    assert sum(map(len, chosen.values())) == min(limit, sum(sizes.values()))
    counts = {task: len(chosen.get(task, [])) for task in sizes}
    for task, items in chosen.items():
        assert items == sorted(set(items)) and items[0] >= 0 and items[-1] < sizes[task]
        # No task has two more than another that still has items to give.
        assert all(counts[task] <= counts[other] + 1 for other in sizes if counts[other] < sizes[other])
    assert select(sizes, None, seed) == {task: list(range(size)) for task, size in sizes.items()}


def test_every_item_of_a_stretch_may_be_drawn():
    drawn = [select({"a": 10}, 2, seed)["a"] for seed in range(200)]
    assert {first for first, _ in drawn} == set(range(5)) and {second for _, second in drawn} == set(range(5, 10))


def test_bad_input_is_one_clear_line(local_data, tiny_model, tiny_tokenizer):
    with pytest.raises(ParameterError, match=r"unknown benchmark 'mmlu_pro': valid are mmlu, humaneval, "):
        evaluate_tasks(tiny_model, tiny_tokenizer, {"mmlu_pro": 2})
    with pytest.raises(ParameterError, match=r"unknown benchmark 'gsm8': did you mean 'gsm8k'\?"):
        prepare("gsm8")
    with pytest.raises(ParameterError, match="gsm8k: limit 0 should be a number of items from 1"):
        prepare("gsm8k", 0)
    with pytest.raises(ParameterError, match="gsm8k: 13 shots asked of a pool of 12 examples"):
        prepare("gsm8k", 1, Settings(shots=13))
    with pytest.raises(ParameterError, match="samples=3 at temperature 0 are all the same"):
        prepare("gsm8k", 1, Settings(samples=3))
    with pytest.raises(ParameterError, match="mmlu_anatomy: chooses among options: it takes no samples"):
        prepare("mmlu_anatomy", 1, Settings(samples=3, temperature=1.0))


@pytest.mark.parametrize(("answers", "said"), [(["4"], 0), (["4", "5", "6"], 2)])
def test_every_request_has_one_answer(local_data, answers, said):
    (part,) = prepare("gsm8k", 2)
    part.requests[0].resps.append(answers[0])
    part.requests[1].resps.extend(answers[1:])
    fault = rf"gsm8k: 1 of 2 requests .* of gsm8k/{part.requests[1].doc_id}, has {said}"
    with pytest.raises(DataError, match=fault):
        list(outcomes(part))


def test_a_likelihood_that_is_no_number_is_no_score(local_data):
    (part,) = prepare("mmlu_anatomy", 2)
    answer(part, lambda request: (float("nan") if request.doc_id == part.requests[-1].doc_id else -1.0, False))
    with pytest.raises(ModelError, match=rf"NaN, mmlu_anatomy/{part.requests[-1].doc_id} first; check the weights"):
        list(outcomes(part))


def test_samples_of_a_text_are_scored_one_by_one(local_data):
    (part,) = prepare("gsm8k", 1, Settings(samples=3, temperature=0.5))
    number = part.requests[0].doc_id
    got = scores(answer(part, lambda request: f"#### {number if request.idx == 1 else 77}"))
    assert [got[f"gsm8k/{number}", "exact_match,strict-match", sample] for sample in range(3)] == [0, 1, 0]


def test_a_right_answer_that_is_no_option_is_named(local_data):
    file = local_data / "jmmlu" / "JMMLU" / "virology.csv"
    file.write_text("熱は？,a,b,c,d,E\n")
    with pytest.raises(DataError, match=r"jmmlu/2: no right answer, or no options \('E' is not in list\)"):
        prepare("jmmlu")


@pytest.mark.slow
@pytest.mark.timeout(1200)  # the peer takes minutes on two cores
def test_smol_scores_item_by_item_as_lm_evals_own_backend(shared_data, monkeypatch):
    from llamax.models.load import load

    try:
        model, tokenizer = load("smol")
    except ModelError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("LLAMAX_DATA", str(shared_data))
    tasks = {"mmlu": 40, "gsm8k": 10, "truthfulqa_mc1": 10, "truthfulqa_mc2": 10}
    ours, theirs = run_beside(Backend.of(model, tokenizer), HFLM(pretrained=model, tokenizer=tokenizer), tasks)
    pd.testing.assert_frame_equal(ours, theirs, atol=1e-4)


def run_beside(first, second, tasks):
    tables = []
    for backend in (first, second):
        parts = [part for name, limit in tasks.items() for part in prepare(name, limit, Settings(max_new_tokens=32))]
        with torch.inference_mode():
            harness.respond(backend, parts)
        tables.append(pd.DataFrame([row for part in parts for row in outcomes(part)]))
    return tables


def test_a_sample_is_drawn_by_its_item_and_number_whatever_else_is_asked(peers):
    """Two samples of an item differ, and are the same two when the item is asked alone."""
    settings = {"until": [], "max_gen_toks": 12, "do_sample": True, "temperature": 1.0}

    def asked(item, sample):
        return Instance("generate_until", {}, ("Question: what is 12?", settings), sample, ("task", item, 1))

    whole = peers[0].generate_until([asked(item, sample) for item in range(3) for sample in range(2)])
    assert len(set(whole)) == 6
    assert peers[0].generate_until([asked(2, 1), asked(1, 0)]) == [whole[5], whole[2]]


def test_the_nucleus_is_the_one_that_is_asked_for(peers):
    """A nucleus of the best token alone is greedy, whatever the temperature."""
    greedy = {"until": [], "max_gen_toks": 12}
    sampled = greedy | {"do_sample": True, "temperature": 1.0}
    said = [
        peers[0].generate_until(requests("generate_until", [("Question: what is 12?", settings)]))
        for settings in (greedy, sampled | {"top_p": 1e-6}, sampled)
    ]
    assert said[0] == said[1] != said[2]


def test_samples_of_one_number_in_two_tasks_are_drawn_apart(peers):
    settings = {"until": [], "max_gen_toks": 12, "do_sample": True, "temperature": 1.0}
    arguments = ("Question: what is 12?", settings)
    asked = [Instance("generate_until", {}, arguments, 0, (task, 0, 1)) for task in ("one", "two")]
    first, second = peers[0].generate_until(asked)
    assert first != second
