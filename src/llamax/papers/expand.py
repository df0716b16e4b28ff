"""Blocks that stand for more than they say: tables and figures from results, and the list of claims.

    ``` {.table #tbl:nano}                              ``` {.figure #fig:gains}
    caption: Accuracy in percent.                       draw: gains
    head: Task                                          caption: Gains per task.
    rows: {knowledge: Knowledge, code: Code}            alt: Gains of both methods over the base model, task by task.
    columns:                                            with: {runs: nano, protocol: chat}
      - {head: Base, of: "nano:base.chat.{row}.accuracy"}
      - {head: LoRA, of: "nano:lora.chat.{row}.gain", show: ci}
    ```                                                 ```

    ::: {.claims}
    :::

Each becomes Markdown, which is bound like the rest of the paper. `draw` is a function of the paper's own `figures.py`;
it is called with the evidence and with the parameters under `with`.
"""

import importlib.util
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.collections import Collection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Transform
from pydantic import Field

from llamax.config import Config
from llamax.errors import LlamaxError, PaperError
from llamax.papers.evidence import Evidence
from llamax.papers.show import MOST_DIGITS
from llamax.papers.source import Source, YamlFault, read_yaml
from llamax.papers.style import save_figure


class Column(Config):
    """One column of numbers: its head, and the name of the value in each row."""

    head: str
    of: str
    show: str = "ci"
    digits: int | None = Field(None, ge=0, le=MOST_DIGITS)


class TableBlock(Config):
    """Rows × columns of values by name; `{row}` in a column's `of` stands for the row's key."""

    caption: str
    head: str = ""
    rows: dict[str, str]
    columns: tuple[Column, ...]

    def markdown(self, label: str) -> str:
        """The table as Markdown, its cells spans that are bound later."""
        lines = [f"| {cell(self.head)} | " + " | ".join(cell(column.head) for column in self.columns) + " |"]
        lines.append("|:--|" + "--:|" * len(self.columns))
        for row, name in self.rows.items():
            cells = []
            for column in self.columns:
                digits = "" if column.digits is None else f" digits={column.digits}"
                cells.append(f"[{cell(column.of.replace('{row}', row))}]{{.value show={column.show}{digits}}}")
            lines.append(f"| {cell(name)} | " + " | ".join(cells) + " |")
        return "\n".join([*lines, "", f": {' '.join(self.caption.split())} {{#{label}}}"])


def cell(text: str) -> str:
    """Markdown for one cell of a table: on one line, its bars escaped where they would end the cell."""
    protected = r"(`[^`]*`|\$[^$]*\$|\\.)"  # code, formula, escaped character
    return re.sub(rf"{protected}|\|", lambda found: found[1] or r"\|", " ".join(text.split()))


class FigureBlock(Config):
    """A figure drawn when the paper is built."""

    draw: str
    caption: str
    alt: str
    parameters: dict[str, Any] = Field({}, alias="with")

    def markdown(self, label: str) -> str:
        """The figure as Markdown."""
        alt = " ".join(self.alt.split()).replace('"', "'")
        return f'![{" ".join(self.caption.split())}]({figure_file(label)}){{#{label} alt="{alt}"}}'


def figure_file(label: str) -> str:
    """Where the figure `fig:x` lies in the folder that the paper is built in."""
    return f"figures/{label.partition(':')[2]}.svg"


def expand(kind: str, label: str, text: str, source: Source, evidence: Evidence, work: Path) -> str:
    """Markdown for the block `kind` (table, figure) labelled `label`; a figure is drawn into `work` as SVG and PDF.

    Raises: PaperError: not YAML, a field is missing or unknown, or the drawing failed or shows no data.
    """
    values = read_block(text, f"{kind} {label!r}")
    prefix = {"table": "tbl:", "figure": "fig:"}[kind]
    if not label.startswith(prefix) or label == prefix:
        raise PaperError(f"a {kind} needs a label such as #{prefix}name, found {label!r}")
    if kind == "table":
        return TableBlock.parse(values, label).markdown(label)
    block = FigureBlock.parse(values, label)
    figure = drawn(source, block, evidence)
    for suffix in (".svg", ".pdf"):
        save_figure(figure, (work / figure_file(label)).with_suffix(suffix))
    return block.markdown(label)


def read_block(text: str, where: str) -> dict:
    """The YAML mapping in a block. Raises: PaperError."""
    try:
        values = read_yaml(text)
    except YamlFault as fault:
        raise PaperError(f"{where} is not YAML: {fault} (line {fault.line} of the block)") from None
    if not isinstance(values, dict):
        raise PaperError(f"{where} is not a mapping of fields")
    return values


def drawn(source: Source, block: FigureBlock, evidence: Evidence) -> Figure:
    """What the function `block.draw` of the paper's `figures.py` draws.

    Raises: PaperError: there is no such function, it fails in whatever way, or its figure shows no data.
    """
    path = source.folder / "figures.py"
    try:
        figure = drawing(path, block.draw)(evidence, **block.parameters)
    except LlamaxError:
        raise
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else 0
        said = " ".join(str(error).split())
        raise PaperError(f"figures.py:{line}: {block.draw!r} failed: {type(error).__name__}: {said}") from error
    if not isinstance(figure, Figure):
        raise PaperError(f"figures.py: {block.draw!r} returned {type(figure).__name__}, not a matplotlib Figure")
    if not shows_data(figure):
        raise PaperError(f"figures.py: {block.draw!r} drew no data: is a name wrong in `with`: {block.parameters}?")
    return figure


def drawing(path: Path, name: str) -> Callable[..., Figure]:
    """The function `name` of the paper's `figures.py`. Raises: PaperError: there is none."""
    if not path.is_file():
        raise PaperError(f"figures.py is missing: it draws {name!r}")
    spec = importlib.util.spec_from_file_location("paper_figures", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    draw = getattr(module, name, None)
    if not callable(draw):
        raise PaperError(f"figures.py has no function {name!r}")
    return draw


def shows_data(figure: Figure) -> bool:
    """Whether anything is drawn at data coordinates in both directions: a line across the axes is not."""
    for axes in figure.get_axes():
        artists = [artist for artist in [*axes.lines, *axes.patches, *axes.collections] if not is_empty(artist)]
        if axes.images or any(at_data(artist, axes.transData) for artist in artists):
            return True
    return False


def is_empty(artist: Artist) -> bool:
    """Whether a line has no finite point, or a collection no member."""
    if isinstance(artist, Line2D):
        return not np.isfinite(artist.get_xydata()).all(axis=1).any()
    return isinstance(artist, Collection) and not (len(artist.get_paths()) and len(artist.get_offsets()))


def at_data(artist: Artist, data: Transform) -> bool:
    """Whether an artist is placed (a collection: or its members are) by data coordinates in both directions."""
    placed = [artist.get_transform(), *([artist.get_offset_transform()] if isinstance(artist, Collection) else [])]
    return any(all(transform.contains_branch_seperately(data)) for transform in placed)
