"""What a score means. A run that evaluates models notes one `Measured` per benchmark, and the gate compares them.

The outcomes themselves are rows of the run's `items.parquet` (`ITEM_COLUMNS`): one row per model, benchmark, metric,
item and sample.
"""

from collections.abc import Iterable
from typing import Literal

from pydantic import Field, PositiveInt

from llamax.config import Config
from llamax.files import sha256_json

Protocol = Literal["lm-eval", "llamax", "nano"]
"""`lm-eval`: the harness's prompts and scoring as they are. `llamax`: with their known faults mended."""

ITEM_COLUMNS = ["model", "benchmark", "metric", "item", "sample", "outcome", "cluster", "contaminated"]
"""`sample` counts answers to the same item from 0; `cluster`: what items share (MMLU: the subject; else the item)."""

NOTE = "measured"
"""Name of the record's note: a list of `Measured` as mappings."""


class Measured(Config):
    """How one benchmark was run. Two scores may be compared if all of this but `samples` agrees."""

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
