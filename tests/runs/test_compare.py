from llamax.runs import Metric, compare


def records(*, again):
    """Two records that hold only metrics, by name: (value, low, high)."""

    class Fake:
        def __init__(self, metrics):
            self.metrics = {n: Metric(name=n, value=v, low=low, high=high) for n, (v, low, high) in metrics.items()}

    published = {"a": (0.5, 0.4, 0.6), "b": (0.5, None, None)}
    return Fake(published), Fake(again)


def test_the_same_numbers_are_reproduced():
    found = compare(*records(again={"a": (0.5, 0.4, 0.6), "b": (0.5, None, None)}))
    assert str(found) == "reproduced: 2 of 2 numbers identical"


def test_a_number_may_be_within_the_published_interval_or_outside_it():
    assert compare(*records(again={"a": (0.6, 0.5, 0.7), "b": (0.5, None, None)})) == (["b"], ["a"], [])
    assert compare(*records(again={"a": (0.61, 0.5, 0.7), "b": (0.5, None, None)})) == (["b"], [], ["a"])


def test_a_number_that_is_absent_or_has_no_interval_is_different():
    found = compare(*records(again={"b": (0.51, 0.5, 0.6)}))
    assert found == ([], [], ["a", "b"])
    assert str(found) == "0 of 2 numbers identical; 0 within their interval; 2 different: a, b"


def test_where_no_spread_was_seen_the_new_interval_decides():
    class Fake:
        def __init__(self, value, low, high):
            self.metrics = {"a": Metric(name="a", value=value, low=low, high=high)}

    assert compare(Fake(0.0, 0.0, 0.0), Fake(0.01, -0.01, 0.03)) == ([], ["a"], [])
    assert compare(Fake(0.0, 0.0, 0.0), Fake(0.2, 0.1, 0.3)) == ([], [], ["a"])
    assert compare(Fake(0.0, 0.0, 0.0), Fake(0.2, None, None)) == ([], [], ["a"])
