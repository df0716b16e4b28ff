"""Two systems on the same items: everything that says how far apart they are, as figures, a table and a sentence."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from llamax.errors import DataError, ParameterError
from llamax.statistics.bootstrap import paired_bootstrap
from llamax.statistics.estimates import paired_difference
from llamax.statistics.power import LEVEL, POWER, minimum_detectable_gain, one_sided_p, required_items, sampling_parts
from llamax.statistics.significance import exact_mcnemar

FEW_CLUSTERS = 10  # below it a clustered standard error is itself a rough estimate (Cameron & Miller 2015)


class PairedComparison(NamedTuple):
    """System B against system A on `n` items in `clusters` clusters; differences are B minus A.

    Values are in `unit`: points (hundredths) where every outcome lies in 0..1, else the outcomes' own unit.
    `standard_error`, `low`, `high` and `p_value` (two-sided, against zero) count clusters; the plain one does not.
    `standard_error_floor`, which endless samples of the same items would leave, is None with one sample an item.
    `mcnemar_p`, `only_a` and `only_b`, of items that one of the two alone got right, are None unless every outcome is 0
    or 1. `margin_p` is the one-sided p of "the gain is at most `margin`", and the minimum detectable gain belongs to
    that test at 5% with power 80%. `items_for_one_more`: items that would show a gain one point above the margin.
    """

    unit: str
    n: int
    clusters: int
    mean_a: float
    mean_b: float
    difference: float
    plain_standard_error: float
    standard_error: float
    standard_error_floor: float | None
    low: float
    high: float
    p_value: float
    bootstrap_low: float
    bootstrap_high: float
    mcnemar_p: float | None
    only_a: int | None
    only_b: int | None
    margin: float
    margin_p: float
    minimum_detectable_gain: float
    items_for_one_more: int | None


def compare_outcomes(
    a: np.ndarray, b: np.ndarray, clusters: Sequence | None = None, *, margin: float = 0.0
) -> PairedComparison:
    """Compare outcomes [items] or [items, samples] of system B with those of system A on the same items.

    Without `clusters` every item is its own. `margin` is in the unit of the result.

    Raises: ParameterError: as `paired_difference`, or a margin that is not finite; DataError: a single cluster.
    """
    if not math.isfinite(margin):
        raise ParameterError(f"a margin is a finite number, found {margin}")
    floor = _floor(a, b, clusters)
    a, b = (np.asarray(side, dtype=float).reshape(len(side), -1).mean(axis=1) for side in (a, b))
    found, plain = paired_difference(b, a, clusters), paired_difference(b, a)
    count = len(set(clusters)) if clusters is not None else found.n
    if count < 2:
        one = "there is only one item" if found.n == 1 else f"all {found.n} items are one cluster"
        raise DataError(f"{one}: the spread between clusters cannot be known from it")
    both = np.concatenate([a, b])
    in_points = both.min() >= 0 and both.max() <= 1
    scale = 100.0 if in_points else 1.0
    bootstrap = paired_bootstrap(b, a, clusters)
    values = [a.mean(), b.mean(), found.value, plain.standard_error, found.standard_error]
    # Outcomes that never differ, or always by the same, tell no spread: then nothing can be said of what would show.
    error = found.standard_error or math.nan
    gain = minimum_detectable_gain(error, count - 1, margin=margin / scale)
    only_a, only_b, mcnemar = _discordant(a, b)
    return PairedComparison(
        "points" if in_points else "units",
        found.n,
        count,
        *(scale * float(value) for value in values),
        None if floor is None else scale * floor,
        scale * found.low,
        scale * found.high,
        found.p_value,
        scale * bootstrap.low,
        scale * bootstrap.high,
        mcnemar,
        only_a,
        only_b,
        margin,
        one_sided_p(b, a, clusters, margin=margin / scale),
        scale * gain,
        _items_for_one_more(a, b, clusters, margin / scale) if in_points else None,
    )


def _floor(a: np.ndarray, b: np.ndarray, clusters: Sequence | None) -> float | None:
    """The standard error without sampling variance, where both sides were sampled more than once."""
    several = all(np.ndim(side) == 2 and np.shape(side)[1] > 1 for side in (a, b))
    return sampling_parts(b, a, clusters).floor if several else None


def _discordant(a: np.ndarray, b: np.ndarray) -> tuple[int | None, int | None, float | None]:
    """Items that only A, and that only B, got right, and McNemar's exact p; None for outcomes other than 0 and 1."""
    if not set(np.unique([a, b])) <= {0.0, 1.0}:
        return None, None, None
    only_a, only_b = int(np.sum(a > b)), int(np.sum(b > a))
    return only_a, only_b, exact_mcnemar(only_b, only_a)


def _items_for_one_more(a: np.ndarray, b: np.ndarray, clusters: Sequence | None, margin: float) -> int | None:
    """Items that show a gain of one point above the margin; None where the spread is not known."""
    try:
        return required_items(b, a, clusters, gain=margin + 0.01, margin=margin)
    except ParameterError:
        return None


def as_json(found: PairedComparison, names: tuple[str, str], only: tuple[int, int] = (0, 0)) -> dict[str, Any]:
    """The comparison as a JSON object; what is not known is null."""
    figures = {key: None if value != value else value for key, value in found._asdict().items()}
    said = {"level": LEVEL, "power": POWER, "conclusion": conclusion(found)}
    return {"a": names[0], "b": names[1], **figures, "left_out_a": only[0], "left_out_b": only[1], **said}


def as_table(found: PairedComparison, names: tuple[str, str], cluster: str | None = None) -> str:
    """The comparison as aligned lines that end with a plain sentence. `cluster`: what the clusters are called."""
    by = f"by {cluster or 'cluster'} ({found.clusters} clusters)"
    clustered = found.clusters < found.n
    lines = [("A", _number(found, found.mean_a), names[0]), ("B", _number(found, found.mean_b), names[1])]
    lines += [("B − A", _number(found, found.difference, "+"), f"{found.unit}, {found.n} items")]
    lines += [("standard error, plain", _number(found, found.plain_standard_error), "as if items were independent")]
    if clustered:
        lines += [("standard error, clustered", _number(found, found.standard_error), by)]
    if found.standard_error_floor is not None:
        floor = _number(found, found.standard_error_floor)
        lines += [("  of it not from sampling", floor, "what endless samples of these items would leave")]
    lines += [("95% interval, t", _interval(found, found.low, found.high), by if clustered else "")]
    lines += [("95% interval, bootstrap", _interval(found, found.bootstrap_low, found.bootstrap_high), "BCa")]
    if found.mcnemar_p is None:
        lines += [("McNemar's exact p", "none", "outcomes are not all 0 or 1")]
    else:
        right = f"only B right: {found.only_b}, only A right: {found.only_a}"
        lines += [("McNemar's exact p", _p(found.mcnemar_p), right + (", clusters ignored" if clustered else ""))]
    lines += [(f"p of gain ≤ {found.margin:g}", _p(found.margin_p), f"one-sided t{', clustered' if clustered else ''}")]
    shown = _number(found, found.minimum_detectable_gain)
    lines += [("minimum detectable gain", shown, f"{found.unit}, one-sided 5%, power 80%")]
    widths = [max(len(line[column]) for line in lines) for column in (0, 1)]
    table = [f"{label.ljust(widths[0])}  {value.rjust(widths[1])}  {note}".rstrip() for label, value, note in lines]
    return "\n".join([*table, "", conclusion(found)])


def conclusion(found: PairedComparison) -> str:
    """What the comparison shows, in a plain sentence or two."""
    value = _number(found, abs(found.difference))
    units = "clusters" if found.clusters < found.n else "items"
    interval = f"95% interval {_number(found, found.low, '+')} to {_number(found, found.high, '+')}"
    if found.standard_error == 0:
        said = (
            f"B − A is {_number(found, found.difference, '+')} {found.unit} on every one of {found.clusters} {units}:"
        )
        said += " without spread there is no interval, and what could be detected is not known."
    elif found.low > 0 or found.high < 0:
        said = f"B is {'better' if found.low > 0 else 'worse'} than A by {value} {found.unit} ({interval})."
    else:
        detectable = _number(found, found.minimum_detectable_gain)
        said = (
            f"No difference is shown ({interval}); a true gain under {detectable} {found.unit} would often be missed."
        )
        if found.items_for_one_more is not None:
            items = f"{_round(found.items_for_one_more):,} such items"
            said += f" To show a gain of {_amount(found, found.margin + 1)} takes about {items}."
    if found.margin:
        shown = "is shown" if found.margin_p <= LEVEL else "is not shown"
        p_value = _p(found.margin_p) if found.margin_p < 1e-4 else f"= {_p(found.margin_p)}"
        said += f" A gain of more than {_amount(found, found.margin)} {shown} (one-sided p {p_value})."
    if found.clusters < FEW_CLUSTERS:
        said += f" With {found.clusters} {units} the standard error is itself a rough guess."
    return said


def _number(found: PairedComparison, value: float, sign: str = "") -> str:
    if math.isnan(value):
        return "unknown"
    return format(value, f"{sign}.2f" if found.unit == "points" else f"{sign}.4g").replace("-", "−")


def _amount(found: PairedComparison, value: float) -> str:
    return f"{value:g} {found.unit.removesuffix('s') if value == 1 else found.unit}"


def _interval(found: PairedComparison, low: float, high: float) -> str:
    return f"[{_number(found, low)}, {_number(found, high)}]"


def _p(value: float) -> str:
    return "< 0.0001" if value < 1e-4 else f"{value:.2g}" if value < 0.1 else f"{value:.2f}"


def _round(items: int) -> int:
    """A planned number of items to two digits: more would be false precision."""
    digits = 10 ** max(0, len(str(items)) - 2)
    return math.ceil(items / digits) * digits
