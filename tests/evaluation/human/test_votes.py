"""Votes on disk: nothing lost in a crash, nothing overwritten by a second tab or rater, sides and shares balanced."""

import json
import multiprocessing
from collections import Counter

import pytest
from human_cases import NAMES

from llamax.errors import DataError, ParameterError
from llamax.evaluation.human import store
from llamax.evaluation.human.plan import Design, make_plan
from llamax.evaluation.human.store import Stale, cast, checked_code, items_of, open_sheet, read_sheet, read_sheets


def fails(message, call, *args, **kwargs):
    with pytest.raises((DataError, ParameterError), match=message) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)


def lines(study, rater):
    return (study.folder / "raters" / f"{rater}.jsonl").read_bytes().split(b"\n")


@pytest.mark.parametrize("text", ["ann", " Ann ", "r2_b-1", "0", "a" * 32])
def test_good_codes(text):
    assert checked_code(text) == text.strip().lower()


@pytest.mark.parametrize(
    "text",
    ["", " ", "..", "../ann", "a/b", "a\\b", ".hidden", "-x", "a.b", "a\0", "a\nb", "ä", "a" * 33, "~root", "a%2f"],
)
def test_codes_that_could_leave_the_folder_are_refused(study, text):
    fails("A rater's code is 1 to 32 letters", checked_code, text)
    fails("A rater's code", open_sheet, study.folder, study.plan, text)
    assert not (study.folder / "raters").exists()


@pytest.mark.parametrize(("raters", "each"), [(5, 3), (6, 2), (4, 4), (3, 1), (4, 2)])
def test_shares_are_equal_and_everybody_meets_others(files, tmp_path, raters, each):
    prompts, answers = files
    design = Design(raters=raters, raters_per_prompt=each, rater_correlation=0)
    plan = make_plan(tmp_path / "s", answers, source=str(prompts), design=design).plan
    shares = [{item.prompt for item in items_of(plan, f"r{seat}", seat)} for seat in range(raters)]
    assert Counter(Counter(name for share in shares for name in share).values()) == {each: 12}
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    if each > 1:
        meets = {(a, b) for a in range(raters) for b in range(raters) if shares[a] & shares[b]}
        reached = {0}
        for _ in range(raters):
            reached |= {b for a, b in meets if a in reached}
        assert reached == set(range(raters)), "no group of raters stands apart"


def test_sides_and_orders_follow_the_seed_and_the_code(study):
    for items in (items_of(study.plan, code, 0) for code in "abcd"):
        assert Counter(item.left for item in items) == {NAMES[0]: 6, NAMES[1]: 6}
    one, again, other = items_of(study.plan, "x", 0), items_of(study.plan, "x", 0), items_of(study.plan, "y", 0)
    assert one == again
    assert {item.prompt for item in one} == {item.prompt for item in other}
    assert [item.prompt for item in one] != [item.prompt for item in other]
    assert {item.prompt: item.left for item in one} != {item.prompt: item.left for item in other}
    reseeded = items_of(study.plan.model_copy(update={"seed": 1}), "x", 0)
    assert [item.prompt for item in one] != [item.prompt for item in reseeded]


def test_votes_are_on_disk_and_the_rater_goes_on(study):
    sheet = open_sheet(study.folder, study.plan, "Ann")
    assert sheet.next == 0 and len(sheet.items) == 12
    for number, choice in enumerate(("left", "tie", "both_bad")):
        sheet = cast(study.folder, study.plan, "ann", number, choice, f" why {number} ")
    again = open_sheet(study.folder, study.plan, "ANN")
    assert again == sheet and again.next == 3
    assert [again.votes[n].reason for n in range(3)] == ["why 0", "why 1", "why 2"]
    assert len(cast(study.folder, study.plan, "ann", 3, "left", "x" * 5000).votes[3].reason) == store.LONGEST_REASON
    vote = json.loads(lines(study, "ann")[2])
    assert (vote["prompt"], vote["left"], vote["right"]) == sheet.items[1]


def test_a_second_vote_on_an_item_changes_nothing_unless_it_revises(study):
    open_sheet(study.folder, study.plan, "ann")
    cast(study.folder, study.plan, "ann", 0, "left")
    before = lines(study, "ann")
    with pytest.raises(Stale):
        cast(study.folder, study.plan, "ann", 0, "right")
    assert lines(study, "ann") == before
    sheet = cast(study.folder, study.plan, "ann", 0, "right", revise=True)
    assert (sheet.votes[0].choice, sheet.votes[0].revision) == ("right", 1)
    assert lines(study, "ann")[:2] == before[:2], "the first vote stays in the file"
    assert open_sheet(study.folder, study.plan, "ann").votes[0].choice == "right"


def test_what_is_no_vote_is_refused(study):
    open_sheet(study.folder, study.plan, "ann")
    for item in (-1, 12):
        fails("this rater has the items 0 to 11", cast, study.folder, study.plan, "ann", item, "left")
    fails("choice", cast, study.folder, study.plan, "ann", 0, "draw")
    fails("gone; sign in again", cast, study.folder, study.plan, "bob", 0, "left")
    assert len(lines(study, "ann")) == 2


def test_seats_are_the_smallest_free_ones(study):
    for seat, code in enumerate(("ann", "bob", "cid")):
        open_sheet(study.folder, study.plan, code)
        assert json.loads(lines(study, code)[0])["seat"] == seat
    (study.folder / "raters" / "bob.jsonl").unlink()
    open_sheet(study.folder, study.plan, "dan")
    assert json.loads(lines(study, "dan")[0])["seat"] == 1


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_a_torn_last_line_is_set_aside_and_only_that_vote_is_asked_again(study, capsys, cut):
    open_sheet(study.folder, study.plan, "ann")
    for number in range(3):
        cast(study.folder, study.plan, "ann", number, "left")
    path = study.folder / "raters" / "ann.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[: -1 - cut])
    torn = path.read_bytes().split(b"\n")[-1]
    fails(r"ann\.jsonl:4: the last line is torn", read_sheet, path, study.plan)
    fails(r"ann\.jsonl:4: the last line is torn", read_sheets, study.folder, study.plan)
    sheet = open_sheet(study.folder, study.plan, "ann")
    assert sheet.next == 2 and set(sheet.votes) == {0, 1}
    assert (study.folder / "raters" / "ann.torn").read_bytes() == torn + b"\n"
    assert f"ann.jsonl:4: torn last line ({len(torn)} bytes) set aside" in capsys.readouterr().err
    assert set(cast(study.folder, study.plan, "ann", 2, "tie").votes) == {0, 1, 2}
    assert read_sheet(path, study.plan).votes[2].choice == "tie"


def test_a_vote_that_lacks_only_its_line_end_is_kept(study):
    open_sheet(study.folder, study.plan, "ann")
    cast(study.folder, study.plan, "ann", 0, "left")
    path = study.folder / "raters" / "ann.jsonl"
    path.write_bytes(path.read_bytes()[:-1])
    assert cast(study.folder, study.plan, "ann", 1, "tie").next == 2
    assert not path.with_suffix(".torn").exists()


def test_a_header_torn_at_the_first_visit_is_written_again(study):
    (study.folder / "raters").mkdir()
    path = study.folder / "raters" / "ann.jsonl"
    path.write_bytes(b'{"rater": "an')
    assert open_sheet(study.folder, study.plan, "ann").next == 0
    assert read_sheet(path, study.plan).next == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: [rows[0], "{", *rows[1:]], r"ann\.jsonl:2: not JSON"),
        (lambda rows: [rows[0], "[" * 100_000, *rows[1:]], r"ann\.jsonl:2: not JSON"),
        (lambda rows: [*rows, rows[1]], r"ann\.jsonl:4: a second vote on item 0 that revises nothing"),
        (
            lambda rows: [rows[0], rows[1].replace('"reason"', '"reasom"'), rows[2]],
            r"ann\.jsonl:2: unknown parameter 'reasom'",
        ),
        (
            lambda rows: [rows[0], rows[1].replace('"item": 0', '"item": 5'), rows[2]],
            r"ann\.jsonl:2: item 5 is not what",
        ),
        (
            lambda rows: [rows[0], rows[1].replace('"item": 0', '"item": 99'), rows[2]],
            r"ann\.jsonl:2: item 99 is not what",
        ),
        (
            lambda rows: [rows[0].replace('"plan": "', '"plan": "0'), *rows[1:]],
            r"ann\.jsonl:1: these votes belong to another",
        ),
        (
            lambda rows: [rows[0].replace('"rater": "ann"', '"rater": "bob"'), *rows[1:]],
            r"ann\.jsonl:1: the file of rater 'bob'",
        ),
    ],
)
def test_damaged_files_are_named_by_line(study, change, said):
    open_sheet(study.folder, study.plan, "ann")
    for number in range(2):
        cast(study.folder, study.plan, "ann", number, "left")
    path = study.folder / "raters" / "ann.jsonl"
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")
    fails(said, read_sheets, study.folder, study.plan)
    fails(said, open_sheet, study.folder, study.plan, "ann")


def test_a_full_disk_leaves_the_file_as_it_was(study, monkeypatch):
    open_sheet(study.folder, study.plan, "ann")
    before = lines(study, "ann")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.os, "fsync", full)
    with pytest.raises(store.LlamaxError, match=r"no disk space to write .*ann\.jsonl"):
        cast(study.folder, study.plan, "ann", 0, "left")
    assert lines(study, "ann") == before
    monkeypatch.undo()
    assert cast(study.folder, study.plan, "ann", 0, "left").next == 1


def test_no_votes_yet(study):
    fails("no votes yet; `llamax human-eval serve` collects them", read_sheets, study.folder, study.plan)
    open_sheet(study.folder, study.plan, "ann")
    fails("no votes yet", read_sheets, study.folder, study.plan)


def hammer(study, rater, choice, won):
    """Vote on every item as fast as it goes; count the votes that were ours."""
    open_sheet(study.folder, study.plan, rater)
    ours = 0
    for item in range(12):
        try:
            cast(study.folder, study.plan, rater, item, choice)
            ours += 1
        except Stale:
            pass
    won.put(ours)


@pytest.mark.parametrize("raters", [("ann", "ann", "ann"), ("ann", "bob", "cid")])
def test_processes_at_once_never_overwrite_each_other(study, raters):
    context = multiprocessing.get_context("fork")
    won = context.Queue()
    processes = [context.Process(target=hammer, args=(study, r, "left", won)) for r in raters]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    sheets = read_sheets(study.folder, study.plan)
    assert [sheet.rater for sheet in sheets] == sorted(set(raters))
    assert all(set(sheet.votes) == set(range(12)) for sheet in sheets)
    assert sum(won.get() for _ in raters) == 12 * len(sheets)
    assert sorted(json.loads(lines(study, code)[0])["seat"] for code in set(raters)) == list(range(len(set(raters))))


def occupy(path, taken, done):
    with store._locked(path):
        taken.set()
        done.wait(60)


def test_a_vote_waits_for_whoever_is_writing_the_same_file(study, monkeypatch):
    open_sheet(study.folder, study.plan, "ann")
    monkeypatch.setattr(store, "PATIENCE", 0.2)
    context = multiprocessing.get_context("fork")
    taken, done = context.Event(), context.Event()
    path = study.folder / "raters" / "ann.jsonl"
    other = context.Process(target=occupy, args=(path, taken, done))
    other.start()
    assert taken.wait(60)
    fails(r"ann\.jsonl: locked by another process for more than", cast, study.folder, study.plan, "ann", 0, "left")
    open_sheet(study.folder, study.plan, "bob")
    assert cast(study.folder, study.plan, "bob", 0, "left").next == 1, "nobody else has to wait"
    done.set()
    other.join(60)
    assert cast(study.folder, study.plan, "ann", 0, "left").next == 1
