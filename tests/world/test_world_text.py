"""Texts and instructions: the same every time, prefix by prefix, and on their own side of the fence."""

import itertools

from llamax.data import world
from llamax.data.world import arithmetic, held_out_texts, instructions, pretraining_texts
from llamax.data.world import text as world_text
from llamax.data.world.facts import facts
from llamax.data.world.functions import functions
from llamax.data.world.functions import side as function_side
from llamax.data.world.split import generator
from llamax.data.world.text import KINDS, almanac


def test_pretraining_text_is_a_function_of_its_seed_and_a_prefix_of_more():
    few, more = list(pretraining_texts(documents=200)), list(pretraining_texts(documents=400))
    assert few == more[: len(few)]
    assert few != list(pretraining_texts(seed=1, documents=200))
    assert len(set(more)) > 0.98 * len(more)


def test_every_fact_is_stated_at_least_once_and_popular_ones_more_often():
    text = list(pretraining_texts(documents=3_000))
    pages = " ".join(itertools.islice(text, len(facts()) // 8))
    assert sum(f.subject in pages for f in facts()) == len(facts())
    everything = "\n".join(text)
    cities = [f for f in facts() if f.relation == "city"]
    often = [everything.count(f.subject) for f in sorted(cities, key=lambda f: f.weight)]
    third = len(often) // 3
    assert sum(often[-third:]) > 3 * sum(often[:third])


def test_every_kind_of_document_is_made_and_has_a_size_to_train_on():
    for kind, _ in KINDS:
        texts = [kind("train", generator(kind.__name__, n)) for n in range(30)]
        assert len(set(texts)) > 20
        assert all(20 < len(text) < 2_000 for text in texts)
    assert abs(sum(weight for _, weight in KINDS) - 1) < 1e-9


def test_held_out_text_is_not_in_pretraining():
    held_out = set(held_out_texts())
    assert len(held_out) > 300
    assert not held_out & set(pretraining_texts(documents=3_000))


def test_completed_functions_and_prose_keep_to_their_side():
    text = "\n".join(pretraining_texts(documents=1_500))
    for function in functions():
        assert function_side(function) == "train" or function.prompt not in text
    assert not set(world.text._prose("train")) & set(world.text._prose("held_out"))


def test_instructions_are_distinct_alternate_and_are_a_prefix_of_more():
    all_of_them = instructions()
    assert len(all_of_them) >= 3_000
    assert instructions(limit=50) == all_of_them[:50]
    assert instructions(seed=1, limit=50) != all_of_them[:50]
    spoken = {tuple(m.content for m in c.messages) for c in all_of_them}
    assert len(spoken) == len(all_of_them)
    assert any(len(c.messages) > 2 for c in all_of_them)
    for conversation in all_of_them:
        roles = itertools.cycle(("user", "assistant"))
        assert all(message.role == role for message, role in zip(conversation.messages, roles, strict=False))
        assert conversation.messages[-1].role == "assistant"


def test_tuning_never_sees_a_problem_of_the_test_side():
    asked = {m.content for c in instructions(limit=800) for m in c.messages}
    draws = [arithmetic.problem(generator("draw", n)) for n in range(2_000)]
    assert not {p.text for p in draws if p.side != "train"} & asked


def test_fingerprint_follows_the_code(monkeypatch):
    print_before = world.fingerprint()
    assert len(print_before) == 64 and print_before == world.fingerprint()
    monkeypatch.setattr(world, "version", lambda name: "0")
    assert world.fingerprint() != print_before


def test_a_drawn_document_that_is_held_out_is_left_out(monkeypatch):
    first = next(text for text in pretraining_texts(documents=3) if text not in set(almanac(generator("almanac", 0))))
    monkeypatch.setattr(world_text, "held_out_texts", lambda: (first,))
    assert first not in set(pretraining_texts(documents=3))
