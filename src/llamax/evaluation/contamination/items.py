"""The test items of benchmarks, as the contamination check takes them."""

from collections.abc import Iterable, Sequence

from llamax.errors import ParameterError
from llamax.evaluation.contamination.index import Item

ALL = "all"  # of Type A
NANO = "nano"


def benchmark_names(against: str) -> list[str]:
    """Names of "mmlu,gsm8k"; `all`: every benchmark of Type A. Raises: ParameterError: unknown, twice, or none."""
    from llamax.evaluation.definitions import find, names

    if against == ALL:
        return [name for name in names() if find(name).extras.type == "A"]
    asked = [name.strip() for name in against.split(",") if name.strip()]
    if not asked or len(set(asked)) < len(asked):
        raise ParameterError(f"--against {against!r}: should be benchmarks, each once, with commas between, or {ALL}")
    for name in asked:
        if name != NANO:
            find(name)
    return asked


def benchmark_items(benchmarks: Iterable[str]) -> list[Item]:
    """All items of the benchmarks (`nano`: the small world's suite).

    Raises: ParameterError: no such benchmark. DataError: its data is not there.
    """
    return [item for name in benchmarks for item in (_nano() if name == NANO else _public(name))]


def _public(name: str) -> list[Item]:
    from llamax.evaluation.questions import questions

    return [Item(name, one.item, f"{one.text}\n{one.options}", one.text) for one in questions(name)]


def _nano() -> Sequence[Item]:
    from llamax.data.world.items import test_items

    return [Item(NANO, one.id, "\n".join((one.question, *one.choices)), one.question) for one in test_items()]
