"""What a training costs beside its arithmetic, and whether that grows as it should. Own numbers; there is no peer.

    LLAMAX_DATA=... python benchmarks/cost.py [--repeats 3] [--out results/infrastructure]

* **loading**: all 52,002 Alpaca examples read, rendered, tokenized and packed into rows of 2,048 (SmolLM2's tokenizer).
* **speed against size**: tokens per second of the same 24 steps at nano, out of 250, 2,500 and 25,000 rows.
* **start-up**: a fresh Python process from its first import to the end of its first optimizer step at nano.
* **overhead**: share of a step at nano that is neither forward, backward nor update (choosing rows, laying them out,
  sums, metrics, monitors).

Sizes are interleaved; medians, with the lowest and highest.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import torch

from llamax.data.packing import Documents, Rows, build_rows
from llamax.data.sources import read
from llamax.data.templates import get_template
from llamax.models.load import load, load_tokenizer
from llamax.training import loop
from llamax.training.config import TrainConfig
from llamax.training.engines import TorchEngine

SIZES, STEPS, LENGTH = (250, 2_500, 25_000), 24, 256
START_UP = """
import time
start = time.perf_counter()
from llamax.data.packing import build_rows
from llamax.data.sources import read
from llamax.data.templates import get_template
from llamax.models.load import load
from llamax.training.config import TrainConfig
from llamax.training.loop import fit
import tempfile
model, tokenizer = load("nano")
rows = build_rows(read("nano", limit=200), tokenizer, get_template("chatml", tokenizer), length=256)
config = TrainConfig(epochs=1, batch_size=4, micro_batch=4, max_steps=1)
with tempfile.TemporaryDirectory() as out:
    fit(model, rows, config, out, pad_id=tokenizer.pad_token_id)
print(time.perf_counter() - start)
"""


def rows_of(count: int) -> Rows:
    """Full rows of random documents of 64 tokens, the second half of each supervised."""
    rng, documents = np.random.default_rng(0), Documents(LENGTH)
    for source in range(count * 4):
        documents.add(source, rng.integers(5, 2000, 64), np.arange(64) >= 32)
    return documents.rows(packing=True)


def speed(rows: Rows) -> float:
    """Real tokens per second over the steps, the first ones apart."""
    model, tokenizer = load("nano")
    config = TrainConfig(epochs=1, batch_size=8, micro_batch=8, max_steps=STEPS)
    with tempfile.TemporaryDirectory() as out:
        steps = loop.fit(model, rows, config, out, pad_id=tokenizer.pad_token_id).steps[4:]
    return sum(step.tokens for step in steps) / sum(step.seconds for step in steps)


class Timed(TorchEngine):
    """The engine, with a clock around forward, backward and update."""

    seconds = 0.0

    def loss_and_backward(self, batch, scale):
        start = time.perf_counter()
        found = super().loss_and_backward(batch, scale)
        Timed.seconds += time.perf_counter() - start
        return found

    def step(self, learning_rate):
        start = time.perf_counter()
        found = super().step(learning_rate)
        Timed.seconds += time.perf_counter() - start
        return found


def overhead(rows: Rows) -> float:
    """Share of the steps' time that the engine was not at work."""
    model, tokenizer = load("nano")
    config = TrainConfig(epochs=1, batch_size=4, micro_batch=4, max_steps=STEPS)
    was, loop.make_engine, Timed.seconds = loop.make_engine, Timed, 0.0
    model.train()
    with tempfile.TemporaryDirectory() as out:
        history = loop.fit(model, rows, config, out, pad_id=tokenizer.pad_token_id)
    loop.make_engine = was
    return 1 - Timed.seconds / history.seconds


def loading() -> tuple[float, str]:
    """Seconds, and what came of it."""
    tokenizer = load_tokenizer("smol")
    start = time.perf_counter()
    rows = build_rows(read("alpaca"), tokenizer, get_template("chatml", tokenizer), length=2048)
    return time.perf_counter() - start, str(rows.report())


def start_up() -> float:
    """Seconds from the first import to the first step, in a process of its own."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    output = subprocess.run(
        [sys.executable, "-c", START_UP], env=environment, capture_output=True, check=True, text=True
    )
    return float(output.stdout.split()[-1])


def shown(values: list[float], form: str = ",.1f") -> str:
    """Median, lowest and highest."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", default="results/infrastructure")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    data = {size: rows_of(size) for size in SIZES}
    speed(data[SIZES[0]])  # warms caches
    found: dict[str, list[float]] = {f"{size:,} rows, tokens/s": [] for size in SIZES}
    found |= {"start-up, s": [], "overhead, share of a step": [], "loading 52,002 examples, s": []}
    for _ in range(arguments.repeats):
        for size in SIZES:
            found[f"{size:,} rows, tokens/s"].append(speed(data[size]))
        found["start-up, s"].append(start_up())
        found["overhead, share of a step"].append(overhead(data[SIZES[0]]))
        seconds, report = loading()
        found["loading 52,002 examples, s"].append(seconds)
    command = "LLAMAX_DATA=... python benchmarks/cost.py " + " ".join(sys.argv[1:])
    machine = f"{arguments.threads} threads of {psutil.cpu_count()} cores, torch {torch.__version__}"
    lines = [
        "# What a training costs beside its arithmetic",
        "",
        f"`{command.strip()}`",
        "",
        f"{machine}; {report}",
        "",
    ]
    lines += ["| what | median (lowest to highest) |", "|---|---|"]
    lines += [f"| {name} | {shown(values, '.3f' if 'share' in name else ',.1f')} |" for name, values in found.items()]
    text = "\n".join(lines) + "\n"
    print(text)
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "cost.md").write_text(text)
    (out / "cost.json").write_text(
        json.dumps({"command": command, "machine": machine, "values": found}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
