"""Two records of the same run, number by number: was it reproduced?"""

from typing import NamedTuple

from llamax.runs.records import Metric, Record


class Comparison(NamedTuple):
    """Names of the published record's metrics, by how another record of the same run repeats them."""

    identical: list[str]
    within: list[str]  # another value, inside the published 95% interval
    different: list[str]  # outside it, or without an interval, or absent

    def __str__(self) -> str:
        total = sum(map(len, self))
        if len(self.identical) == total:
            return f"reproduced: {total} of {total} numbers identical"
        within, different = (f": {', '.join(names)}" if names else "" for names in (self.within, self.different))
        return (
            f"{len(self.identical)} of {total} numbers identical; {len(self.within)} within their interval{within}; "
            f"{len(self.different)} different{different}"
        )


def compare(published: Record, again: Record) -> Comparison:
    """Sort the metrics of `published` by what became of them in `again`."""
    found = Comparison([], [], [])
    for name, metric in published.metrics.items():
        found[_fate(metric, again.metrics.get(name))].append(name)
    return found


def _fate(published: Metric, again: Metric | None) -> int:
    """Which list of `Comparison` a metric belongs to."""
    if again is None:
        return 2
    if again == published:
        return 0
    if published.low is None or published.high is None:
        return 2
    # No item right of 150 has the interval [0, 0], and one right is no contradiction: there the new interval decides.
    judge, value = (again, published.value) if published.low == published.high else (published, again.value)
    return 1 if judge.low is not None and judge.low <= value <= judge.high else 2
