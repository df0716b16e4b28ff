"""Our backend beside lm-eval's own, and the local data beside the columns that lm-eval's tasks ask for."""

import gzip
import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamax.data.sources import content_hash
from llamax.errors import DataError, ModelError, ParameterError

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from llamax.evaluation import benchmarks, harness
from llamax.evaluation.backend import Backend
from llamax.evaluation.harness import build_requests, evaluate_tasks, load_tasks, outcomes, prepare, select

QUESTIONS = [f"What is {n} plus {n + 1}?" for n in range(12)]


def write_card(home, hub, splits):
    """A data card of the little files: path, items and sha256 of each split."""
    name = hub.split("/")[1]
    described = {
        split: {"local": path, "items": items, "sha256": sha256} for split, (path, items, sha256) in splits.items()
    }
    card = {"name": name, "title": name, "licence": "none", "hub": hub, "format": "benchmark", "splits": described}
    (home / "data_cards").mkdir(exist_ok=True)
    (home / "data_cards" / f"{name}.md").write_text(f"---\n{json.dumps(card)}\n---\n")


@pytest.fixture
def local_data(tmp_path, monkeypatch):
    """Little benchmarks in the files' real formats: quotes, commas, a line break and odd separators in the fields."""
    for split, count in (("dev", 5), ("test", 7)):
        folder = tmp_path / "mmlu" / split
        folder.mkdir(parents=True)
        rows = [f'"Odd, ""{i}""\u0085?\nline two",{i},"a,b",c,None,{"ABCD"[i % 4]}' for i in range(count)]
        (folder / f"anatomy_{split}.csv").write_text("\n".join(rows) + "\n", newline="")
    lines = [
        json.dumps({"question": q, "answer": f"It is \u2028 <<1+1=2>>.\n#### {n}"}, ensure_ascii=False)
        for n, q in enumerate(QUESTIONS)
    ]
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k" / "test.jsonl").write_text("\n".join(lines[:4]) + "\n")
    (tmp_path / "gsm8k" / "train.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    items = [
        {"question": q, "mc1_targets": {"Yes.": 1, "No.": 0}, "mc2_targets": {"Yes.": 1, "Yep.": 1, "No.": 0}}
        for q in QUESTIONS[:5]
    ]
    (tmp_path / "truthfulqa").mkdir()
    (tmp_path / "truthfulqa" / "mc_task.json").write_text(json.dumps(items))
    write_card(tmp_path, "cais/mmlu", {"test": ("mmlu/test", 7, ""), "dev": ("mmlu/dev", 5, "")})
    train = "gsm8k/train.jsonl.gz"
    write_card(tmp_path, "openai/gsm8k", {"train": (train, 12, ""), "test": ("gsm8k/test.jsonl", 4, "")})
    write_card(tmp_path, "truthfulqa/truthful_qa", {"validation": ("truthfulqa", 5, "")})
    monkeypatch.setenv("LLAMAX_HOME", str(tmp_path))
    monkeypatch.setenv("LLAMAX_DATA", str(tmp_path))
    monkeypatch.setattr(harness, "FOLDERS", {**harness.FOLDERS, "mmlu_anatomy": "mmlu/default"})
    return tmp_path


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


def test_local_files_have_the_hubs_columns(local_data):
    mmlu = benchmarks.load("cais/mmlu", "anatomy")
    assert {split: len(mmlu[split]) for split in mmlu} == {"test": 7, "dev": 5}
    assert mmlu["test"][2] == {
        "question": 'Odd, "2"\u0085?\nline two',
        "subject": "anatomy",
        "choices": ["2", "a,b", "c", "None"],
        "answer": 2,
    }
    gsm8k = benchmarks.load("openai/gsm8k", "main")
    assert gsm8k["train"][11] == {"question": QUESTIONS[11], "answer": "It is \u2028 <<1+1=2>>.\n#### 11"}
    assert len(gsm8k["test"]) == 4
    truthful = benchmarks.load("truthfulqa/truthful_qa", "multiple_choice")["validation"]
    assert truthful[0]["mc2_targets"] == {"choices": ["Yes.", "Yep.", "No."], "labels": [1, 1, 0]}


def test_outcomes_are_per_item_and_carry_no_text(local_data, tiny_model, tiny_tokenizer):
    tasks = {"mmlu_anatomy": None, "gsm8k": 3, "truthfulqa_mc1": 2, "truthfulqa_mc2": 2}
    tiny_model.config.max_position_embeddings = 4096
    table = evaluate_tasks(tiny_model, tiny_tokenizer, tasks, max_new_tokens=4)
    assert list(table.columns) == ["item", "task", "metric", "outcome", "cluster"]
    assert table.groupby(["task", "metric"]).size().to_dict() == {
        ("mmlu_anatomy", "acc"): 7,
        ("gsm8k", "exact_match,strict-match"): 3,
        ("gsm8k", "exact_match,flexible-extract"): 3,
        ("truthfulqa_mc1", "acc"): 2,
        ("truthfulqa_mc2", "acc"): 2,
    }
    assert table.item.str.fullmatch(r"[a-z0-9_]+/\d+").all()
    assert table.outcome.between(0, 1).all()
    truthful = table[table.task.str.startswith("truthfulqa")]
    assert truthful[truthful.task.str.endswith("1")].item.str[-1].tolist() == (
        truthful[truthful.task.str.endswith("2")].item.str[-1].tolist()
    )
    assert "4 new tokens" in table.attrs["protocol"]["gsm8k"]
    again = evaluate_tasks(tiny_model, tiny_tokenizer, tasks, max_new_tokens=4)
    pd.testing.assert_frame_equal(table, again)


def test_a_perfect_and_a_wrong_answer_score_one_and_zero(local_data):
    (part,) = prepare("gsm8k", 2, 5, 64, 0)
    part.requests[0].resps.append(f" So it is.\n#### {part.requests[0].doc_id}")
    part.requests[1].resps.append(" #### 99, no: 98")
    scores = {(item, metric): outcome for item, _, metric, outcome, _ in outcomes(part)}
    first, second = (f"gsm8k/{request.doc_id}" for request in part.requests)
    assert scores[first, "exact_match,strict-match"] == scores[first, "exact_match,flexible-extract"] == 1
    assert scores[second, "exact_match,strict-match"] == 0


def test_an_items_examples_do_not_depend_on_which_items_run(local_data):
    def prompts(items):
        (task,) = load_tasks("gsm8k", 5, 64).values()
        return {request.doc_id: request.args[0] for request in build_requests(task, items)}

    (task,) = load_tasks("gsm8k", 5, 64).values()
    task.build_all_requests()
    expected = {request.doc_id: request.args[0] for request in task.instances}
    assert prompts([0, 1, 2, 3]) == expected
    assert prompts([2]) == {2: expected[2]}
    assert len(set(expected.values())) == 4


def test_mmlu_shows_the_first_development_rows(local_data):
    (part,) = prepare("mmlu_anatomy", 1, 5, 64, 0)
    prompt = part.requests[0].args[0]
    assert prompt.startswith("The following are multiple choice questions (with answers) about anatomy.\n\nOdd")
    assert re.findall(r"Answer: ([ABCD])", prompt) == list("ABCDA")
    assert [request.args[1] for request in part.requests] == [" A", " B", " C", " D"]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the clock is no part of the property
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


def test_bad_input_is_one_clear_line(local_data, tiny_model, tiny_tokenizer, monkeypatch):
    with pytest.raises(ParameterError, match=r"unknown benchmark 'mmlu_pro': valid are mmlu, gsm8k"):
        evaluate_tasks(tiny_model, tiny_tokenizer, {"mmlu_pro": 2})
    (local_data / "gsm8k" / "test.jsonl").write_text('{"question": "a", "answer": "b"}\n{"question": 1\n')
    with pytest.raises(DataError, match=r"test\.jsonl, line 2: expected a JSON object"):
        prepare("gsm8k", 2, 5, 64, 0)
    (local_data / "mmlu" / "test" / "anatomy_test.csv").write_text("question,1,2,3,4,A\nquestion,1,2,3,4,E\n")
    with pytest.raises(DataError, match=r"anatomy_test\.csv, row 2"):
        prepare("mmlu_anatomy", 2, 5, 64, 0)
    (local_data / "truthfulqa" / "mc_task.json").unlink()
    with pytest.raises(DataError, match=r"mc_task\.json: missing"):
        prepare("truthfulqa_mc1", 2, 5, 64, 0)
    monkeypatch.delenv("LLAMAX_DATA")
    with pytest.raises(DataError, match=r"openai/gsm8k: not to be had from the hub .*set LLAMAX_DATA"):
        prepare("gsm8k", 2, 5, 64, 0)


def row(**changes):
    return json.dumps({"question": "a", "answer": "b"} | changes).encode()


ONE = '{"question": "a", "mc1_targets": {"x": 1}, "mc2_targets": {"x": 1}}'


@pytest.mark.parametrize(
    ("path", "name", "content", "said"),
    [
        ("openai/gsm8k", "gsm8k/test.jsonl", b"", "has 0 items, should be 4"),
        ("openai/gsm8k", "gsm8k/test.jsonl", row(), "has 1 items, should be 4"),
        ("openai/gsm8k", "gsm8k/test.jsonl", row(answer=5), "line 1: expected .* texts question and answer"),
        ("openai/gsm8k", "gsm8k/test.jsonl", row(answer="\ud800"), "line 1: expected .* texts question and answer"),
        ("openai/gsm8k", "gsm8k/test.jsonl", b"[" * 200_000, "line 1: expected"),
        ("openai/gsm8k", "gsm8k/test.jsonl", '"\u00fc"'.encode("latin-1"), "not UTF-8"),
        ("openai/gsm8k", "gsm8k/train.jsonl.gz", gzip.compress(row() * 500, mtime=0)[:40], "damaged gzip file"),
        ("openai/gsm8k", "gsm8k/train.jsonl.gz", b"no gzip", "damaged gzip file"),
        ("cais/mmlu", "mmlu/test/anatomy_test.csv", b"", "has 0 items"),
        ("cais/mmlu", "mmlu/test/anatomy_test.csv", b"q,1,2,3,4,A\n" + b"q" * 200_000, "row 2: expected"),
        ("truthfulqa/truthful_qa", "truthfulqa/mc_task.json", b"[]", "has 0 items, should be 5"),
        ("truthfulqa/truthful_qa", "truthfulqa/mc_task.json", f"[{ONE}]".encode(), "has 1 items, should be 5"),
        ("truthfulqa/truthful_qa", "truthfulqa/mc_task.json", ONE.replace('"a"', "5").encode(), "expected a JSON list"),
    ],
)
def test_a_bad_local_file_is_named_in_one_line(local_data, path, name, content, said):
    (local_data / name).write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        benchmarks.load(path, "anatomy")
    assert str(local_data / name) in str(caught.value) and "\n" not in str(caught.value)


def test_local_files_must_be_those_of_the_data_card(local_data, monkeypatch):
    hashes = {split: content_hash(local_data / "mmlu" / split) for split in ("test", "dev")}
    home = local_data / "home"
    home.mkdir()
    write_card(home, "cais/mmlu", {split: (f"mmlu/{split}", 9, sha256) for split, sha256 in hashes.items()})
    monkeypatch.setenv("LLAMAX_HOME", str(home))
    assert len(benchmarks.load("cais/mmlu", "anatomy")["test"]) == 7
    file = local_data / "mmlu" / "test" / "anatomy_test.csv"
    file.write_text(file.read_text().replace("None", "Some"))
    with pytest.raises(DataError, match="mmlu/test is not the folder that its data card describes"):
        benchmarks.load("cais/mmlu", "anatomy")
    with pytest.raises(DataError, match="openai/gsm8k: no data card"):
        benchmarks.load("openai/gsm8k", "main")


def test_the_real_files_are_whole(shared_data, monkeypatch):
    monkeypatch.setenv("LLAMAX_DATA", str(shared_data))
    sizes = {name: len(task.eval_docs) for name, task in load_tasks("mmlu", 5, 64).items()}
    assert (len(sizes), sum(sizes.values())) == (57, 14042)
    for name, size in (("gsm8k", 1319), ("truthfulqa_mc1", 817), ("truthfulqa_mc2", 817)):
        (task,) = load_tasks(name, 5, 64).values()
        assert len(task.eval_docs) == size


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
        parts = [part for name, limit in tasks.items() for part in prepare(name, limit, 5, 32, 0)]
        with torch.inference_mode():
            harness.respond(backend, parts)
        tables.append(pd.DataFrame([row for part in parts for row in outcomes(part)]))
    return tables
