"""Progress: lines with figures in a log, a bar where someone watches, silence where it was asked for."""

import pytest

from llamax import progress
from llamax.progress import Progress, is_frontend, progress_over


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when a test says so."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress, "watched", lambda: False)
    return now


def test_a_log_gets_a_line_now_and_then_and_one_at_the_end(clock, capsys):
    with Progress(4, "train") as bar:
        bar.advance(loss=2.0)
        clock[0] += progress.LINE_INTERVAL
        bar.advance(loss=1.23456, rate=1e-4)
        bar.advance(loss=1.0)
        bar.advance(loss=0.5)
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["train: 2/4  loss 1.235  rate 0.0001  10 s", "train: 4/4  loss 0.5  10 s"]


def test_resumed_work_counts_from_where_it_is(clock, capsys):
    with Progress(4, "train") as bar:
        bar.reach(3)
        bar.reach(4, loss=0.5)
    assert capsys.readouterr().out == "train: 4/4  loss 0.5  0 s\n"


def test_what_is_not_to_be_shown_is_silent(clock, capsys):
    with Progress(1, "score", shown=False) as bar:
        clock[0] += progress.LINE_INTERVAL
        bar.advance()
    assert capsys.readouterr().out == ""


def test_things_are_counted_as_they_are_done(clock, capsys):
    seen = []
    for thing in progress_over([1, 2], "evaluate"):
        seen.append((thing, capsys.readouterr().out))
    assert seen == [(1, ""), (2, "")]
    assert capsys.readouterr().out == "evaluate: 2/2  0 s\n"


def test_who_watches_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(progress, "watched", lambda: True)
    with Progress(2, "train") as bar:
        bar.advance(2, loss=0.5)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "train:" in shown.err
    assert (bar.bar.n, bar.bar.postfix) == (2, "loss=0.5")


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("/venv/bin/python3.11 /venv/bin/jupyter-lab notebooks", True),
        ("/usr/bin/python3 /usr/bin/jupyterhub-singleuser --port=1", True),
        ("/opt/vscode/node /opt/vscode/extension.js", True),
        ("python /venv/bin/papermill in.ipynb out.ipynb", False),
        ("/venv/bin/python /venv/bin/llamax run all", False),
        ("python -m pytest --nbval-lax", False),
        ("python /venv/bin/jupyter-nbconvert --execute x.ipynb", False),
        ("/venv/bin/python /venv/bin/jupyter nbconvert --execute x.ipynb", False),
        ("python /data/jupyter/overnight_batch.py", False),
    ],
)
def test_a_kernel_is_watched_where_a_frontend_started_it(command, answer):
    assert is_frontend(command.split()) is answer
