"""Notebooks under papermill, with real kernels: one is started per test that needs one, a few seconds each."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llamax.errors import ParameterError, RunError
from llamax.runs import Store, records
from llamax.runs.notebook import execute


def command(*arguments):
    code = "from llamax.cli import main; main()"
    return [sys.executable, "-c", code, *arguments]


def start(*arguments):
    """Ctrl-C reaches it even if the tests themselves run in the background, where a shell lets it be ignored."""
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    nowhere = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command("run", "toy", *arguments), preexec_fn=heed, **nowhere)


def wait_for_work(home, seconds=120):
    """Wait until the notebook's second cell is at work; its scratch folder."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = list(home.glob("runs/toy/*/at_work"))
        if found:
            return found[0].parent
        time.sleep(0.05)
    raise AssertionError("the notebook never started to work")


def states():
    return [(row.state, row.why) for row in Store().status()]


def wait_for_state(state, seconds=60):
    end = time.monotonic() + seconds
    while states()[0][0] != state and time.monotonic() < end:
        time.sleep(0.1)
    return states()[0]


def test_a_run_is_recorded_and_a_second_one_is_read_back_without_a_kernel(home, monkeypatch):
    heard = []
    record = execute("toy", overrides={"learning_rate": 1e-4}, progress=heard.append)
    assert record.status == "complete"
    assert record.parameters["train"]["learning_rate"] == 1e-4
    assert "at work\n" in heard
    executed = json.loads((Store().scratch("toy", record.run) / "notebook.ipynb").read_text())
    assert "learning_rate" in json.dumps(executed["cells"])
    done = subprocess.run(command("run", "toy", "-p", "learning_rate=1e-4"), capture_output=True, text=True)
    assert done.stdout.startswith(f"complete: results/toy/{record.run} (1 metrics, ")
    assert "at work" not in done.stderr
    code = "import sys\nfrom llamax.runs.notebook import execute\n"
    code += "execute('toy', overrides={'learning_rate': 1e-4})\n"
    code += "print(sorted({'torch', 'papermill', 'transformers'} & sys.modules.keys()))"
    again = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert again.stdout.strip() == "[]"  # no kernel, nothing heavy: what takes seconds was not even imported
    forced = execute("toy", overrides={"learning_rate": 1e-4}, force=True, progress=heard.append)
    assert forced.run == record.run
    assert forced.started > record.started
    assert heard.count("at work\n") == 2


def test_verify_computes_again_compares_and_leaves_what_is_published(home):
    record = execute("toy", overrides={"learning_rate": 1e-4}, verify=True, progress=len)  # nothing there yet
    published = home / "results" / "toy" / record.run / "result.json"
    before = published.read_bytes()
    arguments = ("run", "toy", "-p", "learning_rate=1e-4", "--verify")
    done = subprocess.run(command(*arguments), capture_output=True, text=True)
    assert done.returncode == 0
    assert "at work" in done.stderr
    assert done.stdout.endswith("reproduced: 1 of 1 numbers identical\n")
    assert published.read_bytes() == before
    metric = record.metrics["accuracy"].model_copy(update={"low": 0.6})
    records.write(record.replace(metrics={"accuracy": metric}), published.parent)
    done = subprocess.run(command(*arguments), capture_output=True, text=True)
    assert done.returncode == 2
    assert "not reproduced: 0 of 1 numbers identical; 0 within their interval; 1 different: accuracy" in done.stderr
    assert not list((home / "runs").glob("*/*/verify"))


def test_plain_papermill_records_the_same_and_refuses_what_the_notebook_does_not_take(home):
    import papermill

    notebook = home / "notebooks" / "01_toy.ipynb"
    arguments = {"progress_bar": False, "cwd": home / "notebooks"}
    papermill.execute_notebook(notebook, home / "out.ipynb", {"profile": "nano", "seed": 4}, **arguments)
    record = Store().records()[0]
    assert execute("toy", seed=4) == record
    with pytest.raises(papermill.PapermillExecutionError, match="unknown parameter 'learning_rate'"):
        papermill.execute_notebook(notebook, home / "out.ipynb", {"learning_rate": 0.1}, **arguments)
    assert len(Store().records()) == 1


def test_a_cell_error_is_the_last_line_of_its_traceback_and_the_run_has_failed(home):
    with pytest.raises(RunError) as caught:
        execute("toy", overrides={"mode": "error"}, progress=lambda text: None)
    run = next((home / "runs" / "toy").iterdir())
    assert str(caught.value) == (
        f"01_toy.ipynb, In [4]: ValueError: at step 3 (see {run.relative_to(home)}/notebook.ipynb)"
    )
    assert "boom" in (run / "notebook.ipynb").read_text()
    assert states()[0] == ("failed", "ValueError: at step 3")
    assert not (home / "results").exists()


def test_an_error_before_the_run_begins_has_failed_too(home):
    path = home / "notebooks" / "01_toy.ipynb"
    path.write_text(path.read_text().replace("from llamax import runs", "1 / 0"))
    with pytest.raises(RunError, match="ZeroDivisionError: division by zero"):
        execute("toy", progress=lambda text: None)
    state, why = states()[0]
    assert state == "failed"
    assert "ZeroDivisionError" in why


def test_a_notebook_that_never_completes_its_run_is_an_error(home):
    path = home / "notebooks" / "01_toy.ipynb"
    path.write_text(path.read_text().replace("run.complete()", "1"))
    with pytest.raises(RunError, match=r"ended without run.complete\(\)"):
        execute("toy", progress=lambda text: None)
    assert states()[0] == ("interrupted", "ended without run.complete()")


def test_a_dead_kernel_has_failed(home):
    with pytest.raises(RunError, match=r"01_toy.ipynb, In \[4\]: the kernel died"):
        execute("toy", overrides={"mode": "kill"}, progress=lambda text: None)
    state, why = states()[0]
    assert state == "failed"
    assert "the kernel died" in why


def test_ctrl_c_is_interrupted_and_exits_with_130(home):
    process = start("-p", "mode=sleep")
    wait_for_work(home)
    assert states()[0][0] == "running"
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 130
    assert states()[0] == ("interrupted", "KeyboardInterrupt")


def test_a_run_that_goes_on_is_not_started_twice_and_one_that_was_killed_is_interrupted(home):
    process = start("-p", "mode=sleep")
    scratch = wait_for_work(home)
    second = subprocess.run(command("run", "toy", "-p", "mode=sleep"), capture_output=True, text=True)
    assert second.returncode == 2
    assert second.stderr == (
        f"error: run toy/{scratch.name} is being computed by another process: wait for it, or end it first\n"
    )
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert wait_for_state("interrupted") == ("interrupted", "killed: its process is gone")
    assert Store().records() == []


def test_code_that_is_edited_while_the_notebook_starts_does_not_lose_the_run(home):
    path = home / "src" / "llamax" / "toy" / "deep.py"

    def edit(_):
        if "/ 4" not in path.read_text():
            path.write_text("def half(x):\n    return x / 4\n")

    record = execute("toy", progress=edit)
    assert record.metrics["accuracy"].value == 0.25
    assert states() == [("fresh", "")]


def test_two_runs_at_once_leave_two_whole_records(home):
    processes = [start("--seed", str(seed)) for seed in (1, 2)]
    assert [process.wait(200) for process in processes] == [0, 0]
    assert sorted(record.seed for record in Store().records()) == [1, 2]
    assert {state for state, _ in states() if state != "missing"} == {"fresh"}


def test_a_kernel_that_does_not_start_is_tried_once_more(home, monkeypatch):
    import papermill

    real, calls = papermill.execute_notebook, []

    def fails_once(*arguments, **options):
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("Kernel died before replying to kernel_info")
        return real(*arguments, **options)

    monkeypatch.setattr(papermill, "execute_notebook", fails_once)
    assert execute("toy", profile="test", progress=lambda text: None).status == "complete"
    assert len(calls) == 2
    monkeypatch.setattr(papermill, "execute_notebook", lambda *a, **k: fails_once() if calls.clear() is None else None)
    with pytest.raises(RunError, match="the kernel did not start: RuntimeError: Kernel died before"):
        execute("toy", profile="test", progress=lambda text: None)


def test_bad_parameters_start_nothing(home):
    for arguments, says in [({"profile": "x"}, "no profile"), ({"overrides": {"x": 1}}, "unknown parameter")]:
        with pytest.raises(ParameterError, match=says):
            execute("toy", **arguments)
    with pytest.raises(RunError, match="no direction 'nope': there are toy"):
        execute("nope")
    assert not (home / "runs").exists()
    assert not Path("runs/toy").exists()


def test_force_computes_again_what_is_damaged(home):
    """Errors about a damaged result recommend --force."""
    record = execute("toy", progress=len)
    folder = home / "results" / "toy" / record.run
    (folder / "items.parquet").unlink()
    (folder / "result.json").write_text("{")
    with pytest.raises(RunError, match="damaged"):
        execute("toy", progress=len)
    again = execute("toy", force=True, progress=len)
    assert again.run == record.run
    assert sorted(path.name for path in folder.iterdir()) == ["curve.parquet", "items.parquet", "result.json"]


def test_marks_that_a_killed_process_left_are_removed(home):
    record = execute("toy", progress=len)
    (home / "runs" / "toy" / record.run / "verify").touch()
    again = execute("toy", force=True, progress=len)
    assert Store().find(record.key).started == again.started > record.started
