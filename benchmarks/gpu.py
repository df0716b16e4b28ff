"""Training of a LLaMA on one GPU: throughput, MFU and memory of our `fit`; and whether it computes what a CPU does.

    LLAMAX_DATA=... python benchmarks/gpu.py rows FOLDER [--documents 2048]   # Alpaca, tokenized and packed at 2,048
    python benchmarks/gpu.py measure FOLDER [--only PART_OF_A_NAME] [--out results/infrastructure]

Weights are random (no step knows the difference), the rows are real: packed Alpaca, of SmolLM2's tokenizer, its ids
modulo the vocabulary. An optimizer step has four rows, about the 64 examples of the original's batch, or the 16 of our
profile `7b`. Each case is `fit` in bf16 over an fp32 master on one device, the first two steps left out.

Reported: real and supervised tokens per second, the share of padding, MFU (model FLOPs: attention counted exactly,
recomputation not at all) over what a large bf16 matrix product reaches on the same GPU and over the data sheet's peak,
the most memory that torch's allocator had given out against `llamax plan`'s formulas, and the time that an epoch of
50,000 examples takes at that rate, were they as long as LLaMA's own tokenizer makes them. Numbers of the GPU are
compared with a CPU's. Without a GPU the same runs at nano.
"""

import argparse
import dataclasses
import gc
import json
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

from llamax.data.packing import Rows, build_rows
from llamax.data.sources import read
from llamax.data.templates import get_template
from llamax.infrastructure.measure import matmul_rate, planned, synchronise
from llamax.models.load import load_tokenizer
from llamax.training.attention import Extents, attend
from llamax.training.config import LoraConfig, TrainConfig
from llamax.training.history import StepMetrics
from llamax.training.loop import fit, rows_of_step
from llamax.training.lora import apply_lora
from llamax.training.plan.compute import flops
from llamax.training.plan.hardware import CPU, Gpu, find_gpu
from llamax.training.plan.setup import PlanData, Setup
from llamax.training.plan.shapes import Shape, find_shape

LENGTH, ROWS, WARM, EXAMPLES, RATE = 2048, 4, 2, 50_000, 2e-5
TOKENS = 123.3
"""Mean tokens of the first 2,048 Alpaca examples under the template `alpaca` by LLaMA's own tokenizer, as counted with
the npm package llama-tokenizer-js 1.2.2; SmolLM2's makes 108.2 of them."""


class Case(NamedTuple):
    """A shape and what its `TrainConfig` has beside the defaults; steps: timed ones."""

    name: str
    shape: str
    train: dict[str, Any]
    steps: int = 8


CASES = (
    Case("7B, full", "llama-7b", {"micro_batch": 1}),
    Case("7B, full, two rows at once", "llama-7b", {"micro_batch": 2}),
    Case("7B, full, two at once, 16 rows a step", "llama-7b", {"micro_batch": 2, "batch_size": 16}, 4),
    Case("7B, full, four at once, checkpointing", "llama-7b", {"micro_batch": 4, "gradient_checkpointing": True}),
    Case("7B, LoRA, four at once", "llama-7b", {"micro_batch": 4, "lora": LoraConfig()}),
    Case("13B, LoRA, four at once", "llama-13b", {"micro_batch": 4, "lora": LoraConfig()}),
)


def make_model(shape: Shape, dtype: torch.dtype) -> LlamaForCausalLM:
    """Random weights, made where they will be used."""
    config = LlamaConfig(
        vocab_size=shape.vocab, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim, max_position_embeddings=LENGTH, tie_word_embeddings=shape.tied,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(device()):
        return LlamaForCausalLM._from_config(config, dtype=dtype)


def device() -> str:
    """Where everything runs."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def this_gpu() -> Gpu:
    """Its entry in the plan's table."""
    if device() == "cpu":
        return CPU
    name = torch.cuda.get_device_name().removeprefix("NVIDIA ").split()[0]
    return find_gpu({"H100": "H100-80GB", "H200": "H200-141GB"}.get(name, name))


def within(rows: Rows, vocab: int) -> Rows:
    """The same rows with every id inside a smaller vocabulary."""
    return dataclasses.replace(rows, tokens=rows.tokens % vocab)


def measure(case: Case, folder: str, rate: float) -> dict[str, Any]:
    """One case of the table. rate: operations per second of the matrix product."""
    shape = find_shape(case.shape if device() == "cuda" else "nano")
    rows = within(Rows.load(folder), shape.vocab)
    config = TrainConfig(
        learning_rate=RATE, epochs=9, batch_size=ROWS, precision="bf16", max_steps=WARM + case.steps
    ).model_copy(update=case.train)
    model = make_model(shape, torch.bfloat16 if config.lora else torch.float32)
    if config.lora:
        model = apply_lora(model, config.lora)
    stamps, peaks, metrics = [], [], []

    def on_step(step: StepMetrics) -> None:
        synchronise()
        stamps.append(time.perf_counter())
        metrics.append(step)
        if device() == "cuda":
            peaks.append(torch.cuda.max_memory_allocated())
            torch.cuda.reset_peak_memory_stats()

    with tempfile.TemporaryDirectory() as out:
        fit(model, rows, config, out, pad_id=0, on_step=on_step)
    return figures(shape, config, rows, np.diff(stamps)[WARM - 1 :].tolist(), metrics[WARM:], rate) | {
        "case": case.name,
        "losses": [step.loss for step in metrics],
        "peak": peaks[1] if peaks else None,
        **dict(zip(("planned", "planned_at"), planned(model, rows, config), strict=True)),
    }


def figures(
    shape: Shape, config: TrainConfig, rows: Rows, seconds: list[float], steps: list[StepMetrics], rate: float
) -> dict[str, Any]:
    """What follows from the seconds of the timed `steps`."""
    lengths, done = np.diff(rows.offsets), []
    for step in steps:
        documents = np.concatenate([rows.members[row] for row in rows_of_step(step.step, rows, config)])
        own = lengths[documents]
        setup = Setup.of(config, PlanData(rows.length))
        done.append(flops(shape, setup, own.sum(), (own * (own + 1) / 2).sum(), step.supervised).model)
    tokens, supervised = sum(step.tokens for step in steps), sum(step.supervised for step in steps)
    per_second, total = sum(done) / sum(seconds), len(steps) * config.batch_size * rows.length
    peak_rate = this_gpu().tflops16 * 1e12
    return {
        "seconds": seconds,
        "real_per_second": tokens / sum(seconds),
        "supervised_per_second": supervised / sum(seconds),
        "padded": 1 - tokens / total,
        "tflops": per_second / 1e12,
        "mfu_of_matmul": per_second / rate,
        "mfu_of_peak": per_second / peak_rate,
        "minutes_50k": EXAMPLES * TOKENS / (tokens / sum(seconds)) / 60,
    }


def checks() -> dict[str, float]:
    """Relative errors (norms) of what only a GPU runs, against fp32 on the CPU, and those of bf16 on the CPU itself."""
    torch.manual_seed(1)
    lengths = [int(n) for n in np.random.default_rng(1).integers(1, 700, 9)]
    starts = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    shapes = ((1, 8, sum(lengths), 64), (1, 8, sum(lengths), 64), (1, 8, sum(lengths), 64))
    exact, weight = [torch.randn(shape) for shape in shapes], torch.randn(1, sum(lengths), 8, 64)

    def run(where: str, dtype: torch.dtype) -> list[torch.Tensor]:
        q, k, v = (tensor.to(where, dtype, copy=True).requires_grad_() for tensor in exact)
        out, _ = attend(nn.Module(), q, k, v, None, scaling=0.125, documents=Extents(lengths, starts.to(where)))
        out.backward(weight.to(where, dtype))
        return [tensor.detach().float().cpu() for tensor in (out, q.grad, k.grad, v.grad)]

    reference, found = run("cpu", torch.float32), {}
    for name, where, dtype in (
        ("attention bf16, CPU", "cpu", torch.bfloat16),
        (f"attention bf16, {device()}", device(), torch.bfloat16),
        (f"attention fp32, {device()}", device(), torch.float32),
    ):
        for part, got, want in zip(("out", "d query", "d key", "d value"), run(where, dtype), reference, strict=True):
            found[f"{name}, {part}"] = ((got - want).norm() / want.norm()).item()
    return found


def checked_losses(folder: str) -> dict[str, list[float]]:
    """Losses of `fit` at nano, fp32 and bf16, as this machine's device computes them."""
    rows, found = within(Rows.load(folder), find_shape("nano").vocab), {}
    for precision in ("fp32", "bf16"):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=2048, hidden_size=256, intermediate_size=640, num_hidden_layers=3, num_attention_heads=8,
            num_key_value_heads=8, head_dim=32, max_position_embeddings=LENGTH, tie_word_embeddings=True,
        )  # fmt: skip
        model = LlamaForCausalLM(config)  # on the CPU, so that every machine begins with the same numbers
        train = TrainConfig(batch_size=4, micro_batch=1, precision=precision, max_steps=4, learning_rate=1e-3)
        with tempfile.TemporaryDirectory() as out:
            found[precision] = fit(model, rows, train, out, pad_id=0).losses
    return found


def split(folder: str) -> str:
    """Kernels of a step at 7B by their time, as torch's profiler sees them."""
    shape = find_shape("llama-7b" if device() == "cuda" else "nano")
    rows, model = within(Rows.load(folder), shape.vocab), make_model(shape, torch.float32)
    config = TrainConfig(batch_size=ROWS, micro_batch=1, precision="bf16", max_steps=3)
    kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device() == "cuda" else [])
    profiler = profile(activities=kinds)

    def on_step(step: StepMetrics) -> None:
        synchronise()
        if step.step == 1:
            profiler.start()
        elif step.step == 2:
            profiler.stop()

    with tempfile.TemporaryDirectory() as out:
        fit(model, rows, config, out, pad_id=0, on_step=on_step)
    by = "self_cuda_time_total" if device() == "cuda" else "self_cpu_time_total"
    return profiler.key_averages().table(sort_by=by, row_limit=40, max_name_column_width=90)


def as_markdown(facts: dict[str, Any], table: list[dict[str, Any]]) -> str:
    """The table for reading."""
    lines = ["# Training on one GPU", "", f"`{facts['command']}`", ""]
    lines += [f"- {key}: {value}" for key, value in facts.items() if key not in ("command", "checks", "losses")]
    lines += ["", "| case | real tok/s | supervised tok/s | padding | TFLOP/s | MFU of matmul | MFU of peak "
              "| peak memory | planned | 50k examples |", "|---|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for row in table:
        if "error" in row:
            lines.append(f"| {row['case']} | {row['error']} |" + " |" * 8)
            continue
        peak = row["peak"] and f"{row['peak'] / 2**30:.1f} GiB"
        plan = f"{row['planned'] / 2**30:.1f} GiB"
        plan += f" ({row['planned'] / row['peak'] - 1:+.1%})" if row["peak"] else ""
        lines.append(
            f"| {row['case']} | {row['real_per_second']:,.0f} | {row['supervised_per_second']:,.0f} "
            f"| {row['padded']:.1%} | {row['tflops']:.0f} | {row['mfu_of_matmul']:.1%} | {row['mfu_of_peak']:.1%} "
            f"| {peak or 'not counted'} | {plan} | {row['minutes_50k']:.1f} min |"
        )
    lines += ["", "Relative errors against fp32 on the CPU:", ""]
    lines += [f"- {name}: {error:.1e}" for name, error in facts.get("checks", {}).items()]
    lines += [f"- losses at nano, {name}: {', '.join(f'{loss:.6f}' for loss in losses)}"
              for name, losses in facts.get("losses", {}).items()]  # fmt: skip
    return "\n".join(lines) + "\n"


def attempt(name: str, run: Any, *, table: bool = False) -> Any:
    """What `run` gives; what went wrong is printed and nothing (a row that says so) given: the others still run."""
    start = time.perf_counter()
    try:
        return run()
    except Exception as error:
        traceback.print_exc()
        return {"case": name, "error": f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"} if table else {}
    finally:
        gc.collect()
        if device() == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        print(f"{name}: {time.perf_counter() - start:.1f} s in all", flush=True)


def write(out: Path, facts: dict[str, Any], table: list[dict[str, Any]]) -> None:
    """After each case, so that a limit of time loses one alone."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "training_gpu.json").write_text(json.dumps(facts | {"table": table}, indent=1) + "\n")
    (out / "training_gpu.md").write_text(as_markdown(facts, table))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["rows", "measure"])
    parser.add_argument("folder")
    parser.add_argument("--documents", type=int, default=2048)
    parser.add_argument("--only", default="")
    parser.add_argument("--profile", action="store_true", help="also where the time of a 7B step goes")
    parser.add_argument("--out", default="results/infrastructure")
    arguments = parser.parse_args()
    if arguments.what == "rows":
        tokenizer = load_tokenizer("smol")
        examples, template = read("alpaca", limit=arguments.documents), get_template("alpaca", tokenizer)
        rows = build_rows(examples, tokenizer, template, length=LENGTH, packing=True)
        rows.save(arguments.folder)
        print(rows.report())
        return
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # the last GiB are no pieces then
    out, rate = Path(arguments.out), matmul_rate(torch.bfloat16)
    facts: dict[str, Any] = {
        "command": "python benchmarks/gpu.py " + " ".join(sys.argv[1:]),
        "work": f"{Rows.load(arguments.folder).report()}, {ROWS} rows per optimizer step where nothing else is said",
        "machine": f"{torch.cuda.get_device_name() if device() == 'cuda' else 'CPU'}, bf16 matrix product "
        f"{rate / 1e12:.1f} TFLOP/s, data sheet {this_gpu().tflops16:g}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}",
    }
    print(facts["machine"], flush=True)
    facts["checks"] = attempt("checks", checks)
    facts["losses"] = attempt("losses", lambda: checked_losses(arguments.folder))
    table: list[dict[str, Any]] = []
    for case in CASES:
        if arguments.only in case.name:
            table.append(attempt(case.name, lambda case=case: measure(case, arguments.folder, rate), table=True))
            write(out, facts, table)
            print(json.dumps({key: value for key, value in table[-1].items() if key != "losses"}), flush=True)
    if arguments.profile:
        (out / "training_gpu_profile.txt").write_text(str(attempt("profile", lambda: split(arguments.folder))))
    print((out / "training_gpu.md").read_text())


if __name__ == "__main__":
    main()
