"""What is measured of a step: bytes alive, seconds by kind, and the plan of the very forward that was measured."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from llamax.data.packing import Documents
from llamax.infrastructure import measure
from llamax.training.config import TrainConfig


@pytest.fixture
def rows():
    documents, rng = Documents(64), np.random.default_rng(0)
    for source in range(40):
        n = int(rng.integers(8, 40))
        documents.add(source, rng.integers(3, 512, n), np.arange(n) >= n // 2)
    return documents.rows(packing=True)


def test_an_address_given_out_again_was_free():
    blocks = [(1, 100, 10), (2, 200, 5), (3, 100, 7), (4, 200, -5), (5, 300, 1)]
    assert measure.most(blocks, 0, 9) == 15
    assert measure.most(blocks, 2, 9) == 12  # 7 + 5: the first block had gone unseen
    assert measure.most(blocks, 4, 9) == 8


def test_counted_is_the_most_of_the_second_step_alone():
    def run(on_step):
        kept = torch.zeros(1000)
        torch.zeros(50_000)
        on_step(None)
        torch.zeros(2000)
        on_step(None)
        torch.zeros(50_000)
        return kept

    assert measure.counted(run) == pytest.approx(4 * 3000, abs=256)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_takes_the_memory_that_is_planned_for_its_largest_forward(tiny_model, rows, precision):
    config = TrainConfig(batch_size=4, micro_batch=4, precision=precision, max_steps=4, epochs=9)
    found = measure.take_steps(tiny_model, rows, config, pad_id=0)
    planned, _ = measure.planned(tiny_model, rows, config)
    assert planned == pytest.approx(found.peak, rel=0.10)
    assert len(found.seconds) == len(found.tokens) == len(found.supervised) == 2
    assert all(0 < targets < tokens <= 4 * 64 for targets, tokens in zip(found.supervised, found.tokens, strict=True))


def test_the_largest_forward_is_that_of_any_rank(rows):
    config = TrainConfig(batch_size=4, micro_batch=1, engine="deepspeed", ranks=2, zero_stage=1)
    lengths, targets = measure.largest_forward(rows, config, step=0)
    chosen = measure.rows_of_step(0, rows, config)
    assert lengths.sum() == rows.lengths[chosen].max()
    assert targets in rows.supervised_lengths[chosen]


def event(name, nanoseconds, *children):
    return SimpleNamespace(name=name, duration_time_ns=nanoseconds, children=list(children))


def test_the_outermost_known_name_decides():
    attention = event("_ShortDocumentsBackward", 100, event("aten::bmm", 60, event("aten::mm", 10)))
    tree = event("autograd::engine", 200, attention, event("aten::mul", 40))
    found = dict.fromkeys(["attention", "matrix products", "elementwise"], 0.0)
    measure.add_seconds(tree, None, found)
    measure.add_seconds(event("aten::linear", 50, event("aten::t", 10)), None, found)
    assert found == pytest.approx({"attention": 100e-9, "elementwise": 100e-9, "matrix products": 50e-9})


def test_shares_are_a_whole_step_and_the_loop_is_less(tiny_model, rows):
    config = TrainConfig(batch_size=4, micro_batch=4, max_steps=6, epochs=9)
    found = measure.shares(tiny_model, rows, config, pad_id=0)
    assert all(found[kind] > 0 for kind in (*measure.KINDS, "elementwise", "Python"))
    alone = measure.loop_seconds(tiny_model, rows, config, pad_id=0)
    assert len(alone) == 4 and min(alone) > 0
    assert all(parameter.requires_grad for parameter in tiny_model.parameters())


def test_the_rate_of_a_product_is_a_rate():
    assert 1e6 < measure.matmul_rate(torch.float32, size=64, seconds=0.01) < 1e16
