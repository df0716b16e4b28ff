from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from llamax.generation import prefixes
from llamax.generation.prefixes import alike, common_prefix, group_by_prefix

SHOTS = {subject: list(range(subject * 1000, subject * 1000 + 300)) for subject in (1, 2, 3)}


def test_subjects_with_shots_of_their_own_are_groups_of_their_own():
    contexts = [[7, *SHOTS[subject], 50 + n, 60 + n, 9] for n, subject in product(range(6), SHOTS)]
    found = group_by_prefix(contexts)
    assert [(len(group.members), group.prefix) for group in found] == [(6, 301)] * 3
    for group in found:
        assert len({tuple(contexts[member][:301]) for member in group.members}) == 1


def test_what_does_not_pay_is_left_alone():
    assert group_by_prefix([[1, 2, 3], [1, 2, 4], [5]]) == [([0, 1, 2], 0)]
    assert group_by_prefix([]) == []
    short = [[*range(prefixes.SHORTEST - 1), 100 + n, 0] for n in range(200)]
    assert group_by_prefix(short) == [(list(range(200)), 0)]
    enough = [[*range(prefixes.SHORTEST), 100 + n, 0] for n in range(200)]
    assert [(len(group.members), group.prefix) for group in group_by_prefix(enough)] == [(200, prefixes.SHORTEST)]


def test_the_last_token_stays_out_of_the_prefix():
    same = [list(range(400))] * 3
    assert [(sorted(group.members), group.prefix) for group in group_by_prefix(same)] == [([0, 1, 2], 399)]


def test_chains_do_not_exhaust_the_stack():
    chain = [[1] * (length + 1) for length in range(3000)]
    assert sorted(m for group in group_by_prefix(chain) for m in group.members) == list(range(3000))


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=12), max_size=30), st.integers(0, 20))
def test_groups_are_a_partition_that_shares_what_it_says(sequences, price):
    old, prefixes.PRICE, shortest, prefixes.SHORTEST = prefixes.PRICE, price, prefixes.SHORTEST, 1
    try:
        found = group_by_prefix(sequences)
    finally:
        prefixes.PRICE, prefixes.SHORTEST = old, shortest
    assert sorted(member for group in found for member in group.members) == list(range(len(sequences)))
    for group in found:
        first = sequences[group.members[0]]
        for member in group.members:
            assert common_prefix(first, sequences[member]) >= group.prefix
            assert len(sequences[member]) > group.prefix
    saved = sum((len(group.members) - 1) * group.prefix - price for group in found if group.prefix)
    whole = min((common_prefix(sequences[0], s) for s in sequences), default=0)
    whole = min([whole, *(len(s) - 1 for s in sequences)])
    assert saved >= (len(sequences) - 1) * whole - price or not whole


def test_batches_are_padded_little_once_they_are_big_enough():
    assert alike([100] * 20, 4096) == 20
    assert alike([100, 90, 80, 10, 10], 4096) == 5  # too small a batch to be choosy
    assert alike([100] * 6 + [89], 4096) == 6
    assert alike([100] * 6 + [90], 4096) == 7
    assert alike([100] * 20, 1000) == 10
    assert alike([100] * 2, 50) == 1
