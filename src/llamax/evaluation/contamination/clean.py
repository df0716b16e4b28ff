"""What follows from a report: which items count as contaminated, the score without them, training data without them.

Published rules differ. GPT-3 (Brown et al. 2020, appendix C) calls an item dirty that shares one n-gram with the
training data, n being 13 or, in a benchmark of short items, down to 8; PaLM (Chowdhery et al. 2022, section 8) wants
70% of an item's 8-grams in the data; Llama 2 (Touvron et al. 2023, appendix A.6) counts the share of an item's tokens
that lie in common stretches of more than ten, small gaps allowed, and has no counterpart here. The default is GPT-3's
13-gram, and the whole question for items too short to have one: a single common 8-gram is more often a turn of phrase
than a leak.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from llamax.data.formats import RowError
from llamax.data.sources import find, fingerprint, rows
from llamax.errors import DataError, ParameterError
from llamax.evaluation.contamination.documents import PLAIN, row_number
from llamax.evaluation.contamination.report import MEASURES, Report, check_free, hits
from llamax.files import atomic_folder, clear_disk_errors
from llamax.statistics import Difference, Estimate, score, wilson

DEFAULT = "ngram_13_or_question"
PALM_SHARE = 0.7
RULES: dict[str, Callable[[pd.DataFrame], pd.Series]] = {
    DEFAULT: lambda items: hits(items, "ngram_13") | hits(items, "question"),
    **{measure: lambda items, measure=measure: hits(items, measure) for measure in MEASURES},
    "palm": lambda items: (items["hits_8"] >= PALM_SHARE * items["ngrams_8"]) & (items["ngrams_8"] > 0),
}
POWER = 0.8
SCORE_KEY = ["model", "benchmark", "metric"]
SCORE_COLUMNS = [*SCORE_KEY, "item", "outcome"]
CLEAN_FILES = ("data.jsonl", "removed.json")


class CleanSubset(NamedTuple):
    """A score on all items, on the clean ones and on the flagged ones; None where there are none of a kind.

    difference: flagged minus clean, two independent groups. detectable: the true difference that this many flagged
    items would show (two-sided 5%) in four cases of five; above 1 - clean no difference can be shown.
    """

    everything: Estimate
    clean: Estimate | None
    flagged: Estimate | None
    difference: Difference | None
    detectable: float


def flagged(report: Report, benchmark: str, rule: str = DEFAULT) -> set[str]:
    """Ids of the benchmark's items that count as contaminated by `rule`: one of `RULES`.

    Raises: ParameterError: no such rule, or a benchmark that was not checked.
    """
    if benchmark not in report.benchmarks:
        raise ParameterError(
            f"{benchmark!r} was not checked against {report.source}: {', '.join(report.benchmarks)} were"
        )
    items = report.items[report.items["benchmark"] == benchmark]
    return set(items["item"][rule_named(rule)(items)])


def rule_named(name: str) -> Callable[[pd.DataFrame], pd.Series]:
    """The rule as a function of a report's items. Raises: ParameterError: there is none of that name."""
    if name not in RULES:
        raise ParameterError(f"unknown rule {name!r}: valid are {', '.join(RULES)}")
    return RULES[name]


def clean_subset(outcomes: pd.DataFrame, flags: Iterable[str]) -> CleanSubset:
    """The score of one model by one metric with and without the items of `flags`.

    Args: outcomes: columns item, outcome, and cluster if items depend on each other; answers to the same item are
        averaged.

    The scores have the clustered interval of `score`, that of the flagged items Wilson's where outcomes are 0 or 1:
    they are often few and all alike. The difference has Newcombe's interval (1998, method 10) and Fisher's exact p for
    such outcomes, Welch's otherwise; both take items for independent.

    Raises: ParameterError: no outcomes, or a flagged item that is not among them.
    """
    missing = {"item", "outcome"} - set(outcomes.columns)
    if missing or outcomes.empty:
        raise ParameterError(f"outcomes need rows with item and outcome: {f'no {missing}' if missing else 'none'}")
    by_item = outcomes.groupby("item", sort=False)
    values = by_item["outcome"].mean()
    clusters = by_item["cluster"].first() if "cluster" in outcomes.columns else pd.Series(values.index, values.index)
    if foreign := set(flags) - set(values.index):
        raise ParameterError(f"flagged item {min(foreign)!r} is not among the outcomes; give the flags of their items")
    dirty = values.index.isin(list(flags))
    of = {one: (values[dirty == one].to_numpy(float), clusters[dirty == one].to_numpy()) for one in (True, False)}
    kept = score(*of[False]) if len(of[False][0]) else None
    difference = _difference(of[True][0], of[False][0])
    return CleanSubset(
        score(values.to_numpy(float), clusters.to_numpy()), kept, _few(of[True][0]), difference,
        detectable_difference(of[False][0], len(of[True][0])),
    )  # fmt: skip


def _binary(values: np.ndarray) -> bool:
    return bool(np.isin(values, (0, 1)).all())


def _few(values: np.ndarray) -> Estimate | None:
    if not len(values):
        return None
    return wilson(int(values.sum()), len(values)) if _binary(values) else score(values)


def _difference(dirty: np.ndarray, clean: np.ndarray) -> Difference | None:
    """Mean of `dirty` minus mean of `clean`."""
    if not len(dirty) or not len(clean):
        return None
    if not (_binary(dirty) and _binary(clean)):
        return _welch(dirty, clean)
    (p, error, low, high, n), (q, other, low_q, high_q, m) = (wilson(int(v.sum()), len(v)) for v in (dirty, clean))
    table = [[dirty.sum(), n - dirty.sum()], [clean.sum(), m - clean.sum()]]
    bounds = (p - q - np.hypot(p - low, high_q - q), p - q + np.hypot(high - p, q - low_q))
    exact = float(stats.fisher_exact(np.array(table, int)).pvalue)
    return Difference(p - q, float(np.hypot(error, other)), float(bounds[0]), float(bounds[1]), n + m, exact)


def _welch(dirty: np.ndarray, clean: np.ndarray) -> Difference:
    value, count = float(dirty.mean() - clean.mean()), len(dirty) + len(clean)
    if min(len(dirty), len(clean)) < 2:
        return Difference(value, np.nan, np.nan, np.nan, count, np.nan)
    error = float(np.sqrt(dirty.var(ddof=1) / len(dirty) + clean.var(ddof=1) / len(clean)))
    if error == 0:
        return Difference(value, 0.0, value, value, count, float(value == 0))
    found = stats.ttest_ind(dirty, clean, equal_var=False)
    low, high = found.confidence_interval()
    return Difference(value, error, float(low), float(high), count, float(found.pvalue))


def detectable_difference(clean: np.ndarray, flagged: int, level: float = 0.05, power: float = POWER) -> float:
    """The true difference that a two-sided test at `level` shows with probability `power`; NaN with an empty group.

    (z(1 - level/2) + z(power)) * s * sqrt(1/flagged + 1/clean), s being the spread of the clean outcomes (Cohen 1988).
    """
    if not flagged or not len(clean):
        return float("nan")
    z = stats.norm.isf(level / 2) + stats.norm.isf(1 - power)
    return float(z * clean.std() * np.sqrt(1 / flagged + 1 / len(clean)))


def clean_scores(report: Report, outcomes: pd.DataFrame, rule: str = DEFAULT) -> dict[tuple[str, ...], CleanSubset]:
    """`clean_subset` of every model, benchmark and metric of an outcome table whose benchmark was checked.

    Raises: DataError: a column is missing, no benchmark of the table was checked, or one has items that were not.
    """
    missing = [column for column in SCORE_COLUMNS if column not in outcomes.columns]
    if missing:
        raise DataError(f"outcomes lack the column {missing[0]!r}; they need {', '.join(SCORE_COLUMNS)}")
    found = {}
    for key, group in outcomes.groupby(SCORE_KEY, sort=False):
        if key[1] in report.benchmarks:
            known = set(report.items["item"][report.items["benchmark"] == key[1]])
            asked = set(group["item"])
            if strange := asked - known:
                raise DataError(
                    f"{key[1]}: outcomes of item {min(strange)!r}, which was not checked; are the ids ours?"
                )
            found[key] = clean_subset(group, flagged(report, key[1], rule) & asked)
    if not found:
        there = ", ".join(outcomes["benchmark"].unique()) or "none"
        raise DataError(f"no benchmark with outcomes ({there}) was checked: {', '.join(report.benchmarks)} were")
    return found


# -- training data without the overlap --------------------------------------------------------------------------------


def rows_to_remove(report: Report, rule: str = DEFAULT) -> list[int]:
    """Numbers of the training rows that share with a checked item what `rule` is about, in order.

    Raises: ParameterError: as `row_measures`.
    """
    chosen = report.rows[row_measures(rule)].any(axis=1)
    return report.rows["row"][chosen].tolist()


def row_measures(rule: str) -> list[str]:
    """The measures by which `rule` tells rows from each other.

    Raises: ParameterError: no such rule, or one that is about a share of an item and says nothing of single rows.
    """
    rule_named(rule)
    measures = [measure for measure in MEASURES if measure in rule.split("_or_")]
    if not measures:
        raise ParameterError(f"rule {rule!r} says which items are contaminated, not by which rows; name another")
    return measures


def decontaminate(report: Report, folder: Path | str, rule: str = DEFAULT) -> tuple[int, int]:
    """Write the data of a report without the rows of `rows_to_remove`; (rows kept, rows removed).

    `folder` gets data.jsonl, the other rows as they were, and removed.json, which says which went and why.

    Raises: DataError: the data has changed since, has no rows of its own, or nothing would be left of it.
    """
    folder, gone = Path(folder), set(rows_to_remove(report, rule))
    check_removable(report.source, report.split, folder)
    if fingerprint(report.source, report.split) != report.fingerprint:
        raise DataError(f"{report.source}: has changed since it was checked; check it again")
    kept = 0
    with atomic_folder(folder) as work, clear_disk_errors(folder):
        with open(work / CLEAN_FILES[0], "w", encoding="utf-8") as file:
            for place, row in rows(report.source, report.split):
                if isinstance(row, RowError):
                    raise DataError(f"{report.source}: {place} {row}")
                if row_number(place) not in gone:
                    file.write(json.dumps(row, default=str) + "\n")
                    kept += 1
        if not kept:
            raise DataError(f"{report.source}: all {len(gone)} rows share something with the test items: nothing left")
        (work / CLEAN_FILES[1]).write_text(json.dumps(_removal(report, rule, kept, sorted(gone)), indent=1) + "\n")
    return kept, len(gone)


def check_removable(source: str, split: str, folder: Path) -> None:
    """Raise `DataError` unless `source` has rows of its own and `folder` is free for what is left of them."""
    origin = find(source, split)
    if origin.world or (origin.file and origin.file.name.endswith(PLAIN)):
        raise DataError(f"{source}: has no rows that could be left out; JSON, JSONL and Parquet have")
    check_free(folder, CLEAN_FILES)


def _removal(report: Report, rule: str, kept: int, gone: list[int]) -> dict[str, Any]:
    return {
        "source": report.source,
        "split": report.split,
        "fingerprint": report.fingerprint,
        "benchmarks": report.benchmarks,
        "rule": rule,
        "kept": kept,
        "removed": len(gone),
        "rows": gone,
    }
