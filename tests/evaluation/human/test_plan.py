"""Plans: the size that a power needs, drawn prompts, a seal that notices every change."""

import json
import math

import numpy as np
import pytest
from human_cases import NAMES, write_rows
from scipy import stats

from llamax.errors import DataError, ParameterError
from llamax.evaluation.human import plan as planning
from llamax.evaluation.human.plan import Design, detectable, make_plan, needed, power, read_plan, read_study, variance
from llamax.statistics.preferences import win_rate


def fails(message, call, *args, **kwargs):
    with pytest.raises((DataError, ParameterError), match=message) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)


def votes(rng, prompts, raters, each, win_rate, ties, shared):
    """Scores with the given win rate and ties; with probability `shared` a vote repeats its prompt's own opinion."""
    chances = [1 - win_rate - ties / 2, ties, win_rate - ties / 2]
    rater = np.concatenate([(np.arange(each) + n) % raters for n in range(prompts)])
    prompt = np.repeat(np.arange(prompts), each)
    own, common = (rng.choice([0, 0.5, 1], size=n, p=chances) for n in (prompts * each, prompts))
    same = rng.random(prompts * each) < np.sqrt(shared)  # two votes are equal by sharing with probability `shared`
    return np.where(same, common[prompt], own), prompt, rater


def test_the_variance_of_a_vote():
    scores = np.array([0, 0.5, 1])
    chances = np.array([0.25, 0.3, 0.45])
    assert variance(0.6, 0.3) == pytest.approx(chances @ scores**2 - (chances @ scores) ** 2)


def test_independent_votes_need_what_the_textbook_says():
    """Cohen (1988): (z + z)^2 p(1-p)/(p - 1/2)^2 votes, as close as a t is to a normal at this size."""
    design = Design(ties=0, raters_per_prompt=1, prompt_correlation=0, rater_correlation=0, votes_per_rater=1)
    textbook = (stats.norm.isf(0.05) + stats.norm.isf(0.2)) ** 2 * 0.55 * 0.45 / 0.05**2
    assert needed(design).prompts == pytest.approx(textbook, rel=0.01)
    both = needed(design.model_copy(update={"sides": 2})).prompts
    assert both / needed(design).prompts == pytest.approx((1.95996 + 0.84162) ** 2 / (1.64485 + 0.84162) ** 2, rel=0.01)


@pytest.mark.parametrize(
    "given", [{}, {"win_rate": 0.6}, {"raters": 20}, {"raters_per_prompt": 3, "votes_per_rater": 40}]
)
def test_the_size_is_the_smallest_that_has_the_power(given):
    design = Design(**given)
    size = needed(design)
    assert power(design, size.prompts, size.raters) >= design.power
    fewer = size.prompts - 1
    assert power(design, fewer, planning._raters(design, fewer, 2)) < design.power
    assert detectable(design, size.prompts, size.raters) == pytest.approx(design.win_rate, abs=0.002)
    assert design.raters or size.votes / size.raters <= design.votes_per_rater


def test_more_correlation_costs_and_more_models_share_the_raters():
    base = needed(Design()).prompts
    assert needed(Design(prompt_correlation=0.5)).prompts > base < needed(Design(rater_correlation=0.02)).prompts
    assert needed(Design(ties=0.1)).prompts > base  # ties are half a vote each, but quiet ones
    two, three = needed(Design()), needed(Design(), models=3)
    assert three.prompts < two.prompts  # more raters, of whom each has less weight
    assert three.votes * 3 / three.raters <= 100 and three.raters > 1.5 * two.raters


def test_too_few_raters_are_told_how_many_it_takes():
    with pytest.raises(
        ParameterError, match=r"'raters' = 3: no number of prompts will do.* at least (\d+) raters"
    ) as caught:
        needed(Design(raters=3))
    least = int(str(caught.value).split("at least ")[1].split()[0])
    assert needed(Design(raters=least)).raters == least
    with pytest.raises(ParameterError):
        needed(Design(raters=least - 1))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"win_rate": 0.9, "ties": 0.33}, "ties = 0.33: a win rate of 0.9 leaves room for less than 0.20"),
        ({"raters": 1}, "raters = 1: fewer than raters_per_prompt = 2"),
        ({"win_rate": 0.5}, "win_rate"),
        ({"sides": 3}, "sides"),
        ({"power": 1.0}, "power"),
    ],
)
def test_designs_that_cannot_be(given, said):
    fails(said, Design.parse, given)


def test_simulated_studies_have_the_power_that_was_planned_and_keep_the_level():
    design = Design(win_rate=0.62, votes_per_rater=30, rater_correlation=0.0)
    size = needed(design)
    rng, runs = np.random.default_rng(0), 600
    shown = {0.5: 0, design.win_rate: 0}
    for truth in shown:
        for _ in range(runs):
            found = win_rate(*votes(rng, size.prompts, size.raters, 2, truth, design.ties, design.prompt_correlation))
            shown[truth] += found.value > 0.5 and found.p_value / 2 <= design.level
    noise = 3 * math.sqrt(0.8 * 0.2 / runs)
    assert shown[design.win_rate] / runs == pytest.approx(design.power, abs=noise + 0.02)
    assert shown[0.5] / runs <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)


@pytest.mark.parametrize(("raters", "each"), [(2, 2), (3, 2), (3, 3), (10, 1)])
def test_few_raters_have_the_power_that_is_said(raters, each):
    """Between 0.3 and 0.95, where the degrees of freedom decide: by those of the prompts it would be above 0.9."""
    design = Design(raters_per_prompt=each, rater_correlation=0.0, prompt_correlation=0.25 if each > 1 else 0.0)
    rng, runs, shown = np.random.default_rng(1), 500, 0
    for _ in range(runs):
        found = win_rate(*votes(rng, 110, raters, each, 0.61, design.ties, design.prompt_correlation))
        shown += found.value > 0.5 and found.p_value / 2 <= design.level
    said = power(design, 110, raters, 0.61)
    assert 0.3 < said < 0.95
    assert shown / runs == pytest.approx(said, abs=3 * math.sqrt(said * (1 - said) / runs))


def test_one_rater_shows_nothing_of_others():
    design = Design(raters=1, raters_per_prompt=1, win_rate=0.9, ties=0.1, rater_correlation=0)
    assert power(design, 1000, 1) == 0 and detectable(design, 1000, 1) is None
    fails("'raters' = 1: no .* will do, since one rater says nothing of what other.* least 2 raters", needed, design)
    alone = needed(design.model_copy(update={"raters": None}))
    assert alone.raters == 2 and alone.prompts < 100


def test_a_plan_is_read_as_it_was_made(study, files):
    again = read_study(study.folder)
    assert again == study
    assert study.plan.names == NAMES and study.plan.raters == 2
    assert sorted(study.plan.prompts) == sorted(f"p{n}" for n in range(12))
    assert study.answers[NAMES[1]]["p3"] == ("Y-3",)


def test_the_draw_follows_the_seed(files, tmp_path):
    prompts, answers = files
    design = Design(win_rate=0.9, ties=0.1, rater_correlation=0, raters=4)
    drawn = [
        make_plan(tmp_path / str(n), answers, source=str(prompts), design=design, seed=seed).plan.prompts
        for n, seed in enumerate((0, 0, 1))
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]) == needed(design).prompts < 12


def test_what_a_plan_says_when_there_are_too_few_prompts(study):
    text = "\n".join(planning.describe_plan(study))
    assert "12 prompts of" in text and "2 raters, about 12 votes from each" in text
    assert "too few to show 55.0%" in text and "the power is" in text


def test_a_study_with_too_few_raters_can_be_planned_and_says_what_it_shows(files, tmp_path):
    prompts, answers = files
    study = make_plan(tmp_path / "s", answers, source=str(prompts), design=Design(raters=3, votes_per_rater=6))
    assert len(study.plan.prompts) == 3 * 6 // 2
    text = "\n".join(planning.describe_plan(study))
    assert "no number of prompts will do" in text and "too few to show 55.0%" in text
    assert "at the 1-sided 5% level" in text and "the gate wants the 95% interval above 50%" in text


def test_answers_that_give_a_model_away_are_counted(files, tmp_path):
    prompts, ((one, first), (other, _)) = files
    rows = [{"id": f"p{n}", "answer": f"I am {one.upper()}!" if n < 2 else f"I am {one}x"} for n in range(12)]
    study = make_plan(
        tmp_path / "s", [(one, first), (other, write_rows(tmp_path / "b.jsonl", rows))], source=str(prompts)
    )
    assert "2 answers hold the name of a model" in "\n".join(planning.describe_plan(study))


def test_pairs_of_equal_answers_are_counted(files, tmp_path):
    prompts, ((one, first), (other, _)) = files
    same = write_rows(tmp_path / "same.jsonl", [{"id": f"p{n}", "answer": f"X-{n // 2}"} for n in range(12)])
    study = make_plan(tmp_path / "study", [(one, first), (other, same)], source=str(prompts))
    assert "1 of 12 pairs hold the same answer twice" in "\n".join(planning.describe_plan(study))


def test_one_model_twice_is_refused(files, tmp_path):
    prompts, ((name, file), (other, _)) = files
    make = lambda *answers: make_plan(tmp_path / "s", answers, source=str(prompts))  # noqa: E731
    fails("needs the answers of two models, found 1", make, (name, file))
    fails(f"model '{name.upper()}' is given twice", make, (name, file), (name.upper(), file))
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(file.read_bytes())
    said = rf"copy.jsonl: the answers of '{other}' and of '{name}' are the same to all \d+ prompts; give two models"
    fails(said, make, (name, file), (other, copy))
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    spelt = [json.dumps(dict(reversed(row.items())), indent=None, separators=(" ,", " : ")) for row in reversed(rows)]
    copy.write_text("\n".join(spelt) + "\n\n")
    fails(said, make, (name, file), (other, copy))
    fails(r"gone\.jsonl: no such file of answers", make, (name, file), (other, tmp_path / "gone.jsonl"))
    for empty in ("", " "):
        fails("answers of a model without a name; write NAME=FILE", make, (empty, file), (name, copy))
    fails("is a file; name a folder for the study", make_plan, copy, [(name, file), (other, copy)], source=str(prompts))


def test_missing_answers_are_counted(files, tmp_path):
    prompts, ((name, file), (other, _)) = files
    part = write_rows(tmp_path / "part.jsonl", [{"id": f"p{n}", "answer": "Z"} for n in range(9)])
    answers = [(name, file), (other, part)]
    fails(r"part\.jsonl: no answer to 3 of 12 prompts", make_plan, tmp_path / "s", answers, source=str(prompts))
    assert not (tmp_path / "s").exists()
    assert len(make_plan(tmp_path / "s", answers, source=str(prompts), limit=9).plan.prompts) == 9


def test_an_edited_plan_is_noticed(study):
    path = study.folder / "plan.json"
    good = path.read_text()
    for name, value in (("seed", 1), ("raters", 3), ("digest", "0" * 64)):
        path.write_text(json.dumps({**json.loads(good), name: value}))
        fails(r"plan\.json: was edited after it was made", read_plan, study.folder)
    path.write_text(json.dumps({**json.loads(good), "sead": 1}))
    fails(r"plan\.json: unknown parameter 'sead'", read_plan, study.folder)
    for torn in (good[:-20], "[" * 100_000):
        path.write_text(torn)
        fails(r"plan\.json: not JSON", read_plan, study.folder)
    path.write_text(good)
    assert read_plan(study.folder) == study.plan
    path.unlink()
    fails(r"no plan there; make one with `llamax human-eval plan`", read_plan, study.folder)


def test_answers_and_prompts_that_changed_since_are_noticed(study, files):
    prompts, ((name, file), _) = files
    good = file.read_text()
    file.write_text(good.replace("X-3", "X-4"))
    fails(rf"{file.name}: not the answers of '{name}' that the plan was made with", read_study, study.folder)
    file.unlink()
    fails(rf"{file.name}: no such file; the plan compares", read_study, study.folder)
    file.write_text(good)
    said = prompts.read_text()
    prompts.write_text(said.replace("Question 7", "Question seven"))
    fails("are not those of the plan", read_study, study.folder)
    prompts.write_text(said.replace('"p7"', '"p70"'))
    fails("prompt 'p7' is no longer in", read_study, study.folder)


def test_a_study_with_votes_keeps_its_plan(study, files):
    prompts, answers = files
    (study.folder / "raters").mkdir()
    (study.folder / "raters" / "ann.jsonl").write_text("")
    fails("1 rater voted by the plan that is there", make_plan, study.folder, answers, source=str(prompts))
    assert read_plan(study.folder) == study.plan
