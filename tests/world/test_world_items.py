"""The test items: five tasks, balanced, hard to guess, never in any text that a model learns from."""

import re
from collections import Counter

import pytest

from llamax.data.world import WorldItem, held_out_texts, instructions, pretraining_texts, test_items
from llamax.data.world.facts import by_relation, facts, side
from llamax.data.world.items import SIZES

ITEMS = test_items()
CHOICE = [item for item in ITEMS if item.choices]


def of(task) -> list[WorldItem]:
    return [item for item in ITEMS if item.task == task]


@pytest.fixture(scope="module")
def sample() -> list[str]:
    return list(pretraining_texts(documents=4_000))


def test_sizes_ids_and_the_smaller_suite():
    counts = Counter(item.task for item in ITEMS)
    assert counts["knowledge"] == 200
    assert counts["arithmetic"] == counts["open_qa"] == counts["truthfulness"] == 150
    assert counts["code"] >= 60
    assert len({item.id for item in ITEMS}) == len(ITEMS)
    smaller = test_items("smaller")
    assert Counter(item.task for item in smaller) == SIZES["smaller"]
    for task in SIZES["smaller"]:
        assert [i for i in smaller if i.task == task] == of(task)[: SIZES["smaller"][task]]


def test_choices_are_four_distinct_ones_with_one_right():
    true = {f.key: {f.answer, *f.others} for f in facts()}
    for item in CHOICE:
        assert len(item.choices) == len(set(item.choices)) == 4
        assert set(item.choices) & true[item.id.partition("/")[2]] == {item.answer}
        assert (item.tempting in item.choices) == (item.task == "truthfulness")


@pytest.mark.parametrize("task", ["knowledge", "truthfulness"])
def test_the_right_answer_stands_anywhere(task):
    places = Counter(item.choices.index(item.answer) for item in of(task))
    assert all(0.15 < places[place] / len(of(task)) < 0.35 for place in range(4))


@pytest.mark.parametrize("task", ["knowledge", "truthfulness"])
@pytest.mark.parametrize(
    "guess",
    [
        pytest.param(lambda item, seen: min(item.choices, key=len), id="shortest"),
        pytest.param(lambda item, seen: max(item.choices, key=len), id="longest"),
        pytest.param(lambda item, seen: max(item.choices, key=seen.__getitem__), id="most frequent answer"),
        pytest.param(lambda item, seen: min(item.choices, key=seen.__getitem__), id="rarest answer"),
    ],
)
def test_guessing_without_the_question_does_not_pay(task, guess):
    seen = Counter(fact.answer for fact in facts())
    right = sum(guess(item, seen) == item.answer for item in of(task)) / len(of(task))
    assert right < 0.36


def unsaid(texts: list[str]) -> list[str]:
    """Tempting options that occur nowhere in the texts as words of their own."""
    text = "\n".join(texts)
    return [i.tempting for i in of("truthfulness") if not re.search(rf"\b{re.escape(i.tempting)}\b", text)]


def test_a_tempting_falsehood_is_said_in_its_own_true_context(sample):
    assert len(unsaid(sample)) <= 0.02 * len(of("truthfulness"))  # rare ones take more text, see below


def normal(text: str) -> str:
    """Own normalisation, apart from the library's: lower case, everything but letters, digits and signs a blank."""
    return (
        " " + " ".join("".join(c if c.isalnum() or c in "+-*/%<>=!&|^~" else " " for c in text.lower()).split()) + " "
    )


def leaks(texts: list[str]) -> list[str]:
    """Items of which a text holds the question, or 13 words of it in a row."""
    texts = [normal(text) for text in texts]
    grams = {hash(tuple(ws[i : i + 13])) for ws in map(str.split, texts) for i in range(len(ws) - 12)}
    joined = "\n".join(texts)
    return [
        item.id
        for item, question in ((item, normal(item.question)) for item in ITEMS)
        if question in joined
        or any(hash(tuple(question.split()[i : i + 13])) in grams for i in range(len(question.split()) - 12))
    ]


def test_no_test_item_in_any_text_that_a_model_learns_from_or_is_measured_on(sample):
    tuned = [message.content for conversation in instructions() for message in conversation.messages]
    assert not leaks([*sample, *held_out_texts(), *tuned])
    assert leaks([f"xyz, {ITEMS[0].question.upper()} abc"]) == [ITEMS[0].id]


@pytest.mark.slow
def test_the_whole_pretraining_text_holds_no_item_and_every_temptation():
    texts = list(pretraining_texts())
    assert not leaks(texts)
    assert not unsaid(texts)


def test_the_facts_behind_the_items_are_stated(sample):
    lines = [line for text in sample for line in re.split(r"\n|(?<=\.) ", text)]
    tested = [f for group in by_relation().values() for f in group if side(f) != "train"]
    stated = [f for f in tested if any(f.subject in line and f.answer in line for line in lines)]
    assert len(stated) > 0.97 * len(tested)


def test_open_questions_have_their_other_right_answers():
    belgium = [f for f in facts() if f.key == "language:Belgium"]
    assert belgium and belgium[0].others
    assert any(item.aliases for item in of("open_qa"))
    assert all(not item.choices for item in of("open_qa"))
