"""`llamax human-eval`: from answers to an analysis on the command line."""

import json

from human_cases import NAMES
from typer.testing import CliRunner

from llamax.cli import app
from llamax.evaluation.human.store import cast, open_sheet


def run(*arguments):
    done = CliRunner().invoke(app, ["human-eval", *map(str, arguments)])
    if done.exception and not isinstance(done.exception, SystemExit):
        return f"error: {done.exception}"
    return done.output


def test_plan_without_answers_only_says_what_it_takes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = run("plan", "--win-rate", 0.6, "--raters", 10)
    assert "82 prompts x 2 raters each = 164 votes, by 10 raters" in said
    assert "the gate wants the 95% interval above 50%, for which the power is 67%; plan for it by --sides 2" in said
    assert "the gate" not in run("plan", "--win-rate", 0.6, "--raters", 10, "--sides", 2)
    assert list(tmp_path.iterdir()) == []
    assert "parameter 'win_rate' = 0.4: Input should be greater than 0.5" in run("plan", "--win-rate", 0.4)


def test_answers_plan_votes_analysis(tmp_path):
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    for bad in (tmp_path, tmp_path / "first.csv"):
        assert "should be a file whose name ends in .jsonl" in run("answers", "nano", "--out", bad, "--limit", 5)
    said = run("answers", "nano", "--out", first, "--limit", 5, "--max-new-tokens", 8)
    assert "answers of nano to 5 prompts" in said
    rows = [json.loads(line) for line in first.read_text().splitlines()]
    second.write_text("".join(json.dumps({**row, "answer": "I do not know."}) + "\n" for row in rows))
    study = tmp_path / "study"
    arguments = [f"{NAMES[0]}={first}", second, "--limit", 5, "--raters", 2]
    assert "--out is missing" in run("plan", *arguments)
    said = run("plan", *arguments, "--out", study)
    assert "is replaced" not in said and "is replaced" in run("plan", *arguments, "--out", study)
    assert f"{NAMES[0]} (candidate) against second" in said and "5 prompts of nano" in said
    assert "no votes yet" in run("analyse", study)
    from llamax.evaluation.human.plan import read_plan

    plan = read_plan(study)
    for number in range(5):
        open_sheet(study, plan, "ann")
        cast(study, plan, "ann", number, "tie")
    assert "win rate 50.0%" in run("analyse", study)
    file = json.loads((study / "analysis.json").read_text())
    assert json.loads(run("analyse", study, "--json")) == file
    assert (file["candidate"], file["current"], file["raters"]) == (NAMES[0], "second", 1)


def test_serve_checks_the_study_before_it_starts(tmp_path, study):
    assert "no plan there" in run("serve", tmp_path)
    plan = study.folder / "plan.json"
    plan.write_text(plan.read_text().replace('"seed": 0', '"seed":1'))
    assert "was edited after it was made" in run("serve", study.folder)
