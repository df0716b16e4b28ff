"""A repository with one small paper and made-up results, to build papers from without training anything."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from llamax import files
from llamax.instruction_tuning import analysis
from llamax.runs import records

NANO_TASKS = ("knowledge", "arithmetic", "open_qa", "truthfulness", "code")
REAL_TASKS = ("mmlu", "gsm8k", "truthfulqa_mc1", "truthfulqa_mc2")


def outcomes(seed: int, tasks: tuple[str, ...], protocols: tuple[str, ...], items: int, replicates: int):
    """Made-up outcomes of base, full (much better, forgets) and lora (a little better, forgets less)."""
    shared, rng, rows = np.random.default_rng(0), np.random.default_rng(seed + 1), []
    for task in tasks:
        for protocol in protocols:
            ease = shared.uniform(size=items)
            for method, lift in (("base", 0.0), ("full", 0.25), ("lora", 0.15)):
                for replicate in range(1 if method == "base" else replicates):
                    noise = 0 if method == "base" else rng.normal(0, 0.03) + rng.normal(0, 0.05, items)
                    right = (ease + lift + noise > 0.7).astype(float)
                    rows += [
                        (f"{task}-{i}", task, method, protocol, replicate, right[i], f"{task}-{i // 2}")
                        for i in range(items)
                    ]
    text = shared.normal(2.4, 0.3, 30)
    for method, rise in (("base", 0.0), ("full", 0.2), ("lora", 0.05)):
        for replicate in range(1 if method == "base" else replicates):
            noise = 0 if method == "base" else rng.normal(0, 0.01) + rng.normal(0, 0.01, 30)
            loss = text + rise + noise
            rows += [(f"text-{i}", "text_loss", method, "text", replicate, loss[i], f"text-{i}") for i in range(30)]
    columns = ["item", "task", "method", "protocol", "replicate", "outcome", "cluster"]
    return pd.DataFrame(rows, columns=columns)


def curves(seed: int, replicates: int) -> pd.DataFrame:
    """Made-up learning curves of 60 steps."""
    rng, parts = np.random.default_rng(seed), []
    for method, end in (("full", 1.0), ("lora", 1.4)):
        for replicate in range(replicates):
            steps = np.arange(60)
            loss = end + 2 * np.exp(-steps / 15) + rng.normal(0, 0.05, 60)
            parts.append(
                pd.DataFrame({"step": steps, "loss": loss, "supervised": 300, "method": method, "replicate": replicate})
            )
    return pd.concat(parts, ignore_index=True)


def write_run(home: Path, profile: str, seed: int, items: pd.DataFrame, replicates: int) -> str:
    """Put a complete record with these items into `results/`; its run name."""
    run = f"{profile}-s{seed}-{seed:08x}"
    folder = home / "results" / "instruction_tuning" / run
    folder.mkdir(parents=True)
    items.to_parquet(folder / "items.parquet", index=False)
    curves(seed, replicates).to_parquet(folder / "curves.parquet", index=False)
    parameters = {
        "data": {"max_examples": 2000, "length": 256},
        "train": {"batch_size": 8, "epochs": 1.0, "learning_rate": 5e-4},
        "lora": {"rank": 16, "alpha": 32},
        "lora_learning_rate": 3e-3,
        "replicates": replicates,
        "packing": True,
    }
    record = records.Record(
        direction="instruction_tuning",
        run=run,
        profile=profile,
        seed=seed,
        key=f"{seed:08x}" * 8,
        parts={},
        parameters=parameters,
        status="complete",
        metrics={m.name: m for m in analysis.metrics(items)},
        cost=records.Cost(wall_seconds=100.0 + 20 * seed),
        files={name: files.sha256_file(folder / name) for name in ("items.parquet", "curves.parquet")},
        started=f"2026-01-0{seed + 1}T00:00:00+00:00",
        finished=f"2026-01-0{seed + 1}T00:02:00+00:00",
    )
    records.write(record, folder)
    return run


def make_results(home: Path, items: int = 40) -> dict[str, list[str]]:
    """Two nano runs of two trainings each and one smol run, as the lock names them."""
    nano = [write_run(home, "nano", s, outcomes(s, NANO_TASKS, ("plain", "chat"), items, 2), 2) for s in (0, 1)]
    return {"nano": nano, "smol": [write_run(home, "smol", 0, outcomes(5, REAL_TASKS, ("lm-eval",), items, 1), 1)]}


def write_lock(folder: Path, runs: dict[str, list[str]], version: str) -> None:
    """Write a lock file that pins `runs`."""
    lock = {"version": version, "timestamp": "2026-11-24T00:00:00Z", "runs": runs}
    (folder / "lock.json").write_text(json.dumps(lock, indent=1))


PAPER = """---
title: A small paper
author:
  - {name: Somebody, affiliation: Somewhere}
abstract: |
  We gain [nano:full.chat.overall.gain]{.value} points.
---

# Method {#sec:method}

We typed 12.3 here, which is allowed, and cite @cited2020. Trained with a rate of
[nano:parameters.train.learning_rate]{.value} in [nano:cost.wall_seconds]{.value show=minutes} minutes,
[nano:runs]{.value} runs; see @sec:results.

# Results {.results #sec:results}

SmolLM2-135M and 7B are names, 3.0.1 is a version, $x_1 + y^2$ is a formula; @sec:method, @tbl:scores, @fig:gains.

The loss is [nano:base.text_loss]{.value show=se digits=2} before tuning. [buys]{.claim}
Elsewhere: [other.mmlu]{.quoted}.

``` {.table #tbl:scores}
caption: Scores in percent.
head: Task
rows: {knowledge: Knowledge, code: Code}
columns:
  - {head: Base, of: "nano:base.chat.{row}.accuracy"}
  - {head: Gain, of: "nano:full.chat.{row}.gain", show: value}
```

``` {.figure #fig:gains}
draw: bars
with: {runs: nano}
caption: Gains.
alt: Bars of gains.
```

::: {.claims}
:::

## Deeper

Still among the results.[^note]

# Limits

Here 99.9% may be typed.

[^note]: A footnote about nothing.
"""
CLAIMS = """- id: buys
  sentence: Tuning buys accuracy.
  runs: nano
  test: paired_difference
  of: full.chat.overall
  minus: base.chat.overall
  op: ">"
  threshold: 0
- id: loses
  sentence: LoRA loses less text than full tuning.
  runs: nano
  test: paired_difference
  of: lora.text_loss
  minus: full.text_loss
  op: "<"
  threshold: 0
- id: wrong
  sentence: The base model is nearly perfect.
  runs: nano
  test: mean
  of: base.chat.knowledge
  op: ">"
  threshold: 0.9
  holds: false
"""
FIGURES = '''"""Figures of the small paper."""

import matplotlib.pyplot as plt

from llamax.papers.style import styled


@styled
def bars(evidence, runs):
    figure, axes = plt.subplots(figsize=(3, 2))
    gains = [m for m in evidence.metrics(runs) if m.name.endswith("overall.gain")]
    axes.bar([m.name for m in gains], [m.value for m in gains])
    return figure
'''
PAPER_FILES = {
    "paper.md": PAPER,
    "claims.yaml": CLAIMS,
    "figures.py": FIGURES,
    "quoted.yaml": 'other.mmlu: {value: "0.4412", source: cited2020, what: "MMLU, table 1"}\n',
    "refs.bib": "@article{cited2020,\n  author = {Doe, Jane},\n  title = {A Cited Paper},\n  year = {2020}\n}\n",
}


def make_paper(home: Path, runs: dict[str, list[str]]) -> Path:
    """Write the small paper as version 9.9.9; its folder."""
    folder = home / "papers" / "9.9.9"
    folder.mkdir(parents=True)
    for name, text in PAPER_FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
    write_lock(folder, runs, "9.9.9")
    return folder
