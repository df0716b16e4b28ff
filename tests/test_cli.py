import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from llamax import cli
from llamax.errors import ParameterError, RunError

runner = CliRunner()


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """A repository with nothing in it."""
    monkeypatch.setenv("LLAMAX_HOME", str(tmp_path))
    return tmp_path


def llamax(*arguments):
    code = "from llamax.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "nope"], "error: no direction 'nope': there are none yet\n"),
        (["run", "all"], "error: no notebooks to run in notebooks/\n"),
        (["run", "nope", "-p", "rank"], "error: -p 'rank': write NAME=VALUE, such as learning_rate=1e-4\n"),
        (
            ["run", "x", "-p", "a=[1"],
            "error: value '[1': not valid YAML: expected ',' or ']', but got '<stream end>'\n",
        ),
    ],
)
def test_an_error_is_one_line_on_stderr_and_status_2(empty, arguments, says):
    done = llamax(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", says)
    assert list(empty.iterdir()) == []


def test_a_misspelt_command_is_status_2(empty):
    assert llamax("stats").returncode == 2


def test_ctrl_c_is_status_130(empty, monkeypatch):
    def stopped(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "read_overrides", stopped)
    assert runner.invoke(cli.app, ["run", "nope"]).exit_code == 130


def test_help_and_status_answer_at_once_without_torch(empty):
    code = "import sys\nfrom llamax.cli import app\ntry: app(['{}'])\nexcept SystemExit: pass\n"
    code += "heavy = {{'torch', 'transformers', 'papermill', 'pandas'}} & sys.modules.keys()\nassert not heavy, heavy"
    for word in ("--help", "status"):
        subprocess.run([sys.executable, "-c", code.format(word)], check=True, capture_output=True)


def test_nothing_yet_is_said_kindly(empty):
    assert "no notebooks and no runs" in runner.invoke(cli.app, ["status"]).stdout
    none = runner.invoke(cli.app, ["results", "--profile", "nano", "--metric", "x"]).stdout
    assert "no complete run with profile nano, metric x: see" in none
    assert "no direction 'toy'" in str(runner.invoke(cli.app, ["results", "toy"]).exception)
    assert json.loads(runner.invoke(cli.app, ["results", "--json"]).stdout) == []
    assert runner.invoke(cli.app, ["results", "--csv"]).stdout.startswith("direction,run,profile,seed,metric,value")


def test_overrides_from_the_command_line():
    assert cli.read_overrides(["a=1e-4", " b.c =x=y", "d="]) == {"a": 1e-4, "b.c": "x=y", "d": None}
    with pytest.raises(ParameterError, match="given twice"):
        cli.read_overrides(["a=1", "a=2"])


def test_an_error_of_several_lines_becomes_one():
    assert cli.one_line(RunError("a\n  b\n")) == "a b"
