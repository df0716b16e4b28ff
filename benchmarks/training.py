"""Training on CPU: our `fit`, TRL's `SFTTrainer` and the original Llama-X recipe on the same model and examples.

    LLAMAX_DATA=... python benchmarks/training.py speed     [--repeats 3]   # three systems, interleaved
    LLAMAX_DATA=... python benchmarks/training.py waterfall [--repeats 3]   # from the original's recipe to ours
    LLAMAX_DATA=... python benchmarks/training.py parity                    # loss of the first step in fp32

SmolLM2-135M (in the bf16 that it was published in), 256 Alpaca examples under one template, tokenized beforehand; rows
of 2,048 tokens where rows are packed, and as many optimizer steps for everybody: packed rows four at a time, padded
documents 64 at a time (the original's batch). AdamW, cosine schedule, clipping at 1.

* **original**: Hugging Face's `Trainer`, each batch padded on the right to its longest, fp32 (its fp16 needs a GPU).
* **TRL**: `SFTTrainer` packed (best fit decreasing, padding-free) with its chunked loss, under bf16 autocast and in
  pure bf16; a row per forward.
* **ours**: `fit` in bf16 over an fp32 master, rows end to end.

Reported: real, supervised and padded tokens per second (the last: all that went through the model), and MFU: model
FLOPs (attention counted exactly for the documents, recomputation not at all) over what a large bf16 matrix product
reaches on this machine, measured between the runs. Ratios are pair by pair. Final losses are of 64 other examples, by
one function for all; `parity` also trains ours with three seeds, which says how far such a loss moves by chance.
"""

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import datasets
import psutil
import torch
import transformers
import trl
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.utils import logging

from llamax.data.packing import Rows, build_rows, collate_flat
from llamax.data.sources import read
from llamax.data.templates import get_template
from llamax.infrastructure.measure import fresh, matmul_rate
from llamax.infrastructure.waterfall import WAYS, Recipe, one_way, operations, padded_tokens
from llamax.models.load import load
from llamax.training import attention
from llamax.training.config import TrainConfig
from llamax.training.loop import fit
from llamax.training.objectives import next_token_loss

LENGTH, DOCUMENTS, HELD_OUT, ROWS, BATCH, RATE = 2048, 256, 64, 4, 64, 2e-5
SAME = 1e-3  # share by which losses in fp32 may differ


class Work(NamedTuple):
    """The examples, packed and one by one; those held out; the model to begin with."""

    packed: Rows
    single: Rows
    held_out: Rows
    model: nn.Module
    tokenizer: object

    def fresh(self, dtype: torch.dtype) -> nn.Module:
        """A copy of the model in `dtype`."""
        return fresh(self.model, dtype)

    @property
    def recipe(self) -> Recipe:
        """The same for the ways of the waterfall."""
        return Recipe(self.packed, self.single, self.model, self.tokenizer.pad_token_id, ROWS, BATCH, RATE)

    @property
    def steps(self) -> int:
        """Optimizer steps of the epoch, packed."""
        return -(-len(self.packed) // ROWS)


def prepare(spec: str, documents: int) -> Work:
    """Read, tokenize and pack."""
    model, tokenizer = load(spec)
    model.bfloat16().float()  # as it was published; the digits that GGUF adds lie between two bf16 numbers
    template = get_template("chatml", tokenizer)
    examples = read("alpaca", limit=documents + HELD_OUT)
    rows = [
        build_rows(part, tokenizer, template, length=LENGTH, packing=packing)
        for part, packing in (
            (examples[:documents], True), (examples[:documents], False), (examples[documents:], True),
        )
    ]  # fmt: skip
    return Work(*rows, model, tokenizer)


class System(NamedTuple):
    """What is trained; what trains it for an epoch and gives the losses; the tokens that went through it, padding
    included, which is known afterwards."""

    model: nn.Module
    run: Callable[[], list[float]]
    padded: Callable[[], int]


def ours(work: Work, precision: str = "bf16", seed: int = 0, **changes) -> System:
    """Our `fit`, one epoch."""
    config = TrainConfig(
        learning_rate=RATE, epochs=1, batch_size=ROWS, micro_batch=1, precision=precision, seed=seed
    ).model_copy(update=changes)
    model = work.fresh(torch.float32)

    def run() -> list[float]:
        with tempfile.TemporaryDirectory() as out:
            return fit(model, work.packed, config, out, pad_id=work.tokenizer.pad_token_id).losses

    return System(model, run, lambda: len(work.packed.tokens))


def as_dataset(rows: Rows, without: str) -> datasets.Dataset:
    """The documents with what is a target: as labels, or as TRL's completion mask."""
    out = []
    for first, last in zip(rows.offsets[:-1], rows.offsets[1:], strict=True):
        ids, mask = rows.tokens[first:last].tolist(), rows.mask[first:last]
        labels = [token if target else -100 for token, target in zip(ids, mask, strict=True)]
        out.append({"input_ids": ids, "completion_mask": mask.astype(int).tolist(), "labels": labels})
    return datasets.Dataset.from_list(out).remove_columns(without)


def common(out: str) -> dict:
    """Arguments that both of Hugging Face's trainers take."""
    return {
        "output_dir": out,
        "learning_rate": RATE,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.03,  # a share of all steps
        "num_train_epochs": 1,
        "weight_decay": 0.0,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
    }


def trl_run(work: Work, how: str, rows: int = ROWS) -> System:
    """TRL at its best: packed, padding-free, chunked loss; `how`: bf16 'autocast', 'pure' bf16, or 'fp32'."""
    out = tempfile.mkdtemp()
    model = work.fresh(torch.bfloat16 if how == "pure" else torch.float32)
    config = trl.SFTConfig(
        **common(out),
        max_length=LENGTH,
        packing=True,
        completion_only_loss=True,
        loss_type="chunked_nll",
        per_device_train_batch_size=1,
        gradient_accumulation_steps=rows,
        bf16=how == "autocast",
    )
    data = as_dataset(work.single, without="labels")
    trainer = trl.SFTTrainer(model, config, train_dataset=data, processing_class=work.tokenizer)
    return System(model, partial(losses_of, trainer), lambda: len(work.single.tokens))  # rows end to end, no padding


def losses_of(trainer: Trainer) -> list[float]:
    """Train, and give the loss of each step."""
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def original_run(work: Work, *, batch: int = BATCH, micro: int = 8) -> System:
    """The original recipe: Hugging Face's Trainer, padding to the longest of the micro-batch, fp32."""
    model, pad = work.fresh(torch.float32), work.tokenizer.pad_token_id
    steps = {"per_device_train_batch_size": micro, "gradient_accumulation_steps": batch // micro}
    laid: list[int] = []

    def collator(documents: list[dict]) -> dict[str, torch.Tensor]:
        width = max(len(document["input_ids"]) for document in documents)
        laid.append(width * len(documents))
        fields = {"input_ids": pad, "labels": -100}
        padded = {
            name: torch.tensor([d[name] + [fill] * (width - len(d[name])) for d in documents])
            for name, fill in fields.items()
        }
        lengths = torch.tensor([len(d["input_ids"]) for d in documents])
        return padded | {"attention_mask": (torch.arange(width) < lengths[:, None]).long()}

    arguments = TrainingArguments(**common(tempfile.mkdtemp()), **steps)
    data = as_dataset(work.single, without="completion_mask")
    trainer = Trainer(model, arguments, train_dataset=data, data_collator=collator)
    return System(model, partial(losses_of, trainer), lambda: sum(laid))


def held_out_loss(work: Work, model: nn.Module) -> float:
    """Nats per supervised token of the examples that nobody was trained on, in fp32."""
    model.float().eval()
    total, count = 0.0, 0
    with torch.no_grad(), attention.documents_attention(model):
        for row in range(len(work.held_out)):
            loss, targets = next_token_loss(model, collate_flat(work.held_out, [row], work.tokenizer.pad_token_id))
            total, count = total + loss.item(), count + targets
    return total / count


def measure(work: Work, systems: dict[str, Callable], repeats: int) -> dict[str, list[dict]]:
    """Interleaved runs of all systems; of each the seconds, the machine's rate around it, and the losses."""
    found: dict[str, list[dict]] = {name: [] for name in systems}
    for repeat in range(repeats):
        for name, make in systems.items():
            system = make()
            before = matmul_rate(torch.bfloat16)
            start = time.perf_counter()
            losses = system.run()
            seconds = time.perf_counter() - start
            rate = max(before, matmul_rate(torch.bfloat16))
            held_out = held_out_loss(work, system.model) if repeat == 0 else None
            one = {"seconds": seconds, "rate": rate, "padded": system.padded(), "losses": losses, "held_out": held_out}
            found[name].append(one)
            print(f"{repeat} {name}: {seconds:.1f} s, {rate / 1e9:,.0f} GFLOP/s, losses {losses}", flush=True)
            del system
            gc.collect()
    return found


def summary(work: Work, found: dict[str, list[dict]], ours_name: str) -> list[dict]:
    """One row for each system: medians, with the lowest and highest, and our ratio pair by pair."""
    real, supervised = len(work.single.tokens), int(work.single.mask.sum())
    work_done, table = operations(work.model, work.single), []
    for name, runs in found.items():
        ratios = [theirs["seconds"] / own["seconds"] for theirs, own in zip(runs, found[ours_name], strict=True)]
        shares = [work_done / run["seconds"] / run["rate"] for run in runs]
        rates = [supervised / run["seconds"] for run in runs]
        table.append({
            "system": name, "seconds": statistics.median(run["seconds"] for run in runs),
            "real_per_second": statistics.median(real / run["seconds"] for run in runs),
            "padded_per_second": statistics.median(run["padded"] / run["seconds"] for run in runs),
            "supervised_per_second": statistics.median(rates), "lowest": min(rates), "highest": max(rates),
            "mfu": statistics.median(shares), "ratio": statistics.median(ratios), "ratios": ratios,
            "last_loss": runs[0]["losses"][-1], "held_out": runs[0]["held_out"], "runs": runs,
        })  # fmt: skip
    return table


def as_markdown(what: str, facts: dict, table: list[dict]) -> str:
    """The table for reading."""
    lines = [f"# Training, {what}", "", f"`{facts['command']}`", ""]
    lines += [f"- {key}: {value}" for key, value in facts.items() if key != "command"]
    lines += [
        "",
        "| system | seconds | real, padded tok/s | supervised tok/s (range) | MFU | ours faster by | held-out loss |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in table:
        ratio = f"x{row['ratio']:.2f} ({min(row['ratios']):.2f} to {max(row['ratios']):.2f})"
        loss = f"{row['held_out']:.4f}" if row["held_out"] is not None else ""
        spread = f"{row['supervised_per_second']:.0f} ({row['lowest']:.0f} to {row['highest']:.0f})"
        tokens = f"{row['real_per_second']:.0f}, {row['padded_per_second']:.0f}"
        lines.append(
            f"| {row['system']} | {row['seconds']:.1f} | {tokens} | {spread} | {row['mfu']:.1%} | {ratio} | {loss} |"
        )
    return "\n".join(lines) + "\n"


def parity(work: Work) -> dict[str, float]:
    """Loss of the first optimizer step in fp32, all examples in it: before any update, so it is the same or wrong."""
    everything = len(work.packed)
    losses = {
        "ours": ours(work, "fp32", batch_size=everything, max_steps=1).run()[0],
        "TRL packed": trl_run(work, "fp32", everything).run()[0],
        "original": original_run(work, batch=len(work.single), micro=8).run()[0],
    }
    assert max(losses.values()) / min(losses.values()) < 1 + SAME, losses
    return losses


def by_seed(work: Work) -> list[float]:
    """Held-out losses of ours, trained in bf16 with three seeds: orders of the rows."""
    found = []
    for seed in range(3):
        system = ours(work, seed=seed)
        system.run()
        found.append(held_out_loss(work, system.model))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["speed", "waterfall", "parity"])
    parser.add_argument("--model", default="smol")
    parser.add_argument("--documents", type=int, default=DOCUMENTS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", default="results/infrastructure")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    work = prepare(arguments.model, arguments.documents)
    print(work.packed.report())
    facts = {
        "command": "LLAMAX_DATA=... python benchmarks/training.py " + " ".join(sys.argv[1:]),
        "work": f"{arguments.model}, {work.packed.report()}",
        "machine": f"{arguments.threads} threads of {psutil.cpu_count()} cores, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, trl {trl.__version__}",
    }
    if arguments.what == "parity":
        losses, seeds = parity(work), by_seed(work)
        table = None
        head = ["# Training: loss of the first optimizer step, fp32", "", f"`{facts['command']}`", ""]
        head += [f"- {key}: {value}" for key, value in facts.items() if key != "command"]
        text = "\n".join([*head, "", *(f"- {name}: {loss!r} nats per token" for name, loss in losses.items())])
        chance = ", ".join(f"{loss:.4f}" for loss in seeds)
        text += f"\n\nHeld-out loss of ours after an epoch in bf16, by seed: {chance} "
        text += f"(standard deviation {statistics.stdev(seeds):.4f})"
        facts |= {"first loss": losses, "held-out loss by seed": seeds}
    else:
        systems = {
            "speed": {
                "ours": lambda: ours(work),
                "TRL packed, bf16 autocast": lambda: trl_run(work, "autocast"),
                "TRL packed, pure bf16": lambda: trl_run(work, "pure"),
                "original recipe": lambda: original_run(work),
            },
            "waterfall": {
                way.name: lambda way=way: System(*one_way(work.recipe, way), lambda: padded_tokens(work.recipe, way))
                for way in WAYS
            },
        }[arguments.what]
        found = measure(work, systems, arguments.repeats)
        table = summary(work, found, "ours" if arguments.what == "speed" else WAYS[-1].name)
        text = as_markdown(arguments.what, facts, table)
    print(text)
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / f"training_{arguments.what}.json").write_text(json.dumps(facts | {"table": table}, indent=1) + "\n")
    (out / f"training_{arguments.what}.md").write_text(text if text.endswith("\n") else text + "\n")


if __name__ == "__main__":
    main()
