"""Pre-training data: what picking a batch costs as the corpus grows, and what making shards costs in time and memory.

    python benchmarks/pretraining.py [--sizes 1000000 10000000 100000000] [--batch 64] [--length 2048] [--repeats 50]

Pick: `Windows.visit`, `supervised` and `collate` of one batch at places drawn at random over three epochs, against a
stored permutation of all windows (`packing.epoch_order`, what `Rows` uses) for the order alone. Milliseconds, median.
The corpora are random tokens in documents of 700 tokens on average, in shards of 16.8M tokens.
Shards: `shard_files` with the nano tokenizer over the small world's prose, repeated; tokens per second, and the most
memory that the process had beyond what it had before, in MiB.
"""

import argparse
import hashlib
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from llamax.data.packing import epoch_order
from llamax.data.shards import MANIFEST, shard_files
from llamax.data.stream import Windows, open_shards
from llamax.data.world.text import pretraining_texts

SHARD = 1 << 24
PLAN = {"tokenizer": "random", "dtype": "<u2"}


def write_corpus(folder: Path, tokens: int) -> None:
    """Shards of random tokens, as `shard_files` would leave them."""
    rng, shards = np.random.default_rng(0), []
    folder.mkdir()
    for number, start in enumerate(range(0, tokens, SHARD)):
        n = min(SHARD, tokens - start)
        ends = np.cumsum(rng.integers(100, 1300, n // 100))
        arrays = {"tokens": rng.integers(3, 2048, n).astype("<u2")}
        arrays["documents"] = np.concatenate([[0], ends[ends < n - 1], [n]]).astype("<i8")
        hashes = {}
        for name, array in arrays.items():
            file = f"{name}-{number:05d}.bin"
            (folder / file).write_bytes(array.tobytes())
            hashes[file] = hashlib.sha256(array.tobytes()).hexdigest()
        facts = {"tokens": n, "documents": len(arrays["documents"]) - 1, "pieces": 0, "empty": 0, "open": False}
        shards.append(facts | {"sha256": hashes})
    (folder / MANIFEST).write_text(json.dumps({"plan": PLAN, "shards": shards}))


def milliseconds(call: Callable[[], object], repeats: int) -> float:
    """Median of `repeats` calls."""
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        found.append(1000 * (time.perf_counter() - start))
    return statistics.median(found)


def pick(folder: Path, tokens: int, batch: int, length: int, repeats: int) -> str:
    """One line of the table."""
    write_corpus(folder, tokens)
    data = Windows.over([open_shards(folder)], length)
    rng, n = np.random.default_rng(1), len(data)

    def one() -> None:
        start = int(rng.integers(0, max(1, n - batch)))
        rows = data.visit(0, int(rng.integers(0, 3)), start, start + batch)
        data.supervised(rows)
        data.collate(rows, 0)

    ours = milliseconds(lambda: data.visit(0, 1, 0, batch), repeats)
    stored = milliseconds(lambda: epoch_order(n, 0, 1)[:batch], 5)
    return f"{tokens:>14,}  {n:>10,}  {ours:>9.3f}  {stored:>17.3f}  {milliseconds(one, repeats):>12.2f}"


def make_shards(megabytes: int, folder: Path) -> None:
    """Tokenize so much text and print one line; in a process of its own, for its memory."""
    from llamax.models.load import load_tokenizer

    tokenizer, text = load_tokenizer("nano"), "\n\n".join(pretraining_texts(0, documents=2000))
    with open(folder / "text.txt", "w") as file:
        written = 0
        while written < megabytes << 20:
            written += file.write(text + "\n\n")
    del text
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    report = shard_files([folder / "text.txt"], tokenizer, folder / "shards", split="paragraph", shard_tokens=1 << 20)
    seconds = time.perf_counter() - start
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{megabytes:>9}  {report.tokens:>11,}  {report.tokens / seconds:>12,.0f}  {memory:>10.0f}", flush=True)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**6, 10**7, 10**8])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        make_shards(options.megabytes[0], Path(options.one))
        return
    print("        tokens     windows   order ms  stored order ms  whole pick ms", flush=True)
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as folder:
            print(pick(Path(folder) / "s", size, options.batch, options.length, options.repeats), flush=True)
    print("\n text MiB       tokens      tokens/s  memory MiB", flush=True)
    for megabytes in options.megabytes:
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([sys.executable, __file__, "--megabytes", str(megabytes), "--one", folder], check=True)


if __name__ == "__main__":
    main()
