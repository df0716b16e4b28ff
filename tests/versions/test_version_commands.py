"""`llamax gate` and `llamax versions`, as they are called."""

import json

import pytest
from made_up_outcomes import NANO, TYPE_A
from typer.testing import CliRunner

from llamax import cli
from llamax.errors import GateError, ParameterError
from llamax.runs import Store
from llamax.versions import verdicts
from llamax.versions.references import reference_set

runner = CliRunner()
GOOD = dict.fromkeys(TYPE_A, 0.05)
TITLES = ("MMLU", "HumanEval", "GSM8K", "NaturalQuestions", "TruthfulQA")


def call(*arguments):
    return runner.invoke(cli.app, [str(one) for one in arguments])


def ladder_row(version):
    (row,) = [row for row in json.loads(call("versions", "--json").stdout) if row["version"] == version]
    return row["status"], row["detail"]


class TestGate:
    @pytest.mark.parametrize(
        ("gain", "answer", "status"), [(0.05, "accept", 0), (0.005, "undecided", 1), (-0.05, "reject", 1)]
    )
    def test_exit_status_table_and_last_sentence(self, home, pair, gain, answer, status):
        new, old = pair(GOOD | {"nq_open": gain})
        done = call("gate", new, "--against", old)
        assert done.exit_code == status
        lines = done.stdout.splitlines()
        assert lines[0] == f"candidate  {new}:new"
        assert [line.split()[0] for line in lines if line.startswith(TYPE_A)][:5] == list(TYPE_A)
        assert lines[-1].startswith(f"{answer}: ")
        row = next(line for line in lines if line.startswith("nq_open"))
        assert row.endswith({"accept": "pass", "undecided": "open", "reject": "ruled out"}[answer])
        assert f"{100 * gain:+.2f}" in row
        path = home / "results" / "versions" / new.replace("/", "-") / "verdict.json"
        assert done.stderr == f"written: {path.relative_to(home)}\n"
        assert verdicts.read(path).answer == answer

    def test_json_is_the_verdict(self, pair):
        new, old = pair(GOOD)
        done = call("gate", new, "--against", old, "--json")
        assert json.loads(done.stdout)["answer"] == "accept"
        assert json.loads(done.stdout) == verdicts.verdicts(Store())[0].model_dump(mode="json")

    def test_a_refusal_writes_nothing(self, home, pair):
        new, _ = pair(GOOD)
        done = call("gate", new, "--against", new)
        assert isinstance(done.exception, GateError)
        assert not (home / "results" / "versions").exists()

    def test_leaks_and_open_questions_are_shown(self, pair):
        new, old = pair(GOOD | {"gsm8k": 0.005}, leaked=4, max_new_tokens=256)
        shown = call("gate", new, "--against", old).stdout
        assert "  without 4 leaked  1,996" in shown
        assert "gsm8k: to show a gain of 1 point, " in shown
        assert "More samples per problem would help as far as sampling blurs the gain" in shown
        assert "below 5% / 10 = 0.0050 rejects: 10 rows, those without leaked items included, are as many" in shown
        assert "significantly above 0 (one-sided clustered t test, 5%; all must pass, so no correction)" in shown

    def test_a_rehearsal_says_so_and_moves_nothing(self, pair):
        new, old = pair(dict.fromkeys(NANO, 0.05), protocol="nano")
        shown = call("gate", new, "--against", old).stdout
        assert "REHEARSAL" in shown
        assert shown.rstrip().endswith("This is a rehearsal: it says nothing about a version.")
        assert all(row["status"] in ("given", "open") for row in json.loads(call("versions", "--json").stdout))

    def test_earlier_tries_are_told(self, record, pair):
        new, old = pair(GOOD | {"nq_open": -0.05})
        call("gate", new, "--against", old, "--version", "3.0.1")
        better, _ = pair(GOOD)
        shown = call("gate", better, "--against", old, "--version", "3.0.1").stdout
        assert f"a chance of its own to pass by luck: {new}:new reject" in shown


class TestVersions:
    def test_with_nothing_gated_all_but_llama_is_open(self, home):
        rows = json.loads(call("versions", "--json").stdout)
        assert [row["status"] for row in rows] == ["given", *["open"] * 9]
        shown = call("versions").stdout
        assert "3.6.0" in shown
        assert [line.split()[-1] for line in shown.splitlines() if "of the gap left" in line] == [
            *("62.1", "65.1", "68.1", "71.0"),
        ]
        assert "“83.7”" in shown
        assert "read by eye from the images" in shown

    def test_status_follows_from_verdicts(self, home, pair):
        new, old = pair(GOOD)
        call("gate", new, "--against", old, "--version", "3.0.1")
        assert ladder_row("3.0.1") == ("eligible", f"{new}:new; lacks a human evaluation (--human)")
        votes = {"candidate": f"{new}:new", "current": f"{old}:old", "win_rate": 0.6, "low": 0.55, "high": 0.65}
        votes |= {"p_value": 0.001, "prompts": 300, "raters": 3, "votes": 300, "votes_planned": 300, "votes_missing": 0}
        (home / "votes.json").write_text(json.dumps(votes))
        done = call("gate", new, "--against", old, "--version", "3.0.1", "--human", home / "votes.json")
        assert done.exit_code == 0
        assert ladder_row("3.0.1") == ("released", f"{new}:new")
        assert "released" in next(line for line in call("versions").stdout.splitlines() if line.startswith("3.0.1"))
        (home / "results" / new / "result.json").unlink()
        assert ladder_row("3.0.1") == ("unsupported", f"results/{new} is gone")

    def test_rejected_undecided_and_damaged(self, home, pair):
        for version, gain, status in [("3.0.1", -0.05, "rejected"), ("3.0.2", 0.005, "undecided")]:
            new, old = pair(GOOD | {"mmlu": gain})
            call("gate", new, "--against", old, "--version", version)
            assert ladder_row(version)[0] == status
        (home / "results" / "versions" / "3.0.2" / "verdict.json").write_text("{")
        assert ladder_row("3.0.2")[0] == "damaged"
        assert ladder_row("3.0.1")[0] == "rejected"

    def test_all_reference_scores_are_quoted_and_unverified_ones_marked(self, home):
        shown = call("versions", "--scores").stdout
        assert "“10.5” (unverified)" in shown
        assert shown.count("Source: ") == 5
        sets = json.loads(call("versions", "--scores", "--json").stdout)
        assert sets[0]["scores"]["gpt-4-0314"]["MMLU"] == 83.7
        assert "HumanEval pass@1" in sets[2]["unverified"]["LLaMA-7B"]


class TestGap:
    def test_a_run_of_ours_cannot_be_placed_among_others_figures(self, pair):
        new, _ = pair(GOOD)
        shown = call("versions", "--gap", new).stdout
        assert "new, protocol lm-eval: MMLU 5" in shown
        assert "No reference scores under protocol lm-eval" in shown
        assert json.loads(call("versions", "--gap", new, "--json").stdout)["position"] is None
        error = call("versions", "--gap", new, "--under", "gpt-fathom").exception
        assert isinstance(error, GateError)
        assert "never placed side by side" in str(error)

    def test_scores_under_a_known_protocol_are_placed(self, home):
        values = {"model": "m", "protocol": "gpt-fathom", "scores": dict.fromkeys(TITLES, 66.57)}
        (home / "scores.yaml").write_text(json.dumps(values))
        shown = call("versions", "--gap", home / "scores.yaml").stdout
        assert "50% of the gap between 3.5.0's baseline and GPT-4 is left" in shown
        assert "By averages it stands at 3.7.0." in shown
        assert "“68.1”  1.5 points short" in shown

    def test_baselines_of_our_own_protocol_can_be_given(self, home, pair):
        new, _ = pair(GOOD)
        run = json.loads(call("versions", "--gap", new, "--json").stdout)["scores"]
        fathom = reference_set("gpt-fathom").model_dump(mode="json")
        ours = fathom | {"name": "ours", "protocol": "lm-eval", "settings": run["settings"]}
        (home / "more.yaml").write_text(json.dumps(ours))
        found = json.loads(call("versions", "--gap", new, "--references", home / "more.yaml", "--json").stdout)
        mean = sum(run["scores"].values()) / 5
        assert found["position"]["left"] == pytest.approx((74.0 - mean) / (74.0 - 59.14))
        (home / "more.yaml").write_text(json.dumps(ours | {"settings": run["settings"] | {"MMLU": "acc, 0-shot"}}))
        error = call("versions", "--gap", new, "--references", home / "more.yaml").exception
        assert "MMLU: new was run with 'acc, 5-shot, prompts abababababab', ours with 'acc, 0-shot'" in str(error)

    def test_parts_and_too_few_benchmarks_are_refused(self, pair):
        new, _ = pair(GOOD, 500, total=1000)
        assert "500 of 1000 items of mmlu" in str(call("versions", "--gap", new).exception)
        new, _ = pair(dict.fromkeys(NANO, 0.05), 500, protocol="nano")
        assert "the ladder needs Type-A benchmarks" in str(call("versions", "--gap", new).exception)

    def test_under_without_gap(self, home):
        assert isinstance(call("versions", "--under", "gpt-fathom").exception, ParameterError)
