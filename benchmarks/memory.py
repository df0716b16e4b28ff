"""Peak memory of our training step, measured, against `llamax plan`'s formulas.

    python benchmarks/memory.py [--only PART_OF_A_NAME] [--skip PART_OF_A_NAME] [--write]

Each case is `fit` for two optimizer steps in a fresh process (one per rank): random weights, random documents as long
as a row (`x2`: two documents in each), half of their tokens supervised. Two measurements of the second step, which
finds Adam's moments there:

    counted     the most that torch's allocator had handed out, by the memory events of torch.profiler: every tensor,
                temporaries inside kernels included, to the byte. The table's error is against this.
    resident    peak of the process's resident memory (VmHWM, reset through /proc/self/clear_refs) over that after all
                imports and a tiny warm-up step; with MALLOC_MMAP_THRESHOLD_=65536 and MALLOC_TRIM_THRESHOLD_=65536, so
                that glibc gives freed blocks back. It also holds oneDNN's reordered copies and gloo's buffers.

Of several ranks the largest counts. `--write` puts the rows into results/infrastructure/memory.json and .md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1",
               "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"}  # fmt: skip
COMMAND = "python benchmarks/memory.py --write"
RESULTS = Path(__file__).resolve().parents[1] / "results" / "infrastructure"
NANO = {"name": "nano", "hidden": 256, "layers": 3, "heads": 8, "kv_heads": 4, "head_dim": 32, "intermediate": 640,
        "vocab": 2048, "tied": True}  # fmt: skip
WIDE = {"name": "26M", "hidden": 512, "layers": 6, "heads": 8, "kv_heads": 8, "head_dim": 64, "intermediate": 1376,
        "vocab": 8192, "tied": False}  # fmt: skip
DEEP = {"name": "52M", "hidden": 640, "layers": 10, "heads": 10, "kv_heads": 5, "head_dim": 64, "intermediate": 1728,
        "vocab": 6000, "tied": False}  # fmt: skip
SMOL = {"name": "135M", "hidden": 576, "layers": 30, "heads": 9, "kv_heads": 3, "head_dim": 64, "intermediate": 1536,
        "vocab": 49152, "tied": True}  # fmt: skip
ZERO3 = {"engine": "deepspeed", "ranks": 2, "zero_stage": 3}
LORA = {"lora": {"rank": 16}}
BF16, CHECK = {"precision": "bf16"}, {"gradient_checkpointing": True}


def case(shape: dict, length: int, micro_batch: int, *parts: dict, documents: int = 1, micro_steps: int = 1) -> dict:
    """One case: a shape, rows, and the parts of a `TrainConfig`."""
    train: dict[str, Any] = {"micro_batch": micro_batch}
    for part in parts:
        train |= part
    train["batch_size"] = micro_batch * train.get("ranks", 1) * micro_steps
    words = [shape["name"], f"{micro_batch}x{length}" + (f"x{documents}" if documents > 1 else "")]
    words += [train.get("precision", "fp32")] + (["checkpointing"] if train.get("gradient_checkpointing") else [])
    words += (["LoRA"] if train.get("lora") else []) + ([f"accumulate {micro_steps}"] if micro_steps > 1 else [])
    words += [f"ZeRO-{train['zero_stage']} on 2 ranks"] if "zero_stage" in train else []
    return {"name": ", ".join(words), "shape": shape, "length": length, "documents": documents, "train": train}


CASES = [
    case(NANO, 256, 8),
    case(NANO, 512, 8, BF16, documents=2),
    case(WIDE, 256, 4),
    case(WIDE, 512, 8, BF16),
    case(WIDE, 512, 8, BF16, CHECK, documents=2),
    case(WIDE, 1024, 4, CHECK),
    case(WIDE, 512, 4, BF16, LORA, CHECK),
    case(WIDE, 256, 2, BF16, micro_steps=4),
    case(WIDE, 256, 4, ZERO3),
    case(WIDE, 256, 4, BF16, ZERO3, CHECK),
    case(DEEP, 512, 2, BF16, documents=2),
    case(DEEP, 512, 4, BF16, ZERO3),
    case(SMOL, 256, 1),
    case(SMOL, 512, 2, BF16),
    case(SMOL, 512, 2, BF16, CHECK, documents=2),
    case(SMOL, 512, 1, BF16, LORA),
    case(SMOL, 256, 1, BF16, ZERO3, CHECK),
]


def planned(case: dict) -> tuple[float, str]:
    """Bytes by the plan, and the moment that decides."""
    from llamax.training.config import LoraConfig
    from llamax.training.plan.device import device
    from llamax.training.plan.hardware import CPU, Hardware
    from llamax.training.plan.setup import Setup
    from llamax.training.plan.shapes import Shape

    train = case["train"] | {"lora": LoraConfig(**case["train"]["lora"]) if "lora" in case["train"] else None}
    defaults = {"precision": "fp32", "engine": "torch"}
    setup = Setup(**(defaults | train), length=case["length"], supervised=0.5)
    setup = setup._replace(document=case["length"] / case["documents"])
    found = device(Shape(**case["shape"]), setup, Hardware(CPU, 1, setup.ranks))
    return found.peak, found.at


def train(case: dict, on_step: Any = None) -> None:
    """`fit` for two steps on random rows."""
    import numpy as np
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from llamax.data.packing import Documents
    from llamax.models.precision import DTYPES, cast
    from llamax.training.config import TrainConfig
    from llamax.training.loop import fit
    from llamax.training.lora import apply_lora

    torch.manual_seed(0)
    shape, config = case["shape"], TrainConfig.parse(case["train"] | {"max_steps": 2})
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape["vocab"], hidden_size=shape["hidden"], intermediate_size=shape["intermediate"],
            num_hidden_layers=shape["layers"], num_attention_heads=shape["heads"], head_dim=shape["head_dim"],
            num_key_value_heads=shape["kv_heads"], tie_word_embeddings=shape["tied"], max_position_embeddings=4096,
        )
    )  # fmt: skip
    if config.engine == "deepspeed":
        cast(model, DTYPES[config.precision])
    if config.lora:
        model = apply_lora(model, config.lora)
    documents, rng = Documents(case["length"]), np.random.default_rng(0)
    each = case["length"] // case["documents"]
    for source in range(2 * config.batch_size * case["documents"]):
        documents.add(source, rng.integers(3, shape["vocab"], each), np.arange(each) >= each // 2)
    with tempfile.TemporaryDirectory() as out:
        fit(model, documents.rows(packing=True), config, out, pad_id=0, on_step=on_step)


def counted(case: dict) -> int:
    """Most bytes that torch's allocator had given out during the second step."""
    import torch

    from llamax.infrastructure.measure import counted

    torch.set_num_threads(1)
    return counted(lambda on_step: train(case, on_step))


def resident(case: dict) -> int:
    """Peak resident bytes of the second step over those after a tiny warm-up."""
    import ctypes
    import gc

    def status(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

    if "ranks" not in case["train"]:
        train({**case, "shape": NANO, "length": 16})
    else:
        import deepspeed  # noqa: F401 - its imports belong to the baseline
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before, peaks = status("VmRSS"), []

    def mark(_: Any) -> None:
        peaks.append(status("VmHWM"))
        Path("/proc/self/clear_refs").write_text("5")

    train(case, mark)
    return peaks[1] - before


def one(case: dict, measure: str) -> int:
    """A measurement in processes of its own; the largest rank's."""
    from llamax.training.ranks import free_port

    ranks = case["train"].get("ranks", 1)
    environment = os.environ | ENVIRONMENT
    if ranks > 1:
        environment |= {"WORLD_SIZE": str(ranks), "LOCAL_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1",
                        "MASTER_PORT": str(free_port())}  # fmt: skip
    processes = []
    for rank in range(ranks):
        mine = environment | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {})
        command = [sys.executable, __file__, "--measure", measure, json.dumps(case)]
        processes.append(subprocess.Popen(command, env=mine, stdout=subprocess.PIPE, text=True))
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit(f"{case['name']}: a rank failed")
    return max(int(output.strip().splitlines()[-1]) for output in outputs)


def row(case: dict, measures: tuple[str, ...] = ("counted", "resident")) -> dict[str, Any]:
    """All of one case: bytes and the moment that the plan takes for the largest."""
    plan, moment = planned(case)
    found = {"case": case["name"], "planned": int(plan), "at": moment}
    found |= {measure: one(case, measure) for measure in measures}
    found["error"] = found["planned"] / found["counted"] - 1
    return found


def as_table(rows: list[dict[str, Any]]) -> str:
    """Markdown, sizes in MiB."""
    lines = ["| case | planned | counted | error | resident | decided by |", "|---|---:|---:|---:|---:|---|"]
    for found in rows:
        sizes = (found.get(key) for key in ("planned", "counted", "resident"))
        planned, counted, resident = ("–" if size is None else f"{size / 2**20:,.1f}" for size in sizes)
        lines.append(
            f"| {found['case']} | {planned} | {counted} | {found['error']:+.1%} | {resident} | {found['at']} |"
        )
    worst = max(abs(found["error"]) for found in rows)
    return "\n".join([*lines, "", f"Sizes in MiB, per rank. Largest error: {worst:.1%}."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", nargs="?")
    parser.add_argument("--measure", choices=["counted", "resident"])
    parser.add_argument("--only", default="")
    parser.add_argument("--skip", default="")
    parser.add_argument("--counted-only", action="store_true", help="half the time: leave out the resident memory")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    if arguments.measure:
        print(globals()[arguments.measure](json.loads(arguments.case)), flush=True)
        return
    rows = []
    for case in CASES:
        if arguments.only in case["name"] and not (arguments.skip and arguments.skip in case["name"]):
            rows.append(row(case, ("counted",) if arguments.counted_only else ("counted", "resident")))
            print(as_table(rows[-1:]).splitlines()[2], file=sys.stderr, flush=True)
            if arguments.write:
                write(rows)
    print(as_table(rows))


def write(rows: list[dict[str, Any]]) -> None:
    """Put these rows among those that are written already, in the order of `CASES`."""
    import torch

    from llamax.files import write_atomic

    file = RESULTS / "memory.json"
    known = {one["case"]: one for one in json.loads(file.read_text())["rows"]} if file.is_file() else {}
    known |= {one["case"]: one for one in rows}
    kept = [known[case["name"]] for case in CASES if case["name"] in known]
    head = f"# Peak memory of a training step: planned and measured\n\n`{COMMAND}`, torch {torch.__version__}.\n\n"
    write_atomic(RESULTS / "memory.md", head + as_table(kept) + "\n")
    write_atomic(file, json.dumps({"command": COMMAND, "torch": torch.__version__, "rows": kept}, indent=1) + "\n")


if __name__ == "__main__":
    main()
