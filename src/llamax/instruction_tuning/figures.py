"""The study's three pictures: how it learned, what it gained task by task, and what that cost in plain-text loss."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from llamax.papers.style import METHOD_LOOK, error_bar, styled
from llamax.runs.records import Metric


@styled
def learning_curves(curves: pd.DataFrame) -> Figure:
    """Training loss against supervised tokens: the mean over replicates, and their range as a band."""
    figure, axes = plt.subplots(figsize=(5.5, 2.4))
    for method, group in curves.groupby("method", sort=False):
        table = group.pivot(index="step", columns="replicate", values="loss").rolling(10, min_periods=1).mean()
        tokens = group[group.replicate == group.replicate.min()].set_index("step").supervised.cumsum()
        look = METHOD_LOOK[method]
        axes.plot(tokens, table.mean(axis=1), label=look["label"], color=look["color"], linestyle=look["linestyle"])
        axes.fill_between(tokens, table.min(axis=1), table.max(axis=1), color=look["color"], alpha=0.2, linewidth=0)
    axes.set(xlabel="supervised tokens", ylabel="training loss (nats/token)")
    axes.legend()
    return figure


@styled
def gains(found: list[Metric], protocol: str = "") -> Figure:
    """Gain over the base model per task, in points, with 95% intervals over items and training seeds."""
    prefix = f".{protocol}." if protocol else "."
    wanted = {m.name: m for m in found if m.name.endswith(".gain") and prefix in m.name}
    names = list(dict.fromkeys(name.split(".")[-2] for name in wanted))
    methods = list(dict.fromkeys(name.split(".")[0] for name in wanted))
    figure, axes = plt.subplots(figsize=(5.5, 2.4))
    for shift, method in zip(np.linspace(-0.15, 0.15, len(methods)), methods, strict=True):
        chosen = [wanted[f"{method}{prefix}{name}.gain"] for name in names]
        values = 100 * np.array([[m.value, *error_bar(m)] for m in chosen])
        look = METHOD_LOOK[method]
        axes.errorbar(
            np.arange(len(names)) + shift,
            values[:, 0],
            yerr=values[:, 1:].T,
            fmt=look["marker"],
            color=look["color"],
            label=look["label"],
        )
    axes.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    axes.set_xticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.set(ylabel="gain over base (points)")
    figure.legend(loc="outside upper center", ncols=len(methods))
    return figure


@styled
def trade_off(found: list[Metric], protocol: str = "") -> Figure:
    """What was bought against what was paid: overall gain (points) over the rise in plain-text loss (nats/token)."""
    by_name = {m.name: m for m in found}
    figure, axes = plt.subplots(figsize=(3.2, 2.4))
    for name, cost in by_name.items():
        if name.endswith(".forgetting"):
            method = name.split(".")[0]
            bought = by_name[".".join(part for part in (method, protocol, "overall.gain") if part)]
            look = METHOD_LOOK[method]
            axes.errorbar(
                cost.value,
                100 * bought.value,
                xerr=np.array([error_bar(cost)]).T,
                yerr=100 * np.array([error_bar(bought)]).T,
                fmt=look["marker"],
                color=look["color"],
                label=look["label"],
            )
    axes.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    axes.axvline(0, color="0.6", linewidth=0.8, zorder=0)
    axes.set(xlabel="forgetting (nats/token)", ylabel="overall gain (points)")
    figure.legend(loc="outside upper center", ncols=2)
    return figure
