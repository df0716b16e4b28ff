import math

import numpy as np
import pandas as pd
import pytest
from made_up_outcomes import answers, measured, rows
from scipy import stats
from statsmodels.regression.linear_model import OLS

from llamax.errors import GateError
from llamax.statistics import minimum_detectable_gain, sampling_parts
from llamax.versions.decision import (
    Comparison,
    compare,
    decide,
    p_at_least,
    passes,
    planning_error,
    ruled_out,
    weigh,
    wide_error,
)
from llamax.versions.ladder import Benchmark, ladder
from llamax.versions.measured import item_set
from llamax.versions.sides import Outcomes, Side, read_outcomes

RULE = ladder().rule


def outcomes(table, clusters=None, contaminated=None) -> Outcomes:
    table = np.asarray(table, dtype=float)
    table = table[:, None] if table.ndim == 1 else table
    items = tuple(f"i{i}" for i in range(len(table)))
    leaked = np.zeros(len(table), dtype=bool) if contaminated is None else np.asarray(contaminated)
    return Outcomes(items, table, np.asarray(items if clusters is None else clusters), leaked)


def compared(after, before, clusters=None) -> Comparison:
    new, old = outcomes(after, clusters), outcomes(before, clusters)
    return compare("b", new, old, np.ones(len(new.items), dtype=bool), RULE)


class TestCompare:
    def test_gain_error_and_p_are_those_of_a_cluster_robust_regression(self):
        rng = np.random.default_rng(1)
        clusters = rng.integers(0, 30, 600)
        before = rng.integers(0, 2, 600)
        after = np.where(rng.uniform(size=600) < 0.1, 1, before)
        found = compared(after, before, clusters)
        fit = OLS(after - before, np.ones(600)).fit(cov_type="cluster", cov_kwds={"groups": clusters}, use_t=True)
        correction = math.sqrt((600 - 1) / 600)  # statsmodels multiplies the variance by (n - 1) / (n - k) as well
        assert found.gain == pytest.approx(100 * fit.params[0])
        assert found.standard_error == pytest.approx(100 * fit.bse[0] * correction, rel=1e-3)
        assert found.p_gain == pytest.approx(stats.t.sf(found.gain / found.standard_error, 29))
        assert found.p_requirement == pytest.approx(stats.t.sf((found.gain - 1) / found.standard_error, 29))
        assert (found.items, found.clusters) == (600, 30)
        assert (found.candidate, found.current) == (100 * after.mean(), 100 * before.mean())

    def test_samples_are_averaged_within_an_item(self):
        rng = np.random.default_rng(2)
        after, before = rng.integers(0, 2, (50, 4)), rng.integers(0, 2, (50, 7))
        found = compared(after, before)
        assert found.gain == pytest.approx(100 * (after.mean() - before.mean()))
        assert found.standard_error == pytest.approx(100 * stats.sem(after.mean(axis=1) - before.mean(axis=1)))

    def test_a_single_cluster_is_refused(self):
        with pytest.raises(GateError, match=r"b: 3 items in one cluster: no spread can be known"):
            compared([1, 0, 1], [0, 0, 1], ["s", "s", "s"])

    def test_what_it_takes_to_pass_is_never_below_what_the_test_shows_nor_below_a_point(self):
        small, big = compared(*answers(164, 0.0)), compared(*answers(20_000, 0.0))
        assert small.passes_at == small.detectable > 5
        assert big.detectable < 1 < big.passes_at == pytest.approx(1 + 0.8416 * big.standard_error, abs=1e-3)


class TestThreeAnswers:
    @pytest.mark.parametrize(
        ("n", "gain", "passing", "out"),
        [
            (20_000, 0.02, True, False),
            (20_000, 0.012, True, False),
            (20_000, 0.008, False, False),  # significantly above 0, but not a point
            (20_000, 0.002, False, True),  # and so far below that a point is ruled out
            (20_000, -0.02, False, True),
            (164, 0.03, False, False),  # more than a point, but noise
            (164, 0.0, False, False),
            (164, -0.1, False, True),
        ],
    )
    def test_of_one_benchmark(self, n, gain, passing, out):
        found = compared(*answers(n, gain))
        assert passes(found, RULE) is passing
        assert ruled_out(found, RULE, 5) is out

    def test_exactly_one_point_is_not_more_than_one_point(self):
        found = compared(*answers(100_000, 0.01))
        assert found.gain == pytest.approx(1.0)
        assert found.p_gain < 1e-6
        assert not passes(found.model_copy(update={"gain": 1.0}), RULE)

    def test_ruling_out_is_shared_among_all_looks(self):
        found = compared(*answers(20_000, 0.002)).model_copy(update={"p_below": 0.02})
        assert ruled_out(found, RULE, 2)
        assert not ruled_out(found, RULE, 5)

    @pytest.mark.parametrize(
        ("gains", "answer"),
        [
            ((0.05, 0.05, 0.05), "accept"),
            ((0.05, 0.008, 0.05), "undecided"),
            ((0.05, -0.05, 0.05), "reject"),
            ((0.008, -0.05, 0.05), "reject"),
            ((0.008, 0.008, 0.008), "undecided"),
        ],
    )
    def test_together(self, gains, answer):
        assert decide(weighed({f"b{i}": answers(20_000, gain, seed=i) for i, gain in enumerate(gains)})) == answer


def weighed(tables, *, leaked=0, **changes):
    """The evidence on benchmarks of which `tables` are the outcomes after and before."""
    sides = []
    for which, model in enumerate(("new", "old")):
        frames = [rows(model, name, pair[which], leaked=leaked * (which == 0)) for name, pair in tables.items()]
        said = {frame["benchmark"].iloc[0]: measured(frame, **changes) for frame in frames}
        sides.append(Side(model, None, model, said, pd.concat(frames)))
    return weigh(*sides, [Benchmark(name=name, title=name) for name in tables], RULE)


class TestContamination:
    def test_a_gain_that_lives_in_leaked_items_is_no_gain(self):
        after, before = answers(4000, 0.0, churn=0.04)
        after[:400] = np.maximum(after[:400], np.random.default_rng(0).integers(0, 2, (400, 1)))
        (found,) = weighed({"b": (after, before)}, leaked=400)
        assert passes(found.full, RULE)
        assert not passes(found.clean, RULE)
        assert not found.passes
        assert (found.contaminated, found.clean.items) == (400, 3600)

    def test_a_gain_that_only_the_clean_items_show_is_none_either(self):
        after, before = answers(4000, 0.02, churn=0.04)
        after[:400] = 0.0
        (found,) = weighed({"b": (after, before)}, leaked=400)
        assert passes(found.clean, RULE)
        assert not found.passes

    def test_without_leaks_there_is_one_comparison(self):
        (found,) = weighed({"b": answers(1000, 0.05)})
        assert found.clean is None
        assert found.sets() == [found.full]

    def test_a_leak_adds_a_look(self):
        """The p of "at least a point" lies between 5% / 2 and 5% / 1: of two looks it is no proof, of one it is."""
        tables = {"b": answers(20_000, 0.006)}
        (alone,), (leaky,) = weighed(tables), weighed(tables, leaked=10)
        assert all(0.05 / 2 < one.p_below < 0.05 for one in leaky.sets())
        assert alone.ruled_out and not leaky.ruled_out

    def test_a_leak_on_the_current_side_counts_as_well(self):
        sides = []
        for which, model in enumerate(("new", "old")):
            frame = rows(model, "b", answers(1000, 0.05)[which], leaked=7 * which)
            sides.append(Side(model, None, model, {"b": measured(frame)}, frame))
        (found,) = weigh(*sides, [Benchmark(name="b", title="b")], RULE)
        assert (found.contaminated, found.clean.items) == (7, 993)


class TestReading:
    def test_clusters_and_leaks_are_those_of_their_items_in_whatever_order_rows_come(self):
        """By their ids item 10 comes before item 2, by their places after it."""
        table = np.arange(24, dtype=float)[:, None] / 24
        frame = rows("new", "b", table, leaked=3, subjects=5)
        for order in (frame, frame.sample(frac=1, random_state=1)):
            found = read_outcomes(Side("new", None, "new", {"b": measured(frame)}, order), "b")
            places = [int(item.removeprefix("b/")) for item in found.items]
            assert places != sorted(places) == list(range(24))
            assert found.table[:, 0].tolist() == [place / 24 for place in places]
            assert found.clusters.tolist() == [f"s{place % 5}" for place in places]
            assert found.contaminated.tolist() == [place < 3 for place in places]

    def test_a_leak_that_any_sample_notes_is_a_leak(self):
        frame = rows("new", "b", np.ones((4, 3)))
        frame.loc[(frame["item"] == "b/2") & (frame["sample"] == 1), "contaminated"] = True
        found = read_outcomes(Side("new", None, "new", {"b": measured(frame)}, frame), "b")
        assert found.contaminated.tolist() == [False, False, True, False]


def test_an_item_set_has_neither_order_nor_number():
    assert item_set(["b", "a", "b"]) == item_set(["a", "b"]) != item_set(["a"])


class TestNeeds:
    def test_after_so_many_more_items_a_point_is_shown(self):
        """The same outcomes, over and over, until there are as many as were asked for: 80% power at one point."""
        after, before = answers(1000, 0.005)
        (found,) = weighed({"b": (after, before)}, total=100_000)
        assert found.needs.exist
        assert found.needs.items == 1000 + found.needs.more
        error = found.full.standard_error * math.sqrt(1000 / found.needs.items)
        assert 1 / error == pytest.approx(1.6449 + 0.8416, rel=2e-3)
        assert found.needs.words == f"to show a gain of 1 point, {found.needs.more:,} more items are needed"

    def test_a_lucky_gain_does_not_make_the_plan_smaller_but_is_told(self):
        (found,) = weighed({"b": answers(164, 0.03)}, total=100_000)
        assert found.full.gain > 1
        (none,) = weighed({"b": answers(164, 0.0)}, total=100_000)
        assert found.needs.more == pytest.approx(none.needs.more, rel=0.1)
        assert "if its true gain is the measured 3.0" in found.needs.words
        assert "measured" not in none.needs.words

    def test_close_to_the_requirement_the_distance_is_planned_for(self):
        (found,) = weighed({"b": answers(20_000, 0.008)}, total=10**9)
        assert found.full.detectable < 1
        assert "to tell 0.80 from 1 point, " in found.needs.words
        wide = 100 * wide_error(found.full.standard_error / 100, 20_000, 0.01)
        power = stats.norm.sf(stats.norm.isf(0.05) - 0.2 / (wide * math.sqrt(20_000 / found.needs.items)))
        assert power == pytest.approx(0.8, abs=0.002)

    def test_the_distance_is_planned_for_as_one_of_all_looks(self):
        found = weighed({name: answers(20_000, 0.008) for name in ("a", "b")}, total=10**9)[0]
        wide = 100 * wide_error(found.full.standard_error / 100, 20_000, 0.01)
        power = stats.norm.sf(stats.norm.isf(0.05 / 2) - 0.2 / (wide * math.sqrt(20_000 / found.needs.items)))
        assert power == pytest.approx(0.8, abs=0.002)

    def test_as_many_items_as_are_left_are_enough(self):
        tables = {"b": answers(1000, 0.005)}
        more = weighed(tables, total=10**6)[0].needs.more
        for left, exist in ((more, True), (more - 1, False)):
            assert weighed(tables, total=1000 + left)[0].needs.exist is exist

    def test_of_clean_items_more_have_to_be_asked_since_some_will_have_leaked(self):
        after, before = answers(4000, 0.005)
        after[:1000] = np.maximum(after[:1000], np.random.default_rng(0).integers(0, 2, (1000, 1)))
        (found,) = weighed({"b": (after, before)}, leaked=1000, total=10**6)
        assert passes(found.full, RULE)
        error = found.clean.standard_error * math.sqrt(3000 / (0.75 * found.needs.items))
        assert 1 / error == pytest.approx(1.6449 + 0.8416, rel=2e-3)

    def test_a_benchmark_without_more_items_says_so(self):
        (found,) = weighed({"humaneval": answers(164, 0.03)}, max_new_tokens=1024)
        assert not found.needs.exist
        assert "but the benchmark has no more. The 164 that were asked show gains from 6." in found.needs.words
        assert (
            "More samples per problem would help as far as sampling blurs the gain, which these do not tell"
            in found.needs.words
        )
        assert found.needs.samples is None

    def test_choices_are_not_sampled(self):
        (found,) = weighed({"b": answers(164, 0.03)})
        assert "sampl" not in found.needs.words
        assert found.needs.words.endswith(" points on")

    def test_samples_that_would_do_are_counted_and_do(self):
        """Every problem is solved with the same chance, so all variance is sampling: k samples divide it by k."""
        rng = np.random.default_rng(0)
        after, before = (rng.uniform(size=(2, 1000, 8)) < 0.5).astype(float)
        (found,) = weighed({"humaneval": (after, before)}, max_new_tokens=1024, temperature=0.8)
        assert found.needs.samples > 8
        error = 100 * math.sqrt(2 * 0.25 / found.needs.samples / 1000)
        assert 1 / error == pytest.approx(1.6449 + 0.8416, rel=0.15)
        assert f". Or ask {found.needs.samples:,} samples per problem instead of 8" in found.needs.words

    def test_where_problems_differ_no_number_of_samples_will_do(self):
        after, before = answers(164, 0.03, samples=8)  # a problem is always solved or never: nothing is sampling
        (found,) = weighed({"humaneval": (after, before)}, max_new_tokens=1024, temperature=0.8)
        assert found.needs.samples is None
        assert f"even endless ones show gains from {found.full.detectable:.1f} points" in found.needs.words

    def test_what_endless_samples_would_show_is_less_than_what_these_show(self):
        """Half of the problems are solved or not for good, the others by chance: only the latter's error goes."""
        rng = np.random.default_rng(1)
        after, before = answers(400, 0.0, churn=0.3, samples=4)
        after[200:], before[200:] = (rng.uniform(size=(2, 200, 4)) < 0.5).astype(float)
        (found,) = weighed({"humaneval": (after, before)}, max_new_tokens=1024, temperature=0.8)
        floor = 100 * sampling_parts(after, before).floor
        assert found.needs.samples is None and floor < 0.95 * found.full.standard_error
        assert (
            f"even endless ones show gains from {minimum_detectable_gain(floor, 399):.1f} points" in found.needs.words
        )

    def test_models_that_agree_everywhere_on_few_items_are_undecided_with_a_plan(self):
        before = answers(50, 0.0)[1]
        (found,) = weighed({"b": (before, before)}, total=10**6)
        assert not found.ruled_out
        assert found.full.standard_error == 0
        assert 500 < found.needs.more < 10_000

    def test_passing_and_ruled_out_benchmarks_need_nothing(self):
        found = weighed({"up": answers(20_000, 0.05), "down": answers(20_000, -0.05)})
        assert [one.needs for one in found] == [None, None]


def test_few_differing_items_do_not_look_like_certainty():
    """Of 164 items none differs: with a true gain of a point and no loss that happens with chance 0.99^164 = 19%."""
    assert p_at_least(0.0, 0.0, 164, 163, 0.01) == pytest.approx(stats.t.sf(0.01 / math.sqrt(0.0099 / 164), 163))
    assert p_at_least(0.0, 0.0, 164, 163, 0.01) > 0.09
    assert planning_error(0.0, 164, 0.01) == pytest.approx(math.sqrt(0.0099 / 164))
    assert planning_error(0.02, 164, 0.01) == 0.02
    # On thousands of items it vanishes: MMLU's size and a churn of ten percent.
    assert wide_error(0.0027, 14_042, 0.01) == pytest.approx(0.0027, rel=0.06)


# Operating characteristics. Outcomes are drawn anew each time: `up` and `down` are the chances that an item changes.


def draw(rng, n, gain, churn):
    changes = rng.choice([1, 0, -1], size=n, p=[(churn + gain) / 2, 1 - churn, (churn - gain) / 2])
    return np.where(changes == 1, 1.0, 0.0), np.where(changes == -1, 1.0, 0.0)


def answer_of(rng, sizes, gains, churn=0.1):
    found = [compared(*draw(rng, n, gain, churn), np.arange(n)) for n, gain in zip(sizes, gains, strict=True)]
    if all(passes(one, RULE) for one in found):
        return "accept"
    return "reject" if any(ruled_out(one, RULE, len(found)) for one in found) else "undecided"


def rates(sizes, gains, times, churn=0.1, seed=0):
    rng = np.random.default_rng(seed)
    found = [answer_of(rng, sizes, gains, churn) for _ in range(times)]
    return {answer: found.count(answer) / times for answer in ("accept", "reject", "undecided")}


def test_what_is_simulated_is_what_the_gate_answers():
    cases = [((900, 900), (0.05, 0.05)), ((900, 164), (0.05, 0.05)), ((900, 900), (0.05, -0.03))]
    seen = set()
    for seed, (sizes, gains) in enumerate(3 * cases):
        rng = np.random.default_rng(seed)
        drawn = {f"b{i}": draw(rng, n, gain, 0.1) for i, (n, gain) in enumerate(zip(sizes, gains, strict=True))}
        tables = {name: (after[:, None], before[:, None]) for name, (after, before) in drawn.items()}
        seen.add(answer := answer_of(np.random.default_rng(seed), sizes, gains))
        assert answer == decide(weighed(tables))
    assert seen == {"accept", "reject", "undecided"}


def noise(times):
    """Three standard errors of a share of 5% found in so many simulations."""
    return 3 * math.sqrt(0.05 * 0.95 / times)


@pytest.mark.parametrize("which", [0, 2])
def test_no_gain_on_one_benchmark_and_thirty_points_on_the_others_is_accepted_in_at_most_five_percent(which):
    gains = [0.3] * 3
    gains[which] = 0.0
    found = rates((1319, 817, 164), gains, 400, churn=0.35)
    assert 0.02 < found["accept"] <= 0.05 + noise(400)


def test_no_gain_on_one_small_benchmark_uses_the_whole_level_and_no_more():
    assert 0.03 < rates((164,), (0.0,), 1200)["accept"] < 0.05 + noise(1200)


def test_on_a_big_benchmark_the_point_that_is_asked_for_makes_luck_rarer_still():
    assert rates((14_042,), (0.0,), 50)["accept"] == 0
    assert rates((14_042,), (0.01,), 150)["accept"] == pytest.approx(0.5, abs=0.12)  # exactly a point: a coin's toss


def test_five_points_everywhere_are_accepted_where_the_benchmarks_are_big_enough():
    assert rates((1500,) * 5, (0.05,) * 5, 50)["accept"] > 0.98
    assert rates((1500,) * 2 + (164,), (0.05,) * 3, 100)["accept"] < 0.8  # 164 items are not


def test_the_power_is_the_one_that_the_comparison_promises():
    rng = np.random.default_rng(3)
    promised = np.mean([compared(*draw(rng, 800, 0.0, 0.1)).passes_at for _ in range(50)]) / 100
    assert rates((800,), (promised,), 800)["accept"] == pytest.approx(0.8, abs=0.045)


@pytest.mark.parametrize("churn", [0.011, 0.1])
def test_a_point_everywhere_is_rejected_in_at_most_five_percent(churn):
    """Of items that change, nearly all change for the better at a churn of 0.011: skewed, and few of them."""
    assert rates((164, 300, 817), (0.01,) * 3, 300, churn=churn)["reject"] <= 0.05 + noise(300)


def test_a_loss_on_a_big_benchmark_is_rejected():
    assert rates((4000, 4000), (0.05, -0.02), 60)["reject"] > 0.95
