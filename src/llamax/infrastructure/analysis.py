"""From seconds and bytes to the study's numbers: tokens per second, MFU, memory, and how far the plan was off.

Tables: `ways`, one row per way and repeat (key, repeat, seconds, real, supervised, padded, flops, rate, bf16_rate);
`parity`, one per way (key, loss, norm, in fp32); `cases`, one per case and timed step (kind, case, step, seconds, real,
supervised, flops, rate, and of the case: length, micro_batch, peak, planned, at); `parts`, seconds by kind; `loop`,
seconds of each step of the loop alone and of a whole step.
"""

import numpy as np
import pandas as pd

from llamax import statistics
from llamax.errors import TrainingError
from llamax.runs.records import Metric

SAME_LOSS, SAME_NORM = 1e-4, 1e-3
"""Nats per token, and the share of the gradient's norm, by which two ways in fp32 may differ."""


def metric(name: str, values: pd.Series, unit: str) -> Metric:
    """The geometric mean over repeats with its 95% interval, from their logarithms: rates and shares are positive."""
    found = statistics.combine(np.log(values.to_numpy(float))[None])
    value, low, high = (float(np.exp(number)) for number in (found.value, found.low, found.high))
    error = value * found.standard_error
    return Metric.of(name, found._replace(value=value, standard_error=error, low=low, high=high), unit)


def rates(ways: pd.DataFrame) -> pd.DataFrame:
    """Per way and repeat: tokens per second, MFU of the precision's own rate and of bf16's, and times the first way."""
    found = ways[["key", "repeat"]].copy()
    for name in ("real", "supervised", "padded"):
        found[name] = ways[name] / ways.seconds
    found["mfu"] = ways.flops / ways.seconds / ways.rate
    found["mfu_of_bf16"] = ways.flops / ways.seconds / ways.bf16_rate
    first = ways[ways.key == ways.key.iloc[0]].set_index("repeat").seconds
    found["speedup"] = ways.repeat.map(first) / ways.seconds
    return found


def waterfall(ways: pd.DataFrame, memory: pd.DataFrame) -> pd.DataFrame:
    """Mean of every way, for reading; memory in MiB."""
    shown = rates(ways).drop(columns="repeat").groupby("key", sort=False).mean()
    return shown.assign(memory=memory.set_index("key").peak / 2**20).round(3)


def check_parity(parity: pd.DataFrame) -> tuple[float, float]:
    """Largest difference of loss (nats) and gradient norm (share) between ways in fp32, from the first.

    Raises: TrainingError: a way changes what is computed, which no speed excuses.
    """
    loss = (parity.loss - parity.loss.iloc[0]).abs().fillna(np.inf)
    norm = (parity.norm / parity.norm.iloc[0] - 1).abs().fillna(np.inf)
    for name, found, most in (("loss", loss, SAME_LOSS), ("gradient norm", norm, SAME_NORM)):
        if found.max() > most:
            key = parity.key[found.idxmax()]
            raise TrainingError(
                f"way {key!r} in fp32: its {name} differs by {found.max():.2g} from the first way's, at most {most:g} "
                "is rounding: it computes something else"
            )
    return float(loss.max()), float(norm.max())


def throughput(cases: pd.DataFrame) -> pd.DataFrame:
    """One row per case: real tokens per second of each step (mean, lowest, highest), MFU, memory and plan in MiB."""
    table = cases.assign(speed=cases.real / cases.seconds, mfu=cases.flops / cases.seconds / cases.rate)
    groups = table.groupby(["kind", "case"], sort=False)
    found = groups.agg(
        tokens_per_second=("speed", "mean"), lowest=("speed", "min"), highest=("speed", "max"), mfu=("mfu", "mean"),
        length=("length", "first"), micro_batch=("micro_batch", "first"),
        memory=("peak", "first"), planned=("planned", "first"), at=("at", "first"),
    ).reset_index()  # fmt: skip
    found[["memory", "planned"]] /= 2**20
    return found.assign(error=found.planned / found.memory - 1)


def planned_seconds(cases: pd.DataFrame) -> pd.DataFrame:
    """Seconds of a step, measured (median), and planned: its FLOPs at the measured rate and the kind's first MFU."""
    groups = cases.groupby(["kind", "case"], sort=False)
    found = groups.agg(measured=("seconds", "median"), flops=("flops", "mean"), rate=("rate", "first")).reset_index()
    first = found.groupby("kind").first()
    mfu = found.kind.map(first.flops / first.measured / first.rate)
    found["planned"] = found.flops / (found.rate * mfu)
    return found.assign(error=found.planned / found.measured - 1)[["kind", "case", "measured", "planned", "error"]]


def breakdown(parts: pd.DataFrame, loop: pd.DataFrame) -> pd.Series:
    """Share of a step by kind; what the profiler saw between operations is Python's, a part of it the loop's own."""
    found = parts.set_index("kind").seconds / parts.seconds.sum()
    own = min(overhead(loop).mean(), found["Python"])
    return pd.concat([found.drop("Python"), pd.Series({"model's Python": found["Python"] - own, "loop": own})])


def overhead(loop: pd.DataFrame) -> pd.Series:
    """The loop's own share of a step: its seconds alone over those of a whole step."""
    return loop.alone / loop.whole.median()


def metrics(tables: dict[str, pd.DataFrame]) -> list[Metric]:
    """Every number of the study.

    Names: `waterfall.<way>.tokens_per_second` (supervised), `.real_per_second`, `.padded_per_second`, `.mfu`,
    `.mfu_of_bf16`, `.speedup`, `.memory`; `waterfall.largest_difference.loss` and `.norm`; `<kind>.<case>.memory` and
    `.tokens_per_second`; `plan.error.largest`, `plan.error.mean`, `plan.time_error.median`; `overhead.share`,
    `step.<part>`.
    """
    found = way_metrics(tables["ways"])
    found += [
        Metric(name=f"waterfall.{row.key}.memory", value=row.peak, unit="bytes")
        for row in tables["memory"].itertuples()
    ]
    loss, norm = check_parity(tables["parity"])
    found += [Metric(name="waterfall.largest_difference.loss", value=loss, unit="nats/token")]
    found += [Metric(name="waterfall.largest_difference.norm", value=norm, unit="fraction")]
    cases = tables["cases"]
    for (kind, case), group in cases.groupby(["kind", "case"], sort=False):
        name = f"{kind}.{slug(case)}"
        found += [metric(f"{name}.tokens_per_second", group.real / group.seconds, "tokens/s")]
        found += [Metric(name=f"{name}.memory", value=group.peak.iloc[0], unit="bytes")]
    errors = throughput(cases).error.abs()
    found += [Metric(name="plan.error.largest", value=errors.max(), n=len(errors), unit="fraction")]
    found += [Metric(name="plan.error.mean", value=errors.mean(), n=len(errors), unit="fraction")]
    late = planned_seconds(cases).error.abs()
    found += [Metric(name="plan.time_error.median", value=late.median(), n=len(late), unit="fraction")]
    found += [metric("overhead.share", overhead(tables["loop"]), "fraction")]
    parts = breakdown(tables["parts"], tables["loop"])
    return found + [Metric(name=f"step.{slug(name)}", value=share, unit="fraction") for name, share in parts.items()]


def way_metrics(ways: pd.DataFrame) -> list[Metric]:
    """Speed and MFU of every way."""
    names = {"supervised": "tokens_per_second", "real": "real_per_second", "padded": "padded_per_second"}
    units = dict.fromkeys(names, "tokens/s") | {"mfu": "fraction", "mfu_of_bf16": "fraction", "speedup": "times"}
    return [
        metric(f"waterfall.{key}.{names.get(column, column)}", group[column], unit)
        for key, group in rates(ways).groupby("key", sort=False)
        for column, unit in units.items()
    ]


def slug(name: str) -> str:
    """A case's name as a part of a metric's."""
    return "_".join("".join(letter if letter.isalnum() else " " for letter in name.lower()).split())


def outcomes(ways: pd.DataFrame) -> pd.DataFrame:
    """The waterfall as items of the record: supervised tokens per second of each way in each repeat, for pairing."""
    shown = rates(ways)
    items = "repeat-" + shown.repeat.astype(str)
    return pd.DataFrame({"item": items, "task": "waterfall", "method": shown.key, "outcome": shown.supervised})
