"""The study itself, at profile `test`: what is trained is what is evaluated, and what is done is not done twice."""

import pandas as pd
import pytest
from recorder import run_study

from llamax.instruction_tuning import study as room
from llamax.instruction_tuning.study import Study
from llamax.runs import parse_parameters


def run_in(scratch):
    return run_study(Study, parse_parameters("instruction_tuning", "test", 0), scratch)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    return run_in(tmp_path_factory.mktemp("study"))


def test_every_arm_is_trained_from_the_base_and_evaluated_as_itself(done):
    _, run = done
    items = run.frames["items"]
    assert set(items.method) == {"base", "full", "lora"}
    losses = items[items.task == "text_loss"].groupby("method").outcome.mean()
    assert losses.nunique() == 3  # three different models
    counts = items[items.task != "text_loss"].groupby(["method", "protocol", "task"]).item.count()
    assert set(counts) == {4}
    assert run.completed
    curves = run.frames["curves"]
    assert curves.groupby("method").step.count().to_dict() == {"full": 3, "lora": 3}
    assert run.tokens == curves.tokens.sum() > 0
    assert run.metrics["full.forgetting"] == pytest.approx(losses["full"] - losses["base"])


def test_ten_answers_are_shown_side_by_side_and_training_marks_what_is_learned(done):
    study, _ = done
    assert study.show_answers().columns.tolist() == ["base-0", "full-0", "lora-0"]
    shown = study.show_example()
    answer = study.example.messages[-1].content
    assert f"«{answer}<|im_end|>»" in shown


def test_what_is_done_is_read_back_and_counted(done, monkeypatch):
    _, run = done

    def never(*_, **__):
        raise AssertionError("trained or loaded again")

    monkeypatch.setattr(room, "train", never)
    monkeypatch.setattr(room, "load", never)
    _, second = run_in(run.scratch)
    pd.testing.assert_frame_equal(second.frames["items"], run.frames["items"])
    assert second.metrics == run.metrics
    assert (second.tokens, second.flops) == (run.tokens, run.flops)
    assert run.seconds == 0 < second.seconds
