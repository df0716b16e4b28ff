"""Nano training under different OpenMP spin counts, alone and beside a busy process: why `llamax` sets GOMP_SPINCOUNT.

    python benchmarks/threads.py [--repeats 3]

Each measurement is a process of its own (libgomp reads the variable once), interleaved; tokens per second of 30 steps,
median and range. The peer is libgomp's own default.
"""

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

WAYS = {
    "libgomp's default": {},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "passive": {"OMP_WAIT_POLICY": "passive"},
}
CHILD = """
import os
wanted = {name: os.environ.pop(name, None) for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
import llamax
os.environ.pop("GOMP_SPINCOUNT", None)
os.environ.update({name: value for name, value in wanted.items() if value})
import tempfile
from llamax.data.packing import build_rows
from llamax.data.sources import read
from llamax.data.templates import get_template
from llamax.models.load import load
from llamax.training.config import TrainConfig
from llamax.training.loop import fit
model, tokenizer = load("nano")
rows = build_rows(read("nano", limit=300), tokenizer, get_template("chatml", tokenizer), length=256, over_long="reject")
config = TrainConfig(learning_rate=1e-4, epochs=2, batch_size=4, micro_batch=4, max_steps=35)
with tempfile.TemporaryDirectory() as out:
    steps = fit(model, rows, config, out, pad_id=tokenizer.pad_token_id).steps[5:]
print(sum(step.tokens for step in steps) / sum(step.seconds for step in steps))
"""


def speed(environment: dict[str, str]) -> float:
    """Tokens per second of one process."""
    done = subprocess.run([sys.executable, "-c", CHILD], env=os.environ | environment, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1])


@contextmanager
def beside(busy: int) -> Iterator[None]:
    """Run the block beside `busy` processes that do nothing but count."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    try:
        yield
    finally:
        for other in others:
            other.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    for busy in (0, 1, 2):
        found: dict[str, list[float]] = {name: [] for name in WAYS}
        with beside(busy):
            for _ in range(repeats):
                for name, environment in WAYS.items():
                    found[name].append(speed(environment))
        for name, speeds in found.items():
            median = statistics.median(speeds)
            ratio = median / statistics.median(found["libgomp's default"])
            print(f"{busy} busy  {name:22} {median:8,.0f} tok/s ({min(speeds):,.0f}..{max(speeds):,.0f})  x{ratio:.2f}")


if __name__ == "__main__":
    main()
