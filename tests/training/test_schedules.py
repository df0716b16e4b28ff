"""The rate rises, falls, is never stuck at 0, and is the one that the optimizer uses."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training_cases import new_config
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from llamax.errors import TrainingError
from llamax.training.schedules import assert_rate_moves, learning_rate


@pytest.mark.parametrize(
    ("schedule", "reference"),
    [("cosine", get_cosine_schedule_with_warmup), ("linear", get_linear_schedule_with_warmup)],
)
def test_after_warmup_it_is_the_usual_schedule(schedule, reference):
    config = new_config(schedule=schedule, warmup_ratio=0.1, learning_rate=0.5)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    scheduler = reference(optimizer, num_warmup_steps=10, num_training_steps=100)
    expected = []
    for _ in range(100):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    ours = [learning_rate(step, 100, config) for step in range(100)]
    assert ours[10:] == pytest.approx(expected[10:])
    assert ours[:10] == pytest.approx([0.5 * (step + 1) / 11 for step in range(10)])


@given(
    st.integers(1, 300),
    st.sampled_from(["cosine", "linear", "constant"]),
    st.floats(0, 0.99),
)
def test_every_step_has_a_positive_rate_at_most_the_peak(steps, schedule, warmup_ratio):
    config = new_config(schedule=schedule, warmup_ratio=warmup_ratio, learning_rate=1e-3)
    rates = [learning_rate(step, steps, config) for step in range(steps)]
    assert all(0 < rate <= 1e-3 for rate in rates)
    if schedule != "constant" and steps > 2:
        assert len(set(rates)) > 1


@pytest.mark.parametrize("applied", [0.0, 1e-5])
def test_a_rate_that_does_not_arrive_is_an_error(applied):
    with pytest.raises(TrainingError, match=r"step 3: learning rate 0\.002 was asked for"):
        assert_rate_moves(applied, 2e-3, 3)
