"""Packing: every document in exactly one row, targets counted right, neighbours invisible to each other."""

import resource
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from llamax.data.conversation import Conversation, assistant, user
from llamax.data.packing import (
    Documents,
    Rows,
    best_fit_decreasing,
    build_rows,
    collate,
    collate_flat,
    epoch_order,
    plain_text_rows,
)
from llamax.data.readers import read_file
from llamax.data.render import render
from llamax.data.templates import get_template
from llamax.errors import DataError, DiskFullError
from llamax.models.load import load_tokenizer


def best_fit_by_search(lengths: list[int], capacity: int) -> list[list[int]]:
    """The definition of best-fit decreasing, word for word: O(n^2), looks at every row every time."""
    rows: list[list[int]] = []
    for need in sorted(lengths, reverse=True):
        fits = [row for row in rows if sum(row) + need <= capacity]
        if fits:
            max(fits, key=sum).append(need)
        else:
            rows.append([need])
    return rows


@given(st.lists(st.integers(1, 30), max_size=80), st.integers(30, 45))
def test_packing_is_best_fit_decreasing(lengths, capacity):
    rows = best_fit_decreasing(lengths, capacity)
    assert sorted(document for row in rows for document in row) == list(range(len(lengths)))
    # Which of two equally full rows takes a document is free; how full the rows get is not.
    ours = sorted(sum(lengths[document] for document in row) for row in rows)
    assert ours == sorted(map(sum, best_fit_by_search(lengths, capacity)))


@pytest.mark.parametrize("lengths", [[5, 0], [5, 11], [-1]])
def test_a_length_that_fits_no_row_is_named(lengths):
    with pytest.raises(DataError, match=rf"document {len(lengths) - 1} has {lengths[-1]} tokens; .* 1 to 10"):
        best_fit_decreasing(lengths, 10)


def test_a_capacity_beyond_all_documents_costs_nothing():
    assert best_fit_decreasing([3, 5, 4], 10**12) == [[1, 2, 0]]


def make_rows(documents: list[list[int]], length: int, *, packing: bool = True) -> Rows:
    """Rows of documents whose every token but the first is a target."""
    collected = Documents(length)
    for source, ids in enumerate(documents):
        collected.add(source, ids, [True] * len(ids))
    return collected.rows(packing=packing)


def documents_of(lengths: list[int], vocabulary: int = 500, seed: int = 0) -> list[list[int]]:
    """Random documents of these lengths, ids in 5..vocabulary."""
    random = np.random.default_rng(seed)
    return [random.integers(5, vocabulary, size=length).tolist() for length in lengths]


@given(st.lists(st.integers(2, 50), min_size=1, max_size=40), st.booleans())
@settings(max_examples=60, deadline=None)
def test_report_and_batches_account_for_every_token(lengths, packing):
    capacity = 20
    documents = documents_of(lengths)
    rows = make_rows(documents, capacity, packing=packing)
    report = rows.report()
    assert report.split == sum(length > capacity for length in lengths)
    assert report.supervised == sum(length - 1 for length in lengths)  # a cut never loses or repeats a target
    assert report.real + report.padded == report.rows * capacity
    assert report.real == len(rows.tokens) == rows.lengths.sum()
    assert report.utilisation == report.real / (report.rows * capacity)
    batch = collate(rows, range(len(rows)), pad_id=2)
    assert int(batch.loss_mask.sum()) == rows.supervised(range(len(rows))) == report.supervised
    assert batch.input_ids.shape[1] == rows.lengths.max()
    if not packing:
        assert [list(row) for row in rows.members] == [[d] for d in range(len(rows))]


def test_pieces_of_a_split_document_overlap_by_one_token():
    rows = make_rows([[10, 11, 12, 13, 14]], length=3)
    pieces = [rows.tokens[a:b].tolist() for a, b in zip(rows.offsets[:-1], rows.offsets[1:], strict=True)]
    assert pieces == [[10, 11, 12], [12, 13, 14]]
    assert rows.mask.tolist() == [False, True, True] * 2
    assert rows.sources.tolist() == [0, 0]


def test_a_piece_without_targets_is_left_out():
    collected = Documents(length=3)
    collected.add(0, [10, 11, 12, 13, 14, 15, 16], [False] * 5 + [True] * 2)
    rows = collected.rows(packing=True)
    assert rows.tokens.tolist() == [14, 15, 16]
    assert rows.mask.tolist() == [False, True, True]


def test_collate_draws_the_documented_picture():
    rows = make_rows([[1, 7, 8, 9, 2], [1, 7, 9, 2]], length=11)
    batch = collate(rows, [0, -1], pad_id=0)
    assert batch.input_ids.tolist() == [[1, 7, 8, 9, 2, 1, 7, 9, 2], [0] * 9]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 3], list(range(9))]
    assert batch.loss_mask.tolist() == [[False, True, True, True, True, False, True, True, True], [False] * 9]
    assert (batch.input_ids.dtype, batch.position_ids.dtype, batch.loss_mask.dtype) == (
        torch.int64,
        torch.int64,
        torch.bool,
    )
    assert rows.supervised([0, -1]) == 7
    assert rows.supervised([-1]) == 0


def test_a_batch_of_empty_rows_has_width_one():
    batch = collate(make_rows([[1, 2]], length=4), [-1, -1], pad_id=3)
    assert batch.input_ids.tolist() == [[3], [3]]
    assert not batch.loss_mask.any()


def test_saved_rows_come_back_the_same(tmp_path):
    rows = make_rows(documents_of([3, 4, 9, 2, 30]), length=10)
    loaded = Rows.load(rows.save(tmp_path / "rows"))
    assert isinstance(loaded.tokens, np.memmap)
    assert loaded.fingerprint == rows.fingerprint
    assert loaded.report() == rows.report()
    assert [row.tolist() for row in loaded.members] == [row.tolist() for row in rows.members]
    for ours, theirs in zip(collate(loaded, [0, 1], 2), collate(rows, [0, 1], 2), strict=True):
        assert torch.equal(ours, theirs)


def test_fingerprint_sees_tokens_targets_and_layout():
    base = documents_of([3, 4, 9])
    changed = [*base[:2], [*base[2][:-1], 4]]
    unsupervised = Documents(20)
    for source, ids in enumerate(base):
        unsupervised.add(source, ids, [False] + [True] * (len(ids) - 2) + [source == 0])
    variants = [
        make_rows(base, 20),
        make_rows(changed, 20),
        make_rows(base, 20, packing=False),
        make_rows(base, 21),
        unsupervised.rows(packing=True),
    ]
    assert len({rows.fingerprint for rows in variants}) == len(variants)
    assert make_rows(base, 20).fingerprint == variants[0].fingerprint


@pytest.mark.parametrize("name", ["tokens", "mask", "offsets", "members"])
def test_a_flipped_byte_is_noticed(tmp_path, name):
    folder = make_rows(documents_of([3, 4, 9]), length=10).save(tmp_path / "rows")
    content = bytearray((folder / f"{name}.npy").read_bytes())
    content[-1] ^= 1
    (folder / f"{name}.npy").write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        Rows.load(folder)


def test_a_folder_without_rows_is_one_clear_line(tmp_path):
    with pytest.raises(DataError, match="no packed rows here") as caught:
        Rows.load(tmp_path / "nothing")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"), [("rows.json", b"{}"), ("rows.json", b"[]"), ("rows.json", b"{"), ("tokens.npy", b"")]
)
def test_a_damaged_folder_is_one_clear_line(tmp_path, name, content):
    folder = make_rows(documents_of([3, 4]), length=10).save(tmp_path / "rows")
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match="build them again") as caught:
        Rows.load(folder)
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_one_line_and_leaves_what_was_there(tmp_path):
    folder = make_rows(documents_of([3, 4]), length=10).save(tmp_path / "rows")
    before = Rows.load(folder).fingerprint
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(DiskFullError, match="no disk space to write"):
            make_rows(documents_of([2000] * 20), length=2000).save(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert Rows.load(folder).fingerprint == before
    assert [path.name for path in tmp_path.iterdir()] == ["rows"]


def test_plain_text_is_bos_text_eos_with_everything_but_bos_supervised(tiny_tokenizer):
    rows = plain_text_rows(["hello world"], tiny_tokenizer, length=64)
    middle = tiny_tokenizer.encode("hello world", add_special_tokens=False)
    assert rows.tokens.tolist() == [tiny_tokenizer.bos_token_id, *middle, tiny_tokenizer.eos_token_id]
    assert rows.mask.tolist() == [False] + [True] * (len(middle) + 1)


def test_plain_text_never_becomes_a_special_token(tiny_tokenizer):
    rows = plain_text_rows(["a </s> b <|im_start|>"], tiny_tokenizer, length=64)
    specials = set(tiny_tokenizer.convert_tokens_to_ids(["<s>", "</s>", "<|im_start|>"]))
    assert not specials & set(rows.tokens[1:-1].tolist())


def test_long_plain_text_is_split_and_counted(tiny_tokenizer):
    text = "The quick brown fox jumps over the lazy dog. " * 10
    rows = plain_text_rows([text, "short"], tiny_tokenizer, length=16)
    whole = plain_text_rows([text, "short"], tiny_tokenizer, length=4096)
    assert rows.report().split == 1
    assert rows.report().supervised == whole.report().supervised
    assert rows.sources[-1] == 1 and set(rows.sources[:-1].tolist()) == {0}


@pytest.mark.parametrize(("texts", "fault"), [([], "no texts"), (["fine", ""], "text 1 is empty")])
def test_nothing_to_learn_is_an_error(tiny_tokenizer, texts, fault):
    with pytest.raises(DataError, match=fault):
        plain_text_rows(texts, tiny_tokenizer, length=16)


def test_epoch_order_is_a_function_of_its_arguments():
    orders = [epoch_order(50, seed, epoch).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert epoch_order(50, 1, 1).tolist() == orders[-1]


def logits_of(model: LlamaForCausalLM, batch) -> torch.Tensor:
    """Logits [batch, seq, vocabulary] as training computes them."""
    with torch.no_grad():
        return model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_document_never_attends_to_its_neighbour(tiny_model, attention):
    """Change one document: the logits of every other document in every row stay, bit for bit."""
    tiny_model.set_attn_implementation(attention)
    documents = documents_of([9, 5, 7, 12, 3, 9])
    before, after = (make_rows(d, 25) for d in (documents, [documents[0][::-1], *documents[1:]]))
    assert len(before) == 2 and all(len(row) >= 2 for row in before.members)
    indices = range(len(before))
    old, new = (logits_of(tiny_model, collate(rows, indices, pad_id=2)) for rows in (before, after))
    for b in indices:
        end = 0
        for document in before.members[b]:
            start, end = end, end + int(np.diff(before.offsets)[document])
            same = torch.equal(old[b, start:end], new[b, start:end])
            assert same == (document != 0), f"document {document} of row {b}"


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_packed_logits_are_those_of_each_document_alone(tiny_model, attention):
    tiny_model.set_attn_implementation(attention)
    documents = documents_of([9, 5, 7, 12, 3, 2])
    rows = make_rows(documents, 20)
    logits = logits_of(tiny_model, collate(rows, range(len(rows)), pad_id=2))
    for b, row in enumerate(rows.members):
        end = 0
        for document in row:
            start, end = end, end + len(documents[document])
            with torch.no_grad():
                alone = tiny_model(input_ids=torch.tensor([documents[document]]), use_cache=False).logits[0]
            torch.testing.assert_close(logits[b, start:end], alone, atol=1e-6, rtol=1e-5)


def conversations(count: int = 3, words: int = 1) -> list[Conversation]:
    return [
        Conversation(messages=(user(f"say {n}"), assistant("hello " * words + str(n))), id=f"file.json:{n}")
        for n in range(count)
    ]


@pytest.mark.parametrize("packing", [True, False])
def test_built_rows_hold_what_render_gives(tiny_tokenizer, packing):
    template = get_template("chatml", tiny_tokenizer)
    rendered = [render(conversation, tiny_tokenizer, template) for conversation in conversations()]
    rows = build_rows(conversations(), tiny_tokenizer, template, length=256, packing=packing)
    for d, (ids, mask) in enumerate(rendered):
        first, last = rows.offsets[d : d + 2]
        assert rows.tokens[first:last].tolist() == ids
        assert rows.mask[first:last].tolist() == mask
    assert len(rows) == (1 if packing else 3)
    assert rows.report().rejected == rows.report().split == 0


def test_an_over_long_conversation_is_named_rejected_or_split(tiny_tokenizer):
    template = get_template("chatml", tiny_tokenizer)
    mixed = [*conversations(2), *conversations(3, words=20)[2:]]
    sizes = [len(render(conversation, tiny_tokenizer, template).input_ids) for conversation in mixed]
    length = sizes[0]
    with pytest.raises(DataError) as caught:
        build_rows(mixed, tiny_tokenizer, template, length=length)
    assert str(caught.value).startswith(
        f"1 of 3 conversations exceed the row length of {length} tokens, "
        f"first conversation 2 (file.json:2) with {sizes[2]}"
    )
    rejected = build_rows(mixed, tiny_tokenizer, template, length=length, over_long="reject")
    assert rejected.report().rejected == 1 and rejected.sources.tolist() == [0, 1]
    split = build_rows(mixed, tiny_tokenizer, template, length=length, over_long="split")
    assert split.report().split == 1 and set(split.sources.tolist()) == {0, 1, 2}
    targets = sum(sum(render(conversation, tiny_tokenizer, template).loss_mask) for conversation in mixed)
    assert split.report().supervised == targets
    with pytest.raises(DataError, match="no conversation to train on: 1 of 1 exceed"):
        build_rows(mixed[2:], tiny_tokenizer, template, length=length, over_long="reject")


def test_a_conversation_without_a_target_is_named(tiny_tokenizer):
    template = get_template("chatml", tiny_tokenizer)
    template.answer = lambda content: []
    with pytest.raises(DataError, match=r"conversation 0 \(file.json:0\) has no supervised token"):
        build_rows(conversations(), tiny_tokenizer, template, length=64)


def test_what_a_template_refuses_is_refused_by_name(tiny_tokenizer):
    bad = Conversation(messages=(assistant("first!"),), id="chats.jsonl:7")
    with pytest.raises(DataError, match=r"conversation 3 \(chats.jsonl:7\): message 0 is the assistant's"):
        build_rows([*conversations(), bad], tiny_tokenizer, get_template("alpaca", tiny_tokenizer), length=256)


@pytest.mark.slow
def test_all_of_alpaca_packs_within_a_minute_on_two_cores(shared_data):
    """CPU seconds over all threads, so that a busy machine does not decide: 120 of them are a minute of two cores."""
    conversations = read_file(shared_data / "alpaca" / "alpaca_data.json.gz")
    tokenizer = load_tokenizer("smol")
    start = time.process_time()
    report = build_rows(conversations, tokenizer, get_template("alpaca", tokenizer), length=2048).report()
    assert time.process_time() - start < 120
    assert report.documents == 52002 and report.rejected == report.split == 0
    assert report.utilisation >= 0.99


@given(st.lists(st.lists(st.integers(5, 99), min_size=1, max_size=6), min_size=1, max_size=8), st.data())
def test_a_flat_batch_is_the_padded_one_without_its_padding(documents, data):
    rows = make_rows(documents, length=8)
    indices = data.draw(st.lists(st.integers(-1, len(rows) - 1), min_size=1, max_size=5))
    flat, padded = collate_flat(rows, indices, pad_id=2), collate(rows, indices, pad_id=3)
    real = padded.input_ids != 3
    if not real.any():
        assert [field.tolist() for field in flat] == [[[2]], [[0]], [[False]]]
    else:
        for ours, theirs in zip(flat, padded, strict=True):
            assert ours.shape == (1, real.sum()) and ours.dtype == theirs.dtype
            assert torch.equal(ours[0], theirs[real])
