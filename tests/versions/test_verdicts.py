import json

import pytest
from made_up_outcomes import TYPE_A, answers

from llamax import files
from llamax.errors import GateError, RunError
from llamax.runs import Store
from llamax.versions import verdicts
from llamax.versions.gate import gate

GOOD = dict.fromkeys(TYPE_A, 0.05)


@pytest.fixture
def decided(pair):
    """A verdict that accepts 3.0.1, not yet written."""
    return gate(*pair(GOOD, 1500), version="3.0.1")


def rewrite(path, change):
    """Edit a verdict and seal it anew, as a forger would."""
    values = json.loads(path.read_text())
    values.pop("seal")
    change(values)
    path.write_text(json.dumps(values | {"seal": files.sha256_json(values)}))


def test_it_is_written_with_its_evidence_and_read_back_the_same(home, decided):
    written = verdicts.write(decided, Store())
    path = home / "results" / "versions" / "3.0.1" / "verdict.json"
    assert verdicts.read(path) == written == decided
    values = json.loads(path.read_text())
    assert {"seal", "statement", "commit", "llamax", "rule"} <= values.keys()
    assert values["benchmarks"][0]["full"]["gain"] == pytest.approx(5.0)
    assert values["candidate"]["key"] != values["current"]["key"]
    assert sorted(file.name for file in path.parent.iterdir()) == ["verdict.json"]


def test_an_edit_is_noticed(home, decided):
    verdicts.write(decided, Store())
    path = home / "results" / "versions" / "3.0.1" / "verdict.json"
    text = path.read_text()
    path.write_text(text.replace('"llamax": "', '"llamax": "9'))
    with pytest.raises(GateError, match=r"results/versions/3\.0\.1/verdict\.json: was edited after the gate wrote it"):
        verdicts.read(path)
    path.write_text(text[:-20])
    with pytest.raises(GateError, match="damaged verdict"):
        verdicts.read(path)
    path.write_text("[1]")
    with pytest.raises(GateError, match="of schema version None, this llamax reads 1"):
        verdicts.read(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda v: v.update(answer="reject"), "the answer reject does not follow from the benchmarks"),
        (lambda v: v["benchmarks"][2].update(passes=False), "gsm8k: what is said of it does not follow"),
        (lambda v: v["benchmarks"][2].update(ruled_out=True), "gsm8k: what is said of it does not follow"),
        (lambda v: v["benchmarks"][2]["full"].update(p_gain=0.2), "gsm8k: what is said of it does not follow"),
        (lambda v: v["benchmarks"][2]["full"].update(gain=0.9), "gsm8k: what is said of it does not follow"),
        (lambda v: v.update(rehearsal=True), "a rehearsal is of no version"),
        (lambda v: v.update(name="3.0.2"), "is the verdict of 3.0.2, in another's folder"),
    ],
)
def test_what_does_not_follow_from_the_evidence_is_refused_even_when_sealed(home, decided, change, says):
    verdicts.write(decided, Store())
    path = home / "results" / "versions" / "3.0.1" / "verdict.json"
    rewrite(path, change)
    with pytest.raises(GateError) as found:
        verdicts.read(path)
    assert says in str(found.value)


def test_gating_the_same_again_is_no_further_attempt_but_another_candidate_is(record, decided):
    store = Store()
    verdicts.write(decided, store)
    assert verdicts.write(decided, store).earlier == ()
    tables = {name: answers(1500, 0.03, seed=i)[0] for i, name in enumerate(TYPE_A)}
    other = record({"other": tables})
    second = verdicts.write(gate(other, decided.current.run, version="3.0.1"), store)
    assert [(one.candidate, one.answer) for one in second.earlier] == [(f"{decided.candidate.run}:new", "accept")]
    third = verdicts.write(decided, store)
    assert [one.candidate for one in third.earlier] == [f"{decided.candidate.run}:new", f"{other}:other"]


def test_a_release_is_not_taken_back(decided):
    store = Store()
    released = decided.model_copy(update={"missing": ()})
    verdicts.write(released, store)
    assert [one.version for one in verdicts.released(store)] == ["3.0.1"]
    with pytest.raises(GateError, match=r"version 3\.0\.1 is released .*: a verdict does not take that back"):
        verdicts.write(decided, store)
    other = released.candidate.model_copy(update={"model": "other"})
    with pytest.raises(GateError, match="does not take that back"):
        verdicts.write(released.model_copy(update={"candidate": other}), store)
    verdicts.write(released, store)


def test_verdicts_come_by_version_and_unnamed_ones_last(decided):
    store = Store()
    for version in ("3.10.0", "3.9.0", "3.0.1"):
        verdicts.write(decided.model_copy(update={"name": version, "version": version}), store)
    verdicts.write(decided.model_copy(update={"name": "a-try", "version": None}), store)
    assert [one.name for one in verdicts.verdicts(store)] == ["3.0.1", "3.9.0", "3.10.0", "a-try"]
    assert verdicts.verdicts(Store(store.root / "nothing")) == []


def test_a_verdict_whose_records_went_or_changed_is_unsupported(home, decided):
    store = Store()
    assert verdicts.unsupported(decided, store) == ""
    other = decided.candidate.model_copy(update={"key": "0" * 64})
    assert "was computed again" in verdicts.unsupported(decided.model_copy(update={"candidate": other}), store)
    items = home / "results" / decided.current.run / "items.parquet"
    text = items.read_bytes()
    items.write_bytes(b"x")
    assert "was altered after the run" in verdicts.unsupported(decided, store)
    items.write_bytes(text)
    (home / "results" / decided.current.run / "result.json").unlink()
    assert verdicts.unsupported(decided, store) == f"results/{decided.current.run} is gone"
    with pytest.raises(RunError):
        store.load(decided.current.run)
