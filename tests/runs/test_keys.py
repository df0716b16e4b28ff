import json
import sys
import types

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamax.errors import DataError, RunError
from llamax.runs import keys, parse_parameters
from llamax.runs.keys import changed, module_hashes, run_key

TWICE = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def key(home, **overrides):
    return run_key("toy", parse_parameters("toy", "nano", 0, overrides))


def edit(home, change):
    path = home / "notebooks" / "01_toy.ipynb"
    book = json.loads(path.read_text())
    change(book["cells"])
    path.write_text(json.dumps(book))


def source(home, name):
    return home / "src" / "llamax" / "toy" / f"{name}.py"


def test_the_same_inputs_give_the_same_key(home):
    assert key(home) == key(home)


@TWICE
@given(prose=st.text(max_size=30), outputs=st.lists(st.text(max_size=5), max_size=2), count=st.integers(0, 9))
def test_prose_outputs_counts_and_metadata_do_not_move_the_key(home, prose, outputs, count):
    before = key(home)

    def change(cells):
        cells[0]["source"] = prose
        cells[2]["metadata"] = {"collapsed": True}
        cells[2]["execution_count"] = count
        cells[2]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": text} for text in outputs]
        cells[1]["source"] = 'profile = "test"'

    edit(home, change)
    assert key(home) == before


def test_blank_lines_and_comments_in_a_cell_do_not_move_the_key_but_code_does(home):
    before = key(home)
    edit(home, lambda cells: cells[3].update(source="\n# why\nwork( config,run )  # so\n"))
    assert key(home) == before
    edit(home, lambda cells: cells[3].update(source="work(config, run); x = 1"))
    assert changed(before.parts, key(home).parts) == ["notebook"]
    edit(home, lambda cells: cells[3].update(source="%matplotlib inline\nwork(config, run)"))
    assert changed(before.parts, key(home).parts) == ["notebook"]


@TWICE
@given(name=st.sampled_from(["config", "study", "helper", "deep", "__init__"]), number=st.integers(0, 10**6))
def test_any_code_in_a_module_that_is_reached_moves_the_key_and_is_named(home, name, number):
    before = key(home)
    path = source(home, name)
    text = path.read_text()
    path.write_text(f"{text}\n_EXTRA = {number}\n")
    after = key(home)
    path.write_text(f"{text}\n\n# a comment {number}\n")
    commented = key(home)
    path.write_text(text)
    assert after.digest != before.digest
    assert changed(before.parts, after.parts) == ["llamax.toy" + ("" if name == "__init__" else f".{name}")]
    assert commented == before


@TWICE
@given(number=st.integers(0, 10**6))
def test_code_in_a_module_that_is_not_reached_does_not_move_the_key(home, number):
    before = key(home)
    source(home, "unused").write_text(f"WORD = {number}\n")
    assert key(home) == before


def test_the_closure_follows_relative_imports_packages_and_modules_named_in_strings(home):
    source(home, "deep").write_text("from . import unused\nCOMMAND = ['-m', 'llamax.errors']\n")
    reached = module_hashes({"llamax.toy.deep"})
    assert {"llamax", "llamax.toy", "llamax.toy.deep", "llamax.toy.unused", "llamax.errors"} == set(reached)


def test_docstrings_count_only_where_code_reads_them(home):
    path = source(home, "deep")
    path.write_text('"""One."""\nX = 1\n')
    one = module_hashes({"llamax.toy.deep"})
    path.write_text('"""Two."""\nX = 1\n')
    assert module_hashes({"llamax.toy.deep"}) == one
    path.write_text('"""Two."""\nX = __doc__\n')
    two = module_hashes({"llamax.toy.deep"})
    path.write_text('"""Three."""\nX = __doc__\n')
    assert module_hashes({"llamax.toy.deep"}) != two


def test_parameters_and_the_lock_file_move_the_key(home):
    before = key(home)
    assert changed(before.parts, key(home, mode="x").parts) == ["parameters"]
    (home / "constraints.txt").write_text("torch==2.14.0\n")
    assert changed(before.parts, key(home).parts) == ["lock file"]


def test_data_and_models_enter_by_their_fingerprints_and_never_by_their_path(home, monkeypatch):
    prints = {"alpaca": "1", "/data/own.jsonl": "2", "nano": "3"}

    def fingerprint(name, ask):
        if name not in prints:
            raise DataError(f"no source {name!r}")
        return prints[name]

    for name in ("llamax.data", "llamax.data.sources", "llamax.models", "llamax.models.fingerprint"):
        monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(fingerprint=fingerprint))
    config = parse_parameters("toy", "nano", 0, {"sources": ["alpaca", "/data/own.jsonl"], "bases": ["nano"]})
    before = run_key("toy", config)
    assert {"data alpaca", "data own.jsonl", "model nano"} <= set(before.parts)
    prints["alpaca"] = "4"
    assert changed(before.parts, run_key("toy", config).parts) == ["data alpaca"]
    both = parse_parameters("toy", "nano", 0, {"sources": ["/a/rows.jsonl", "/b/rows.jsonl"]})
    prints |= {"/a/rows.jsonl": "5", "/b/rows.jsonl": "6", "alpaca": "4"}
    first = run_key("toy", both)
    for name in ("/a/rows.jsonl", "/b/rows.jsonl"):  # two of one name are two
        prints[name] += "!"
        second, first = first, run_key("toy", both)
        assert len(changed(second.parts, first.parts)) == 1
    del prints["alpaca"]
    with pytest.raises(DataError, match="no source 'alpaca'"):
        run_key("toy", config)
    assert changed(before.parts, before.parts | keys.input_parts(config, lenient=True)) == []


def test_a_module_that_does_not_parse_is_named_with_its_line(home):
    source(home, "deep").write_text("x = 1\ny = = 2\n")
    with pytest.raises(RunError, match=r"module llamax\.toy\.deep, line 2: invalid syntax: y = = 2"):
        key(home)


def test_a_notebook_that_does_not_parse_is_named_with_its_cell(home):
    edit(home, lambda cells: cells[3].update(source="work(config"))
    with pytest.raises(RunError, match=r"01_toy.ipynb, cell 4: .*work\(config"):
        key(home)
    (home / "notebooks" / "01_toy.ipynb").write_text("{")
    with pytest.raises(RunError, match="not a notebook"):
        key(home)
