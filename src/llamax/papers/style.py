"""One look for every figure of the house, in notebooks and in papers, and saving that gives the same bytes twice."""

import contextlib
import functools
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from llamax import files
from llamax.errors import PaperError

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


def error_bar(found: Any) -> tuple[float, float]:
    """How far a metric's interval reaches below and above its value; 0, 0 where it is not known."""
    if found.low is None or found.high is None:
        return 0.0, 0.0
    return max(0.0, found.value - found.low), max(0.0, found.high - found.value)


def save_figure(figure: Figure, path: Path) -> Path:
    """Save as SVG, PDF or PNG, by the suffix of `path`; the same figure gives the same bytes.

    Raises: PaperError: its font lacks a glyph. DiskFullError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.clear_disk_errors(path), plt.style.context(STYLE / "llamax.mplstyle"), every_glyph(path.stem):
        figure.savefig(path, metadata=NO_DATE[path.suffix])
    return path


@contextlib.contextmanager
def every_glyph(name: str) -> Iterator[None]:
    """Raise PaperError after the block when text of the figure `name` was drawn as empty boxes.

    matplotlib warns about a glyph that is missing in text, and logs one that is missing in a formula.
    """
    missing: list[str] = []

    def note(record: logging.LogRecord) -> bool:
        """Keep the record as a fault instead of printing it."""
        if "does not have a glyph" not in record.getMessage():
            return True
        missing.append(record.getMessage())
        return False

    formulas = logging.getLogger("matplotlib.mathtext")
    formulas.addFilter(note)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
    finally:
        formulas.removeFilter(note)
    for warning in caught:
        if str(warning.message).startswith("Glyph ") and " missing" in str(warning.message):
            missing.append(str(warning.message))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    if missing:
        raise PaperError(f"figure {name!r}: {missing[0].rstrip('.')}: no font of the figure style has it")
