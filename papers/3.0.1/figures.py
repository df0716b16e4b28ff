"""The figures of this paper: those of direction 01's notebook, drawn from the pinned runs all together."""

from matplotlib.figure import Figure

from llamax.instruction_tuning import figures
from llamax.papers.evidence import Evidence


def learning_curves(evidence: Evidence, runs: str) -> Figure:
    """Training loss against supervised tokens, mean and range over trainings."""
    return figures.learning_curves(evidence.series(runs, "curves"))


def gains(evidence: Evidence, runs: str, protocol: str = "") -> Figure:
    """Gain over the base model per task, with intervals over items and trainings; the overall gain last."""
    return figures.gains(sorted(evidence.metrics(runs), key=lambda metric: ".overall." in metric.name), protocol)


def trade_off(evidence: Evidence, runs: str, protocol: str = "") -> Figure:
    """Overall gain against forgetting."""
    return figures.trade_off(evidence.metrics(runs), protocol)
