"""A prompt that a model cannot see whole is refused, not cut: without its first shots it is another prompt."""

from collections.abc import Sequence

from llamax.errors import ModelError

SHOWN = 3


def check_window(items: Sequence[str], lengths: Sequence[int], window: int) -> None:
    """Raise `ModelError` if an item needs more tokens than the model's window; it names how many and the first few.

    items: whose request it is, `harness.item_of(request)`; an item may come more than once.
    lengths: tokens that must be in the window together: the prompt with the longest option or the longest answer asked.
    window: tokens that the model sees at once.
    """
    needs: dict[str, int] = {}
    for item, length in zip(items, lengths, strict=True):
        needs[item] = max(length, needs.get(item, 0))
    long = {item: length for item, length in needs.items() if length > window}
    if long:
        named = ", ".join(f"{item} ({length})" for item, length in list(long.items())[:SHOWN])
        more = f" and {len(long) - SHOWN} more" if len(long) > SHOWN else ""
        raise ModelError(
            f"{len(long)} of {len(needs)} items need more tokens than the model's window of {window}: {named}{more}; "
            "ask for fewer shots or fewer new tokens, or take a model with a longer window"
        )
