"""The study's pictures: scores, subjects, calibration, how far wording and seed move a score, and what can be told."""

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from llamax import statistics
from llamax.evaluation import analysis
from llamax.evaluation.config import CANDIDATE, CURRENT
from llamax.papers.style import styled

if TYPE_CHECKING:
    from llamax.evaluation.study import Study

LOOK = {
    CURRENT: {"label": "Current", "color": "0.35", "marker": "D"},
    CANDIDATE: {"label": "Candidate", "color": "#0072B2", "marker": "o"},
}
LINES = {CURRENT: ":", CANDIDATE: "-"}


@styled
def scores(study: "Study") -> Figure:
    """Score of each benchmark by its headline metric, in points, with 95% intervals."""
    table = analysis.scores(study)
    metric = {name: one.metric for name, one in study.measured[CURRENT].items()}
    table = table[table.metric == table.benchmark.map(metric)]
    names = list(metric)
    figure, axes = plt.subplots(figsize=(5.5, 2.4))
    for shift, model in zip(np.linspace(-0.12, 0.12, len(study.models)), study.models, strict=True):
        rows = table[table.model == model].set_index("benchmark").loc[names]
        error = 100 * np.stack([rows.value - rows.low, rows.high - rows.value])
        axes.errorbar(np.arange(len(names)) + shift, 100 * rows.value, yerr=error, linestyle="", **LOOK[model])
    axes.set_xticks(range(len(names)), [name.replace("_", " ") for name in names], rotation=20, ha="right")
    axes.set(ylabel="score (points)", ylim=(0, None))
    figure.legend(loc="outside upper center", ncols=2)
    return figure


@styled
def subjects(study: "Study", benchmark: str, most: int = 60) -> Figure:
    """Scores of a benchmark's subjects in points, best first, with Wilson's 95% intervals; both models where there are
    two."""
    tables = {model: analysis.by_cluster(study, model) for model in study.models}
    tables = {model: table[table.benchmark == benchmark].set_index("cluster") for model, table in tables.items()}
    order = tables[CURRENT].value.sort_values().index[-most:]
    figure, axes = plt.subplots(figsize=(5.5, 0.6 + 0.13 * len(order)))
    for shift, (model, table) in zip((-0.15, 0.15), tables.items(), strict=False):
        rows = table.loc[order]
        error = 100 * np.stack([rows.value - rows.low, rows.high - rows.value])
        axes.errorbar(
            100 * rows.value, np.arange(len(order)) + shift, xerr=error, linestyle="", markersize=2.5, linewidth=0.7,
            **LOOK[model],
        )  # fmt: skip
    axes.set_yticks(range(len(order)), [name.replace("_", " ") for name in order], fontsize=5.5)
    axes.set(xlabel="score (points)", ylim=(-0.8, len(order) - 0.2))
    figure.legend(loc="outside upper center", ncols=2)
    return figure


@styled
def reliability(study: "Study") -> Figure:
    """Reliability diagram of all choices: accuracy over confidence in ten bins of equal width (Guo et al. 2017)."""
    figure, axes = plt.subplots(figsize=(3.2, 2.6))
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=0.8, zorder=0)
    for model in study.models:
        rows = study.confidence[study.confidence.model == model]
        if rows.empty:
            continue
        filled = statistics.expected_calibration_error(rows.confidence, rows.outcome, bins=10, resamples=200).table
        middle = [one.accuracy for one in filled]
        error = [
            [one.accuracy - one.accuracy_low for one in filled],
            [one.accuracy_high - one.accuracy for one in filled],
        ]
        axes.errorbar([one.confidence for one in filled], middle, yerr=error, linestyle=LINES[model], **LOOK[model])
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    figure.legend(loc="outside upper center", ncols=2)
    return figure


@styled
def spread(study: "Study") -> Figure:
    """Scores on the same items under other wordings and seeds, in points: a dot per setting; the bar is one standard
    error of the choice of items."""
    table = study.variance.groupby(["benchmark", "kind", "model", "setting"], sort=False).outcome.mean().reset_index()
    errors = analysis.spread(study).set_index(["benchmark", "kind", "model"]).error
    groups = list(dict.fromkeys(zip(table.benchmark, table.kind, strict=True)))
    figure, axes = plt.subplots(figsize=(5.5, 2.4))
    for shift, model in zip(np.linspace(-0.15, 0.15, len(study.models)), study.models, strict=True):
        for place, (benchmark, kind) in enumerate(groups):
            rows = table[(table.benchmark == benchmark) & (table.kind == kind) & (table.model == model)]
            look = LOOK[model] | {"label": LOOK[model]["label"] if place == 0 else None}
            axes.plot([place + shift] * len(rows), 100 * rows.outcome, linestyle="", alpha=0.7, **look)
            error = 100 * errors.loc[(benchmark, kind, model)]
            axes.errorbar(place + shift + 0.08, 100 * rows.outcome.mean(), yerr=error, color=look["color"], capsize=2)
    labels = [f"{benchmark.replace('_', ' ')}\n{kind}" for benchmark, kind in groups]
    axes.set_xticks(range(len(groups)), labels, rotation=20, ha="right")
    axes.set(ylabel="score (points)")
    figure.legend(loc="outside upper center", ncols=2)
    return figure


@styled
def gains(study: "Study") -> Figure:
    """The candidate's gain per benchmark, in points, with 95% intervals; grey: the smallest true gain that the
    comparison would show with 80% power, the line the gate's requirement."""
    found = analysis.evidence(study)
    figure, axes = plt.subplots(figsize=(5.5, 2.4))
    places = np.arange(len(found))
    axes.bar(places, [one.full.detectable for one in found], width=0.5, color="0.88", label="smallest gain shown")
    values = np.array([[one.full.gain, one.full.low, one.full.high] for one in found]).reshape(-1, 3)
    error = np.stack([values[:, 0] - values[:, 1], values[:, 2] - values[:, 0]])
    axes.errorbar(places, values[:, 0], yerr=error, linestyle="", color="#0072B2", marker="o", label="gain")
    axes.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    axes.axhline(1, color="#D55E00", linewidth=0.8, linestyle="--", label="more than this is required")
    axes.set_xticks(places, [one.benchmark.replace("_", " ") for one in found], rotation=20, ha="right")
    axes.set(ylabel="candidate minus current (points)")
    figure.legend(loc="outside upper center", ncols=3)
    return figure
