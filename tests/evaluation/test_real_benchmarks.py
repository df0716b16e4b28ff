"""The real files, where they are: whole, with lm-eval's own prompts, and questions by the ids of the items."""

from pathlib import Path

import pytest

pytest.importorskip("lm_eval")

from beside_lm_eval import check_against_lm_eval, lm_evals_requests

from llamax.evaluation.definitions import Settings, find, names
from llamax.evaluation.harness import build_requests, load_tasks, measured, prepare
from llamax.evaluation.questions import questions

REAL = [
    ("gsm8k", "gsm8k/gsm8k.yaml", None),
    ("gsm8k_cot", "gsm8k/gsm8k-cot.yaml", None),
    ("nq_open", "nq_open/nq_open.yaml", 5),
    ("truthfulqa_mc1", "truthfulqa/truthfulqa_mc1.yaml", None),
    ("truthfulqa_mc2", "truthfulqa/truthfulqa_mc2.yaml", None),
    ("humaneval", "humaneval/humaneval.yaml", None),
    ("gre_like", "agieval/aqua-rat.yaml", None),
    *((f"{n}_proxy", f"agieval/{n.replace('_', '-')}.yaml", None) for n in ("sat_math", "sat_en", "lsat_lr")),
]


@pytest.mark.parametrize(("name", "file", "shots"), REAL)
def test_requests_of_the_real_data_are_those_of_lm_eval(shared_data, monkeypatch, name, file, shots):
    monkeypatch.setenv("LLAMAX_DATA", str(shared_data))
    check_against_lm_eval(name, file, shots, 12)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("mmlu", "mmlu/default/mmlu_professional_law.yaml"),
        ("ap_like", "mmlu/default/mmlu_high_school_us_history.yaml"),
        ("cmmlu", "cmmlu/cmmlu_chinese_history.yaml"),
    ],
)
def test_requests_of_a_real_subject_are_those_of_lm_eval(shared_data, monkeypatch, name, file):
    monkeypatch.setenv("LLAMAX_DATA", str(shared_data))
    tasks, _ = load_tasks(find(name), Settings())
    ours = {}
    for request in build_requests(tasks[Path(file).stem], list(range(6))):
        ours.setdefault(request.doc_id, []).append(request.args)
    assert ours == lm_evals_requests(file, 5, 6)


COUNTS = {"mmlu": 14042, "gsm8k": 1319, "gsm8k_cot": 1319, "humaneval": 164, "nq_open": 3610, "truthfulqa_mc1": 817}
COUNTS |= {"truthfulqa_mc2": 817, "leetcode": 228, "gre_like": 254, "sat_math_proxy": 220, "sat_en_proxy": 206}
COUNTS |= {"lsat_ar_proxy": 230, "lsat_lr_proxy": 510, "lsat_rc_proxy": 269, "ap_like": 3150, "cmmlu": 11582}
COUNTS |= {"jmmlu": 7097}


def test_every_benchmark_has_a_known_number_of_items():
    assert set(COUNTS) == {name for name in names() if not name.startswith("mmmlu_")}


@pytest.mark.parametrize("name", [name for name in COUNTS if name != "cmmlu"])
def test_the_real_benchmarks_are_whole_and_their_questions_have_the_items_ids(shared_data, monkeypatch, name):
    monkeypatch.setenv("LLAMAX_DATA", str(shared_data))
    asked = questions(name)
    assert len(asked) == len({question.item for question in asked}) == COUNTS[name]
    assert all(question.text.strip() for question in asked)
    parts = prepare(name, 3)
    items = {f"{request.task_name}/{request.doc_id}" for part in parts for request in part.requests}
    assert items <= {question.item for question in asked}
    text = {question.item: question.text for question in asked}
    for part in parts:
        for request in part.requests:
            assert text[f"{request.task_name}/{request.doc_id}"].strip() in request.args[0]
    assert measured(parts)[0].total == COUNTS[name]


def test_cmmlu_is_whole(shared_data, monkeypatch):
    monkeypatch.setenv("LLAMAX_DATA", str(shared_data))
    assert len(questions("cmmlu")) == COUNTS["cmmlu"]
