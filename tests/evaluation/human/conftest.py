"""A small study of two models whose names appear nowhere else, and a way to write votes."""

import pytest
from human_cases import NAMES, write_rows

from llamax.evaluation.human.plan import Design, make_plan


@pytest.fixture
def files(tmp_path):
    """A file of 12 prompts and one of answers per model."""
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"id": f"p{n}", "prompt": f"Question {n}?"} for n in range(12)])
    answers = [
        (name, write_rows(tmp_path / f"{name}.jsonl", [{"id": f"p{n}", "answer": f"{letter}-{n}"} for n in range(12)]))
        for name, letter in zip(NAMES, "XY", strict=True)
    ]
    return prompts, answers


@pytest.fixture
def study(files, tmp_path):
    """Twelve prompts, two raters, each of whom sees all of them."""
    prompts, answers = files
    return make_plan(tmp_path / "study", answers, source=str(prompts), design=Design(raters=2, rater_correlation=0.0))
