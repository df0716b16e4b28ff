"""From outcomes per item to the study's numbers: scores, paired gains, forgetting, each with its interval.

An outcome table has the columns item, task, method, protocol, replicate, outcome, cluster: one row per test item, model
and protocol. `base` is the untuned model; its replicate is 0. Everything is compared item by item with it.
"""

import numpy as np
import pandas as pd

from llamax import statistics
from llamax.runs.records import Metric

TEXT = "text_loss"  # the task name of the plain-text loss; its outcome is nats per token of one held-out document
COUNTED_ELSEWHERE = ("truthfulqa_mc1",)  # the overall gain counts TruthfulQA once, by MC2
KEYS = ["method", "protocol", "task"]


def metrics(items: pd.DataFrame) -> list[Metric]:
    """Every number of the study, in a fixed order.

    Names: `<method>.<protocol>.<task>.accuracy` and `.gain` (after minus before, same items), `.overall.gain` (mean of
    the tasks' gains), `<method>.text_loss` and `.forgetting` (nats per token, held-out plain text). The protocol
    `lm-eval` is left out of the names, because there is only that one for a real benchmark.
    """
    found: list[Metric] = []
    for (method, protocol, task), group in items.groupby(KEYS, sort=False):
        name = ".".join(part for part in (method, "" if protocol in ("lm-eval", "text") else protocol) if part)
        table, clusters = replicate_table(group)
        if task == TEXT:
            found.append(Metric.of(f"{name}.{TEXT}", statistics.combine(table, clusters), "nats/token"))
        else:
            score = statistics.combine_scores([table], [clusters])
            found.append(Metric.of(f"{name}.{task}.accuracy", score, "fraction"))
        if method != "base":
            change = statistics.combine(table - baseline(items, protocol, task), clusters)
            last, unit = ("forgetting", "nats/token") if task == TEXT else (f"{task}.gain", "fraction")
            found.append(Metric.of(f"{name}.{last}", change, unit))
    return found + overall_gains(items)


def overall_gains(items: pd.DataFrame) -> list[Metric]:
    """Mean of the tasks' gains per method and protocol; every task weighs the same, whatever its number of items.

    Tasks are strata, fixed by the suite; `statistics.combine_strata` gives the interval over items and training seeds.
    """
    found = []
    scored = items[~items.task.isin((TEXT, *COUNTED_ELSEWHERE)) & (items.method != "base")]
    for (method, protocol), group in scored.groupby(["method", "protocol"], sort=False):
        tables, clusters = [], []
        for task, rows in group.groupby("task", sort=False):
            outcomes, names = replicate_table(rows)
            tables.append(outcomes - baseline(items, protocol, task))
            clusters.append(names)
        name = ".".join(part for part in (method, "" if protocol == "lm-eval" else protocol) if part)
        found.append(Metric.of(f"{name}.overall.gain", statistics.combine_strata(tables, clusters), "fraction"))
    return found


def replicate_table(group: pd.DataFrame) -> tuple[np.ndarray, list[str]]:
    """Outcomes [replicates, items] and clusters [items] of one method, protocol and task; items in sorted order."""
    table = group.pivot(index="replicate", columns="item", values="outcome")
    clusters = group.drop_duplicates("item").set_index("item").cluster
    return table.to_numpy(), clusters.reindex(table.columns).astype(str).tolist()


def baseline(items: pd.DataFrame, protocol: str, task: str) -> np.ndarray:
    """Outcomes [1, items] of the untuned model, items in sorted order as in `replicate_table`."""
    rows = items[(items.method == "base") & (items.protocol == protocol) & (items.task == task)]
    return replicate_table(rows)[0]


def protocols(items: pd.DataFrame) -> list[str]:
    """Protocols under which the suite was asked; the empty name for a real benchmark, which has only one."""
    names = items[items.task != TEXT].protocol.unique()
    return ["" if name == "lm-eval" else name for name in names]


def means(items: pd.DataFrame) -> pd.DataFrame:
    """Mean outcome per protocol and task (rows) and method (columns), replicates pooled, and the number of items."""
    shown = items.pivot_table(index=["protocol", "task"], columns="method", values="outcome", sort=False)
    counts = items[items.method == "base"].groupby(["protocol", "task"], sort=False).item.count()
    return shown.assign(items=counts).round(3)


def table(found: list[Metric], kind: str = "gain") -> pd.DataFrame:
    """Metrics whose name ends in `kind`, as percentage points (or nats per token) with their interval."""
    rows = {}
    for metric in found:
        if metric.name.endswith(kind):
            scale = 100 if metric.unit == "fraction" else 1
            value, low, high = scale * np.array([metric.value, metric.low, metric.high], float)  # NaN: not known
            rows[metric.name] = {"value": value, "low": low, "high": high, "n": metric.n, "unit": metric.unit}
    shown = pd.DataFrame.from_dict(rows, orient="index")
    return shown.replace({"unit": {"fraction": "points"}}).round(3)
