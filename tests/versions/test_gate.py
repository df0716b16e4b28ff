"""The gate from end to end, on real records with made-up outcomes: what it decides, and what it refuses."""

import json

import numpy as np
import pandas as pd
import pytest
from made_up_outcomes import NANO, TYPE_A, TYPE_B, answers

from llamax.errors import GateError, LlamaxError, ParameterError, RunError
from llamax.runs import Store, records
from llamax.versions import show, verdicts
from llamax.versions.gate import gate
from llamax.versions.measured import NOTE, item_set

GOOD = dict.fromkeys(TYPE_A, 0.05)
HUMAN = {"win_rate": 0.6, "low": 0.55, "high": 0.65, "p_value": 0.001, "prompts": 300, "raters": 3}
HUMAN |= {"votes": 300, "votes_planned": 300, "votes_missing": 0}


@pytest.fixture
def human(home):
    """Write the analysis of a human evaluation of two runs -> its file."""

    def write(new, old, **changes):
        path = home / "analysis.json"
        path.write_text(json.dumps({"candidate": f"{new}:new", "current": f"{old}:old"} | HUMAN | changes))
        return path

    return write


def tables(gains=GOOD, n=1500, which=0):
    return {name: answers(n, gain, seed=i)[which] for i, (name, gain) in enumerate(gains.items())}


class TestAnswers:
    def test_better_everywhere_is_accepted(self, pair):
        found = gate(*pair(GOOD))
        assert (found.answer, found.state, found.version) == ("accept", "accepted", None)
        assert [one.benchmark for one in found.benchmarks] == list(TYPE_A)
        assert all(one.full.gain == pytest.approx(5.0) for one in found.benchmarks)
        assert found.sentence == "accept: better by more than 1 point on all 5 benchmarks."

    @pytest.mark.parametrize("name", TYPE_A)
    def test_worse_on_any_one_is_rejected(self, pair, name):
        found = gate(*pair(GOOD | {name: -0.05}))
        assert found.answer == "reject"
        assert found.sentence == f"reject: {name} is worse (-5.0 points)."

    def test_less_than_a_point_is_rejected_where_that_is_certain(self, pair):
        found = gate(*pair(GOOD | {"mmlu": 0.002}, 10_000, churn=0.06))
        assert found.sentence == "reject: mmlu gains less than 1 point (+0.2)."

    def test_what_is_not_known_is_undecided_and_says_how_much_is_lacking(self, pair):
        found = gate(*pair(GOOD | {"gsm8k": 0.005}, 1319, max_new_tokens=256))
        assert (found.answer, found.state) == ("undecided", "undecided")
        (open_one,) = [one for one in found.benchmarks if not one.passes]
        assert found.sentence == f"undecided: gsm8k needs {open_one.needs.more:,} more items, which do not exist."
        assert open_one.needs.more > 2000

    def test_leaked_items_are_left_out_and_the_gain_has_to_hold_without_them(self, record):
        new, old = tables(), tables(which=1)
        new["mmlu"][300:] = old["mmlu"][300:]
        new["mmlu"][:300] = 1.0
        found = gate(record({"new": new}, leaked=300), record({"old": old}, leaked=0))
        assert found.answer == "reject"
        assert found.sentence == "reject: mmlu gains less than 1 point on its clean items (+0.0)."
        assert found.benchmarks[0].contaminated == 300

    def test_a_benchmark_of_which_every_item_leaked_cannot_decide(self, record):
        runs = record({"new": tables(n=40)}, leaked=40), record({"old": tables(n=40, which=1)}, leaked=0)
        with pytest.raises(GateError, match="mmlu: all 40 items leaked into training data: no clean one is left"):
            gate(*runs)

    def test_the_table_shows_what_rules_out(self, pair):
        found = gate(*pair(GOOD | {"gsm8k": -0.05}))
        text = show.verdict_text(found)
        rows = [line.split() for line in text.splitlines()]
        (head,) = [row for row in rows if row[:2] == ["benchmark", "items"]]
        (row,) = [row for row in rows if row[:1] == ["gsm8k"]]
        assert head[-4:] == ["p(gain≤0)", "p(gain≤1)", "p(gain≥1)", "shows"]
        assert row[-2:] == ["ruled", "out"] and row[-4] == "<0.0001"
        (open_one,) = [row for row in rows if row[:1] == ["mmlu"]]
        assert float(open_one[-3]) == pytest.approx(found.benchmarks[0].full.p_below, abs=1e-4)

    def test_two_models_of_one_run(self, record):
        run = record({"new": tables(), "old": tables(which=1)})
        assert gate(f"{run}:new", f"{run}:old").answer == "accept"
        assert gate(f"{run}:old", f"{run}:new").answer == "reject"

    def test_subjects_are_clusters(self, pair):
        found = gate(*pair(GOOD, subjects=25)).benchmarks[0].full
        assert (found.items, found.clusters) == (2000, 25)

    def test_type_b_is_required_from_3_6_0_on(self, pair):
        with pytest.raises(GateError, match="lacks the required leetcode, gre_like, ap_like, jmmlu, cmmlu, puzzlevqa"):
            gate(*pair(GOOD), version="3.6.0")
        with pytest.raises(GateError, match="version '': write three numbers"):
            gate(*pair(GOOD), version="")
        found = gate(*pair(GOOD | dict.fromkeys(TYPE_B, 0.05)), version="3.6.0")
        assert [one.benchmark for one in found.benchmarks] == [*TYPE_A, *TYPE_B]

    def test_each_benchmark_has_its_own_protocol(self, record):
        of = {"mmlu": {"protocol": "llamax"}}
        assert gate(record({"new": tables()}, of=of), record({"old": tables(which=1)}, of=of)).answer == "accept"

    def test_benchmarks_that_are_not_required_decide_nothing(self, pair):
        assert gate(*pair(GOOD | {"gsm8k_cot": -0.1})).answer == "accept"


class TestRefuses:
    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"protocol": "llamax"}, "mmlu: protocols differ: candidate llamax, current lm-eval"),
            ({"metric": "acc_norm"}, "mmlu: metrics differ: candidate acc_norm, current acc"),
            ({"prompts": "cd" * 32}, "mmlu: prompts (sha256) differ: candidate cdcdcdcdcdcd, current abababababab"),
            ({"shots": 0}, "mmlu: shots differ: candidate 0, current 5"),
            ({"temperature": 0.7}, "mmlu: temperatures differ: candidate 0.7, current 0.0"),
            ({"max_new_tokens": 64}, "mmlu: limits of new tokens differ: candidate 64, current None"),
            ({"precision": "bf16"}, "mmlu: precisions differ: candidate bf16, current fp32"),
            ({"total": 9999}, "mmlu: sizes of the benchmark differ: candidate 9999, current 1500"),
            (
                {"contamination": "unchecked"},
                "mmlu: contamination statuses differ: candidate unchecked, current checked",
            ),
        ],
    )
    def test_another_way_to_run_a_benchmark(self, record, changes, says):
        new, old = record({"new": tables()}, **changes), record({"old": tables(which=1)})
        with pytest.raises(GateError) as found:
            gate(new, old)
        assert str(found.value) == says

    def test_another_way_on_any_one_benchmark(self, record):
        old = record({"old": tables(which=1)})
        with pytest.raises(GateError, match="truthfulqa_mc1: shots differ"):
            gate(record({"new": tables()}, of={"truthfulqa_mc1": {"shots": 3}}), old)

    def test_samples_may_differ(self, record):
        new = {name: np.repeat(table, 3, axis=1) for name, table in tables().items()}
        assert gate(record({"new": new}), record({"old": tables(which=1)})).answer == "accept"

    def test_other_items(self, record):
        new = tables(n=1499)
        with pytest.raises(GateError, match="mmlu: numbers of items asked differ: candidate 1499, current 1500"):
            gate(record({"new": new}, total=2000), record({"old": tables(which=1)}, total=2000))
        shifted = record({"new": tables()}, spoil=lambda frame: frame.assign(item=frame["item"] + "x"))
        with pytest.raises(GateError, match="the note says 1500 items of one set"):
            gate(shifted, record({"old": tables(which=1)}))

    def test_other_items_of_the_same_number(self, record):
        def later(frame):
            return frame.assign(item=[f"{b}/{i % 1500 + 1}" for i, b in enumerate(frame["benchmark"])])

        sets = {name: {"item_set": item_set(f"{name}/{i + 1}" for i in range(1500))} for name in TYPE_A}
        new = record({"new": tables()}, spoil=later, of=sets)
        with pytest.raises(GateError, match=r"mmlu: item sets \(sha256\) differ: candidate \w{12}, current \w{12}"):
            gate(new, record({"old": tables(which=1)}))

    def test_a_missing_benchmark_on_either_side(self, record):
        part = {name: table for name, table in tables().items() if name not in ("gsm8k", "nq_open")}
        whole, lacking = record({"old": tables(which=1)}), record({"new": part})
        with pytest.raises(
            GateError, match=r"candidate toy/.* lacks the required gsm8k, nq_open: it has mmlu, humaneval"
        ):
            gate(lacking, whole)
        with pytest.raises(GateError, match=r"current toy/.* lacks the required gsm8k, nq_open"):
            gate(whole, lacking)

    def test_the_same_run_and_model_and_the_same_model_of_two_runs(self, record):
        one = record({"new": tables()})
        with pytest.raises(GateError, match="are the same run and model: there is nothing to compare"):
            gate(one, f"{one}:new")
        again = record({"new-again": tables(which=1)})
        with pytest.raises(GateError, match="are the same model, new-again"):
            gate(again, one)

    def test_one_model_under_two_names(self, record):
        """A run says `current` and `candidate`; what they are its note of models tells."""
        hashes = {"candidate": "a" * 64, "current": "a" * 64}
        new = record({"candidate": tables()}, hashes=hashes)
        old = record({"current": tables(which=1)}, hashes=hashes)
        with pytest.raises(GateError, match="are the same model, candidate"):
            gate(new, old)
        assert gate(new, record({"current": tables(which=1)}, hashes={"current": "b" * 64})).current.model_hash

    def test_a_part_of_a_benchmark_unless_it_is_a_rehearsal(self, pair):
        new, old = pair(GOOD, total=5000)
        with pytest.raises(
            GateError, match=r"mmlu: 2000 of 5000 items were asked: .* --rehearse tries the gate on a part"
        ):
            gate(new, old)
        found = gate(new, old, rehearse=True)
        assert (found.answer, found.rehearsal, found.state, found.missing) == ("accept", True, "rehearsal", ())
        assert found.name == f"rehearsal-{new.replace('/', '-')}"
        assert found.sentence.endswith("This is a rehearsal: it says nothing about a version.")
        with pytest.raises(
            GateError, match=r"version 3\.0\.1: a rehearsal \(2000 of 5000 items of mmlu\) is of no version"
        ):
            gate(new, old, rehearse=True, version="3.0.1")

    def test_a_part_of_one_benchmark_is_a_rehearsal_of_all(self, pair):
        new, old = pair(GOOD, of={"nq_open": {"total": 5000}})
        with pytest.raises(GateError, match="nq_open: 2000 of 5000 items were asked"):
            gate(new, old)
        assert gate(new, old, rehearse=True).state == "rehearsal"

    def test_to_rehearse_whole_benchmarks_is_no_rehearsal(self, pair):
        assert not gate(*pair(GOOD), rehearse=True).rehearsal

    def test_the_small_world_is_always_a_rehearsal(self, pair):
        new, old = pair(dict.fromkeys(NANO, 0.05), protocol="nano")
        found = gate(new, old)
        assert [one.benchmark for one in found.benchmarks] == list(NANO)
        assert (found.answer, found.state) == ("accept", "rehearsal")
        with pytest.raises(GateError, match=r"a rehearsal \(nano tasks\) is of no version"):
            gate(new, old, version="3.0.1")

    def test_a_run_of_two_protocols(self, record):
        mixed = record({"new": tables()}, of={"gsm8k": {"protocol": "nano"}})
        with pytest.raises(GateError, match=r"mixes protocols .*gsm8k nano.*: nano tasks are gated by themselves"):
            gate(mixed, record({"old": tables(which=1)}))

    def test_a_stale_record(self, home, pair):
        new, old = pair(GOOD)
        (home / "constraints.txt").write_text("torch==9\n")
        with pytest.raises(GateError, match=r"toy/.* is stale \(changed: lock file\): run it again"):
            gate(new, old)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Store, "changed", lambda *_: list("abcde"))
            with pytest.raises(GateError, match=r"toy/.* is stale \(changed: a, b, c and 2 more\): run it again"):
                gate(new, old)

    def test_an_edited_record_and_edited_items(self, home, pair):
        new, old = pair(GOOD)
        folder = home / "results" / old
        text = (folder / "items.parquet").read_bytes()
        (folder / "items.parquet").write_bytes(text + b" ")
        with pytest.raises(RunError, match=r"items\.parquet was altered after the run"):
            gate(new, old)
        (folder / "items.parquet").write_bytes(text)
        path = folder / "result.json"
        path.write_text(path.read_text().replace('"shots": 5', '"shots": 0'))
        with pytest.raises(RunError, match="was edited after the run wrote it"):
            gate(new, old)

    def test_a_record_of_profile_test(self, record):
        new, old = record({"new": tables()}), record({"old": tables(which=1)})
        store = Store()
        found = store.load(new)
        records.write(found.replace(profile="test"), store.folder(found.direction, found.run))
        with pytest.raises(GateError, match="is of profile test, which is for tests"):
            gate(new, old)

    def test_a_run_that_measured_nothing(self, record):
        new, old = record({"new": tables()}), record({"old": tables(which=1)})
        store = Store()
        found = store.load(new)
        folder = store.folder(found.direction, found.run)
        records.write(found.replace(notes={}), folder)
        with pytest.raises(GateError, match="measured no benchmark: the gate compares runs that evaluate models"):
            gate(new, old)
        records.write(found.replace(notes={NOTE: [1]}), folder)
        with pytest.raises(ParameterError, match="should map each model to a list, found list"):
            gate(new, old)
        twice = {"new": found.notes[NOTE]["new"][:1] * 2}
        records.write(found.replace(notes={NOTE: twice}), folder)
        with pytest.raises(ParameterError, match="lists mmlu of new twice"):
            gate(new, old)
        wrong = {"new": [found.notes[NOTE]["new"][0] | {"shots": -1}]}
        records.write(found.replace(notes={NOTE: wrong}), folder)
        with pytest.raises(ParameterError, match="note 'measured', new, entry 0: parameter 'shots' = -1"):
            gate(new, old)

    def test_a_model_that_has_to_be_chosen_or_is_not_there(self, record):
        run = record({"new": tables(), "old": tables(which=1)})
        with pytest.raises(GateError, match=f"{run} evaluated several models: write one of {run}:new, {run}:old"):
            gate(run, f"{run}:old")
        with pytest.raises(GateError, match=f"{run} has no model 'nwe': write one of"):
            gate(f"{run}:nwe", f"{run}:old")
        with pytest.raises(RunError, match="no complete run 'toy/nano'"):
            gate("toy/nano", f"{run}:old")

    @pytest.mark.parametrize(
        ("spoil", "says"),
        [
            (lambda frame: frame.drop(columns="cluster"), "items.parquet has no column cluster"),
            (lambda frame: frame[frame["item"] != "mmlu/7"], "mmlu: the note says 1500 items"),
            (lambda frame: frame[frame["benchmark"] != "mmlu"], "mmlu: the note says 1500 items of one set"),
            (lambda frame: frame.assign(sample=frame["sample"] + 1), "every item should have samples 0 to 0"),
            (lambda frame: frame.assign(outcome=frame["outcome"] * 100), "an outcome lies outside 0..1"),
            (lambda frame: frame.assign(cluster="all"), "clusters of item 'mmlu/0' differ: candidate 'all', current"),
        ],
    )
    def test_items_that_are_not_what_the_note_says(self, record, spoil, says):
        with pytest.raises(GateError) as found:
            gate(record({"new": tables()}, spoil=spoil), record({"old": tables(which=1)}))
        assert says in str(found.value)

    def test_the_same_sample_twice(self, record):
        def spoil(frame):
            other = frame[frame["item"] == "mmlu/7"].assign(outcome=lambda rows: 1 - rows["outcome"], cluster="x")
            return pd.concat([frame, other])

        with pytest.raises(GateError, match="mmlu: item 'mmlu/7' has the same sample twice"):
            gate(record({"new": tables()}, spoil=spoil), record({"old": tables(which=1)}))

    def test_every_refusal_is_one_line(self, record):
        new, old = record({"new": tables()}, shots=0), record({"old": tables(which=1)})
        for arguments in [(new, old), (new, new), ("x", old), (f"{new}:y", old)]:
            with pytest.raises(LlamaxError) as found:
                gate(*arguments)
            assert "\n" not in str(found.value)


class TestRelease:
    def test_an_accepted_version_lacks_a_human_evaluation(self, pair, human):
        new, old = pair(GOOD)
        found = gate(new, old, version="3.0.1")
        assert (found.state, found.missing) == ("eligible", ("a human evaluation (--human)",))
        assert "eligible as 3.0.1, but it lacks a human evaluation" in found.sentence
        found = gate(new, old, version="3.0.1", human=human(new, old))
        assert (found.state, found.missing) == ("released", ())
        assert found.human.prompts == 300
        assert found.sentence.endswith("; 3.0.1 may be released.")

    @pytest.mark.parametrize(
        ("changes", "lacks"),
        [
            (
                {"low": 0.5},
                "clearly prefer it (win rate 60.0% [50.0%, 65.0%]; the whole 95% interval has to lie above 50%)",
            ),
            (
                {"win_rate": 0.4, "low": 0.3, "high": 0.45},
                "people who clearly prefer it (win rate 40.0% [30.0%, 45.0%]",
            ),
            (
                {"low": None, "high": None, "p_value": None},
                "people who clearly prefer it (win rate 60.0% without an interval;",
            ),
            ({"votes_missing": 1}, "a finished human evaluation (1 of 300 planned votes missing)"),
            ({"votes": 301}, "a human evaluation that ended as planned (301 votes, 300 planned)"),
            ({"raters": 1}, "a human evaluation by 2 people or more, not 1"),
        ],
    )
    def test_people_have_to_prefer_it(self, pair, human, changes, lacks):
        found = gate(*(sides := pair(GOOD)), version="3.0.1", human=human(*sides, **changes))
        assert found.state == "eligible"
        assert lacks in found.missing[0]

    def test_people_do_not_make_up_for_benchmarks(self, pair, human):
        found = gate(*(sides := pair(GOOD | {"mmlu": -0.05})), version="3.0.1", human=human(*sides))
        assert (found.state, found.missing) == ("rejected", ())

    @pytest.mark.parametrize(
        ("changes", "error", "says"),
        [
            ({"candidate": "toy/other:new"}, GateError, "candidate is 'toy/other:new', the gate's is 'toy/"),
            ({"candidate": "new"}, GateError, ":new': it judged other models"),  # a label that many runs have
            ({"current": "old"}, GateError, "current is 'old', the gate's is 'toy/"),
            ({"win_rate": 0.9}, ParameterError, "win_rate 0.9 should lie in its interval, 0.55 to 0.65"),
            ({"raters": 0}, ParameterError, "parameter 'raters' = 0"),
            ({"prompts": None}, ParameterError, "parameter 'prompts'"),
        ],
    )
    def test_a_human_evaluation_of_other_models_or_without_sense_is_refused(self, pair, human, changes, error, says):
        with pytest.raises(error) as found:
            gate(*(sides := pair(GOOD)), version="3.0.1", human=human(*sides, **changes))
        assert says in str(found.value)

    def test_more_in_the_analysis_than_the_gate_needs_is_fine(self, pair, human):
        found = gate(
            *(sides := pair(GOOD)), version="3.0.1", human=human(*sides, alpha=0.4, votes=300, votes_planned=300)
        )
        assert found.state == "released"

    def test_without_a_contamination_check_nothing_is_released(self, pair, human):
        found = gate(*(sides := pair(GOOD, contamination="unchecked")), version="3.0.1", human=human(*sides))
        assert found.missing == ("a contamination check of both models' training data",)

    def test_nor_where_a_single_benchmark_was_not_checked(self, pair, human):
        of = {"gsm8k": {"contamination": "unchecked"}}
        found = gate(*(sides := pair(GOOD, 1500, of=of)), version="3.0.1", human=human(*sides))
        assert found.missing == ("a contamination check of both models' training data",)

    def test_a_rung_has_to_be_shown_against_its_baseline_too(self, home, pair, human):
        new, old = pair(GOOD)
        found = gate(new, old, version="3.1.0", human=human(new, old))
        assert found.missing == ("scores comparable with text-davinci-001's (--scores)",)
        path = home / "scores.yaml"
        titles = ("MMLU", "HumanEval", "GSM8K", "NaturalQuestions", "TruthfulQA")
        for score, missing in [
            (21.62, ()),
            (20.0, ("1.6 points on average (on average as good as text-davinci-001, gpt-fathom)",)),
        ]:
            path.write_text(
                json.dumps({"model": f"{new}:new", "protocol": "gpt-fathom", "scores": dict.fromkeys(titles, score)})
            )
            found = gate(new, old, version="3.1.0", human=human(new, old), scores=path)
            assert found.missing == missing
        path.write_text(
            json.dumps({"model": f"{new}:new", "protocol": "lm-eval", "scores": dict.fromkeys(titles, 20.0)})
        )
        with pytest.raises(GateError, match="no reference scores under protocol 'lm-eval'"):
            gate(new, old, version="3.1.0", scores=path)

    def test_scores_of_another_model_are_refused(self, home, pair):
        path = home / "scores.yaml"
        path.write_text('{"model": "x", "protocol": "gpt-fathom", "scores": {"MMLU": 1}}')
        with pytest.raises(GateError, match=r"are of 'x', the candidate is 'toy/.*:new'"):
            gate(*pair(GOOD), version="3.1.0", scores=path)

    def test_the_next_version_is_gated_against_the_last_released_one(self, record, human):
        runs = {
            name: record({name: tables(dict.fromkeys(TYPE_A, gain))}) for name, gain in [("new", 0.05), ("newer", 0.1)]
        }
        old = record({"old": tables(which=1)})
        store = Store()
        verdicts.write(gate(runs["new"], old, version="3.0.1", human=human(runs["new"], old)), store)
        with pytest.raises(
            GateError, match=r"version 3\.0\.2: the current version is 3\.0\.1, .*:new: gate against that"
        ):
            gate(runs["newer"], old, version="3.0.2")
        with pytest.raises(GateError, match=r"version 3\.0\.0: a candidate's lies above"):
            gate(runs["newer"], old, version="3.0.0")
        assert gate(runs["newer"], runs["new"], version="3.0.2").state == "eligible"
        votes = human("", "", candidate=f"{runs['newer']}:newer", current=f"{runs['new']}:new")
        eligible = gate(runs["newer"], runs["new"], version="3.1.0", human=votes)
        verdicts.write(eligible, store)  # moves nothing
        again = record({"new-again": tables()})  # the same model, evaluated again
        assert gate(runs["newer"], again, version="3.0.2").state == "eligible"

    def test_a_version_below_a_released_one_is_refused(self, record, human):
        new, old = record({"new": tables()}), record({"old": tables(which=1)})
        verdicts.write(gate(new, old, version="3.0.5", human=human(new, old)), Store())
        with pytest.raises(GateError, match=r"version 3\.0\.2: 3\.0\.5 is released already"):
            gate(new, old, version="3.0.2")
        assert gate(new, old, version="3.0.5", human=human(new, old)).state == "released"
