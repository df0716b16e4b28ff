"""What `llamax contamination` does."""

import json as json_module
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from llamax.data.sources import find
from llamax.errors import DataError
from llamax.evaluation.contamination import show
from llamax.evaluation.contamination.clean import (
    SCORE_KEY,
    CleanSubset,
    check_removable,
    clean_scores,
    decontaminate,
    flagged,
    row_measures,
    rule_named,
)
from llamax.evaluation.contamination.items import benchmark_items, benchmark_names
from llamax.evaluation.contamination.report import FILES, as_json, check, check_free, write


def run(
    source: str,
    against: str,
    split: str,
    fields: Sequence[str],
    rule: str,
    *,
    outcomes: Path | None = None,
    json: bool = False,
    out: Path | None = None,
    clean: Path | None = None,
) -> None:
    """Check, print, and write what was asked for; every fault that can be seen beforehand is told before the work."""
    names = benchmark_names(against)
    rule_named(rule)
    if out and clean and out.resolve() == clean.resolve():
        raise DataError(f"{out}: named by --out and by --decontaminate; give each a folder of its own")
    if out:
        check_free(out, FILES)
    if clean:
        row_measures(rule)
        check_removable(source, split, clean)
    find(source, split)
    table = None if outcomes is None else read_outcomes(outcomes)
    report = check(source, benchmark_items(names), split=split, fields=fields, progress=not json)
    scores = {} if table is None else clean_scores(report, table, rule)
    if json:
        values = as_json(report) | {"flagged": {name: sorted(flagged(report, name, rule)) for name in names}}
        values["scores"] = [dict(zip(SCORE_KEY, key, strict=True)) | _plain(found) for key, found in scores.items()]
        print(json_module.dumps(values, indent=1))
    else:
        print(show.report_text(report, rule))
        if scores:
            print(f"\n{show.scores_text(scores)}")
    if out:
        written = write(report, out)
        json or print(f"\n{written}: report.json, items.parquet, rows.parquet")
    if clean:
        kept, removed = decontaminate(report, clean, rule)
        json or print(f"\n{clean}: {kept} rows kept, {removed} removed by {rule}")


def _plain(found: CleanSubset) -> dict[str, Any]:
    """As JSON values; what is not known is null."""

    def known(value: Any) -> Any:
        return None if isinstance(value, float) and math.isnan(value) else value

    parts = {name: part for name, part in found._asdict().items() if name != "detectable"}
    shown = {
        name: part and {key: known(value) for key, value in part._asdict().items()} for name, part in parts.items()
    }
    return shown | {"detectable": known(found.detectable)}


def read_outcomes(path: Path) -> pd.DataFrame:
    """A run's items.parquet. Raises: DataError."""
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: not a run's items.parquet ({reason})") from None
