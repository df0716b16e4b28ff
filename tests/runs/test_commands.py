"""`llamax run`, `status` and `results` on the toy direction; what starts a kernel is in test_notebook.py."""

import json

import pandas as pd
import pytest
from typer.testing import CliRunner

from llamax import cli
from llamax.errors import RunError
from llamax.runs import begin, notebook, parse_parameters

runner = CliRunner()


@pytest.fixture
def done(home):
    """A complete run of the toy."""
    run = begin("toy", parse_parameters("toy", "nano"))
    run.metric("accuracy", 0.5, n=4, standard_error=0.1, low=0.3, high=0.7, unit="fraction")
    run.metric("loss", 1.25)
    run.items(pd.DataFrame({"item": ["a"], "metric": "accuracy", "outcome": [1.0]}))
    return run.complete()


def test_status_and_results(home, done):
    assert runner.invoke(cli.app, ["status"]).stdout.split() == ["toy", done.run, "fresh"]
    shown = runner.invoke(cli.app, ["results", "toy"]).stdout
    assert shown == (
        f"\ntoy/{done.run}\n"
        "metric    value  ± s.e.  95% interval  n  unit\n"
        "accuracy    0.5     0.1  [0.3, 0.7]    4  fraction\n"
        "loss       1.25\n"
    )
    rows = json.loads(runner.invoke(cli.app, ["results", "toy", "--metric", "accuracy", "--json"]).stdout)
    assert [(row["run"], row["value"], row["n"]) for row in rows] == [(done.run, 0.5, 4)]
    (home / "constraints.txt").write_text("torch==9\n")
    assert "stale" in runner.invoke(cli.app, ["results", "toy"]).stdout
    assert "changed: lock file" in runner.invoke(cli.app, ["status"]).stdout


def test_run_reads_profile_and_seed_among_the_overrides_too(home, monkeypatch):
    calls = []
    monkeypatch.setattr(cli, "_run_one", lambda *arguments: calls.append(arguments))
    runner.invoke(cli.app, ["run", "toy", "-p", "seed=3", "-p", "learning_rate=1e-4", "--profile", "test", "--force"])
    assert calls == [("toy", "test", {"learning_rate": 1e-4}, 3, True, False)]
    refused = runner.invoke(cli.app, ["run", "toy", "--force", "--verify"]).exception
    assert str(refused).endswith("choose one")


def test_run_all_goes_on_after_a_failure_and_ends_with_an_error(home, monkeypatch, done):
    (home / "notebooks" / "02_broken.ipynb").write_text("{}")
    (home / "notebooks" / "00_first.ipynb").write_text("{}")
    result = runner.invoke(cli.app, ["run", "all"])
    assert f"complete: results/toy/{done.run}" in result.stdout
    assert isinstance(result.exception, RunError)
    assert str(result.exception) == "failed: first, broken"


def test_the_run_that_is_there_is_returned_without_papermill(home, done, monkeypatch):
    monkeypatch.setattr(notebook, "_papermill", lambda *_: pytest.fail("a kernel was started"))
    assert notebook.execute("toy") == done
