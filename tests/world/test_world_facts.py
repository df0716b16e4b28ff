"""Facts against what anybody can look up, and the rules they must keep."""

from collections import Counter

from llamax.data.world.facts import by_relation, demonym, facts, side


def answer(relation, subject):
    return next(fact for fact in by_relation()[relation] if fact.subject == subject)


def test_known_facts():
    assert answer("currency", "Brazil").answer == "real"
    assert answer("currency", "Estonia").answer == "euro"
    assert answer("former_currency", "Germany").answer == "mark"
    assert answer("former_currency", "Estonia").answer == "kroon"
    assert answer("language", "Austria").answer == "German"
    assert {answer("language", "Belgium").answer, *answer("language", "Belgium").others} == {
        "Dutch", "French", "German",
    }  # fmt: skip
    assert answer("country_code", "Switzerland").answer == "CH"
    assert answer("currency_code", "Japanese yen").answer == "JPY"
    assert answer("script", "Greek").answer == "Greek"
    assert answer("region", "Kenya").answer == "Africa"
    assert answer("weekday", "Monday in French").answer == "lundi"
    assert answer("unit", "speed of light in vacuum").answer == "m s^-1"
    assert answer("value", "speed of light in vacuum").answer == "3.00e+08"
    assert demonym("BR") == "Brazilian" and demonym("AT") == "Austrian"


def test_the_world_does_not_depend_on_the_day(monkeypatch):
    """CLDR's currencies are asked for as of a fixed day: a world of tomorrow is the world of today."""
    import datetime

    import babel.numbers

    class Later(datetime.date):
        @classmethod
        def today(cls):
            return cls(1990, 1, 1)

    before = facts()
    monkeypatch.setattr(babel.numbers, "date_", Later, raising=False)
    facts.cache_clear()
    assert facts() == before


def test_keys_are_unique_and_a_tempting_option_is_false():
    keys = [fact.key for fact in facts()]
    assert len(keys) == len(set(keys)) > 1_000
    for fact in facts():
        assert fact.answer and fact.tempting not in (fact.answer, *fact.others)


def test_every_side_has_enough_facts_and_temptation_decides_the_task():
    counts = Counter(side(fact) for fact in facts())
    assert counts["knowledge"] >= 200 and counts["open_qa"] >= 150 and counts["truthfulness"] >= 150
    assert counts["train"] > len(facts()) / 2
    for fact in facts():
        assert (side(fact) == "truthfulness") <= bool(fact.tempting)
        assert bool(fact.tempting) <= (side(fact) in ("train", "truthfulness"))
