"""Reading: every format from every container, and faults that name file, place, field and remedy."""

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from llamax.data.conversation import Conversation, Message, assistant, user
from llamax.data.formats import RowError, preference
from llamax.data.readers import convert_preferences, file_rows, read_file
from llamax.errors import DataError

SYSTEM = Message(role="system", content="Be kind.")
ROWS = {
    "alpaca": {"instruction": "Add.", "input": "1 2", "output": "3"},
    "sharegpt": {
        "conversations": [{"from": "human", "value": "Add."}, {"from": "gpt", "value": "3"}],
        "system": "Be kind.",
    },
    "messages": {"messages": [{"role": "user", "content": "Add."}, {"role": "assistant", "content": "3"}]},
    "prompt-completion": {"prompt": "Add.", "completion": "3"},
}
READ = {
    "alpaca": (user("Add.", "1 2"), assistant("3")),
    "sharegpt": (SYSTEM, user("Add."), assistant("3")),
    "messages": (user("Add."), assistant("3")),
    "prompt-completion": (user("Add."), assistant("3")),
}


def write(path: Path, rows: list) -> Path:
    """Store rows as the suffix of `path` says."""
    if path.name.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path
    lines = "\n".join(json.dumps(row) for row in rows) if "jsonl" in path.name else json.dumps(rows)
    path.write_bytes(gzip.compress(lines.encode(), mtime=0) if path.suffix == ".gz" else lines.encode())
    return path


def fault(path: Path, **options) -> str:
    """The one line that reading `path` fails with."""
    with pytest.raises(DataError) as caught:
        read_file(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("suffix", ["json", "jsonl", "json.gz", "jsonl.gz", "parquet"])
@pytest.mark.parametrize("format", ROWS)
@pytest.mark.parametrize("named", [True, False])
def test_every_format_from_every_container(tmp_path, suffix, format, named):
    path = write(tmp_path / f"rows.{suffix}", [ROWS[format]] * 2)
    read = read_file(path, format=format if named else "auto")
    place = "line" if "jsonl" in suffix else "row"
    assert read == [Conversation(messages=READ[format], id=f"{path.name}:{place} {n}") for n in (1, 2)]


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"instruction": "Hi", "input": None, "output": ""}, [user("Hi"), assistant("")]),
        (
            {"instruction": "Hi", "output": "Ho", "history": [["a", "b"]], "system": "Be kind."},
            [SYSTEM, user("a"), assistant("b"), user("Hi"), assistant("Ho")],
        ),
        ({"question": "1 + 1?", "answer": "2"}, [user("1 + 1?"), assistant("2")]),
        ({"prompt": [{"role": "user", "content": "a"}], "completion": "b"}, [user("a"), assistant("b")]),
        (
            {
                "conversations": [
                    {"from": "human", "value": "Weather?"},
                    {"from": "function_call", "value": "{}"},
                    {"from": "observation", "value": "sun"},
                    {"from": "gpt", "value": "Sunny."},
                ]
            },
            [user("Weather?"), assistant("{}"), Message(role="tool", content="sun"), assistant("Sunny.")],
        ),
    ],
)
def test_variants_of_the_formats(tmp_path, row, messages):
    assert read_file(write(tmp_path / "rows.json", [row]))[0].messages == tuple(messages)


def test_limit_reads_no_further(tmp_path):
    path = write(tmp_path / "rows.jsonl", [ROWS["alpaca"], {"instruction": 5, "output": "x"}])
    assert len(read_file(path, limit=1)) == 1


def test_all_faults_are_counted_and_the_first_named(tmp_path):
    rows = [ROWS["alpaca"]] * 7
    rows[1] = {"instruction": 5, "output": "x"}
    rows[2] = {"instruction": "a"}
    rows[4] = "not an object"
    rows[6] = {"instruction": " ", "output": "x"}
    path = write(tmp_path / "rows.json", rows)
    assert fault(path) == (
        f"{path}: 4 of 7 rows malformed: row 2 field 'instruction' is int 5, should be a text; row 3 field 'output' is "
        "missing, should be a text; row 5 is str 'not an object', should be an object with named fields; and 1 more"
    )


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": []}, "field 'messages' is empty, should be a list of messages"),
        ({"messages": [{"role": "user", "content": "a"}]}, "field 'messages' has no assistant turn"),
        (
            {"messages": [{"role": "boss", "content": "a"}]},
            "field 'messages[0].role' is str 'boss', should be one of user",
        ),
        (
            {"messages": [{"role": "user", "content": ["a"]}]},
            "field 'messages[0].content' is list ['a'], should be a text",
        ),
        ({"messages": [{"role": "user", "content": ""}]}, "field 'messages[0].content' is empty"),
        ({"conversations": [{"from": "human", "value": "a"}]}, "field 'conversations' has no assistant turn"),
        ({"conversations": ["a"]}, "field 'conversations[0]' is str 'a', should be a message"),
        ({"instruction": "a", "output": "b", "history": [["x"]]}, "field 'history[0]' is list ['x'], should be a pair"),
        ({"prompt": "", "completion": "b"}, "field 'prompt' is empty, should be a text"),
        ({"instruction": "a", "output": "b", "history": 5}, "field 'history' is int 5, should be a list of pairs"),
        ({"instruction": "a", "output": "b", "history": [["  ", "x"]]}, "field 'history[0]' is list ['  ', 'x'], sh"),
        ({"prompt": "a", "completion": "\ud800"}, "field 'messages' has a lone surrogate"),
    ],
)
def test_a_malformed_row_says_field_fault_and_remedy(tmp_path, row, said):
    line = fault(write(tmp_path / "rows.jsonl", [row]))
    assert f"1 of 1 rows malformed: line 1 {said}" in line


def test_a_broken_line_is_named_among_the_faults(tmp_path):
    path = tmp_path / "rows.jsonl"
    good = json.dumps(ROWS["alpaca"])
    path.write_text(f"{good}\n\n{good[:-5]}\n{good}\n")
    assert "1 of 3 rows malformed: line 3 is not JSON (" in fault(path)


def test_a_broken_first_line_does_not_hide_the_format(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("{\n" + json.dumps(ROWS["alpaca"]) + "\n")
    assert "1 of 2 rows malformed: line 1 is not JSON (" in fault(path)


@pytest.mark.parametrize(
    ("content", "said"), [("9" * 5000, "a number of more than 4300 digits"), ("[" * 200_000, "nested too deeply")]
)
def test_json_that_python_does_not_read(tmp_path, content, said):
    good = json.dumps(ROWS["alpaca"])
    (tmp_path / "rows.jsonl").write_text(f"{good}\n{content}\n{good}\n")
    assert f"1 of 3 rows malformed: line 2 cannot be read: {said}" in fault(tmp_path / "rows.jsonl")
    (tmp_path / "rows.json").write_text(f"[{good}, {content}]")
    assert f"JSON that cannot be read: {said}" in fault(tmp_path / "rows.json")


def test_a_first_row_that_shows_no_format_does_not_hide_the_others(tmp_path):
    rows = [{"instruct": "a", "output": "b"}, ROWS["alpaca"], {"instruction": 5, "output": "x"}, "no object"]
    assert "3 of 4 rows malformed: row 1 field 'instruction' is missing" in fault(write(tmp_path / "rows.json", rows))


def test_a_column_at_the_end_of_a_line_is_counted_on_that_line(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"\n')
    assert "line 1 is not JSON (Expecting ',' delimiter, column 15)" in fault(tmp_path / "rows.jsonl")


@pytest.mark.parametrize("limit", [-1, 0, 1.5])
def test_a_limit_is_a_number_of_rows(tmp_path, limit):
    path = write(tmp_path / "rows.json", [ROWS["alpaca"]])
    assert fault(path, limit=limit) == f"{path}: limit {limit} should be a number of rows from 1"


def test_long_names_of_fields_are_cut(tmp_path):
    line = fault(write(tmp_path / "rows.json", [{"x" * 1000: 1}]))
    assert "x" * 37 + "..." in line and "x" * 38 not in line


def test_broken_json_is_named_by_line(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('[\n {"instruction": "a",\n  "output": b}\n]')
    assert fault(path).startswith(f"{path}: line 3: not JSON: Expecting value (column 13)")


def test_lines_in_a_json_file_get_a_hint(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text("{}\n{}\n")
    assert "belongs in a .jsonl file" in fault(path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("rows.json", b'{"data": []}', "is a JSON dict; wants a list of rows"),
        ("rows.json", b"[]", "no rows in it"),
        ("rows.jsonl", b"\n\n", "no rows in it"),
        ("rows.json", b'[{"a": 1, "b": 2}]', "row 1 has the fields a, b; one shows by instruction+output"),
        ("rows.json", b'[{"chosen": "a", "rejected": "b"}]', "read_preferences"),
        ("rows.json", b'["\xff"]', "not UTF-8"),
        ("rows.json.gz", b"no gzip", "damaged gzip file"),
        (
            "rows.jsonl.gz",
            gzip.compress(b'{"prompt": "a", "completion": "b"}\n' * 500, mtime=0)[:60],
            "damaged gzip file",
        ),
        ("rows.parquet", b"no parquet", "not a Parquet file"),
        ("rows.csv", b"a,b", "wants a name that ends in .json, .jsonl, .parquet"),
    ],
)
def test_files_that_are_not_what_they_seem(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    assert said in fault(tmp_path / name)


def test_absent_files_and_folders(tmp_path):
    assert fault(tmp_path / "rows.json") == f"{tmp_path / 'rows.json'}: no such file"
    assert "is a folder; name a file in it (there is none)" in fault(tmp_path)
    (tmp_path / "inner.json").touch()
    assert "is a folder; name a file in it (inner.json)" in fault(tmp_path)


def test_an_unknown_format_lists_the_known(tmp_path):
    path = write(tmp_path / "rows.json", [ROWS["alpaca"]])
    assert "unknown format 'alpacca'; there are: alpaca, sharegpt" in fault(path, format="alpacca")


ASKED = [{"role": "user", "content": "a"}]
GOOD, BAD = [{"role": "assistant", "content": "good"}], [{"role": "assistant", "content": "bad"}]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a", "chosen": "good", "rejected": "bad"},
        {"prompt": ASKED, "chosen": GOOD, "rejected": BAD},
        {"chosen": ASKED + GOOD, "rejected": ASKED + BAD},
        {"prompt": "a", "chosen": ASKED + GOOD, "rejected": ASKED + BAD},
        {
            "conversations": [{"from": "human", "value": "a"}],
            "chosen": {"from": "gpt", "value": "good"},
            "rejected": BAD,
        },
        {"chosen": "\n\nHuman: a\n\nAssistant: good", "rejected": "\n\nHuman: a\n\nAssistant: bad"},
    ],
)
def test_preference_pairs_in_all_their_guises(row):
    pair = preference(row, "here")
    assert pair.prompt == (user("a"),)
    assert (pair.chosen, pair.rejected) == ((assistant("good"),), (assistant("bad"),))


def test_equal_answers_keep_their_last_turn():
    pair = preference({"chosen": ASKED + GOOD, "rejected": ASKED + GOOD}, "here")
    assert pair.prompt == (user("a"),) and pair.chosen == pair.rejected == (assistant("good"),)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"chosen": "good", "rejected": "bad"}, "field 'prompt' does not end with a turn to answer"),
        ({"prompt": "a", "chosen": "good"}, "field 'rejected' is missing"),
        (
            {"prompt": "a", "chosen": GOOD + ASKED, "rejected": BAD},
            "field 'chosen' does not end with an assistant turn",
        ),
    ],
)
def test_malformed_pairs(row, said):
    with pytest.raises(RowError, match=said):
        preference(row, "here")


def test_real_alpaca_is_read_whole(shared_data):
    conversations = read_file(shared_data / "alpaca" / "alpaca_data.json.gz")
    assert len(conversations) == 52002
    assert sum(conversation.messages[-1].content == "" for conversation in conversations) == 28


def test_real_preferences_are_read_whole(shared_data):
    path = shared_data / "hh_rlhf" / "harmless-base_test.jsonl.gz"
    assert len(convert_preferences(file_rows(path), path.name)) == 2312
    path = shared_data / "llamafactory_demo" / "dpo_en_demo.json"
    assert len(convert_preferences(file_rows(path), path.name)) == 300


def test_a_speaker_who_says_nothing_is_named_by_line_and_field(tmp_path):
    path = write(tmp_path / "pairs.jsonl", [{"chosen": "\n\nHuman: \n\nAssistant: b", "rejected": "c"}])
    with pytest.raises(DataError, match=r"line 1 field 'chosen\[0\]\.\w+' is empty"):
        convert_preferences(file_rows(path), path.name)


def test_real_tool_calls_are_read_whole(shared_data):
    conversations = read_file(shared_data / "llamafactory_demo" / "glaive_toolcall_en_demo.json")
    roles = [message.role for conversation in conversations for message in conversation.messages]
    assert (roles.count("user"), roles.count("assistant"), roles.count("tool")) == (746, 957, 211)
