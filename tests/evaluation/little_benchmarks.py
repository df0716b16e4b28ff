"""Little benchmarks in their files' real formats, described by the repository's own data cards with other numbers."""

import gzip
import json
from pathlib import Path

import yaml

QUESTIONS = [f"What is {n} plus {n + 1}?" for n in range(12)]
CARDS = Path(__file__).resolve().parents[2] / "data_cards"
ITEMS = {  # of each little split
    "mmlu": {"test": 7, "dev": 5},
    "gsm8k": {"train": 12, "test": 4},
    "truthfulqa": {"validation": 5},
    "nq_open": {"train": 6, "validation": 3},
    "humaneval": {"test": 3},
    "leetcode": {"test": 2},
    "agieval_aqua_rat": {"test": 2},
    "jmmlu": {"test": 3},
    "puzzlevqa": {"test": 4},
    "mmmlu": {"test": 57},
}


def little_card(home: Path, name: str, **changes) -> None:
    """The repository's card `name` in `home`, with little numbers and no hashes; `changes` replace its keys."""
    card = yaml.safe_load((CARDS / f"{name}.md").read_text().split("---\n")[1])
    card["splits"] = {
        split: card["splits"][split] | {"items": items, "sha256": "", "repeats": 0}
        for split, items in ITEMS[name].items()
    }
    (home / "data_cards").mkdir(exist_ok=True)
    (home / "data_cards" / f"{name}.md").write_text(f"---\n{json.dumps(card | changes)}\n---\n")


def write_lines(path: Path, rows: list) -> None:
    """JSON lines, gzipped if the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def write_all(root: Path) -> None:
    """All little benchmarks and their cards."""
    for write in (write_mmlu, write_texts, write_code, write_others):
        write(root)
    for name in ITEMS:
        little_card(root, name)


def write_mmlu(root: Path) -> None:
    """Quotes, commas, a line break and odd separators in the fields."""
    for split, count in ITEMS["mmlu"].items():
        folder = root / "mmlu" / split
        folder.mkdir(parents=True)
        rows = [f'"Odd, ""{i}""\u0085?\nline two",{i},"a,b",c,None,{"ABCD"[i % 4]}' for i in range(count)]
        (folder / f"anatomy_{split}.csv").write_text("\n".join(rows) + "\n", newline="")
        (folder / f"virology_{split}.csv").write_text(
            "".join(f"Cold {i}?,a,b,c,d,B\n" for i in range(min(count, 5 if split == "dev" else 3)))
        )


def write_texts(root: Path) -> None:
    """GSM8K, TruthfulQA, NQ-open."""
    sums = [{"question": q, "answer": f"It is \u2028 <<1+1=2>>.\n#### {n}"} for n, q in enumerate(QUESTIONS)]
    write_lines(root / "gsm8k" / "test.jsonl", sums[:4])
    write_lines(root / "gsm8k" / "train.jsonl.gz", sums)
    items = [
        {"question": q, "mc1_targets": {"Yes.": 1, "No.": 0}, "mc2_targets": {"Yes.": 1, "Yep.": 1, "No.": 0}}
        for q in QUESTIONS[:5]
    ]
    (root / "truthfulqa").mkdir()
    (root / "truthfulqa" / "mc_task.json").write_text(json.dumps(items))
    pool = [{"question": f"who is number {n}", "answer": [f"Mr {n}", f"Mister {n}"]} for n in range(6)]
    write_lines(root / "nq_open" / "fewshot_pool_nqshort_train.jsonl", pool)
    asked = [{"question": f"which band has {n}", "answer": ["Rock & Roll", f"The {n}"]} for n in range(3)]
    write_lines(root / "nq_open" / "NQ-open.dev.jsonl", asked)


def write_code(root: Path) -> None:
    """HumanEval and LeetCode: functions that return a number."""
    functions = [
        {
            "task_id": f"HumanEval/{n}",
            "prompt": f'def f{n}():\n    """Return {n}."""\n',
            "canonical_solution": f"    return {n}\n",
            "test": f"def check(candidate):\n    assert candidate() == {n}\n",
            "entry_point": f"f{n}",
        }
        for n in range(3)
    ]
    write_lines(root / "humaneval" / "HumanEval.jsonl.gz", functions)
    starter = "class Solution:\n    def f(self) -> int:\n"
    methods = [
        {
            "task_id": f"return-{n}",
            "question_id": n,
            "difficulty": "Easy",
            "estimated_date": "2024-08-04",
            "problem_description": f"Return {n}.\n\nConstraints:\n",
            "starter_code": f"{starter}        ",
            "prompt": "import math\n",
            "completion": f"{starter}        return {n}\n",
            "entry_point": "Solution().f",
            "test": f"def check(candidate):\n    assert candidate() == {n}\n",
            "tags": ["Array"],
        }
        for n in range(2)
    ]
    write_lines(root / "leetcode" / "LeetCodeDataset-v0.3.1-test.jsonl.gz", methods)


def write_others(root: Path) -> None:
    """AGIEval, JMMLU (two subjects), PuzzleVQA with empty pictures."""
    rows = [
        {"passage": p, "question": "How many?", "options": ["(A)1", "(B)22", "(C)3"], "label": "B", "answer": None}
        for p in (None, "There are two. ")
    ]
    write_lines(root / "agieval" / "aqua-rat.jsonl", rows)
    folder = root / "jmmlu" / "JMMLU"
    folder.mkdir(parents=True)
    (folder / "anatomy.csv").write_text("\ufeff骨は？,a,b,c,d,A\n目は？, a,b,c,d,D\n")
    (folder / "virology.csv").write_text("熱は？,a,b,c,d,B\n")
    puzzles = [
        {"id": f"p/{n}", "image": f"images/{n}.webp", "question": "Which?", "options": options, "answer": answer}
        | {"category": "ab"[n % 2], "caption": "It is 3."}
        for n, (options, answer) in enumerate([([1, 2, 3], 3), (["x", "y"], "x"), ([4, 5], "5"), ([6, 7], 6)])
    ]
    write_lines(root / "puzzlevqa" / "puzzlevqa.jsonl", puzzles)
    (root / "puzzlevqa" / "images").mkdir()
    for n in range(4):
        (root / "puzzlevqa" / "images" / f"{n}.webp").touch()
