"""Sources: data cards fit their schema, LLAMAX_DATA is used or missed in one line, no network costs no minutes."""

import json
import subprocess
import sys
import time

import pytest

from llamax.data.conversation import Conversation, assistant, user
from llamax.data.sources import cards, content_hash, find, fingerprint, read, read_card, read_preferences, rows
from llamax.errors import DataError
from llamax.files import repository

ROWS = [{"instruction": f"say {n}", "input": "", "output": str(n)} for n in range(3)]


@pytest.fixture
def alpaca_file(tmp_path):
    path = tmp_path / "some.json"
    path.write_text(json.dumps(ROWS))
    return path


def test_every_data_card_fits_the_schema():
    paths = sorted((repository() / "data_cards").glob("*.md"))
    read_cards = [read_card(path) for path in paths]
    assert {"alpaca", "gsm8k", "mmlu", "nano", "truthfulqa", "humaneval", "mt_bench"} <= {c.name for c in read_cards}
    assert len(cards()) == len(paths)
    for card in read_cards:
        for split in card.splits.values():
            assert card.format == "world" or card.hub or split.local, f"{card.name} is nowhere"
            assert bool(split.local) == bool(split.sha256), f"{card.name}: a local copy has a hash, and nothing else"


@pytest.mark.parametrize("name", sorted(set(cards()) - {"nano", "mmmlu"}))
def test_cards_describe_the_local_copies(monkeypatch, shared_data, name):
    monkeypatch.setenv("LLAMAX_DATA", str(shared_data))
    for split in cards()[name].splits.values():
        assert content_hash(shared_data / split.local) == split.sha256


def test_items_of_a_card_are_counted(monkeypatch, shared_data):
    monkeypatch.setenv("LLAMAX_DATA", str(shared_data))
    for split, described in cards()["gsm8k"].splits.items():
        assert len(read("gsm8k", split=split)) == described.items
    assert [conversation.id for conversation in read("alpaca", limit=2)] == [
        "alpaca_data.json.gz:row 1",
        "alpaca_data.json.gz:row 2",
    ]


@pytest.mark.parametrize(
    ("front", "said"),
    [
        ("", "wants YAML front matter"),
        ("---\nname: [\n---\n", "front matter is not YAML"),
        ("---\nname: a\ntitel: b\n---\n", "titel|title"),
        (
            "---\nname: a\ntitle: b\nlicence: c\nformat: alpaca\nsplits: {train: {items: 0}}\n---\n",
            "splits.train.items",
        ),
    ],
)
def test_a_card_that_does_not_fit_is_named(tmp_path, front, said):
    path = tmp_path / "card.md"
    path.write_text(front + "\nProse.")
    with pytest.raises(DataError, match=said) as caught:
        read_card(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


CARD = "---\nname: a\ntitle: b\nlicence: c\nhub: d/e\nformat: alpaca\nsplits: {train: {items: 1}}\n---\n"


def test_cards_of_one_name_and_cards_of_no_text_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMAX_HOME", str(tmp_path))
    (tmp_path / "data_cards").mkdir()
    for name in ("one.md", "two.md"):
        (tmp_path / "data_cards" / name).write_text(CARD)
    with pytest.raises(DataError, match=r"two\.md: another card of data_cards/ is named 'a' too"):
        cards()
    (tmp_path / "data_cards" / "two.md").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"two\.md: not UTF-8"):
        cards()


def test_a_file_is_a_source(alpaca_file):
    read_back = read(str(alpaca_file), limit=2)
    assert [c.messages for c in read_back] == [(user(f"say {n}"), assistant(str(n))) for n in range(2)]
    assert find(str(alpaca_file)).file == alpaca_file


def test_the_small_world_is_a_source():
    conversations = read("nano", limit=3)
    assert len(conversations) == 3 and all(isinstance(c, Conversation) for c in conversations)
    assert conversations == read("nano", limit=5)[:3]
    fails("nano: limit -1 should be a number of rows from 1", "nano", limit=-1)
    fails("nano: takes no format .'alpaca' given", "nano", format="alpaca")


def test_fingerprints_follow_content(alpaca_file):
    before = fingerprint(str(alpaca_file))
    assert fingerprint(str(alpaca_file)) == before
    alpaca_file.write_text(json.dumps(ROWS[:2]))
    assert fingerprint(str(alpaca_file)) != before
    assert fingerprint("nano") == fingerprint("nano") != before


def test_a_fingerprint_covers_every_split(monkeypatch, tmp_path):
    monkeypatch.setenv("LLAMAX_DATA", str(tmp_path))
    for split in cards()["gsm8k"].splits.values():
        path = tmp_path / split.local
        path.parent.mkdir(exist_ok=True)
        path.write_text("one")
    whole, train = fingerprint("gsm8k"), fingerprint("gsm8k", "train")
    path.write_text("two")
    assert fingerprint("gsm8k", "train") == train
    assert fingerprint("gsm8k") != whole


def test_where_the_hub_has_other_rows_the_local_copys_hash_does_not_stand_for_them(monkeypatch, tmp_path):
    monkeypatch.setenv("LLAMAX_DATA", str(tmp_path))
    path = tmp_path / cards()["nq_open"].splits["train"].local
    path.parent.mkdir()
    path.write_text("rows")
    here = fingerprint("nq_open", "train")
    monkeypatch.delenv("LLAMAX_DATA")
    assert fingerprint("nq_open", "train") not in (here, cards()["nq_open"].splits["train"].sha256)
    with pytest.raises(DataError, match="nq_open: the hub's rows are others than the local copy's"):
        fingerprint("nq_open", ask=False)


def test_what_is_on_no_hub_is_said(monkeypatch):
    monkeypatch.delenv("LLAMAX_DATA", raising=False)
    with pytest.raises(DataError, match="is on no hub: set LLAMAX_DATA to a folder with its files"):
        list(rows("jmmlu", "test"))


def test_fingerprints_need_no_torch():
    code = (
        "import sys; from llamax.data.sources import fingerprint; fingerprint('alpaca'); fingerprint('nano'); "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def fails(match: str, source: str, **options) -> None:
    """Reading `source` fails within seconds, with one line that matches."""
    start = time.monotonic()
    with pytest.raises(DataError, match=match) as caught:
        read(source, **options)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - start < 30


def test_a_missing_data_folder_is_one_clear_line(monkeypatch, tmp_path):
    monkeypatch.setenv("LLAMAX_DATA", str(tmp_path / "gone"))
    fails(r"LLAMAX_DATA=.*gone: no such folder; point it to local copies", "alpaca")


def test_a_missing_local_copy_names_both_remedies(monkeypatch, tmp_path):
    monkeypatch.setenv("LLAMAX_DATA", str(tmp_path))
    fails(r"no alpaca/alpaca_data.json.gz .*put a copy there, or unset LLAMAX_DATA to fetch tatsu-lab/alpaca", "alpaca")


def test_without_folder_and_hub_the_error_names_both_remedies(monkeypatch, tmp_path):
    monkeypatch.delenv("LLAMAX_DATA", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    fails("Connect to the network, or set LLAMAX_DATA", "llamax-project/there-is-no-such-set")


def test_a_copy_that_the_card_does_not_describe_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("LLAMAX_DATA", str(tmp_path))
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k" / "test.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    fails("is not the file that its data card describes", "gsm8k", split="test")
    assert len(read(str(tmp_path / "gsm8k" / "test.jsonl"))) == 1


def test_sources_that_are_nowhere(monkeypatch):
    fails(r"no data source 'alpacca': did you mean 'alpaca'\? .*named sources: .*alpaca, .*gsm8k", "alpacca")
    fails("no data source './some/file.json'", "./some/file.json")
    fails("nano: no split 'test'; it has: train", "nano", split="test")


def test_benchmarks_are_not_conversations(monkeypatch, shared_data):
    monkeypatch.setenv("LLAMAX_DATA", str(shared_data))
    fails("mmlu is a benchmark", "mmlu", split="test")


def test_preferences_have_their_own_reader(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"prompt": "a", "chosen": "good", "rejected": "bad"}))
    (pair,) = read_preferences(str(path))
    assert pair.id == "pairs.jsonl:line 1" and pair.chosen == (assistant("good"),)
    with pytest.raises(DataError, match="nano: has no preference pairs"):
        read_preferences("nano")


@pytest.mark.parametrize("name", ["x" * 5000, "~nosuchuser/x", "a\0b"])
def test_a_name_that_no_file_can_have_is_no_source(name):
    with pytest.raises(DataError, match="no data source"):
        read(name)
