"""The analysis: against real blind annotations, against hand counts, and on degenerate votes."""

import gzip
import io
import json

import krippendorff
import numpy as np
import pandas as pd
import pytest
from human_cases import NAMES

from llamax.errors import DataError
from llamax.evaluation.human.analyse import Analysis, analyse, analyse_votes, report, write
from llamax.evaluation.human.plan import Design, make_plan
from llamax.evaluation.human.store import cast, open_sheet
from llamax.statistics import wilson
from llamax.statistics.preferences import win_rate


def table(rows):
    """Votes from (rater, prompt, left, right, choice)."""
    return pd.DataFrame(rows, columns=["rater", "prompt", "left", "right", "choice"])


def drawn(rng, prompts, raters, win, tie, models=("new", "old"), bias=0.0):
    """Everybody rates every prompt; `new` wins with probability `win`, and `bias` of the votes go left, whatever."""
    rows = []
    for prompt in range(prompts):
        for rater in range(raters):
            left, right = rng.permutation(models)
            u = rng.random()
            better = models[0] if u < win else (None if u < win + tie else models[1])
            choice = (
                "left" if rng.random() < bias else "tie" if better is None else "left" if better == left else "right"
            )
            rows.append((f"r{rater}", f"p{prompt}", left, right, choice))
    return table(rows)


@pytest.fixture(scope="module")
def tulu(shared_data):
    """The 1,150 annotations of the Tulu study as votes; of a rater's two votes on one pair, the later."""
    raw = gzip.decompress((shared_data / "tulu_human_eval/eval_annotations_tulu_1.csv.gz").read_bytes())
    rows = pd.read_csv(io.BytesIO(raw))
    assert len(rows) == 1150
    choices = {"tie": "tie", "a-is-better": "left", "a-is-slightly-better": "left"}
    rows["choice"] = rows.preference.map(choices).fillna("right")
    rows["pair"] = [" ".join(sorted(pair)) for pair in zip(rows.model_a, rows.model_b, strict=True)]
    rows = rows.drop_duplicates(["instance_id", "pair", "evaluator"], keep="last")
    names = {"evaluator": "rater", "instance_id": "prompt", "model_a": "left", "model_b": "right"}
    return rows[[*names, "choice"]].rename(columns=names)


def test_the_tulu_study(tulu):
    models = ["tulu_65B", "tulu_7B", "chatgpt", "tulu_human_only_65B"]
    found = analyse_votes(tulu, models, sides=2)
    pairs = {(pair.candidate, pair.current): pair for pair in found.comparisons}
    assert set(pairs) == {("tulu_65B", other) for other in models[1:]}
    for (one, other), pair in pairs.items():
        mine = tulu[tulu[["left", "right"]].isin([one, other]).all(axis=1)]
        wins = ((mine.left == one) & (mine.choice == "left") | (mine.right == one) & (mine.choice == "right")).sum()
        ties = (mine.choice == "tie").sum()
        assert (pair.votes, pair.wins, pair.ties) == (len(mine), wins, ties)
        assert pair.win_rate == pytest.approx((wins + ties / 2) / len(mine))
        assert pair.low < pair.these_raters.low < pair.win_rate < pair.these_raters.high < pair.high
    # As the study found: better than its 7B and its human-data-only sisters, not than ChatGPT (Wang et al. 2023).
    assert pairs["tulu_65B", "tulu_7B"].low > 0.5 and pairs["tulu_65B", "tulu_human_only_65B"].low > 0.5
    assert pairs["tulu_65B", "chatgpt"].high < 0.5
    assert [one.model for one in found.ranking][:2] == ["chatgpt", "tulu_65B"]
    models_of = [" ".join(sorted(pair)) for pair in zip(tulu.left, tulu.right, strict=True)]
    unit = tulu.prompt + " " + models_of
    assert found.agreement.n == (tulu.rater.groupby(unit).nunique() > 1).sum()
    score = tulu.choice.map({"left": 1.0, "tie": 0.5, "right": 0.0})
    score = score.where(tulu.left.map(models.index) < tulu.right.map(models.index), 1 - score)
    ratings = pd.DataFrame({"unit": unit, "rater": tulu.rater, "score": score}).pivot(index="rater", columns="unit")
    known = krippendorff.alpha(ratings.to_numpy(), level_of_measurement="ordinal")
    assert found.agreement.value == pytest.approx(known) and found.agreement.low < known < found.agreement.high
    decided = tulu.choice != "tie"
    assert found.left_share.value == pytest.approx((tulu.choice[decided] == "left").mean())
    assert "tulu_65B against tulu_7B" in report(found)


def test_counts_by_hand():
    votes = table(
        [
            ("ann", "p1", "new", "old", "left"),
            ("bob", "p1", "old", "new", "right"),
            ("ann", "p2", "old", "new", "left"),
            ("bob", "p2", "new", "old", "tie"),
            ("ann", "p3", "new", "old", "both_bad"),
            ("bob", "p3", "new", "old", "left"),
            ("ann", "p4", "new", "old", "right"),
            ("bob", "p4", "new", "old", "left"),
        ]
    )
    found = analyse_votes(votes, ["new", "old"], sides=1)
    (pair,) = found.comparisons
    assert (pair.wins, pair.losses, pair.ties, pair.both_bad) == (4, 2, 1, 1)
    assert (found.win_rate, found.prompts, found.raters, found.votes) == (5 / 8, 4, 2, 8)
    assert (pair.prompts_won, pair.prompts_lost) == (2, 1)
    assert pair.sign_test_p == pytest.approx(4 / 8)  # two or more of three
    assert (found.left_share.value, found.left_share.n) == (4 / 6, 6)
    assert found.agreement.n == 4
    text = report(found)
    assert "win rate 62.5%" in text and "4 wins, 2 losses, 1 ties, 1 both bad" in text
    assert "by prompt, for these raters alone: 2 won, 1 lost, 1 level" in text


def test_the_other_way_round_is_the_mirror_image():
    votes = drawn(np.random.default_rng(0), 40, 3, 0.5, 0.2)
    there, back = analyse_votes(votes, ["new", "old"], 1), analyse_votes(votes, ["old", "new"], 1)
    assert (back.win_rate, back.low, back.high) == pytest.approx((1 - there.win_rate, 1 - there.high, 1 - there.low))
    assert back.p_value == pytest.approx(1 - there.p_value)
    assert back.agreement.value == pytest.approx(there.agreement.value)
    assert analyse_votes(votes, ["new", "old"], 2).p_value == pytest.approx(2 * min(there.p_value, back.p_value))


def test_swapping_the_sides_changes_no_win_rate_but_the_position_bias():
    votes = drawn(np.random.default_rng(1), 60, 6, 0.4, 0.2, bias=0.4)
    found = analyse_votes(votes, ["new", "old"], 1)
    assert found.left_share.low > 0.5 and "raters lean to one side" in report(found)
    swap = {"left": "right", "right": "left"}
    turned = votes.rename(columns=swap)[votes.columns].assign(choice=votes.choice.replace(swap))
    assert analyse_votes(turned, ["new", "old"], 1).comparisons == found.comparisons


def test_the_interval_counts_prompts_and_raters_not_votes():
    votes = drawn(np.random.default_rng(2), 40, 2, 0.5, 0.2)
    many = pd.concat([votes.assign(rater=votes.rater + f"-{n}") for n in range(4)])  # the same opinions four times
    few, more = (analyse_votes(v, ["new", "old"], 1).comparisons[0] for v in (votes, many))
    assert (few.wins * 4, few.ties * 4) == (more.wins, more.ties)
    assert more.these_raters.low == pytest.approx(few.these_raters.low, abs=1e-9)
    score = np.select([votes.choice == "tie", (votes.choice == "left") == (votes.left == "new")], [0.5, 1.0], 0.0)
    wanted = win_rate(score, votes.prompt, votes.rater)
    assert (few.low, few.high) == pytest.approx((wanted.low, wanted.high))


def test_one_rater_speaks_for_new_prompts_only():
    votes = drawn(np.random.default_rng(3), 30, 1, 0.5, 0.2)
    found = analyse_votes(votes, ["new", "old"], 1)
    (pair,) = found.comparisons
    assert (found.low, found.high, found.p_value, pair.low, pair.p_value) == (None,) * 5
    score = np.select([votes.choice == "tie", (votes.choice == "left") == (votes.left == "new")], [0.5, 1.0], 0.0)
    assert (pair.these_raters.low, pair.these_raters.high) == pytest.approx(win_rate(score, votes.prompt)[2:4])
    assert found.agreement is None
    text = report(found)
    assert "by one rater: what other people prefer is unknown" in text
    assert f"for this rater alone [{pair.these_raters.low:.1%}, {pair.these_raters.high:.1%}]" in text
    assert "30 votes on 30 prompts by 1 rater\n" in text


@pytest.mark.parametrize(("choice", "value"), [("left", 1.0), ("right", 0.0), ("tie", 0.5)])
def test_votes_that_are_all_alike_are_no_certainty(choice, value):
    votes = table([(f"r{r}", f"p{p}", "new", "old", choice) for p in range(3) for r in range(2)])
    found = analyse_votes(votes, ["new", "old"], 1)
    assert found.win_rate == value and found.low <= value <= found.high
    assert found.high - found.low > 0.4
    here = found.comparisons[0].these_raters
    assert (here.low, here.high) == (found.low, found.high)
    if value == 1:
        assert found.p_value == pytest.approx(1 / 8) and found.low == pytest.approx(wilson(3, 3).low)
    else:
        assert found.p_value >= 0.5


def test_one_prompt_has_no_interval():
    found = analyse_votes(table([("r", "p", "new", "old", "left")]), ["new", "old"], 1)
    assert "[" in report(found) and found.win_rate == 1


def test_three_models_are_ranked_and_one_that_never_loses_is_not_infinitely_strong():
    rng = np.random.default_rng(4)
    pairs = [("best", "middle", 0.6), ("best", "worst", 0.8), ("middle", "worst", 0.6)]
    votes = pd.concat([drawn(rng, 60, 3, win, 0.1, (one, other)) for one, other, win in pairs])
    found = analyse_votes(votes, ["middle", "best", "worst"], 1)
    assert [one.model for one in found.ranking] == ["best", "middle", "worst"] and found.ranking_prior == 0
    assert (found.candidate, found.current) == ("middle", "best") and found.win_rate < 0.5
    assert len(found.comparisons) == 3
    assert sum(one.strength.value for one in found.ranking) == pytest.approx(0, abs=1e-9)
    always = votes.assign(
        choice=np.where(votes.left == "best", "left", np.where(votes.right == "best", "right", votes.choice))
    )
    found = analyse_votes(always, ["middle", "best", "worst"], 1)
    assert found.ranking[0].model == "best" and found.ranking_prior > 0 and np.isfinite(found.ranking[0].strength.value)
    assert "with a weak prior" in report(found)


def test_a_study_from_votes_to_the_file_that_the_gate_reads(study):
    for rater in ("ann", "bob"):
        sheet = open_sheet(study.folder, study.plan, rater)
        for number, item in enumerate(sheet.items[:10]):
            better = NAMES[0] if number % 5 else NAMES[1]
            cast(study.folder, study.plan, rater, number, "left" if item.left == better else "right")
    cast(study.folder, study.plan, "ann", 0, "both_bad", revise=True)
    found = analyse(study.folder)
    assert (found.votes, found.votes_planned, found.votes_missing) == (20, 24, 4)
    assert "not complete: 4 of 24" in report(found)
    assert (found.comparisons[0].wins, found.comparisons[0].losses, found.comparisons[0].both_bad) == (16, 3, 1)
    file = json.loads(write(study.folder, found).read_text())
    assert {"candidate", "current", "win_rate", "low", "high", "p_value", "prompts", "raters"} <= file.keys()
    assert (file["candidate"], file["current"]) == NAMES and file["low"] <= file["win_rate"] <= file["high"]
    assert file["plan"] == study.plan.digest
    assert Analysis.parse(file) == found


def test_a_rater_too_many_does_not_stand_in_for_one_who_is_missing(files, tmp_path):
    """Of 12 prompts each of two raters has a half; a third one is given that of the first again."""
    prompts, answers = files
    design = Design(raters=2, raters_per_prompt=1, rater_correlation=0.0)
    study = make_plan(tmp_path / "halves", answers, source=str(prompts), design=design)
    for rater, rate in (("ann", True), ("bob", False), ("eve", True)):
        sheet = open_sheet(study.folder, study.plan, rater)
        for number in range(len(sheet.items) if rate else 0):
            cast(study.folder, study.plan, rater, number, "left")
    found = analyse(study.folder)
    assert (found.votes, found.votes_planned, found.votes_missing) == (12, 12, 6)


def test_a_torn_file_is_named_with_its_line(study):
    open_sheet(study.folder, study.plan, "ann")
    cast(study.folder, study.plan, "ann", 0, "left")
    path = study.folder / "raters" / "ann.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError, match=r"ann\.jsonl:2: the last line is torn"):
        analyse(study.folder)


def test_votes_on_other_pairs_only():
    votes = table([("r", "p", "a", "c", "left")])
    with pytest.raises(DataError, match="no vote yet on 'a' against 'b'"):
        analyse_votes(votes, ["a", "b", "c"], 1)
