"""Local files beside the columns that the hub's copies have; whatever is wrong with either is one clear line."""

import gzip
import json

import pytest
from datasets import Dataset, DatasetDict
from little_benchmarks import QUESTIONS, little_card, write_lines

from llamax.data.sources import cards, content_hash
from llamax.errors import DataError
from llamax.evaluation import benchmarks


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
    natural = benchmarks.load("google-research-datasets/nq_open")
    assert natural["validation"][0] == {"question": "which band has 0", "answer": ["Rock & Roll", "The 0"]}
    assert len(natural["train"]) == 6


def test_agieval_is_read_into_its_own_zero_shot_prompt(local_data):
    rows = benchmarks.load("hails/agieval-aqua-rat")["test"]
    ending = "Q: How many? Answer Choices: (A)1 (B)22 (C)3\nA: Among A through C, the answer is"
    assert [row["query"] for row in rows] == [ending, f"There are two. {ending}"]
    assert rows[0]["choices"] == ["(A)1", "(B)22", "(C)3"] and rows[0]["gold"] == [1]


def test_a_folder_of_csv_files_is_one_set_with_a_subject_or_one_subject_of_it(local_data):
    whole = benchmarks.load("jmmlu")["test"]
    assert [(row["question"], row["A"], row["answer"], row["subject"]) for row in whole] == [
        ("骨は？", "a", "A", "anatomy"),
        ("目は？", " a", "D", "anatomy"),
        ("熱は？", "a", "B", "virology"),
    ]
    assert len(benchmarks.load("jmmlu", "virology")["test"]) == 1
    with pytest.raises(DataError, match=r"JMMLU: holds no botany\.csv"):
        benchmarks.load("jmmlu", "botany")


def row(**changes):
    return json.dumps({"question": "a", "answer": "b"} | changes).encode()


ONE = '{"question": "a", "mc1_targets": {"x": 1}, "mc2_targets": {"x": 1}}'
TWO = ONE.replace('"a"', '"b"')
GSM, NQ = "openai/gsm8k", "google-research-datasets/nq_open"
TQA, AQUA = "truthfulqa/truthful_qa", "hails/agieval-aqua-rat"
DEV, TASK = "nq_open/NQ-open.dev.jsonl", "truthfulqa/mc_task.json"


@pytest.mark.parametrize(
    ("path", "name", "content", "said"),
    [
        (GSM, "gsm8k/test.jsonl", b"", "has 0 items, should be 4"),
        (GSM, "gsm8k/test.jsonl", row(), "has 1 items, should be 4"),
        (GSM, "gsm8k/test.jsonl", row() + b"\n" + row(answer=5), "line 2: answer should be a text, is '5'"),
        (GSM, "gsm8k/test.jsonl", row(answer="\ud800"), "line 1: answer should be a text"),
        (GSM, "gsm8k/test.jsonl", row() + b"\n" + row(), "line 2: the same row as .*line 1; its data card allows 0"),
        (GSM, "gsm8k/test.jsonl", b'{"question": "a"}', "line 1: no column 'answer'; it has question"),
        (GSM, "gsm8k/test.jsonl", b"[1]", "line 1: is a list, should be an object"),
        (GSM, "gsm8k/test.jsonl", row() + b'\n{"question": "a', "line 2: is not JSON"),
        (GSM, "gsm8k/test.jsonl", b"[" * 200_000, "line 1: cannot be read: nested too deeply"),
        (GSM, "gsm8k/test.jsonl", '"\u00fc"'.encode("latin-1"), "not UTF-8"),
        (GSM, "gsm8k/train.jsonl.gz", gzip.compress(row() * 500, mtime=0)[:40], "damaged gzip file"),
        (GSM, "gsm8k/train.jsonl.gz", b"no gzip", "damaged gzip file"),
        (NQ, DEV, row(), "line 1: answer should be a list of texts, is 'b'"),
        (NQ, DEV, row(answer=[]), "line 1: answer should be a list of texts"),
        ("cais/mmlu", "mmlu/test/anatomy_test.csv", b"", "has 0 items"),
        ("cais/mmlu", "mmlu/test/anatomy_test.csv", b"q,1,2,3,4,A\nq,1,2,3,4,E\n", "row 2: expected .* letter A to D"),
        ("cais/mmlu", "mmlu/test/anatomy_test.csv", b"q,1,2,3,4,A\nq,1,2,3,A\n", "row 2: has 5 fields, expected"),
        ("cais/mmlu", "mmlu/test/anatomy_test.csv", b"q,1,2,3,4,A\n" + b"q" * 200_000, "row 2: not CSV"),
        (TQA, TASK, b"[]", "has 0 items, should be 5"),
        (TQA, TASK, f"[{ONE}]".encode(), "has 1 items, should be 5"),
        (TQA, TASK, f"[{ONE}, {ONE}]".encode(), "row 2: the same question as row 1"),
        (TQA, TASK, f"[{TWO}, {ONE.replace('question', 'q')}]".encode(), "row 2: expected an object with question"),
        (
            TQA,
            TASK,
            f"[{ONE.replace('1}', '0}', 1)}]".encode(),
            "row 1: the first choice of mc1_targets is not the true",
        ),
        (TQA, TASK, f"[{ONE.replace('1}}', '0}}')}]".encode(), "row 1: expected labels 0 and 1, at least one"),
        (TQA, TASK, ONE.replace('"a"', "5").encode(), "is a JSON dict; wants a list"),
        (
            AQUA,
            "agieval/aqua-rat.jsonl",
            b'{"passage": null, "question": "q"}',
            "line 1: expected an object with passage",
        ),
        (
            AQUA,
            "agieval/aqua-rat.jsonl",
            b'{"passage": null, "question": "q", "options": ["(A)1"], "label": "B"}',
            "line 1: expected an object with passage",
        ),
        (
            "jmmlu",
            "jmmlu/JMMLU/anatomy.csv",
            b"q,1,2,3,4\n",
            "row 1: has 5 fields, expected question, A, B, C, D, answer",
        ),
        ("puzzlevqa", "puzzlevqa/puzzlevqa.jsonl", b'{"id": "a"}', "line 1: expected an object with texts id"),
    ],
)
def test_a_bad_local_file_is_named_in_one_line(local_data, path, name, content, said):
    (local_data / name).write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        benchmarks.load(path, "anatomy" if path == "cais/mmlu" else None)
    assert str(local_data / name) in str(caught.value) and "\n" not in str(caught.value)


def test_an_id_comes_once(local_data):
    file = local_data / "humaneval" / "HumanEval.jsonl.gz"
    rows = [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]
    rows[2]["task_id"] = rows[0]["task_id"]
    write_lines(file, rows)
    with pytest.raises(DataError, match=r"line 3: task_id 'HumanEval/0' is there before, in .*line 1; one must go"):
        benchmarks.load("openai/openai_humaneval")


def test_local_files_must_be_those_of_the_data_card(local_data):
    splits = {
        split: {"local": f"mmlu/{split}", "items": 9, "sha256": content_hash(local_data / "mmlu" / split)}
        for split in ("test", "dev")
    }
    little_card(local_data, "mmlu", splits=splits)
    assert len(benchmarks.load("cais/mmlu", "anatomy")["test"]) == 7
    file = local_data / "mmlu" / "test" / "anatomy_test.csv"
    file.write_text(file.read_text().replace("None", "Some"))
    with pytest.raises(DataError, match="mmlu/test is not the folder that its data card describes"):
        benchmarks.load("cais/mmlu", "anatomy")
    file.unlink()
    with pytest.raises(DataError, match=r"anatomy_test\.csv: missing; LLAMAX_DATA should hold mmlu/test/anatomy_test"):
        benchmarks.load("cais/mmlu", "anatomy")
    with pytest.raises(DataError, match="openai/other: no data card"):
        benchmarks.load("openai/other", "main")


def test_without_local_copies_the_hub_is_asked_and_then_said_to_be_absent(local_data, monkeypatch):
    monkeypatch.delenv("LLAMAX_DATA")
    with pytest.raises(DataError, match=r"openai/gsm8k: not to be had from the hub .*set LLAMAX_DATA"):
        benchmarks.load("openai/gsm8k", "main")
    with pytest.raises(DataError, match="jmmlu: is on no hub; set LLAMAX_DATA to a folder that holds jmmlu/JMMLU"):
        benchmarks.load("jmmlu")


def from_hub(monkeypatch, rows, split="test"):
    monkeypatch.delenv("LLAMAX_DATA", raising=False)
    monkeypatch.setattr(benchmarks, "load_dataset", lambda *_: DatasetDict({split: Dataset.from_list(rows)}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows[:3], r"openai/gsm8k \(test\): has 3 items, should be 4"),
        (lambda rows: [{"question": r["question"]} for r in rows], r"has no column 'answer', only question"),
        (lambda rows: [*rows[:3], rows[1]], r"row 4: the same row as row 2"),
    ],
)
def test_the_hubs_copy_is_held_against_the_card_too(local_data, monkeypatch, change, said):
    rows = benchmarks.load("openai/gsm8k")["test"].to_list()
    from_hub(monkeypatch, rows)
    assert len(benchmarks.load("openai/gsm8k", "main")["test"]) == 4
    from_hub(monkeypatch, change(rows))
    with pytest.raises(DataError, match=said):
        benchmarks.load("openai/gsm8k", "main")


def test_the_hubs_own_number_counts_where_the_local_copy_is_another(local_data, monkeypatch):
    pool = [{"question": f"q {n}", "answer": ["a"]} for n in range(6)]
    from_hub(monkeypatch, pool, "train")
    with pytest.raises(DataError, match="has 6 items, should be 87925"):
        benchmarks.load("google-research-datasets/nq_open")


@pytest.mark.parametrize("name", sorted(set(cards()) - {"alpaca", "nano", "mmmlu", "mmlu"}))
def test_the_real_files_are_whole(shared_data, monkeypatch, name):
    monkeypatch.setenv("LLAMAX_DATA", str(shared_data))
    card = cards()[name]
    data = benchmarks.load(card.hub or name)
    assert {split: len(data[split]) for split in data} == {split: one.items for split, one in card.splits.items()}
