"""Text to shards: nothing lost, nothing made twice, whatever kills it; and every bad input is said."""

import gzip
import json
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamax.data.encode import encode_texts
from llamax.data.shards import MANIFEST, Piece, _cut, file_pieces, read_receipts, shard_files, shard_texts
from llamax.data.stream import open_shards
from llamax.data.world.text import pretraining_texts
from llamax.errors import DataError


@pytest.fixture(scope="module")
def texts():
    return list(pretraining_texts(0, documents=30))


def documents_in(folder):
    """Documents of all shards, those cut by the end of a shard joined again."""
    source, found, open_document = open_shards(folder), [], False
    for number, receipt in enumerate(source.shards):
        offsets, tokens = source.documents(number), source.tokens(number)
        assert offsets[-1] == len(tokens) == receipt.tokens and len(offsets) == receipt.documents + 1
        for d in range(receipt.documents):
            ids = tokens[offsets[d] : offsets[d + 1]].tolist()
            if d == 0 and open_document:
                assert ids[0] == found[-1][-1]  # the token that both have
                found[-1] += ids[1:]
            else:
                found.append(ids)
        open_document = receipt.open
    assert not open_document
    return found


def expected(texts, tokenizer):
    return [[tokenizer.bos_token_id, *ids, tokenizer.eos_token_id] for ids in encode_texts(tokenizer, texts)]


@pytest.mark.parametrize("shard_tokens", [300, 10**6])
def test_shards_hold_every_document_whole_and_in_order(tmp_path, texts, tiny_tokenizer, shard_tokens):
    report = shard_texts(texts, tiny_tokenizer, tmp_path, name="world", shard_tokens=shard_tokens)
    assert documents_in(tmp_path) == expected(texts, tiny_tokenizer)
    assert report.documents == len(texts) and report.shards == report.made == len(read_receipts(tmp_path))
    assert not list(tmp_path.glob(".tokens*"))


def test_a_document_longer_than_a_shard_goes_on_in_the_next(tmp_path, texts, tiny_tokenizer, monkeypatch):
    """Pieces of 200 characters, so that documents are cut; a byte-level tokenizer cut at blanks gives the same ids."""
    monkeypatch.setattr("llamax.data.shards.PIECE", 200)
    report = shard_texts(texts, tiny_tokenizer, tmp_path, name="world", shard_tokens=300)
    assert any(receipt.open for receipt in read_receipts(tmp_path))
    joined = documents_in(tmp_path)
    assert [tiny_tokenizer.decode(ids[1:-1]) for ids in joined] == texts
    assert report.documents == len(texts)


@given(st.text(alphabet="ab \n", max_size=2000))
def test_pieces_are_the_text(text):
    pieces = list(_cut(text, 0))
    assert "".join(piece.text for piece in pieces) == text
    assert [piece.first for piece in pieces] == [True] + [False] * (len(pieces) - 1)
    assert [piece.last for piece in pieces] == [False] * (len(pieces) - 1) + [True]


def test_all_kinds_of_files_give_the_same_tokens(tmp_path, texts, tiny_tokenizer):
    import pandas as pd

    texts = [text for text in texts if "\n\n" not in text and text.strip() == text][:30]
    lines = "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts))
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    pd.DataFrame({"text": texts}).to_parquet(tmp_path / "a.parquet")
    (tmp_path / "a.txt").write_text("\n\n\n".join(texts) + "\n")
    for name in ("a.jsonl", "a.jsonl.gz", "a.parquet", "a.txt"):
        folder = tmp_path / f"shards-{name}"
        shard_files([tmp_path / name], tiny_tokenizer, folder, shard_tokens=500, split="paragraph")
        assert documents_in(folder) == expected(texts, tiny_tokenizer), name


def test_what_a_document_of_plain_text_is(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n\nthree\n")
    path = tmp_path / "a.txt"
    found = {split: [p.text for p in file_pieces([path], "", split)] for split in ("file", "line", "paragraph")}
    assert found["file"] == ["one\ntwo\n\nthree\n"]
    assert found["line"] == ["one", "two", "three"] and found["paragraph"] == ["one\ntwo", "three"]


def test_a_long_file_is_one_document_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("llamax.data.shards.PIECE", 1024 + 16)
    text = "".join(f"line {i}\n" for i in range(1000))
    (tmp_path / "a.txt").write_text(text)
    pieces = list(file_pieces([tmp_path / "a.txt"], "", "file"))
    assert len(pieces) > 5 and "".join(p.text for p in pieces) == text
    assert [p.first for p in pieces] == [True] + [False] * (len(pieces) - 1) and pieces[-1].last
    assert not any(p.last for p in pieces[:-1]) and all(p.text.endswith("\n") for p in pieces)
    assert isinstance(pieces[0], Piece) and pieces[-1].read == len(text)


def test_empty_documents_are_left_out_and_counted(tmp_path, tiny_tokenizer):
    report = shard_texts(["", "a", "", "b", ""], tiny_tokenizer, tmp_path, name="x", shard_tokens=2)
    assert (report.documents, report.empty) == (2, 3) and "3 empty documents left out" in str(report)


KILLED = """
    import os, signal, sys
    from llamax.data import shards
    from llamax.data.world.text import pretraining_texts
    from llamax.models.load import load_tokenizer
    class Texts:
        def __iter__(self):
            for i, text in enumerate(pretraining_texts(0, documents=30)):
                if i == int(sys.argv[2]):
                    os.kill(os.getpid(), signal.SIGKILL)
                yield text
    shards.PIECES_AT_ONCE = 4
    shards.shard_texts(Texts(), load_tokenizer("nano"), sys.argv[1], name="world", shard_tokens=500)
"""


def test_killed_work_goes_on_without_repeating_a_shard(tmp_path, texts):
    from llamax.models.load import load_tokenizer

    tokenizer = load_tokenizer("nano")
    shard_texts(texts, tokenizer, tmp_path / "whole", name="world", shard_tokens=500)
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path / "cut"), "20"]
    assert subprocess.run(command, env=os.environ, capture_output=True).returncode == -signal.SIGKILL
    finished = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "cut").glob("shard-*.json")}
    assert finished and not (tmp_path / "cut" / MANIFEST).exists()
    assert list((tmp_path / "cut").glob(".tokens-*"))  # the shard that was being written
    report = shard_texts(texts, tokenizer, tmp_path / "cut", name="world", shard_tokens=500)
    assert report.made == report.shards - len(finished)
    assert all((tmp_path / "cut" / name).stat().st_mtime_ns == time for name, time in finished.items())
    for file in (tmp_path / "whole").glob("*.*"):
        assert (tmp_path / "cut" / file.name).read_bytes() == file.read_bytes(), file.name
    again = shard_texts(iter(()), tokenizer, tmp_path / "cut", name="world", shard_tokens=500)
    assert again == report._replace(made=0)


def test_a_folder_of_other_shards_is_refused(tmp_path, tiny_tokenizer):
    (tmp_path / "a.txt").write_text("some text")
    shard_files([tmp_path / "a.txt"], tiny_tokenizer, tmp_path / "s", shard_tokens=100)
    with pytest.raises(DataError, match="something else: shard_tokens was 100, is 200"):
        shard_files([tmp_path / "a.txt"], tiny_tokenizer, tmp_path / "s", shard_tokens=200)
    (tmp_path / "a.txt").write_text("other text")
    with pytest.raises(DataError, match=r"something else: input 1, a\.txt, had 9 bytes, has 10"):
        shard_files([tmp_path / "a.txt"], tiny_tokenizer, tmp_path / "s", shard_tokens=100)


def test_two_at_once_in_one_folder_are_refused(tmp_path, tiny_tokenizer):
    from filelock import FileLock

    with FileLock(tmp_path / ".lock"), pytest.raises(DataError, match="another process is writing shards here"):
        shard_texts(["a"], tiny_tokenizer, tmp_path, name="x")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", '{"text": "a"}\n{"txt": "b"}\n', r"line 2: no text in the field 'text'; it has: txt"),
        ("a.jsonl", '{"text": "a"}\n{"text": 7}\n', r"line 2: no text in the field 'text': it is a number$"),
        (
            "a.jsonl",
            '{"text": "\\ud800"}\n',
            r"line 1: 'text' has a lone surrogate \(half a char",
        ),
        ("a.jsonl", '{"text": null}\n', r"line 1: no text in the field 'text': it is null$"),
        ("a.jsonl", '{"text": "a"}\nnot json\n', r"line 2 .*is not JSON"),
        ("a.jsonl", "", r"the inputs hold no text"),
        ("a.txt", b"\xff\xfe", r"not UTF-8"),
        ("a.txt.gz", b"no gzip", r"damaged gzip"),
        ("a.csv", "text\na\n", r"wants a name that ends in"),
    ],
)
def test_a_bad_input_is_named(tmp_path, tiny_tokenizer, name, content, said):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=said) as error:
        shard_files([tmp_path / name], tiny_tokenizer, tmp_path / "s")
    assert "\n" not in str(error.value)
    if "no text" not in said or "field" in said:
        assert name in str(error.value)


def test_no_files_and_missing_files_are_said(tmp_path, tiny_tokenizer):
    with pytest.raises(DataError, match="no files"):
        shard_files([], tiny_tokenizer, tmp_path / "s")
    with pytest.raises(DataError, match=r"b\.txt: no such file"):
        shard_files([tmp_path / "b.txt"], tiny_tokenizer, tmp_path / "s")
    with pytest.raises(DataError, match="shard_tokens 1"):
        shard_texts(["a"], tiny_tokenizer, tmp_path / "s", name="x", shard_tokens=1)


def test_damaged_and_unfinished_shards_are_named(tmp_path, texts, tiny_tokenizer):
    shard_texts(texts, tiny_tokenizer, tmp_path, name="x", shard_tokens=500)
    file = tmp_path / "tokens-00001.bin"
    content = bytearray(file.read_bytes())
    content[7] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"tokens-00001\.bin: damaged or missing"):
        open_shards(tmp_path)
    file.unlink()
    with pytest.raises(DataError, match=r"tokens-00001\.bin: damaged or missing"):
        open_shards(tmp_path)
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(DataError, match=r"shards\.json: damaged; make the shards again"):
        open_shards(tmp_path)
    (tmp_path / MANIFEST).unlink()
    with pytest.raises(DataError, match="begun, not finished"):
        open_shards(tmp_path)
    with pytest.raises(DataError, match="no shards here; make them"):
        open_shards(tmp_path / "nowhere")


def _flip(file):
    content = bytearray(file.read_bytes())
    content[7] ^= 1
    file.write_bytes(content)


def _cut_short(file):
    file.write_bytes(file.read_bytes()[:-2])


DAMAGES = {
    "flipped": ("tokens-00001.bin", _flip, 1),
    "short": ("tokens-00001.bin", _cut_short, 1),
    "gone": ("tokens-00000.bin", lambda file: file.unlink(), 1),
    "offsets": ("documents-00002.bin", _flip, 1),
    "manifest": (MANIFEST, lambda file: file.write_text("{"), 0),
    "no manifest": (MANIFEST, lambda file: file.unlink(), 0),
    "other manifest": (
        MANIFEST,
        lambda file: file.write_text(file.read_text().replace('"pieces": ', '"pieces": 1')),
        0,
    ),
    "receipt": ("shard-00000.json", lambda file: file.write_text("{"), 0),
    "no receipt": ("shard-00001.json", lambda file: file.unlink(), 0),
    "plan": ("plan.json", lambda file: file.write_text("{"), 0),
    "checked": (".checked.json", lambda file: file.write_text("["), 0),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_only_what_is_damaged_is_made_again(tmp_path, texts, tiny_tokenizer, monkeypatch, name):
    monkeypatch.setattr("llamax.data.shards.PIECE", 200)  # so that shards end within documents
    args = {"name": "x", "shard_tokens": 300}
    report = shard_texts(texts, tiny_tokenizer, tmp_path, **args)
    shard_texts(texts, tiny_tokenizer, tmp_path, **args)
    before = {file.name: file.read_bytes() for file in tmp_path.glob("*.*") if file.name != ".checked.json"}
    file, damage, made = DAMAGES[name]
    damage(tmp_path / file)
    times = {file.name: file.stat().st_mtime_ns for file in tmp_path.glob("tokens-*")}
    assert shard_texts(texts, tiny_tokenizer, tmp_path, **args) == report._replace(made=made)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    same = [name for name, time in times.items() if (tmp_path / name).stat().st_mtime_ns == time]
    assert len(same) == report.shards - made
    open_shards(tmp_path)


def test_several_damaged_shards_of_unfinished_work(tmp_path, texts, tiny_tokenizer):
    report = shard_texts(texts, tiny_tokenizer, tmp_path, name="x", shard_tokens=300)
    before = {file.name: file.read_bytes() for file in tmp_path.glob("*.*")}
    last = report.shards - 1
    for file in (MANIFEST, f"shard-{last:05d}.json", "tokens-00002.bin", "tokens-00000.bin"):
        (tmp_path / file).unlink()
    assert shard_texts(texts, tiny_tokenizer, tmp_path, name="x", shard_tokens=300) == report._replace(made=3)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_what_cannot_be_repaired_is_said(tmp_path, texts, tiny_tokenizer):
    shard_texts(texts, tiny_tokenizer, tmp_path, name="x", shard_tokens=300)
    (tmp_path / "tokens-00001.bin").unlink()
    with pytest.raises(DataError, match="shard 1 comes out as another one now; delete the folder"):
        shard_texts([text + "!" for text in texts], tiny_tokenizer, tmp_path, name="x", shard_tokens=300)
    for file in ("plan.json", MANIFEST):
        (tmp_path / file).write_text("{")
    with pytest.raises(DataError, match=r"plan\.json: damaged or missing"):
        shard_texts(texts, tiny_tokenizer, tmp_path, name="x", shard_tokens=300)


def test_an_input_changed_in_its_middle_is_noticed_and_named(tmp_path, tiny_tokenizer, monkeypatch):
    monkeypatch.setattr("llamax.data.shards.ENDS", 2)
    files = [tmp_path / f"{name}.txt" for name in "abcd"]
    for file in files:
        file.write_text("some text")
    shard_files(files, tiny_tokenizer, tmp_path / "s")
    time = files[2].stat().st_mtime_ns
    files[2].write_text("some fext")
    os.utime(files[2], ns=(time, time + 10**9))
    with pytest.raises(DataError, match=r"else: input 3, c\.txt, has been changed since \(still 9 bytes\)"):
        shard_files(files, tiny_tokenizer, tmp_path / "s")
    with pytest.raises(DataError, match=r"else: input 3 was c\.txt, is d\.txt"):
        shard_files([*files[:2], files[3]], tiny_tokenizer, tmp_path / "s")
    with pytest.raises(DataError, match=r"else: input 3 was c\.txt, is not there"):
        shard_files(files[:2], tiny_tokenizer, tmp_path / "s")
    long = "a" * 200
    shard_texts(["a"], tiny_tokenizer, tmp_path / "t", name=long + "1")
    with pytest.raises(DataError, match=r"inputs was \.\.\.a{40}1, is \.\.\.a{40}2"):
        shard_texts(["a"], tiny_tokenizer, tmp_path / "t", name=long + "2")


def test_a_refused_attempt_does_not_stand_in_the_way_of_its_correction(tmp_path, tiny_tokenizer):
    (tmp_path / "a.jsonl").write_text('{"text": "a b"}\n')
    with pytest.raises(DataError, match="no text in the field 'txt'"):
        shard_files([tmp_path / "a.jsonl"], tiny_tokenizer, tmp_path / "s", field="txt")
    assert shard_files([tmp_path / "a.jsonl"], tiny_tokenizer, tmp_path / "s").documents == 1


def test_large_vocabularies_take_four_bytes(tmp_path, tiny_tokenizer):
    shard_texts(["a b"], tiny_tokenizer, tmp_path / "two", name="x")
    assert open_shards(tmp_path / "two").tokens(0).dtype == np.uint16
    import copy

    larger = copy.deepcopy(tiny_tokenizer)
    larger.add_tokens([f"<{i}>" for i in range(66000)])
    shard_texts(["a b"], larger, tmp_path / "four", name="x")
    four = open_shards(tmp_path / "four").tokens(0)
    assert four.dtype == np.uint32 and four.tolist() == open_shards(tmp_path / "two").tokens(0).tolist()
