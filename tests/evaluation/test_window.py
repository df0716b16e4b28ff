"""A prompt that does not fit is refused, and the items that it belongs to are named."""

import pytest

from llamax.errors import ModelError
from llamax.evaluation.harness import item_of, prepare
from llamax.evaluation.window import check_window


def test_what_fits_passes_to_the_last_token():
    check_window(["a/0", "a/1"], [10, 12], 12)
    check_window([], [], 1)


def test_items_are_counted_once_and_the_first_few_named():
    items = [f"gsm8k/{n // 2}" for n in range(12)]  # two requests each
    with pytest.raises(ModelError) as caught:
        check_window(items, [20 + n for n in range(12)], 23)
    assert str(caught.value).startswith(
        "4 of 6 items need more tokens than the model's window of 23: "
        "gsm8k/2 (25), gsm8k/3 (27), gsm8k/4 (29) and 1 more;"
    )
    with pytest.raises(ModelError, match=r"1 of 2 items need .* of 23: b/1 \(24\); ask for fewer shots"):
        check_window(["b/0", "b/1"], [23, 24], 23)


def test_a_request_knows_its_item(local_data):
    (part,) = prepare("gsm8k", 1)
    assert item_of(part.requests[0]) == f"gsm8k/{part.requests[0].doc_id}"
