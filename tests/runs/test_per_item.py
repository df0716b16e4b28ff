"""Per-item files of any origin: what is read, what is refused and in which words, and how two are paired."""

import gzip
import json

import numpy as np
import pandas as pd
import pytest

from llamax.errors import DataError, RunError
from llamax.runs import Store, begin, parse_parameters
from llamax.runs.per_item import Columns, pair, read_items

CLUSTERED = Columns(cluster="subject")
LOGGED = Columns(item=("doc_id",), outcome="exact_match")
# A line as lm-eval 0.4.13 writes it with --log_samples, its texts shortened.
SAMPLE = {
    "doc_id": 0,
    "doc": {"question": "?", "answer": "x", "subject": "anatomy"},
    "target": "x",
    "arguments": {"gen_args_0": {"arg_0": "?", "arg_1": {"until": ["\n"], "max_gen_toks": 8}}},
    "resps": [["a"]],
    "filtered_resps": ["a"],
    "filter": "strict-match",
    "metrics": ["exact_match"],
    "doc_hash": "48b6",
    "prompt_hash": "0ed8",
    "target_hash": "2d71",
    "exact_match": 0.0,
}


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a file into the working folder and give its name."""
    monkeypatch.chdir(tmp_path)

    def written(name, content):
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return name

    return written


def jsonl(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_every_format_reads_the_same(write, tmp_path):
    rows = [{"item": 7, "outcome": True, "subject": "a"}, {"item": 8, "outcome": False, "subject": "b"}]
    text = "item,outcome,subject\n7,True,a\n8,False,b\n"
    pd.DataFrame(rows).to_parquet(tmp_path / "p.parquet")
    contents = {"c.csv": text, "c.csv.gz": text, "l.jsonl": jsonl(*rows), "l.jsonl.gz": jsonl(*rows)}
    contents |= {"j.json": json.dumps(rows), "bom.csv": b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()}
    names = ["p.parquet", *(write(name, content) for name, content in contents.items())]
    for name in names:
        assert read_items(name, CLUSTERED)[1:3] == ({"7": [1.0], "8": [0.0]}, {"7": "a", "8": "b"}), name
    assert len({read_items(name, CLUSTERED).content for name in names}) == 1


def test_outcomes_are_numbers_or_words_and_ids_are_text(write):
    name = write("a.csv", 'item,outcome\n 1 ,0.25\n"a, b",TRUE\nc,Incorrect\nd,1e-1\n')
    assert read_items(name).outcomes == {"1": [0.25], "a, b": [1.0], "c": [0.0], "d": [0.1]}
    name = write("a.jsonl", jsonl({"item": 1.0, "outcome": "1"}, {"item": "x", "outcome": -3}))
    assert read_items(name).outcomes == {"1": [1.0], "x": [-3.0]}


def test_ids_of_several_columns_do_not_run_together(write):
    write("a.csv", "x,y,outcome\n1/2,3,1\n1,2/3,0\n")
    assert len(read_items("a.csv", Columns(item=("x", "y"))).outcomes) == 2


def test_samples_that_lm_eval_logged(write):
    rows = [
        SAMPLE | {"doc_id": i, "filter": f, "exact_match": float(i == 1)} for f in ("strict", "flex") for i in (0, 1)
    ]
    name = write("samples_x.jsonl", jsonl(*rows))
    found = read_items(name, LOGGED._replace(cluster="doc.subject"), {"filter": "strict"})
    assert found[:3] == (name, {"0": [0.0], "1": [1.0]}, {"0": "anatomy", "1": "anatomy"})
    assert read_items(f"{name}:filter=flex", LOGGED).outcomes == found.outcomes
    assert list(read_items(name, Columns(("doc_id", "filter"), "exact_match")).outcomes)[:2] == ["0/strict", "1/strict"]
    with pytest.raises(
        DataError, match=r"item '0' on line 1 and again on line 3; they differ in filter \('strict' and"
    ):
        read_items(name, LOGGED)
    with pytest.raises(DataError, match="none of 4 rows has filter=x; there are filter: strict, flex"):
        read_items(name, LOGGED, {"filter": "x"})


def test_answers_to_one_item_are_kept_apart(write):
    name = write("a.csv", "item,outcome,n\na,1,0\na,0,1\nb,1,0\nb,1,1\n")
    found = read_items(name, Columns(sample="n"))
    assert found.outcomes == {"a": [1, 0], "b": [1, 1]}
    pairs = pair(found, read_items(write("b.csv", "item,outcome,n\na,1,0\na,0,1\nb,1,0\n"), Columns(sample="n")))
    assert (pairs.outcomes[0].tolist(), pairs.outcomes[1].tolist()) == ([[1, 0], [1, 1]], [[0.5], [1]])


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", "", "a.csv: no rows in it"),
        ("a.csv", "item,outcome\n", "a.csv: no rows in it"),
        ("a.jsonl", "", "a.jsonl: no rows in it"),
        ("a.csv", "item,outcome\n1,1\n2\n", "a.csv: line 3 has 1 of the header's 2 cells, .* is the line torn"),
        ("a.csv", 'item,outcome\n1,1\n"2,0\n', "a.csv: line 3: not CSV"),
        ("a.csv", "item,outcome,item\n1,1,1\n", "a.csv: column 'item' occurs twice in the header"),
        ("a.csv", "item;outcome\n1;1\n", "a.csv: line 2 has no column 'item': it has item;outcome"),
        (
            "a.csv",
            "item,outcome\n1,1\n2,maybe\n",
            "a.csv: line 3: outcome is 'maybe', should be a finite number .*, true",
        ),
        ("a.csv", "item,outcome\n1,1\n2,\n", "a.csv: line 3: outcome is empty, should"),
        ("a.csv", "item,outcome\n1,1\n,0\n", "a.csv: line 3: item is empty, should be a name or a number"),
        ("a.csv", "item,outcome\n1,nan\n", "a.csv: line 2: outcome is 'nan'"),
        ("a.csv", "item,outcome\n1,inf\n", "a.csv: line 2: outcome is 'inf'"),
        (
            "a.csv",
            "item,outcome\n1,1e308\n",
            r"a.csv: line 2: outcome is '1e308', should be a finite number \(up to 1e",
        ),
        (
            "a.jsonl",
            '{"item": 1, "outcome": -1e51}\n',
            "a.jsonl: line 1: outcome is -1e\\+51, should be a finite number",
        ),
        ("a.csv", "item,outcome\n1,1_0\n", "a.csv: line 2: outcome is '1_0'"),
        ("a.csv", "item,outcome\n1,1\n1,1\n", "a.csv: item '1' on line 2 and again on line 3; keep one of them"),
        ("a.csv", b"item,outcome\n1,1\n\xe9,0\n", "a.csv: not UTF-8 .*convert it first"),
        ("a.csv", "item,outcome\n1,1\n".encode("utf-16"), "a.csv: not UTF-8 .*convert it first"),
        ("a.csv.gz", b"", None),
        ("a.jsonl", '{"item": 1, "outcome": 1}\n{"item": 2, "ou', "a.jsonl: line 2 is not JSON .*should be one object"),
        ("a.jsonl", "[1]\n", "a.jsonl: line 1 is no object of columns"),
        ("a.jsonl", '{"item": 1, "outcome": NaN}\n', "a.jsonl: line 1: outcome is nan"),
        ("a.jsonl", '{"item": 1, "outcome": null}\n', "a.jsonl: line 1: outcome is empty"),
        ("a.jsonl", '{"item": 1, "outcome": [1]}\n', r"a.jsonl: line 1: outcome is \[1\], should"),
        ("a.jsonl", '{"item": [1], "outcome": 1}\n', r"a.jsonl: line 1: item is \[1\], should be a name"),
        ("a.jsonl", '{"item": NaN, "outcome": 1}\n', "a.jsonl: line 1: item is nan, should be a name"),
        ("a.parquet", "no", "a.parquet: not a Parquet file"),
        (
            "a.jsonl",
            '{"item": 1, "outcome": 1' + "0" * 400 + "}\n",
            "a.jsonl: line 1: outcome is 1000.*should be a fin",
        ),
        ("a.tsv", "item\toutcome\n", "a.tsv: wants a name that ends in .csv, .json"),
        ("scores", "item,outcome\n", "scores: wants a name that ends in .csv, .json"),
    ],
)
def test_bad_files_are_one_clear_line_with_the_row(write, name, content, says):
    write(name, content)
    with pytest.raises(DataError, match=says or "no rows in it") as error:
        read_items(name)
    assert "\n" not in str(error.value)


def test_parquet_that_cannot_be_said_in_python(write):
    import pyarrow
    import pyarrow.parquet

    late = pyarrow.array([2**62], pyarrow.timestamp("us"))
    pyarrow.parquet.write_table(pyarrow.table({"item": [1], "outcome": [1], "when": late}), "late.parquet")
    with pytest.raises(DataError, match=r"late\.parquet: row 1 or one of the next cannot be read"):
        read_items("late.parquet")
    twice = pyarrow.table([pyarrow.array([n]) for n in (1, 1, 0)], names=["item", "outcome", "outcome"])
    pyarrow.parquet.write_table(twice, "twice.parquet")
    with pytest.raises(DataError, match=r"twice\.parquet: has the column 'outcome' twice"):
        read_items("twice.parquet")


def test_what_is_not_there(write, home):
    for name in ("gone.csv", "gone.jsonl.gz", "gone.parquet:model=x"):
        with pytest.raises(DataError, match="no such file"):
            read_items(name)
    with pytest.raises(RunError, match="no complete run 'gone'"):
        read_items("gone:base")
    with pytest.raises(DataError, match=r"a.csv: line 2: subject is empty"):
        read_items(write("a.csv", "item,outcome,subject\n1,1,\n"), CLUSTERED)
    with pytest.raises(DataError, match="line 3: item '1' is of cluster 'b', before of 'a'"):
        read_items(write("a.csv", "item,outcome,subject,n\n1,1,a,0\n1,1,b,1\n"), CLUSTERED._replace(sample="n"))
    with pytest.raises(DataError, match=r"line 1 has no column 'doc.subject'|no column 'doc.id'"):
        read_items(write("a.jsonl", jsonl({"doc": 3, "outcome": 1})), Columns(item=("doc.id",)))


def test_pairs_are_matched_by_item_and_not_by_row(write):
    one = read_items(write("a.csv", "item,outcome,subject\n1,1,a\n2,0,b\n3,1,b\n"), CLUSTERED)
    other = read_items(write("b.csv", "item,outcome\n3,0\n1,1\n2,0\n"), CLUSTERED)
    pairs = pair(one, other)
    assert pairs.items == ["1", "2", "3"]
    assert np.hstack(pairs.outcomes).tolist() == [[1, 1], [0, 0], [1, 0]]
    assert (pairs.clusters, pairs.only, pairs.names) == (["a", "b", "b"], (0, 0), ("a.csv", "b.csv"))
    assert pair(other, one).clusters == ["b", "a", "b"]
    assert pair(other, other._replace(content="")).clusters is None


def test_the_same_rows_twice_are_refused_however_they_are_written(write):
    one = read_items(
        write("one.jsonl", jsonl({"item": "a", "outcome": 1, "n": {"x": 1, "y": 2}}, {"item": 7, "outcome": 0, "n": 3}))
    )
    spelt = '\n{"outcome":0.0,"n":3.0, "item":"7"}\n{"n":{"y":2,"x":1},"outcome":true,"item":"a"}\n'
    with pytest.raises(
        DataError, match=r"one.jsonl and two.jsonl hold the same rows on 2 items: there is nothing to com"
    ):
        pair(one, read_items(write("two.jsonl", spelt)))
    table = read_items(write("one.csv", "outcome,item\n0,b\n1,a\n"))
    with pytest.raises(DataError, match="the same rows"):
        pair(table, read_items(write("two.csv", "item,outcome\na,correct\nb,0.0\n")))
    pair(
        one, read_items(write("other.jsonl", spelt.replace('"x":1', '"x":5')))
    )  # of another model, with equal outcomes


def test_items_of_one_side_only_are_an_error_unless_asked_for(write):
    one = read_items(write("a.csv", "item,outcome\n" + "".join(f"{n},1\n" for n in range(9))))
    other = read_items(write("b.csv", "item,outcome\n0,1\n1,0\nx,1\n"))
    says = r"not the same items: 7 only in a.csv \(2, 3, 4 and 4 more\), 1 only in b.csv \(x\); --common compares"
    with pytest.raises(DataError, match=says):
        pair(one, other)
    with pytest.raises(DataError, match=r"not the same items: 7 only in a.csv .*more\), 1 only"):
        pair(one, other)
    pairs = pair(one, other, common=True)
    assert (pairs.items, pairs.only) == (["0", "1"], (7, 1))
    with pytest.raises(DataError, match="no item in common"):
        pair(one, read_items(write("c.csv", "item,outcome\nx,1\n")), common=True)


def test_clusters_that_contradict(write):
    one = read_items(write("a.csv", "item,outcome,subject\n1,1,a\n2,0,b\n"), CLUSTERED)
    other = read_items(write("b.csv", "item,outcome,subject\n1,1,b\n2,0,c\n"), CLUSTERED)
    with pytest.raises(DataError, match=r"item '1' is of cluster 'a' in a.csv, 'b' in b.csv \(2 such items\)"):
        pair(one, other)


def test_clusters_that_each_file_tells_of_some_items(write):
    whole = "item,outcome,subject\n1,1,a\n2,0,b\n"
    some = write("a.jsonl", '{"item": 1, "outcome": 1, "subject": "a"}\n{"item": 2, "outcome": 0}\n')
    none = write("c.csv", "item,outcome\n1,1\n2,0\n")
    one, other = read_items(some, CLUSTERED), read_items(write("b.csv", whole), CLUSTERED)
    assert pair(one, other).clusters == pair(other, one).clusters == ["a", "b"]
    with pytest.raises(DataError, match=r"2: no cluster in .*a.jsonl nor in .*c.csv"):
        pair(one, read_items(none))


@pytest.fixture
def measured(home):
    """A run that measured two models on two benchmarks, one of them with two samples an item."""
    rows = [
        {
            "model": model,
            "benchmark": name,
            "metric": "acc",
            "item": f"{name}/{i}",
            "sample": k,
            "cluster": f"c{i // 2}",
        }
        | {"outcome": float((i + k + (model == "tuned")) % 3 == 0), "contaminated": False}
        for model in ("base", "tuned")
        for name, samples in (("gsm8k", 1), ("humaneval", 2))
        for i in range(6)
        for k in range(samples)
    ]
    run = begin("toy", parse_parameters("toy", "nano"))
    run.items(pd.DataFrame(rows))
    run.metric("acc", 0.5)
    return run.complete().run


def test_the_items_of_a_run(measured):
    found = read_items(f"{measured}:tuned", where={"benchmark": "gsm8k"})
    assert found.outcomes == {f"gsm8k/{i}": [float((i + 1) % 3 == 0)] for i in range(6)}
    assert found.clusters["gsm8k/3"] == "c1"
    twice = read_items(f"toy/{measured}:base", where={"benchmark": "humaneval", "metric": "acc"})
    assert twice.outcomes["humaneval/2"] == [0, 1]


def test_the_items_file_of_a_run_is_read_like_the_run(measured, home):
    store = Store()
    path = str(store.file(store.load(measured), "items.parquet"))
    for where in ({"benchmark": "gsm8k"}, {"benchmark": "humaneval"}):
        assert read_items(f"{path}:tuned", where=where)[1:] == read_items(f"{measured}:tuned", where=where)[1:]
    with pytest.raises(DataError, match=r"rows of 2 benchmarks \(gsm8k, humaneval\): choose with --benchmark"):
        read_items(f"{path}:tuned")


def test_a_choice_that_contradicts_another_is_refused(measured):
    with pytest.raises(DataError, match="asks for model=base, --where for model=tuned: choose one"):
        read_items(f"{measured}:base", where={"model": "tuned", "benchmark": "gsm8k"})


@pytest.mark.parametrize(
    ("suffix", "where", "says"),
    [
        ("", {"benchmark": "gsm8k"}, r"rows of 2 models \(base, tuned\): choose with RUN:MODEL"),
        (":base", {}, r"rows of 2 benchmarks \(gsm8k, humaneval\): choose with --benchmark"),
        (
            ":best",
            {"benchmark": "gsm8k"},
            "none of 36 rows has benchmark=gsm8k and model=best; there are benchmark: gsm8k",
        ),
        (":base", {"benchmark": "gsm8k", "task": "x"}, "row 1 has no column 'task': it has model, benchmark"),
    ],
)
def test_a_run_is_never_averaged_over_models_or_benchmarks(measured, suffix, where, says):
    with pytest.raises(DataError, match=says):
        read_items(f"{measured}{suffix}", where=where)
