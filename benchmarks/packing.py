"""Render and pack Alpaca: ours against TRL's, on the same conversations, tokenizer and row length.

    LLAMAX_DATA=../shared/data python benchmarks/packing.py [--limit 52002] [--repeats 3] [--tokenizer smol]

Two measurements, each interleaved (ours, theirs, ours, ...) so that a busy machine slows both alike, in seconds by the
clock and in CPU seconds over all threads, which a busy machine stretches little:

- render + pack: `build_rows` against `SFTTrainer._prepare_dataset`, TRL's own code, called as its trainer calls it on a
  data set of prompts and completions; both end with token ids and targets in rows.
- pack only: `best_fit_decreasing` and the laying out of rows, against `pack_dataset(..., "bfd")`, on the same ids.

TRL packs 1,000 examples at a time by default; its last line packs all of them at once, as ours does.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import datasets
import trl
from transformers import PreTrainedTokenizerBase
from trl import SFTTrainer

from llamax.data.conversation import Conversation
from llamax.data.packing import Documents, Rows, build_rows
from llamax.data.sources import read
from llamax.data.templates import get_template
from llamax.models.load import load_tokenizer

CHATML = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class Timed(NamedTuple):
    """Seconds of each repetition, by the clock and of all CPUs, and what came out."""

    seconds: list[float]
    cpu_seconds: list[float]
    rows: int
    utilisation: float
    supervised: int


def interleave(contenders: dict[str, Callable[[], tuple[int, float, int]]], repeats: int) -> dict[str, Timed]:
    """Run all contenders in turn, `repeats` times over."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in contenders}
    outcome: dict[str, tuple[int, float, int]] = {}
    for _ in range(repeats):
        for name, run in contenders.items():
            start, cpu_start = time.perf_counter(), time.process_time()
            outcome[name] = run()
            seconds[name].append(time.perf_counter() - start)
            cpu_seconds[name].append(time.process_time() - cpu_start)
    return {name: Timed(seconds[name], cpu_seconds[name], *outcome[name]) for name in contenders}


def ours(rows: Rows) -> tuple[int, float, int]:
    report = rows.report()
    return report.rows, report.utilisation, report.supervised


def theirs(packed: datasets.Dataset, length: int) -> tuple[int, float, int]:
    column = packed.with_format("arrow")[:]["input_ids"]
    real = sum(len(chunk.flatten()) for chunk in column.chunks)
    targets = 0
    if "labels" in packed.column_names:
        labels = packed.with_format("arrow")[:]["labels"]
        targets = sum(int((chunk.flatten().to_numpy(zero_copy_only=False) != -100).sum()) for chunk in labels.chunks)
    return len(packed), real / (len(packed) * length), targets


def trl_prepare(dataset: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, length: int) -> datasets.Dataset:
    """What TRL's trainer does to a data set before the first step."""
    trainer = SimpleNamespace(_tokenizer=tokenizer, chat_template=CHATML, completion_only_loss=True)
    args = SimpleNamespace(
        dataset_num_proc=None,
        dataset_text_field="text",
        assistant_only_loss=False,
        max_length=length,
        packing_strategy="bfd",
        shuffle_dataset=False,
    )
    return SFTTrainer._prepare_dataset(trainer, dataset, tokenizer, args, True, None, "train")


def prompts_and_completions(conversations: list[Conversation]) -> datasets.Dataset:
    """The conversations as TRL wants them, all but the last message in the prompt."""

    def dicts(messages: Any) -> list[dict[str, str]]:
        return [{"role": message.role, "content": message.content} for message in messages]

    return datasets.Dataset.from_list(
        [{"prompt": dicts(c.messages[:-1]), "completion": dicts(c.messages[-1:])} for c in conversations]
    )


def lay_out(documents: list[tuple[Any, Any]], length: int) -> Rows:
    """Our packing of documents that are tokenized already."""
    collected = Documents(length)
    for source, (ids, mask) in enumerate(documents):
        collected.add(source, ids, mask)
    return collected.rows(packing=True)


def print_table(title: str, timings: dict[str, Timed]) -> None:
    """One line for each contender; `ratio` is CPU seconds over those of the first."""
    first = statistics.median(next(iter(timings.values())).cpu_seconds)
    print(f"\n{title} (medians)")
    print(f"{'':34}{'clock s':>9}{'CPU s':>8}{'min':>8}{'max':>8}{'ratio':>7}{'rows':>7}{'used':>9}{'targets':>11}")
    for name, t in timings.items():
        clock, cpu = statistics.median(t.seconds), statistics.median(t.cpu_seconds)
        print(
            f"{name:34}{clock:9.2f}{cpu:8.2f}{min(t.cpu_seconds):8.2f}{max(t.cpu_seconds):8.2f}{cpu / first:7.2f}"
            f"{t.rows:7,}{t.utilisation:9.3%}{t.supervised:11,}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--tokenizer", default="smol")
    options = parser.parse_args()
    datasets.disable_caching()
    datasets.disable_progress_bars()

    start = time.perf_counter()
    conversations = read("alpaca", limit=options.limit)
    print(f"{len(conversations):,} conversations read in {time.perf_counter() - start:.1f} s; TRL {trl.__version__}")
    tokenizer = load_tokenizer(options.tokenizer)
    template = get_template("chatml", tokenizer)
    dataset = prompts_and_completions(conversations)
    length = options.length

    whole = interleave(
        {
            "ours: build_rows": lambda: ours(build_rows(conversations, tokenizer, template, length=length)),
            "TRL: _prepare_dataset": lambda: theirs(trl_prepare(dataset, tokenizer, length), length),
        },
        options.repeats,
    )
    print_table("render + pack", whole)

    rows = build_rows(conversations, tokenizer, template, length=length, packing=False)
    bounds = list(zip(rows.offsets[:-1], rows.offsets[1:], strict=True))
    documents = [(rows.tokens[a:b], rows.mask[a:b]) for a, b in bounds]
    columns = {"input_ids": [ids.tolist() for ids, _ in documents], "mask": [mask.tolist() for _, mask in documents]}
    tokenized = datasets.Dataset.from_dict(columns)
    at_once = {"batch_size": len(tokenized)}
    packed = interleave(
        {
            "ours: best_fit_decreasing": lambda: ours(lay_out(documents, length)),
            "TRL: pack_dataset bfd": lambda: theirs(trl.pack_dataset(tokenized, length), length),
            "TRL: pack_dataset bfd, all at once": lambda: theirs(
                trl.pack_dataset(tokenized, length, map_kwargs=at_once), length
            ),
        },
        options.repeats + 2,
    )
    print_table("pack only (same token ids)", packed)


if __name__ == "__main__":
    main()
