"""Runs: from parameters to a key, from a key to a result record, from records to a table.

    config = runs.parse_parameters("instruction_tuning", profile, seed, overrides)
    run = runs.begin("instruction_tuning", config)
    if not run.reused:
        ...                          # compute; run.metric(...), run.items(...), run.series(...)
        run.complete()
    run.record.metrics["accuracy"]   # the same whether computed now or read back

`llamax.runs.notebook` runs notebooks headless and is imported by its full name, so that a change to how notebooks are
started does not make the results of the notebooks stale. Nothing here imports torch.
"""

from llamax.runs.compare import Comparison, compare
from llamax.runs.parameters import parse_parameters
from llamax.runs.records import Cost, Metric, Provenance, Record
from llamax.runs.session import Run, begin
from llamax.runs.store import Store

__all__ = [
    "Comparison",
    "Cost",
    "Metric",
    "Provenance",
    "Record",
    "Run",
    "Store",
    "begin",
    "compare",
    "parse_parameters",
]
