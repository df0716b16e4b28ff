"""What a score means. A run that evaluates models notes one `Measured` per benchmark, and the gate compares them.

The outcomes themselves are rows of the run's `items.parquet` (`ITEM_COLUMNS`): one row per model, benchmark, metric,
item and sample.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import Field, PositiveInt

from llamax.config import Config
from llamax.errors import ParameterError
from llamax.files import sha256_json

Protocol = Literal["lm-eval", "llamax", "nano"]
"""`lm-eval`: the harness's prompts and scoring as they are. `llamax`: with their known faults mended."""

ITEM_COLUMNS = ["model", "benchmark", "metric", "item", "sample", "outcome", "cluster", "contaminated"]
"""`sample` counts answers to the same item from 0; `cluster`: what items share (MMLU: the subject; else the item)."""

NOTE = "measured"
"""Name of the record's note: model (as in the items) -> list of `Measured` as mappings; see `note` and `read_note`."""
MODELS = "models"
"""Name of the record's note: model (as in the items) -> `fingerprint` of its weights, configuration and tokenizer."""


class Measured(Config):
    """How one benchmark was run. Two scores may be compared if all of this but `samples` and
    `training_data` agrees: each model learned from data of its own."""

    benchmark: str
    metric: str = Field(description="the one by which the gate decides")
    protocol: Protocol
    prompts: str = Field(description="sha256 over the task's definition: prompts, stops, filters, metrics")
    shots: int = Field(ge=0)
    samples: PositiveInt = 1
    temperature: float = 0.0
    max_new_tokens: PositiveInt | None = None
    items: PositiveInt = Field(description="how many were asked")
    total: PositiveInt = Field(description="how many the benchmark has")
    item_set: str = Field(description="`item_set` of those that were asked")
    precision: str = "fp32"
    contamination: Literal["unchecked", "checked"] = "unchecked"
    training_data: tuple[str, ...] = Field((), description="what the items were checked against")


def item_set(items: Iterable[str]) -> str:
    """Hash of a set of item ids, whatever their order."""
    return sha256_json(sorted(set(items)))


def note(measured: Mapping[str, Iterable[Measured]]) -> dict[str, list[dict[str, Any]]]:
    """What `run.note(NOTE, ...)` is given: of each model, how each of its benchmarks was run."""
    return {model: [one.model_dump(mode="json") for one in several] for model, several in measured.items()}


def read_note(value: Any, where: str) -> dict[str, dict[str, Measured]]:
    """`note` read back: model -> benchmark -> how it was run. `where` names the record.

    Raises: ParameterError: not such a mapping, a field that is wrong, or a benchmark listed twice.
    """
    if not isinstance(value, dict) or not all(isinstance(several, list) for several in value.values()):
        raise ParameterError(
            f"{where}: the note {NOTE!r} should map each model to a list, found {type(value).__name__}"
        )
    found: dict[str, dict[str, Measured]] = {}
    for model, several in value.items():
        found[model] = {}
        for number, values in enumerate(several):
            one = Measured.parse(values, f"{where}, note {NOTE!r}, {model}, entry {number}")
            if one.benchmark in found[model]:
                raise ParameterError(f"{where}: the note {NOTE!r} lists {one.benchmark} of {model} twice")
            found[model][one.benchmark] = one
    return found
