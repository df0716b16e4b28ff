"""Two ranks under DeepSpeed: over shards, killed within an epoch, through a spike, and stopped by a number that is none."""

import pytest
import torch
from test_monitors import BAD, EVERY
from training_cases import Planted, log_of, new_config, new_model, new_rows, rows_of_steps, run_ranks

from llamax.data.shards import shard_texts
from llamax.data.stream import Windows, open_shards
from llamax.data.world.text import pretraining_texts
from llamax.training.history import History
from llamax.training.loop import fit


def sharded(config, **changes):
    values = config.model_dump(mode="json") | {"engine": "deepspeed", "ranks": 2, "zero_stage": 3, "micro_batch": 2}
    return type(config).parse(values | changes)


def result(folder):
    found = torch.load(folder / "result.pt")
    return History.from_json(found["history"]), found["weights"]


def assert_same(one, two):
    assert [m[:-1] for m in one[0].steps] == [m[:-1] for m in two[0].steps]
    assert one[0].events == two[0].events
    assert all(torch.equal(one[1][name], two[1][name]) for name in one[1])


@pytest.fixture(scope="module")
def ranks(tmp_path_factory, tiny_tokenizer):
    """Two starts of two ranks, for most of the time is imports: in the first a run is killed, in the second all else."""
    folder = tmp_path_factory.mktemp("ranks")
    shard_texts(
        list(pretraining_texts(0, documents=60)), tiny_tokenizer, folder / "shards", name="w", shard_tokens=2000
    )
    Windows.over([open_shards(folder / "shards")], 32).save(folder / "mixture")
    spike = {"config": sharded(EVERY).model_dump(mode="json"), "documents": 400, "planted": [BAD]}
    stage2 = spike | {"config": sharded(EVERY, zero_stage=2).model_dump(mode="json")}
    plain = new_config(epochs=2, checkpoint_every=3, max_steps=8)
    data = {"config": sharded(plain).model_dump(mode="json"), "data": str(folder / "mixture")}
    bad = rows_of_steps(new_rows(documents=400), EVERY, [3])[6]  # micro-batch 1 of rank 1
    nan = spike | {"planted": [], "bad_rows": [int(bad)], "poisoned": True, "fails": True}
    assert -9 in run_ranks(2, [{"out": str(folder / "data cut"), **data, "die_after": 4}], folder), log_of(folder)
    assert -9 in run_ranks(2, [{"out": str(folder / "spike cut"), **spike, "die_after": 17}], folder), log_of(folder)
    cases = {"data cut": data, "data": data, "spike cut": spike, "spike": spike, "spike 2": stage2, "nan": nan}
    cases = [{"out": str(folder / name), **case} for name, case in cases.items()]
    assert run_ranks(2, cases, folder) == [0, 0], log_of(folder) + log_of(folder, 1)
    return folder


def test_shards_are_resumed_to_the_bit_within_an_epoch(ranks):
    cut, whole = result(ranks / "data cut"), result(ranks / "data")
    assert cut[0].resumed_from == 3 and len(whole[0].steps) == 8
    assert_same(cut, whole)


def test_shards_on_two_ranks_are_shards_on_one(ranks, tmp_path):
    data = Windows.load(ranks / "mixture")
    alone = fit(new_model(), data, new_config(epochs=2, max_steps=8), tmp_path, pad_id=0)
    assert alone.losses == pytest.approx(result(ranks / "data")[0].losses, rel=1e-5)


@pytest.mark.parametrize("name", ["spike", "spike 2"])
def test_ranks_go_back_together(ranks, tmp_path, name):
    history, _ = result(ranks / name)
    (event,) = history.events
    rows = new_rows(documents=400)
    alone = fit(new_model(), Planted(rows, rows_of_steps(rows, EVERY, [BAD])), EVERY, tmp_path, pad_id=0)
    assert event[:2] == alone.events[0][:2] and event.skipped == (BAD, BAD) and event.back_to == 12
    assert sorted(n for n, _ in event.rows) == sorted(n for n, _ in alone.events[0].rows)
    assert [m.step for m in history.steps] == [m.step for m in alone.steps]
    assert history.losses == pytest.approx(alone.losses, rel=1e-4)


def test_killed_after_going_back_it_ends_as_the_whole_run(ranks):
    assert_same(result(ranks / "spike cut"), result(ranks / "spike"))


def test_every_rank_names_the_rank_and_row(ranks):
    rows = new_rows(documents=400)
    bad = rows_of_steps(rows, EVERY, [3])[6]
    said = {(ranks / "nan" / f"error-{rank}.txt").read_text() for rank in range(2)}
    where = f"rank 1, micro-batch 1, {rows.name(bad)}: nan"
    assert said == {f"step 3: loss nan: 1 of 8 rows: {where}: look at these rows"}
