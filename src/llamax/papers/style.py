"""One look for every figure of the house, in notebooks and in papers, and saving that gives the same bytes twice."""

import functools
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

STYLE = Path(__file__).resolve().parents[3] / "papers" / "style"
"""Of the checkout that the package stands in: figure style, page template, style sheet."""

METHOD_LOOK: dict[str, dict[str, str]] = {
    "base": {"label": "Base", "color": "0.35", "marker": "D", "linestyle": ":", "hatch": ""},
    "full": {"label": "Full fine-tuning", "color": "#0072B2", "marker": "o", "linestyle": "-", "hatch": "///"},
    "lora": {"label": "LoRA", "color": "#D55E00", "marker": "s", "linestyle": "--", "hatch": "..."},
}
"""A method looks the same everywhere, and differs from the others by more than its colour."""

NO_DATE = {".svg": {"Date": None}, ".pdf": {"CreationDate": None, "ModDate": None}, ".png": {}}


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Decorate a function that draws a figure: it draws in the house style.

    The figure is closed for pyplot, so that a notebook shows it once, as the value of its cell.
    """

    @functools.wraps(draw)
    def drawn(*args, **kwargs) -> Figure:
        with plt.style.context(STYLE / "llamax.mplstyle"):
            figure = draw(*args, **kwargs)
            figure.draw_without_rendering()
            figure.set_layout_engine("none")  # laid out once, in this style; not again by whoever saves it
        plt.close(figure)
        return figure

    return drawn


def save_figure(figure: Figure, path: Path) -> Path:
    """Save as SVG, PDF or PNG, by the suffix of `path`; the same figure gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with plt.style.context(STYLE / "llamax.mplstyle"):
        figure.savefig(path, metadata=NO_DATE[path.suffix])
    return path
