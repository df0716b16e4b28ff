"""The study itself, at profile `test`: what is trained is what is evaluated, and what is done is not done twice."""

import pandas as pd
import pytest

from llamax.instruction_tuning import study as room
from llamax.instruction_tuning.study import Study
from llamax.runs import parse_parameters


class Recorder:
    """Stands for an open run: keeps what it is told."""

    reused = False

    def __init__(self, scratch):
        self.scratch, self.metrics, self.frames, self.notes = scratch, {}, {}, {}
        self.tokens, self.flops, self.completed = 0, 0.0, False

    def metric(self, name, value, **rest):
        self.metrics[name] = value

    def items(self, frame):
        self.frames["items"] = frame

    def series(self, name, frame):
        self.frames[name] = frame

    def note(self, key, value):
        self.notes[key] = value

    def cost(self, *, tokens=0, flops=0.0, seconds=0.0):
        self.tokens, self.flops = self.tokens + tokens, self.flops + flops

    def complete(self):
        self.completed = True


def run_study(scratch):
    """A whole study in `scratch`; gives it and what it recorded."""
    run = Recorder(scratch)
    study = Study(parse_parameters("instruction_tuning", "test", 0), run)
    study.prepare()
    study.run_all()
    study.conclude()
    return study, run


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    return run_study(tmp_path_factory.mktemp("study"))


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
    _, second = run_study(run.scratch)
    pd.testing.assert_frame_equal(second.frames["items"], run.frames["items"])
    assert second.metrics == run.metrics
    assert (second.tokens, second.flops) == (run.tokens, run.flops)
