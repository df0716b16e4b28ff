"""From outcomes per item to the study's numbers and tables, each with its interval.

Tables: `items` has `versions.measured.ITEM_COLUMNS`. `confidence`: one row per item of a choice, with the probability
that the model gave to what it chose, and whether that was right. `variance`: outcomes of part of the items under other
wordings and seeds.
"""

from typing import TYPE_CHECKING

import pandas as pd

from llamax import statistics
from llamax.evaluation.config import CANDIDATE, CURRENT
from llamax.runs import Run
from llamax.runs.records import Metric
from llamax.versions.decision import Evidence, decide, weigh
from llamax.versions.gate import sentence
from llamax.versions.ladder import Benchmark, ladder
from llamax.versions.measured import NOTE, Measured, read_note
from llamax.versions.sides import Side, check_sides

if TYPE_CHECKING:
    from llamax.evaluation.study import Study

CONFIDENCE = ["benchmark", "item", "confidence", "outcome", "cluster"]
VARIANCE = ["benchmark", "kind", "setting", "item", "outcome", "cluster"]
UNIT = "fraction"
DISCORDANCE = (0.1, 0.25)  # shares of items that two versions answer differently
FEWEST = 5  # items of a subject, to be shown by itself


def one_setting(rows: pd.DataFrame, kind: str, setting: str) -> pd.DataFrame:
    """Rows of `VARIANCE`: outcomes under one wording or seed."""
    return rows.assign(kind=kind, setting=setting)[VARIANCE]


def flags(items: pd.DataFrame, leaks: pd.DataFrame) -> list[bool]:
    """Of each row of `items`, whether its item stands in the training data."""
    leaked = set(zip(leaks.benchmark, leaks.item, strict=True))
    return [pair in leaked for pair in zip(items.benchmark, items.item, strict=True)]


def read_measured(run: Run) -> dict[str, dict[str, Measured]]:
    """Model -> benchmark -> how it was run, of a run that is complete."""
    return read_note(run.record.notes[NOTE], run.record.run)


def metrics(study: "Study") -> list[Metric]:
    """Every number of the study, in a fixed order.

    Names: `<model>.<benchmark>.<metric>`; `gain.<benchmark>` (candidate minus current, same items) and
    `detectable.<benchmark>` (the true gain that this comparison would show with 80% power); `<model>.<benchmark>.ece`;
    `spread.<model>.<benchmark>.<kind>` (standard deviation over wordings or seeds of the score on the same items).
    """
    found = []
    for row in scores(study).itertuples():
        metric = row.metric.replace(",", "-").replace("@", "_at_")
        found.append(Metric.of(f"{row.model}.{row.benchmark}.{metric}", row, UNIT))
    found += [Metric.of(f"{row.model}.{row.benchmark}.ece", row, UNIT) for row in calibration(study).itertuples()]
    for row in spread(study).itertuples():
        name = f"spread.{row.model}.{row.benchmark}.{row.kind}"
        found.append(Metric(name=name, value=row.deviation, n=row.settings, unit=UNIT))
    for one in evidence(study):
        full = one.full
        share = {key: getattr(full, key) / 100 for key in ("standard_error", "low", "high")}
        found.append(Metric(name=f"gain.{one.benchmark}", value=full.gain / 100, n=full.items, unit=UNIT, **share))
        name = f"detectable.{one.benchmark}"
        found.append(Metric(name=name, value=full.detectable / 100, n=full.items, unit=UNIT))
    return found


def scores(study: "Study") -> pd.DataFrame:
    """Model, benchmark, metric, value, standard_error, low, high, n (items), of (the benchmark's size), clean (value on
    items that did not leak)."""
    rows = []
    for (model, name, metric), group in study.items.groupby(["model", "benchmark", "metric"], sort=False):
        by_item = group.groupby("item", sort=True).agg({"outcome": "mean", "cluster": "first", "contaminated": "any"})
        found = statistics.score(by_item.outcome.to_numpy(), by_item.cluster.tolist())
        clean = by_item.outcome[~by_item.contaminated].mean()
        rows.append((model, name, metric, *found, study.measured[model][name].total, clean))
    columns = ["model", "benchmark", "metric", "value", "standard_error", "low", "high", "n", "of", "clean"]
    return pd.DataFrame(rows, columns=columns)


def by_cluster(study: "Study", model: str = CURRENT) -> pd.DataFrame:
    """Scores of subjects with at least `FEWEST` items, benchmark by benchmark: columns benchmark, cluster, value,
    low, high, n; headline metrics, the interval of `statistics.score`."""
    rows = []
    for (name, cluster), group in headlines(study, model).groupby(["benchmark", "cluster"], sort=False):
        by_item = group.groupby("item").outcome.mean()
        if len(by_item) >= FEWEST:
            found = statistics.score(by_item.to_numpy())
            rows.append((name, cluster, found.value, found.low, found.high, found.n))
    return pd.DataFrame(rows, columns=["benchmark", "cluster", "value", "low", "high", "n"])


def headlines(study: "Study", model: str) -> pd.DataFrame:
    """A model's items by the metric that each benchmark is judged by."""
    items = study.items[study.items.model == model]
    return items[items.metric == items.benchmark.map({k: one.metric for k, one in study.measured[model].items()})]


def calibration(study: "Study") -> pd.DataFrame:
    """Expected calibration error of choices: model, benchmark, value, standard_error, low, high, n, and `chance`, what
    a perfectly calibrated model would show with so few items."""
    rows = []
    for (model, name), group in study.confidence.groupby(["model", "benchmark"], sort=False):
        found = statistics.expected_calibration_error(group.confidence, group.outcome, group.cluster, bins=10)
        rows.append((model, name, *found.error, found.chance))
    columns = ["model", "benchmark", "value", "standard_error", "low", "high", "n", "chance"]
    return pd.DataFrame(rows, columns=columns)


def spread(study: "Study") -> pd.DataFrame:
    """How far a score moves: model, benchmark, kind, settings (how many), lowest, highest, deviation (standard, over
    settings), items, and `error`, the standard error that the choice of items alone gives one of these scores."""
    rows = []
    for (model, name, kind), group in study.variance.groupby(["model", "benchmark", "kind"], sort=False):
        table = group.pivot_table(index="item", columns="setting", values="outcome")
        means = table.mean()
        clusters = group.groupby("item").cluster.first()[table.index]
        error = statistics.mean(table.iloc[:, 0].to_numpy(), clusters.tolist()).standard_error
        # Of equal means it is 0, and not the rounding error that their deviation from their mean would be.
        deviation = float(means.std(ddof=1)) if means.nunique() > 1 else 0.0
        rows.append((model, name, kind, len(means), means.min(), means.max(), deviation, len(table), error))
    columns = ["model", "benchmark", "kind", "settings", "lowest", "highest", "deviation", "items", "error"]
    return pd.DataFrame(rows, columns=columns)


def resolution(study: "Study") -> pd.DataFrame:
    """Whether benchmarks can tell two versions apart: of each its size, the smallest true gain in points that all
    of its items would show (one-sided 5%, 80% power) if two versions differed on a tenth or a quarter of them (Connor
    1987), and how many items it would take to show one point. `differ`: share on which these two models do."""
    rows = {}
    for name, one in study.measured[CURRENT].items():
        rows[name] = {"items": one.items, "of": one.total}
        for share in DISCORDANCE:
            rows[name][f"gain at {share:.0%}"] = 100 * statistics.mcnemar_gain(one.total, share)
        rows[name]["for 1 point at 10%"] = statistics.mcnemar_items(DISCORDANCE[0], 0.01)
    table = pd.DataFrame.from_dict(rows, orient="index")
    if CANDIDATE in study.models:
        both = [headlines(study, model).groupby(["benchmark", "item"]).outcome.mean() for model in study.models]
        table["differ"] = (both[0] != both[1]).groupby("benchmark").mean()
    return table.round(3)


def required(study: "Study") -> list[Benchmark]:
    """Benchmarks of the gate that the study has asked, with the two clusters of clean items that it takes at least."""
    known = ladder().benchmarks
    kinds = ("nano",) if study.config.suite == "nano" else ("A", "B")
    clusters = study.items[~study.items.contaminated.astype(bool)].groupby("benchmark").cluster.nunique()
    return [one for kind in kinds for one in known[kind] if clusters.get(one.name, 0) > 1]


def evidence(study: "Study") -> tuple[Evidence, ...]:
    """What the gate weighs, on the benchmarks that were asked; nothing where there is no candidate."""
    if CANDIDATE not in study.models:
        return ()
    sides = [
        Side(model, study.run.record, model, study.measured[model], study.items[study.items.model == model])
        for model in (CANDIDATE, CURRENT)
    ]
    wanted = required(study)
    check_sides(*sides, [one.name for one in wanted], rehearse=True)
    return weigh(*sides, wanted, ladder().rule)


def gate_table(study: "Study") -> pd.DataFrame:
    """What the gate weighs: per benchmark the gain and its interval in points, both p-values, the gain that would be
    shown with 80% power, and what is needed to decide."""
    rows = {
        one.benchmark: {
            "gain": one.full.gain, "low": one.full.low, "high": one.full.high, "p (gain <= 0)": one.full.p_gain,
            "p (gain <= 1)": one.full.p_requirement, "detectable": one.full.detectable,
            "answer": "passes" if one.passes else "ruled out" if one.ruled_out else "undecided",
            "needs": one.needs.words if one.needs else "",
        }
        for one in evidence(study)
    }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index").round(3)


def verdict(study: "Study") -> str:
    """The gate's answer on what was asked, in one sentence; always a rehearsal: `llamax gate` decides."""
    found = evidence(study)
    if CANDIDATE not in study.models:
        return "one model: there is nothing to compare"
    if not found:
        return "none of the gate's benchmarks was asked: there is nothing to decide"
    return sentence(found, ladder().rule, (), None, True)


def answer(study: "Study") -> str:
    """accept, reject or undecided."""
    return decide(evidence(study))
