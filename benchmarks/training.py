"""Training step: our `fit` against TRL's `SFTTrainer`, on the same model, documents and hyper-parameters, fp32.

    python benchmarks/training.py [--documents 320] [--repeats 3] [--threads 2]

A nano-shaped LLaMA (hidden 256, 3 layers, vocabulary 2,048) trains one epoch on documents of random tokens whose
lengths and supervised share are those of short instructions. Both get AdamW, a cosine schedule, clipping at 1, and the
same documents with the same targets, tokenized beforehand. TRL runs three ways, because on a CPU its packing lays
all rows of a batch end to end: packed with 8 rows per forward; packed with 1 row per forward and 8 accumulated;
padded, 8 documents per forward and as many per step as our rows hold. Runs are interleaved, so that a busy machine
slows all alike. Reported: real tokens per second by the clock and per CPU second of all threads (median, lowest and
highest), and the median of our speed over theirs, pair by pair.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable

import datasets
import numpy as np
import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging
from trl import SFTConfig, SFTTrainer

from llamax.data.packing import Documents, Rows
from llamax.training.config import TrainConfig
from llamax.training.loop import fit

LENGTH, BATCH, RATE, PAD, VOCABULARY = 256, 8, 1e-3, 2, 2048
TRL_WAYS = {
    "TRL packed 8x1": {"packing": True, "per_device_train_batch_size": BATCH},
    "TRL packed 1x8": {"packing": True, "per_device_train_batch_size": 1, "gradient_accumulation_steps": BATCH},
    "TRL padded": {"packing": False, "per_device_train_batch_size": BATCH},
}


def new_model() -> LlamaForCausalLM:
    """Nano's shape, random weights from seed 0."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def new_documents(count: int) -> list[tuple[list[int], list[bool]]]:
    """(token ids, targets) of `count` documents: 20 to 250 tokens, the latter half or so supervised."""
    rng = np.random.default_rng(0)
    documents = []
    for n in np.clip(rng.lognormal(4.2, 0.5, count), 20, 250).astype(int):
        prompt = int(n * rng.uniform(0.3, 0.7))
        documents.append((rng.integers(5, VOCABULARY, n).tolist(), [False] * prompt + [True] * (n - prompt)))
    return documents


def packed(documents: list[tuple[list[int], list[bool]]]) -> Rows:
    """Our rows of them."""
    collector = Documents(LENGTH)
    for source, (ids, mask) in enumerate(documents):
        collector.add(source, ids, mask)
    return collector.rows(packing=True)


def run_ours(rows: Rows, out: str) -> None:
    """One epoch of `fit`."""
    config = TrainConfig(learning_rate=RATE, epochs=1, batch_size=BATCH, micro_batch=BATCH)
    fit(new_model(), rows, config, out, pad_id=PAD)


def trl_run(data: datasets.Dataset, documents_per_row: float, out: str, options: dict) -> Callable[[], None]:
    """One epoch of `SFTTrainer`, its data preparation done beforehand."""
    if not options["packing"]:
        options = options | {"gradient_accumulation_steps": max(1, round(documents_per_row))}
    config = SFTConfig(
        output_dir=out,
        learning_rate=RATE,
        lr_scheduler_type="cosine",
        warmup_steps=0.03,  # a share of all steps
        num_train_epochs=1,
        weight_decay=0.0,
        max_length=LENGTH,
        completion_only_loss=True,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        save_strategy="no",
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        **options,
    )
    tokens = {"<s>": 0, "</s>": 1, "<pad>": PAD}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(tokens, unk_token="<s>")), eos_token="</s>", pad_token="<pad>"
    )
    trainer = SFTTrainer(new_model(), config, train_dataset=data, processing_class=tokenizer)
    return trainer.train


def timed(run: Callable[[], None]) -> tuple[float, float]:
    """Seconds by the clock and of all CPUs."""
    start, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - start, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=320)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    documents = new_documents(arguments.documents)
    rows, data = (
        packed(documents),
        datasets.Dataset.from_list([{"input_ids": i, "completion_mask": m} for i, m in documents]),
    )
    per_row = len(documents) / len(rows)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ("ours", *TRL_WAYS)}
    with tempfile.TemporaryDirectory() as out:
        for repeat in range(arguments.repeats + 1):
            runs = {"ours": lambda: run_ours(rows, out)}
            runs |= {name: trl_run(data, per_row, out, options) for name, options in TRL_WAYS.items()}
            for name, run in runs.items():
                result = timed(run)
                if repeat:  # the first round warms caches
                    seconds[name].append(result)
    print(f"{rows.report()}; {arguments.threads} threads, {arguments.repeats} repeats")
    for name, results in seconds.items():
        report(name, results, seconds["ours"], rows.report().real)


def report(name: str, results: list[tuple[float, float]], ours: list[tuple[float, float]], tokens: int) -> None:
    """One line: speed by the clock and by CPU time, and how many times faster ours is."""
    parts = []
    for which, label in enumerate(("tok/s", "tok/CPU s")):
        speeds = [tokens / result[which] for result in results]
        ratios = [theirs[which] / mine[which] for theirs, mine in zip(results, ours, strict=True)]
        spread = f"{min(speeds):,.0f}..{max(speeds):,.0f}"
        ratio = f"ours x{statistics.median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f})"
        parts.append(f"{statistics.median(speeds):8,.0f} {label} ({spread}), {ratio}")
    print(f"{name:15} " + " | ".join(parts))


if __name__ == "__main__":
    main()
