"""Made-up outcomes of two models, as rows of `items.parquet` and as how each benchmark was run."""

import numpy as np
import pandas as pd

from llamax.versions.measured import Measured, item_set

TYPE_A = ("mmlu", "humaneval", "gsm8k", "nq_open", "truthfulqa_mc1")
TYPE_B = ("leetcode", "gre_like", "ap_like", "jmmlu", "cmmlu", "puzzlevqa")
NANO = ("knowledge", "arithmetic", "open_qa", "truthfulness", "code")


def answers(
    n: int, gain: float, *, seed: int = 0, churn: float = 0.1, samples: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Outcomes 0 and 1 [n, samples] after and before; exactly `gain` * n items more are right after, as near as can be.

    `churn` is the share of items that change either way.
    """
    rng = np.random.default_rng(seed)
    before = (rng.uniform(size=n) < 0.5).astype(float)
    wrong, right = rng.permutation(np.flatnonzero(before == 0)), rng.permutation(np.flatnonzero(before == 1))
    moved = round(n * gain)
    lost = round((n * churn - abs(moved)) / 2)
    up, down = lost + max(moved, 0), lost + max(-moved, 0)
    after = before.copy()
    after[wrong[:up]], after[right[:down]] = 1.0, 0.0
    return np.repeat(after[:, None], samples, axis=1), np.repeat(before[:, None], samples, axis=1)


def rows(model: str, benchmark: str, table: np.ndarray, *, leaked: int = 0, subjects: int = 0) -> pd.DataFrame:
    """Rows of `items.parquet`; the first `leaked` items are contaminated, `subjects` > 0 are clusters."""
    n, samples = table.shape
    items = [f"{benchmark}/{i}" for i in range(n)]
    clusters = [f"s{i % subjects}" for i in range(n)] if subjects else items
    frame = pd.DataFrame(
        {
            "model": model,
            "benchmark": benchmark,
            "metric": "acc",
            "item": np.repeat(items, samples),
            "sample": np.tile(np.arange(samples), n),
            "outcome": table.reshape(-1),
            "cluster": np.repeat(clusters, samples),
        }
    )
    return frame.assign(contaminated=frame["item"].isin(items[:leaked]))


def measured(frame: pd.DataFrame, **changes: object) -> Measured:
    """How the benchmark of `frame` was run, all of it unless `changes` says otherwise."""
    items = frame["item"].nunique()
    values = {
        "benchmark": frame["benchmark"].iloc[0],
        "metric": "acc",
        "protocol": "lm-eval",
        "prompts": "ab" * 32,
        "shots": 5,
        "samples": int(frame["sample"].max()) + 1,
        "items": items,
        "total": items,
        "item_set": item_set(frame["item"]),
        "contamination": "checked",
    }
    return Measured(**values | changes)
