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
from collections.abc import Callable
from pathlib import Path

import yaml
from matplotlib.figure import Figure
from pydantic import Field

from llamax.config import Config
from llamax.errors import PaperError
from llamax.papers.evidence import Evidence
from llamax.papers.source import Source
from llamax.papers.style import save_figure


class Column(Config):
    """One column of numbers: its head, and the name of the value in each row."""

    head: str
    of: str
    show: str = "ci"
    digits: int | None = None


class TableBlock(Config):
    """Rows × columns of values by name; `{row}` in a column's `of` stands for the row's key."""

    caption: str
    head: str = ""
    rows: dict[str, str]
    columns: tuple[Column, ...]

    def markdown(self, label: str) -> str:
        """The table as Markdown, its cells spans that are bound later."""
        lines = [f"| {self.head} | " + " | ".join(column.head for column in self.columns) + " |"]
        lines.append("|:--|" + "--:|" * len(self.columns))
        for row, name in self.rows.items():
            cells = []
            for column in self.columns:
                digits = "" if column.digits is None else f" digits={column.digits}"
                cells.append(f"[{column.of.replace('{row}', row)}]{{.value show={column.show}{digits}}}")
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        return "\n".join([*lines, "", f": {' '.join(self.caption.split())} {{#{label}}}"])


class FigureBlock(Config):
    """A figure drawn when the paper is built."""

    draw: str
    caption: str
    alt: str
    parameters: dict = Field({}, alias="with")

    def markdown(self, label: str) -> str:
        """The figure as Markdown."""
        alt = " ".join(self.alt.split()).replace('"', "'")
        return f'![{" ".join(self.caption.split())}]({figure_file(label)}){{#{label} alt="{alt}"}}'


def figure_file(label: str) -> str:
    """Where the figure `fig:x` lies in the folder that the paper is built in."""
    return f"figures/{label.partition(':')[2]}.svg"


def expand(kind: str, label: str, text: str, source: Source, evidence: Evidence, work: Path) -> str:
    """Markdown for the block `kind` (table, figure) labelled `label`; a figure is drawn into `work` as SVG and PDF.

    Raises: PaperError: not YAML, a field is missing or unknown, or the drawing failed.
    """
    values = read_block(text, f"{kind} {label!r}")
    prefix = {"table": "tbl:", "figure": "fig:"}[kind]
    if not label.startswith(prefix) or label == prefix:
        raise PaperError(f"a {kind} needs a label such as #{prefix}name, found {label!r}")
    if kind == "table":
        return TableBlock.parse(values, label).markdown(label)
    block = FigureBlock.parse(values, label)
    figure = drawing(source, block.draw)(evidence, **block.parameters)
    for suffix in (".svg", ".pdf"):
        save_figure(figure, (work / figure_file(label)).with_suffix(suffix))
    return block.markdown(label)


def read_block(text: str, where: str) -> dict:
    """The YAML mapping in a block. Raises: PaperError."""
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise PaperError(f"{where} is not YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(values, dict):
        raise PaperError(f"{where} is not a mapping of fields")
    return values


def drawing(source: Source, name: str) -> Callable[..., Figure]:
    """The function `name` of the paper's `figures.py`. Raises: PaperError: there is none."""
    path = source.folder / "figures.py"
    if not path.is_file():
        raise PaperError(f"papers/{source.version}/figures.py is missing: it draws {name!r}")
    spec = importlib.util.spec_from_file_location("paper_figures", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    draw = getattr(module, name, None)
    if not callable(draw):
        raise PaperError(f"papers/{source.version}/figures.py has no function {name!r}")
    return draw
