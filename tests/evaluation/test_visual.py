"""Picture benchmarks: what a model is shown, the letter read from its answer, and the controls beside its score."""

import pytest

from llamax.errors import DataError, ParameterError
from llamax.evaluation import visual
from llamax.versions.measured import ITEM_COLUMNS


def test_items_have_their_picture_and_lettered_options(local_data):
    first, second = visual.items()[0], visual.items()[2]
    assert first.prompt == (
        "Which?\nOptions:\n(A) 1\n(B) 2\n(C) 3\nAnswer with the letter of the right option.\nAnswer:"
    )
    assert first.image == local_data / "puzzlevqa" / "images" / "0.webp" and first.right == "C"
    assert (second.item, second.options, second.right, second.category) == ("puzzlevqa/1", ("x", "y"), "A", "b")
    assert "It is 3" not in "".join(item.prompt for item in visual.items()), "the caption gives the answer away"


def test_a_part_is_spread_over_the_categories(local_data):
    assert [item.category for item in visual.items(2)] == ["a", "b"]
    assert visual.items(2, seed=3) == visual.items(2, seed=3)


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        (" (B) 4", "B"),
        ("B.", "B"),
        ("B) 4", "B"),
        ("The answer is (C).", "C"),
        ("I first thought the answer is A. No: the answer is D", "D"),
        ("Answer: B", "B"),
        ("the right option is C", "C"),
        ("A dog", None),
        ("The answer is Above", None),
        ("", None),
        ("b", None),
    ],
)
def test_the_letter_that_an_answer_names(answer, letter):
    assert visual.letter_of(answer) == letter


def test_scores_are_rows_of_every_outcome_table(local_data):
    asked = visual.items()
    table = visual.evaluate(asked, lambda item: f"({item.right})")
    assert list(table.columns) == [column for column in ITEM_COLUMNS if column not in ("model", "contaminated")]
    assert table.outcome.tolist() == [1, 1, 1, 1] and table.cluster.tolist() == ["a", "a", "b", "b"]
    assert visual.evaluate(asked, lambda item: "no idea").outcome.sum() == 0
    assert visual.evaluate(asked, lambda item: "H").outcome.sum() == 0


def test_the_controls(local_data):
    asked = visual.items()
    assert [item.right for item in asked] == ["C", "B", "A", "A"]
    assert visual.evaluate(asked, visual.majority(asked)).outcome.tolist() == [0, 0, 1, 1]
    seen = []

    def model(item):
        seen.append(item.image)
        return "A"

    visual.evaluate(asked, visual.blind(model))
    assert seen == [None] * 4
    visual.evaluate(asked, model)
    assert None not in seen[4:]


def test_what_its_score_means(local_data):
    one = visual.measured(visual.items(2))
    assert (one.benchmark, one.metric, one.items, one.total) == ("puzzlevqa", "acc", 2, 4)
    assert one.item_set != visual.measured(visual.items()).item_set


def test_faults_are_named(local_data, monkeypatch):
    with pytest.raises(ParameterError, match="no items"):
        visual.evaluate([], lambda item: "A")
    (local_data / "puzzlevqa" / "images" / "3.webp").unlink()
    with pytest.raises(DataError, match=r"puzzlevqa/3: its picture .*3\.webp is missing"):
        visual.items()
    file = local_data / "puzzlevqa" / "puzzlevqa.jsonl"
    file.write_text(file.read_text().replace('"answer": 3', '"answer": 8'))
    with pytest.raises(DataError, match="puzzlevqa/0: its answer '8' is none of the options 1, 2, 3"):
        visual.items()
    monkeypatch.delenv("LLAMAX_DATA")
    with pytest.raises(DataError, match="puzzlevqa: is on no hub; set LLAMAX_DATA"):
        visual.items()


def test_the_real_puzzles_are_whole(shared_data, monkeypatch):
    monkeypatch.setenv("LLAMAX_DATA", str(shared_data))
    asked = visual.items()
    assert len(asked) == 500 and len({item.category for item in asked}) == 20
    assert visual.evaluate(asked, visual.majority(asked)).outcome.mean() < 0.4
