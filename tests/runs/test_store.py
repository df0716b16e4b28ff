import getpass
import json
import re
import socket
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from llamax import files
from llamax.errors import DiskFullError, ParameterError, RunError
from llamax.runs import Store, begin, parse_parameters, records, session
from llamax.runs.locks import hold


def start(seed=0, profile="nano", **overrides):
    return begin("toy", parse_parameters("toy", profile, seed, overrides))


def finish(run, value=0.5):
    run.metric("accuracy", value, n=2, unit="fraction")
    run.items(pd.DataFrame({"item": ["a", "b"], "metric": "accuracy", "outcome": [0.0, 1.0]}))
    return run.complete()


def states(home):
    return [(row.state, row.why) for row in Store().status()]


def in_another_process(code):
    prelude = "from llamax.runs import Store, begin, parse_parameters\n"
    prelude += "run = begin('toy', parse_parameters('toy', 'nano'))\nrun.metric('m', 1.0)\n"
    return subprocess.run([sys.executable, "-c", prelude + code], capture_output=True, text=True, timeout=60)


def test_a_complete_run_is_published_whole_and_read_back(home):
    run = start()
    run.metric("accuracy", np.float32(0.5), n=np.int64(4), standard_error=0.1, low=0.3, high=0.7, unit="fraction")
    run.items(pd.DataFrame({"item": ["a"], "metric": "accuracy", "outcome": [1]}))
    run.items(pd.DataFrame({"item": ["b"], "metric": "accuracy", "outcome": [0]}))
    run.series("curve", pd.DataFrame({"step": [1, 2], "loss": [2.0, 1.0]}))
    run.note("template", {"hash": "abc"})
    run.cost(tokens=10, flops=6e3)
    run.cost(tokens=5)
    assert not run.folder.exists()
    run.complete()
    again = start()
    assert again.reused
    assert again.record == run.record
    assert sorted(path.name for path in run.folder.iterdir()) == ["curve.parquet", "items.parquet", "result.json"]
    assert again.load_items()["item"].tolist() == ["a", "b"]
    assert again.load_series("curve")["loss"].tolist() == [2.0, 1.0]
    assert again.record.metrics["accuracy"].value == 0.5
    assert (again.record.cost.tokens, again.record.notes) == (15, {"template": {"hash": "abc"}})
    assert again.summary().loc["accuracy", "high"] == 0.7
    assert re.fullmatch(r"nano-s0-[0-9a-f]{8}", run.folder.name)
    assert again.complete() == run.record
    with pytest.raises(RunError, match="read back"):
        again.metric("accuracy", 1.0)


def test_a_record_names_no_host_user_or_path(home):
    text = finish(start()).model_dump_json()
    for name in {socket.gethostname(), str(home), sys.prefix}:
        assert name not in text
    assert f"/{getpass.getuser()}/" not in text
    assert '"torch":"' in text


def test_nothing_that_is_not_complete_looks_like_a_result(home):
    run = start()
    run.metric("accuracy", 1.0)
    store = Store()
    assert (store.records(), store.find(run.key), len(store.results())) == ([], None, 0)
    assert states(home) == [("running", "")]
    run.fail(ValueError("boom\nat step 3"))
    assert states(home) == [("failed", "ValueError: at step 3")]
    with pytest.raises(RunError, match=r"complete: the run is over \(failed: ValueError: at step 3\)"):
        run.complete()
    assert not run.folder.exists()
    assert store.results(status="failed")["metric"].tolist() == ["accuracy"]


def test_a_run_without_a_metric_is_not_complete(home):
    with pytest.raises(RunError, match="has no metric"):
        start().complete()


def test_the_profile_test_completes_but_is_never_published(home):
    run = start(profile="test")
    (run.scratch / "leftover").touch()
    finish(run)
    assert Store().records() == []
    assert run.load_items()["item"].tolist() == ["a", "b"]
    again = start(profile="test")
    assert not again.reused
    assert not (again.scratch / "leftover").exists()


def test_another_attempt_keeps_checkpoints_but_nothing_that_was_recorded(home):
    run = start()
    (run.scratch / "checkpoints").mkdir()
    run.items(pd.DataFrame({"item": ["a"], "metric": "m", "outcome": [1.0]}))
    run.fail("stopped")
    again = start()
    assert (again.scratch / "checkpoints").exists()
    assert not (again.scratch / "record" / "items.parquet").exists()
    assert again.record.files == {}


def test_beginning_again_in_the_same_process_ends_the_first(home):
    first, second = start(), start()
    with pytest.raises(RunError, match="begun again"):
        first.complete()
    finish(second)


def test_the_same_run_elsewhere_is_a_clear_error_and_the_first_one_wins(home):
    run = start()
    other = in_another_process("")
    assert other.returncode == 1
    assert "RunError: run toy/nano-s0-" in other.stderr.splitlines()[-1]
    assert "is being computed by another process" in other.stderr
    finish(run)
    assert [row.state for row in Store().status()] == ["fresh"]


@pytest.mark.parametrize(
    ("code", "status", "error"),
    [
        ("import os; os.kill(os.getpid(), 9)", "interrupted", "killed: its process is gone"),
        ("import os; os._exit(0)", "interrupted", "killed: its process is gone"),
        ("", "interrupted", "ended without run.complete()"),
        ("raise KeyboardInterrupt", "interrupted", "KeyboardInterrupt"),
        ("raise ValueError('boom')", "failed", "ValueError: boom"),
        ("import os\nif os.fork() == 0: raise SystemExit\nos.wait(); run.complete()", "complete", None),
    ],
)
def test_however_a_process_ends_the_status_is_true(home, code, status, error):
    in_another_process(code)
    rows = Store().status()
    if status == "complete":
        assert [row.state for row in rows] == ["fresh"]
    else:
        assert states(home) == [(status, error), ("missing", "llamax run toy --profile nano")][: len(rows)]
        assert Store().records() == []


@pytest.mark.parametrize(
    ("cells", "status", "error"),
    [
        (["1 / 0", "run.complete()"], "failed", "ZeroDivisionError: division by zero"),
        (["1 +"], "failed", "SyntaxError: invalid syntax"),
        (["raise KeyboardInterrupt"], "interrupted", "KeyboardInterrupt"),
        (["run.complete()", "1 / 0"], "fresh", ""),
    ],
)
def test_a_cell_that_fails_in_a_notebook_ends_the_run(home, cells, status, error):
    first = "from llamax.runs import begin, parse_parameters\n"
    first += "run = begin('toy', parse_parameters('toy', 'nano'))\nrun.metric('m', 1.0)"
    code = "from IPython.core.interactiveshell import InteractiveShell\nshell = InteractiveShell.instance()\n"
    code += f"for cell in {[first, *cells]!r}: shell.run_cell(cell)\n"
    subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=True)
    state, why = states(home)[0]
    assert state == status
    assert why.startswith(error)


def test_status_names_the_input_that_changed(home):
    finish(start())
    assert states(home) == [("fresh", "")]
    deep = home / "src" / "llamax" / "toy" / "deep.py"
    text = deep.read_text()
    deep.write_text(text.replace("/ 2", "/ 3"))
    assert states(home) == [("stale", "changed: llamax.toy.deep")]
    deep.write_text(text)
    profile = home / "notebooks" / "profiles" / "nano.yaml"
    profile.write_text("toy: {train: {learning_rate: 0.5}}")
    assert states(home) == [("stale", "changed: parameters (train.learning_rate 0.01 -> 0.5)")]
    profile.write_text("toy: {train: {rate: 0.5}}")
    assert "unknown parameter 'train.rate'" in states(home)[0][1]


def test_an_override_is_not_a_change_of_the_profile(home):
    record = finish(start(size=7))
    assert record.overrides == {"data.size": 7}
    assert states(home) == [("fresh", "")]


def test_a_stale_run_is_superseded_by_a_newer_one(home):
    finish(start(), 0.1)
    deep = home / "src" / "llamax" / "toy" / "deep.py"
    deep.write_text(deep.read_text().replace("/ 2", "/ 3"))
    finish(start(), 0.2)
    assert [(state, "superseded" in why) for state, why in states(home)] == [("stale", True), ("fresh", False)]
    assert Store().results()["value"].tolist() == [0.2]
    assert Store().results(superseded=True)["value"].tolist() == [0.1, 0.2]


def edit(home, old, new):
    deep = home / "src" / "llamax" / "toy" / "deep.py"
    deep.write_text(deep.read_text().replace(old, new))


def test_of_equal_parameters_the_fresh_run_counts_even_if_a_newer_one_is_stale(home):
    finish(start(), 0.1)
    edit(home, "/ 2", "/ 3")
    finish(start(), 0.2)
    assert Store().results()["value"].tolist() == [0.2]
    edit(home, "/ 3", "/ 2")
    assert start().reused
    assert Store().results()["value"].tolist() == [0.1]
    assert Store().results(superseded=True)["value"].tolist() == [0.1, 0.2]
    edit(home, "/ 2", "/ 4")  # both stale: the newest
    assert Store().results()["value"].tolist() == [0.2]


def test_a_failure_is_forgotten_once_the_same_run_is_complete(home):
    start().fail("boom")
    finish(start())
    assert states(home) == [("fresh", "")]


def test_a_failure_of_other_code_or_parameters_stays_until_its_folder_is_deleted(home):
    start().fail("boom")
    start(size=7).fail("bang")
    edit(home, "/ 2", "/ 3")
    finish(start())
    found = {row.state: row.why for row in Store().status() if "boom" in row.why or row.state == "fresh"}
    assert found["fresh"] == ""
    where = re.fullmatch(r"boom; the same parameters have .* delete (runs/toy/nano-s0-[0-9a-f]{8})", found["failed"])[1]
    assert sorted(why for state, why in states(home) if state == "failed") == ["bang", found["failed"]]
    for file in sorted((home / where).rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    assert sorted(states(home)) == [("failed", "bang"), ("fresh", "")]


def test_results_filters(home):
    finish(start(0), 0.1)
    finish(start(1), 0.2)
    store = Store()
    assert store.results("toy", "nano", "accuracy")["seed"].tolist() == [0, 1]
    for asked in [("no",), ("toy", "no"), ("toy", "nano", "no")]:
        assert store.results(*asked).empty
    assert list(store.results("no").columns) == list(store.results().columns)


def test_load_by_name(home):
    record = finish(start())
    assert Store().load(record.run) == Store().load(f"toy/{record.run}") == record
    with pytest.raises(RunError, match=f"no complete run 'nope': there are toy/{record.run}"):
        Store().load("nope")
    with pytest.raises(
        RunError, match=r"no complete run 'test-s0-12345678': .*; runs of profile test are never results"
    ):
        Store().load("test-s0-12345678")


def test_an_altered_or_missing_file_is_not_read(home):
    run = start()
    finish(run)
    items = run.folder / "items.parquet"
    items.write_bytes(items.read_bytes() + b"x")
    with pytest.raises(RunError, match=r"results/toy/nano-s0-.*/items.parquet was altered"):
        Store().items(run.record)
    with pytest.raises(RunError, match="was altered"):
        start()
    items.unlink()
    with pytest.raises(RunError, match="is missing"):
        Store().items(run.record)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda values: values.update(schema_version=99), "record of schema version 99, this llamax reads 1"),
        (lambda values: values.pop("schema_version"), "record of schema version None"),
        (lambda values: values.update(status="done"), "damaged record: parameter 'status' = 'done'"),
        (lambda values: values.update(extra=1), "damaged record: unknown parameter 'extra'"),
    ],
)
def test_a_record_of_another_schema_is_refused_with_its_path(home, change, says):
    run = start()
    finish(run)
    path = run.folder / "result.json"
    values = json.loads(path.read_text())
    change(values)
    del values["seal"]
    path.write_text(json.dumps(values | {"seal": files.sha256_json(values)}))
    with pytest.raises(RunError, match=f"^results/toy/{run.folder.name}/result.json: ") as caught:
        Store().records()
    assert says in str(caught.value)
    path.write_text('{"schema_version": 1, "dir')
    with pytest.raises(RunError, match=r"damaged record"):
        Store().records()


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (lambda run: run.metric("loss", float("nan")), "metric 'loss': value = nan is not a finite number"),
        (lambda run: run.metric("loss", 1.0, high=float("inf")), "metric 'loss': high = inf"),
        (lambda run: run.metric("../loss", 1.0), "metric '../loss': use letters"),
        (lambda run: run.series("items", pd.DataFrame()), "that name is taken"),
        (lambda run: run.series("a/b", pd.DataFrame()), "series 'a/b': use letters"),
        (lambda run: run.note("x", object()), "note 'x'"),
        (lambda run: run.items(pd.DataFrame({"item": ["a"], "outcome": [1.0]})), "no column metric or task"),
        (lambda run: run.items(pd.DataFrame({"item": ["a"], "task": ["t"], "outcome": [np.nan]})), "item 'a' is not"),
        (lambda run: run.items(pd.DataFrame({"item": ["a", "a"], "task": "t", "outcome": [1.0, 1.0]})), "occur twice"),
        (lambda run: run.items(pd.DataFrame({"item": ["q" * 200], "task": "t", "outcome": [1.0]})), "holds texts"),
    ],
)
def test_what_may_not_be_recorded_is_refused(home, act, says):
    run = start()
    with pytest.raises(RunError) as caught:
        act(run)
    assert says in str(caught.value)
    assert run.record.files == {}


def test_figures_are_the_same_bytes_each_time(home, monkeypatch):
    from matplotlib.figure import Figure

    hashes = []
    for seed in (0, 1):
        figure = Figure()
        figure.subplots().plot([1, 2], [3, 4])
        run = start(seed)
        monkeypatch.setenv("SOURCE_DATE_EPOCH", str(10**9 + seed))  # by which matplotlib dates a file, if it does
        run.figure("curve", figure)
        hashes.append(run.record.files)
    assert set(hashes[0]) == {"curve.svg", "curve.pdf"}
    assert hashes[0] == hashes[1]


def test_no_disk_space_leaves_no_result(home, monkeypatch):
    run = start()
    run.metric("accuracy", 1.0)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(records, "write", full)
        with pytest.raises(DiskFullError, match="no disk space"):
            run.complete()
    assert Store().records() == []
    assert list((home / "results" / "toy").iterdir()) == []
    run.complete()
    assert len(Store().records()) == 1


def test_a_config_without_a_profile_is_recorded_as_chosen_throughout(home):
    from llamax.runs.directions import config_class

    config = config_class("toy").parse({"profile": "mine", "mode": "x"})
    record = finish(begin("toy", config))
    assert record.overrides["mode"] == "x"
    assert states(home)[0][0] == "stale"
    with pytest.raises(ParameterError, match="no profile 'mine'"):
        parse_parameters("toy", "mine")


def test_last_line_is_what_a_reader_needs():
    assert session.last_line(ValueError("a\nb\n")) == "ValueError: b"
    assert session.last_line(KeyboardInterrupt()) == "KeyboardInterrupt"
    assert session.last_line("a\nb") == "b"
    assert session.last_line(KeyError("a")) == "KeyError: 'a'"


def test_a_damaged_result_is_told_by_status_and_replaced_by_force(home):
    finish(start())
    finish(start(seed=1))
    (Store().folder("toy", start().record.run) / "items.parquet").unlink()
    damaged = Store().folder("toy", start(seed=1).record.run) / "result.json"
    damaged.write_text(damaged.read_text()[:100])
    rows = {row.seed: (row.state, row.why) for row in Store().status()}
    assert rows[0][0] == rows[1][0] == "damaged"
    assert "items.parquet is missing" in rows[0][1]
    assert "result.json: damaged record" in rows[1][1]


def test_a_mark_counts_only_while_the_process_that_left_it_lives(home):
    """`force` and `verify` are files; a killed `llamax run` leaves them behind."""
    finish(start())
    scratch = Store().scratch("toy", start().record.run)
    for mark in ("force", "verify"):
        (scratch / mark).touch()
        assert start().reused
        lock = hold(scratch / "execute.lock")
        run = start()
        assert not run.reused
        assert run._publishes is (mark == "force")
        run.fail("enough")
        lock.release()
        (scratch / mark).unlink()


def test_what_an_earlier_attempt_took_can_be_added(home):
    run = start()
    run.cost(tokens=5, seconds=100.0)
    run.cost(tokens=7, flops=3.0)
    cost = finish(run).cost
    assert (cost.tokens, cost.flops) == (12, 3.0)
    assert 100.0 < cost.wall_seconds < 130.0


def test_on_a_full_disk_the_record_still_tells(home, monkeypatch):
    run, write, full = start(), records.write, []

    def write_if_room(record, folder):
        if (folder / session.RESERVE).exists():
            full.append(record.status)
            raise DiskFullError("no disk space")
        write(record, folder)

    monkeypatch.setattr(records, "write", write_if_room)
    run.fail(DiskFullError("no disk space to write x"))
    assert full == ["failed"]
    assert states(home) == [("failed", "DiskFullError: no disk space to write x")]


def test_a_neighbour_that_is_being_written_or_damaged_disturbs_nobody(home):
    start().fail("enough")
    for name, text in (("nano-s7-00000000", None), ("nano-s8-00000000", '{"half": ')):
        folder = Store().scratch("toy", name)
        folder.mkdir(parents=True)
        if text:
            (folder / "result.json").write_text(text)
    assert [record.error for record in Store().attempts("toy")] == ["enough"]
    assert states(home) == [("failed", "enough")]


def test_a_killed_verification_is_forgotten_beside_the_result(home):
    finish(start())
    scratch = Store().scratch("toy", start().record.run)
    (scratch / "verify").touch()
    lock = hold(scratch / "execute.lock")
    start().fail("killed")
    lock.release()
    assert [state for state, _ in states(home)] == ["fresh"]


@pytest.mark.parametrize(("old", "new"), [('"value": 0.5', '"value": 0.99'), ('"tokens": 0', '"tokens": 5')])
def test_a_record_that_was_edited_by_hand_is_refused(home, old, new):
    path = finish(start()) and start().folder / "result.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(RunError, match="was edited after the run wrote it"):
        Store().records()
