"""Windows over shards: every token once an epoch, in an order that is a formula, whatever the ranks and the resume."""

import functools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llamax.data.shards import shard_texts
from llamax.data.stream import Windows, open_shards, permute
from llamax.data.world.text import pretraining_texts
from llamax.errors import DataError
from llamax.training.config import TrainConfig
from llamax.training.data import load_data
from llamax.training.loop import micro_batches, rows_of_step

PAD = 2


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_tokenizer):
    """Two sources, of several shards each."""
    root = tmp_path_factory.mktemp("shards")
    for name, seed, documents in (("large", 0, 60), ("small", 1, 25)):
        texts = pretraining_texts(seed, documents=documents)
        shard_texts(texts, tiny_tokenizer, root / name, name=name, shard_tokens=700)
    return root / "large", root / "small"


def windows(folders, length=32, weights=(1.0, 1.0)):
    return Windows.over([opened(f)._replace(weight=w) for f, w in zip(folders, weights, strict=True)], length)


@functools.cache
def opened(folder):
    return open_shards(folder)


@given(st.integers(1, 3000), st.integers(0, 2**32), st.integers(0, 5))
def test_permute_is_a_permutation(n, seed, epoch):
    whole = permute(np.arange(n), n, [seed, epoch])
    assert np.array_equal(np.sort(whole), np.arange(n))
    some = np.arange(0, n, 7)
    assert np.array_equal(permute(some, n, [seed, epoch]), whole[some])


def test_permute_of_huge_domains_stays_inside_and_looks_random():
    n = 10**12 + 7
    found = permute(np.arange(20000), n, [0])
    assert len(np.unique(found)) == len(found) and found.min() >= 0 and found.max() < n
    counts, _ = np.histogram(found, bins=64, range=(0, n))
    chi2 = ((counts - 20000 / 64) ** 2 / (20000 / 64)).sum()
    assert 25 < chi2 < 120  # 63 degrees of freedom: outside is one in 10,000
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.03


def test_orders_of_two_keys_are_unlike():
    n = 1000
    one, two = permute(np.arange(n), n, [0, 0]), permute(np.arange(n), n, [0, 1])
    assert (one == two).sum() < 10 and (one == np.arange(n)).sum() < 10


@pytest.mark.parametrize("length", [3, 32, 5000])
def test_every_token_but_a_documents_first_is_a_target_once_an_epoch(folders, length):
    data = windows(folders, length)
    found = []
    for window in data.visit(0, 3, 0, len(data)):
        batch = data.collate([window], PAD)
        source, shard, start, end = data._where(int(window))
        places = start + np.flatnonzero(batch.loss_mask[0].numpy())
        assert len(places) == data.supervised([window]) > 0 and data.real([window]) == end - start <= length
        assert batch.input_ids[0, : end - start].tolist() == source.tokens(shard)[start:end].tolist()
        found += [(source.name, shard, place) for place in places.tolist()]
    wanted = [
        (source.name, shard, place)
        for source in data.sources
        for shard, receipt in enumerate(source.shards)
        for place in range(receipt.tokens)
        if place not in set(source.documents(shard).tolist())
    ]
    assert sorted(found) == sorted(wanted)


def test_positions_restart_with_every_document(folders):
    data = windows(folders, 64)
    for window in range(0, len(data), 3):
        source, shard, start, end = data._where(window)
        starts = set(source.documents(shard).tolist()) | {start}
        batch, position = data.collate([window, -1], PAD), -1
        for place in range(start, end):
            position = 0 if place in starts else position + 1
            assert batch.position_ids[0, place - start] == position
            assert batch.loss_mask[0, place - start] == (position > 0)
        assert batch.input_ids.shape == (1, end - start)
    assert [field.tolist() for field in data.collate([-1, -1], PAD)] == [[[PAD]], [[0]], [[False]]]


def test_a_document_does_not_see_its_neighbour(folders, tiny_model):
    data = windows(folders, 64)
    window = next(w for w in range(len(data)) if 10 < (data.collate([w], PAD).position_ids[0] == 0).nonzero()[-1] < 50)
    batch = data.collate([window], PAD)
    cut = int((batch.position_ids[0] == 0).nonzero()[-1])
    changed = batch.input_ids.clone()
    changed[0, :cut] = torch.randint(5, 500, (cut,))
    with torch.no_grad():
        one, two = (
            tiny_model(input_ids=ids, position_ids=batch.position_ids, use_cache=False).logits
            for ids in (batch.input_ids, changed)
        )
    assert torch.allclose(one[0, cut:], two[0, cut:], atol=1e-5) and not torch.allclose(one[0, :cut], two[0, :cut])


@given(st.floats(0.3, 3), st.floats(0.3, 3), st.integers(0, 3))
def test_weights_are_passes_per_epoch(folders, one, two, epochs):
    data = windows(folders, 128, (one, two))
    counts = [math.ceil(n) for n in np.diff(data._source_starts)]
    parts = np.diff([0, *data._slot_ends])
    visited = np.concatenate([data.visit(0, epoch, 0, len(data)) for epoch in range(epochs + 1)])
    times = np.bincount(visited, minlength=data._source_starts[-1])
    for s, (n, k) in enumerate(zip(counts, parts.tolist(), strict=True)):
        mine = times[data._source_starts[s] : data._source_starts[s + 1]]
        assert k == max(1, round((one, two)[s] * n)) and mine.sum() == k * (epochs + 1)
        assert mine.max() - mine.min() <= 1  # a window comes again only when all have come


def test_order_does_not_depend_on_ranks_or_on_where_one_starts(folders):
    data = windows(folders)
    shapes = [(1, 8), (2, 4), (4, 1)]
    configs = [
        TrainConfig(batch_size=8, micro_batch=micro, ranks=ranks, engine="deepspeed" if ranks > 1 else "torch", seed=5)
        for ranks, micro in shapes
    ]
    steps = range(len(data) // 8 - 2, len(data) // 8 + 3)  # over the end of an epoch
    for step in reversed(steps):
        batches = []
        for config in configs:
            rows = rows_of_step(step, data, config)
            shares = [micro_batches(rows, config, rank) for rank in range(config.ranks)]
            batches.append(sorted(row for share in shares for row in share.flatten().tolist() if row >= 0))
        assert batches[0] == batches[1] == batches[2]
    assert data.visit(0, 0, 0, 9).tolist() != data.visit(1, 0, 0, 9).tolist() != data.visit(1, 1, 0, 9).tolist()
    assert len(data.visit(0, 0, len(data) - 3, len(data) + 5)) == 3


def test_a_mixture_is_found_again_by_its_folder(tmp_path, folders):
    data = windows(folders, 32, (1.0, 0.5))
    loaded = load_data(data.save(tmp_path / "mixture"))
    assert isinstance(loaded, Windows) and loaded.fingerprint == data.fingerprint and len(loaded) == len(data)
    for ours, theirs in zip(loaded.collate([3, 4], PAD), data.collate([3, 4], PAD), strict=True):
        assert torch.equal(ours, theirs)
    prints = {windows(folders, *more).fingerprint for more in [(32,), (33,), (32, (1.0, 2.0))]}
    assert len(prints | {data.fingerprint}) == 4


def test_what_cannot_be_mixed_is_said(tmp_path, folders, tiny_tokenizer):
    from llamax.models.load import load_tokenizer

    shard_texts(["a b c"], load_tokenizer("nano"), tmp_path / "other", name="x")
    with pytest.raises(DataError, match="made with two tokenizers"):
        Windows.over([open_shards(folders[0]), open_shards(tmp_path / "other")], 32)
    with pytest.raises(DataError, match="at least 3 tokens"):
        windows(folders, 2)
    with pytest.raises(DataError, match="no shards to train on"):
        Windows.over([], 32)
    for weight in (0, -1, math.nan, math.inf, 1e30):
        with pytest.raises(DataError, match=r"weight .* should be above 0 and at most 1,000,000"):
            open_shards(folders[0], weight)
    assert len(Windows.over([open_shards(folders[0], 1e6)], 32)) > 1e6
    (tmp_path / "mixture.json").write_text("{")
    with pytest.raises(DataError, match="no mixture of shards here"):
        load_data(tmp_path)
