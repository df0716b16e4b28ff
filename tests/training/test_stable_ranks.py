"""Two ranks under DeepSpeed: over shards, killed after a spike within an epoch, stopped by a loss that is no number."""

import pytest
import torch
from test_monitors import BAD, EVERY
from training_cases import PAD, Planted, log_of, new_model, rows_of_steps, run_ranks

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
    """Two starts of two ranks, most of it imports: in the first a run is killed, in the second the rest."""
    folder, texts = tmp_path_factory.mktemp("ranks"), list(pretraining_texts(0, documents=100))
    shard_texts(texts, tiny_tokenizer, folder / "shards", name="w", shard_tokens=4000)
    Windows.over([open_shards(folder / "shards")], 32).save(folder / "mixture")
    spike = {"config": sharded(EVERY).model_dump(mode="json"), "data": str(folder / "mixture"), "planted": [BAD]}
    stage2 = spike | {"config": sharded(EVERY, zero_stage=2).model_dump(mode="json")}
    bad = rows_of_steps(Windows.load(folder / "mixture"), EVERY, [3])[6]  # micro-batch 1 of rank 1
    nan = spike | {"planted": [], "bad_rows": [int(bad)], "poisoned": True, "fails": True}
    assert -9 in run_ranks(2, [{"out": str(folder / "cut"), **spike, "die_after": 17}], folder), log_of(folder)
    cases = {"cut": spike, "whole": spike, "stage 2": stage2, "nan": nan}
    cases = [{"out": str(folder / name), **case} for name, case in cases.items()]
    assert run_ranks(2, cases, folder) == [0, 0], log_of(folder) + log_of(folder, 1)
    return folder


def test_killed_after_going_back_within_an_epoch_it_ends_as_the_whole_run(ranks):
    cut, whole = result(ranks / "cut"), result(ranks / "whole")
    assert cut[0].resumed_from == 16 and len(whole[0].steps) == 19
    assert_same(cut, whole)


@pytest.mark.parametrize("name", ["whole", "stage 2"])
def test_two_ranks_go_back_together_and_do_what_one_does(ranks, tmp_path, name):
    (event,), data = result(ranks / name)[0].events, Windows.load(ranks / "mixture")
    alone = fit(new_model(), Planted(data, rows_of_steps(data, EVERY, [BAD])), EVERY, tmp_path, pad_id=PAD)
    assert event[:2] == alone.events[0][:2] and event.skipped == (BAD, BAD) and event.back_to == 12
    assert sorted(n for n, _ in event.rows) == sorted(n for n, _ in alone.events[0].rows)
    assert [m.step for m in result(ranks / name)[0].steps] == [m.step for m in alone.steps]
    assert result(ranks / name)[0].losses == pytest.approx(alone.losses, rel=1e-3)


def test_every_rank_names_the_rank_and_row(ranks):
    data = Windows.load(ranks / "mixture")
    bad = rows_of_steps(data, EVERY, [3])[6]
    said = {(ranks / "nan" / f"error-{rank}.txt").read_text() for rank in range(2)}
    where = f"rank 1, micro-batch 1, {data.name(bad)}: nan"
    assert said == {f"step 3: loss nan: 1 of 8 rows: {where}: look at these rows"}
