"""The study's pictures: the waterfall, throughput and memory, the shardings, the plan against what was measured."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from llamax.infrastructure import analysis
from llamax.papers.style import error_bar, styled

LABELS = {
    "padded": "padded, all logits,\nfp32", "targets": "logits of\ntargets only", "flat": "documents\nend to end",
    "packed": "packed rows", "bf16": "bf16 over\nfp32 master", "scores": "score matrices\n(short documents)",
    "loss": "loss in the\nlogits' memory", "norms": "norms by\ntorch's kernels",
    "rotary": "rotary in\nthree passes",
}  # fmt: skip
PARTS = {
    "elementwise": "norms, activations, rotary",
    "loop": "the loop's own",
    "model's Python": "Python between operations",
}
KINDS = {"sweep": ("One process", "o", "#0072B2"), "ranks": ("Several ranks", "s", "#D55E00")}


@styled
def waterfall(ways: pd.DataFrame, memory: pd.DataFrame) -> Figure:
    """Supervised tokens per second of each way, with 95% intervals over repeats; MFU above the bars; memory beside."""
    found = {metric.name: metric for metric in analysis.way_metrics(ways)}
    keys, places = list(memory.key), np.arange(len(memory))[::-1]
    figure, (speed, size) = plt.subplots(
        1, 2, figsize=(5.5, 0.8 + 0.32 * len(keys)), sharey=True, width_ratios=(2.2, 1)
    )
    chosen = [found[f"waterfall.{key}.tokens_per_second"] for key in keys]
    values = np.array([metric.value for metric in chosen])
    errors = np.array([error_bar(metric) for metric in chosen]).T
    speed.barh(places, values, xerr=errors, color="#0072B2", alpha=0.6, height=0.62, ecolor="0.2")
    for place, key, metric in zip(places, keys, chosen, strict=True):
        text = f"{found[f'waterfall.{key}.speedup'].value:.1f}×, MFU {found[f'waterfall.{key}.mfu'].value:.0%}"
        speed.annotate(text, (metric.high, place), xytext=(3, 0), textcoords="offset points", va="center", fontsize=7)
    speed.set_yticks(places, [LABELS[key] for key in keys], fontsize=7)
    speed.set(xlabel="supervised tokens/s", xlim=(0, 1.45 * max(metric.high for metric in chosen)))
    size.barh(places, memory.peak / 2**20, color="0.75", hatch="///", edgecolor="0.4", height=0.62)
    size.set(xlabel="peak memory (MiB)")
    for axes in (speed, size):
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x")
    return figure


@styled
def by_size(cases: pd.DataFrame) -> Figure:
    """Tokens per second (mean; bars: lowest to highest step) and peak memory against row length and micro-batch."""
    table = analysis.throughput(cases)
    table = table[table.kind == "sweep"]
    base = table[table.case == "base"]
    figure, grid = plt.subplots(2, 2, figsize=(5.5, 3.6), sharex="col", sharey="row")
    for column, (start, field, label) in enumerate(
        (("length", "length", "row length (tokens)"), ("micro-batch", "micro_batch", "micro-batch (rows)"))
    ):
        rows = pd.concat([base, table[table.case.str.startswith(start)]]).sort_values(field)
        top, bottom = grid[0, column], grid[1, column]
        _with_range(top, rows[field], rows, "#0072B2", "o", "packed")
        bottom.plot(rows[field], rows.memory, color="#0072B2", marker="o")
        for name, colour, marker in (("not packed", "#D55E00", "s"), ("checkpointing", "#009E73", "^")):
            other = table[table.case == name]
            _with_range(top, other[field], other, colour, marker, name)
            bottom.plot(other[field], other.memory, color=colour, marker=marker, linestyle="")
        bottom.set_xscale("log", base=2)
        bottom.set_xticks(rows[field], [str(size) for size in rows[field]])
        bottom.minorticks_off()
        bottom.set(xlabel=label)
        top.set(ylim=(0, None))
        bottom.set(ylim=(0, None))
    grid[0, 0].set(ylabel="tokens/s")
    grid[1, 0].set(ylabel="peak memory (MiB)")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3)
    return figure


def _with_range(axes: Axes, places: pd.Series, rows: pd.DataFrame, colour: str, marker: str, label: str) -> None:
    """Mean speed of each case, and its slowest and fastest step."""
    mean = rows.tokens_per_second
    error = np.stack([mean - rows.lowest, rows.highest - mean])
    axes.errorbar(places, mean, yerr=error, color=colour, marker=marker, linestyle="-", label=label)


@styled
def shardings(cases: pd.DataFrame) -> Figure:
    """Tokens per second over all ranks, and peak memory of a rank, measured and planned, of each ZeRO stage."""
    table = analysis.throughput(cases)
    table = table[table.kind == "ranks"]
    places = np.arange(len(table))[::-1]
    figure, (speed, size) = plt.subplots(1, 2, figsize=(5.5, 0.9 + 0.25 * len(table)), sharey=True)
    mean = table.tokens_per_second
    error = np.stack([mean - table.lowest, table.highest - mean])
    speed.barh(places, mean, xerr=error, color="#0072B2", alpha=0.6, height=0.6, ecolor="0.2")
    size.barh(places + 0.17, table.memory, color="#0072B2", alpha=0.6, height=0.34, label="measured")
    size.barh(places - 0.17, table.planned, color="white", edgecolor="0.3", hatch="///", height=0.34, label="planned")
    speed.set_yticks(places, table.case, fontsize=7)
    speed.set(xlabel="tokens/s, all ranks")
    size.set(xlabel="peak memory of a rank (MiB)")
    for axes in (speed, size):
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x")
    figure.legend(loc="outside upper center", ncols=2)
    return figure


@styled
def plan_against_measured(cases: pd.DataFrame) -> Figure:
    """Planned over measured, of peak memory and of a step's time; the band is a tenth off."""
    figure, panels = plt.subplots(1, 2, figsize=(5.5, 2.6))
    memory, times = analysis.throughput(cases), analysis.planned_seconds(cases)
    for axes, table, x, label, scale in (
        (panels[0], memory, "memory", "peak memory (MiB)", "linear"),
        (panels[1], times, "measured", "time of a step (s)", "log"),
    ):
        both = table[[x, "planned"]].to_numpy()
        ends = np.array([0.8 * both.min() if scale == "log" else 0, 1.2 * both.max()])
        axes.plot(ends, ends, color="0.5", linewidth=0.8, zorder=0)
        axes.fill_between(ends, 0.9 * ends, 1.1 * ends, color="0.9", linewidth=0, zorder=0)
        for kind, rows in table.groupby("kind", sort=False):
            name, marker, colour = KINDS[kind]
            axes.plot(rows[x], rows.planned, marker, label=name, color=colour, alpha=0.8)
        axes.set(xscale=scale, yscale=scale, xlim=ends, ylim=ends)
        if scale == "log":
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.set_major_formatter(StrMethodFormatter("{x:g}"))
                axis.set_minor_formatter(NullFormatter())
        axes.set(xlabel=f"measured {label}", ylabel=f"planned {label}")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2)
    return figure


@styled
def breakdown(parts: pd.DataFrame, loop: pd.DataFrame) -> Figure:
    """Share of a step by kind, in percent; the loop's own with the 95% interval over steps."""
    shares = 100 * analysis.breakdown(parts, loop).sort_values()
    own = analysis.metric("loop", 100 * analysis.overhead(loop), "%")
    figure, axes = plt.subplots(figsize=(4.2, 2.2))
    axes.barh(np.arange(len(shares)), shares, color="#0072B2", alpha=0.6, height=0.62)
    error = np.array([error_bar(own)]).T
    axes.errorbar(own.value, shares.index.get_loc("loop"), xerr=error, color="0.2", linestyle="")
    axes.set_yticks(np.arange(len(shares)), [PARTS.get(name, name) for name in shares.index])
    axes.set(xlabel="share of a step (%)")
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x")
    return figure
