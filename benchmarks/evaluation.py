"""Evaluation: our backend against lm-eval's own `hf` backend, item by item and by the clock, fp32, on real benchmarks.

    LLAMAX_DATA=... python benchmarks/evaluation.py speed  [--tasks mmlu,truthfulqa,gsm8k_cot,gsm8k] [--repeats 3]
    LLAMAX_DATA=... python benchmarks/evaluation.py parity [--choices 2000] [--texts 100] [--new-tokens 64]

Both backends get the same model object and the same requests, made by lm-eval's tasks, in one process. `speed` first
lets the peer find its best batch size on a sixth of the requests, then interleaves the two: seconds of each run, and
the ratio pair by pair. MMLU: three whole subjects of at most 120 questions, those at the quartiles of prompt length, so
that a prefix is shared by as few questions as in a full run, or fewer. `parity` compares every choice and every text;
its MMLU items are those of the subjects with the shortest prompts, whole, until there are enough. Each writes
`<out>/<what>.json` and the same as a table, `<what>.md`, after each task.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import lm_eval
import psutil
import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from llamax.evaluation.backend import Backend
from llamax.evaluation.definitions import Settings
from llamax.evaluation.harness import prepare
from llamax.models.load import load

ITEMS = {"truthfulqa_mc1": 40, "truthfulqa_mc2": 40, "gsm8k_cot": 24, "gsm8k": 24}
SPEED = {
    "mmlu": ("mmlu",),
    "truthfulqa": ("truthfulqa_mc1", "truthfulqa_mc2"),
    "gsm8k_cot": ("gsm8k_cot",),
    "gsm8k": ("gsm8k",),
}
SIZES = (1, 2, 4, 8, 16, 32)  # batch sizes that the peer tries
BIGGEST = 120  # questions of a subject
TIE = 1e-4  # nats


def subjects(settings: Settings) -> list[list[Instance]]:
    """MMLU's subjects, shortest prompts first."""
    parts = [part.requests for part in prepare("mmlu", None, settings)]
    return sorted(parts, key=lambda requests: sum(len(r.args[0]) for r in requests) / len(requests))


def requests_of(task: str, settings: Settings) -> list[Instance]:
    """What is asked in a measurement of speed."""
    if task == "mmlu":
        small = [requests for requests in subjects(settings) if len(requests) <= 4 * BIGGEST]
        return [r for share in (0.25, 0.5, 0.75) for r in small[int(share * len(small))]]
    parts = (part for name in SPEED[task] for part in prepare(name, ITEMS[name], settings))
    return [request for part in parts for request in part.requests]


def timed(backend, requests: list[Instance]) -> tuple[float, list]:
    """Seconds, and the answers."""
    start = time.perf_counter()
    answers = getattr(backend, requests[0].request_type)(requests, disable_tqdm=True)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, answers


def best_size(model, tokenizer, requests: list[Instance]) -> int:
    """The batch size at which the peer is fastest on a sixth of the items, taken from all over the list."""
    of_items: dict[tuple, list[Instance]] = {}
    for request in requests:
        of_items.setdefault((request.task_name, request.doc_id), []).append(request)
    some = [request for item in list(of_items.values())[::6] for request in item]
    seconds = {}
    for size in SIZES:
        seconds[size] = timed(HFLM(pretrained=model, tokenizer=tokenizer, batch_size=size), some)[0]
        print(f"    peer, batch size {size}: {seconds[size]:.1f} s", flush=True)
        if seconds[size] > 1.5 * min(seconds.values()):
            break
    return min(seconds, key=seconds.get)


def speed(model, tokenizer, tasks: list[str], repeats: int) -> Iterator[dict]:
    """Ratios of the peer's time over ours: all that is known so far, after each task."""
    found = {}
    for task in tasks:
        requests = requests_of(task, Settings())
        items = len({(request.task_name, request.doc_id) for request in requests})
        print(f"{task}: {items} items, {len(requests)} requests", flush=True)
        size = best_size(model, tokenizer, requests)
        ours, theirs = Backend.of(model, tokenizer), HFLM(pretrained=model, tokenizer=tokenizer, batch_size=size)
        pairs = []
        for _ in range(repeats):
            pairs.append((timed(theirs, requests)[0], timed(ours, requests)[0]))
            print(
                f"    hf {pairs[-1][0]:.1f} s, ours {pairs[-1][1]:.1f} s: x{pairs[-1][0] / pairs[-1][1]:.2f}",
                flush=True,
            )
        ratios = sorted(peer / own for peer, own in pairs)
        found[task] = {
            "items": items, "requests": len(requests), "peer_batch_size": size, "seconds_peer_ours": pairs,
            "ratio": statistics.median(ratios), "lowest": ratios[0], "highest": ratios[-1],
        }  # fmt: skip
        yield found


def parity(model, tokenizer, choices: int, texts: int, new_tokens: int) -> Iterator[dict]:
    """How many items both backends answer alike: all that is known so far, after each task."""
    ours, theirs = Backend.of(model, tokenizer), HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8)
    asked, items = [], 0
    for requests in subjects(Settings()):
        if items < choices:
            asked.extend(requests)
            items += len({request.doc_id for request in requests})
    found = {"mmlu": compare_choices(asked, timed(ours, asked)[1], timed(theirs, asked)[1])}
    yield found
    for name in SPEED["truthfulqa"]:
        asked = [r for part in prepare(name, 100, Settings()) for r in part.requests]
        found[name] = compare_choices(asked, timed(ours, asked)[1], timed(theirs, asked)[1])
        yield found
    asked = [r for part in prepare("gsm8k", texts, Settings(max_new_tokens=new_tokens)) for r in part.requests]
    one, two = timed(ours, asked)[1], timed(theirs, asked)[1]
    same = sum(a == b for a, b in zip(one, two, strict=True))
    found["gsm8k"] = {"items": len(asked), "same_text": same, "new_tokens": new_tokens}
    yield found


def compare_choices(requests: list[Instance], ours: list, theirs: list) -> dict:
    """Items whose best choice is the same, the others' gap between the two choices, and the largest difference."""
    of_items: dict[tuple, list[tuple[float, float]]] = {}
    for request, (one, _), (two, _) in zip(requests, ours, theirs, strict=True):
        of_items.setdefault((request.task_name, request.doc_id), []).append((one, two))
    same, gaps = 0, []
    for values in of_items.values():
        mine, peers = ([pair[side] for pair in values] for side in (0, 1))
        best, other = mine.index(max(mine)), peers.index(max(peers))
        same += best == other
        gaps += [] if best == other else [abs(peers[best] - peers[other])]
    largest = max(abs(one[0] - two[0]) for one, two in zip(ours, theirs, strict=True))
    greedy = sum(one[1] == two[1] for one, two in zip(ours, theirs, strict=True))
    return {
        "items": len(of_items), "same_choice": same, "gaps_where_not": gaps,
        "ties_where_not": sum(gap < TIE for gap in gaps),
        "requests": len(requests), "same_greedy": greedy, "largest_difference_in_nats": largest,
    }  # fmt: skip


def machine() -> dict:
    """What it was measured on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "threads": torch.get_num_threads(), "cores": len(os.sched_getaffinity(0)), "gpu": gpu,
        "memory_gib": round(psutil.virtual_memory().total / 2**30), "lm_eval": lm_eval.__version__,
        "torch": torch.__version__, "transformers": transformers.__version__,
    }  # fmt: skip


def speed_table(found: dict) -> list[str]:
    """Rows of Markdown."""
    rows = ["| task | items | hf, its best batch size | ours | ratio (lowest to highest) |", "|---|---|---|---|---|"]
    for task, one in found.items():
        theirs, ours = (statistics.median(pair[side] for pair in one["seconds_peer_ours"]) for side in (0, 1))
        spread = f"{one['lowest']:.2f} to {one['highest']:.2f}"
        peer = f"{theirs:.1f} s (batch {one['peer_batch_size']})"
        rows.append(f"| {task} | {one['items']} | {peer} | {ours:.1f} s | {one['ratio']:.2f} ({spread}) |")
    return rows


def parity_table(found: dict) -> list[str]:
    """Rows of Markdown."""
    rows = ["| task | items | alike | where not | largest difference |", "|---|---|---|---|---|"]
    for task, one in found.items():
        if "same_text" in one:
            rows.append(f"| {task}, {one['new_tokens']} tokens | {one['items']} | {one['same_text']} texts | | |")
            continue
        ties = f"{len(one['gaps_where_not'])}, of them ties below {TIE:g}: {one['ties_where_not']}"
        largest = f"{one['largest_difference_in_nats']:.1e} nats"
        rows.append(f"| {task} | {one['items']} | {one['same_choice']} choices | {ties} | {largest} |")
    return rows


def write(out: Path, what: str, model: str, found: dict) -> None:
    """`<what>.json`, and the same as a table with the command that made it."""
    out.mkdir(parents=True, exist_ok=True)
    on = machine()
    whole = {"model": model, "precision": "fp32", "machine": on, "found": found}
    (out / f"{what}.json").write_text(json.dumps(whole, indent=1) + "\n")
    rows = {"speed": speed_table, "parity": parity_table}[what](found)
    gpu = on["gpu"] or f"{on['cores']} CPU cores"
    command = f"`python benchmarks/{' '.join([Path(__file__).name, *sys.argv[1:]])}`"
    head = [f"Our backend against lm-eval {on['lm_eval']}'s `hf` backend: {what}. {model}, fp32, {gpu}. {command}", ""]
    text = "\n".join([*head, *rows]) + "\n"
    (out / f"{what}.md").write_text(text)
    print(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "parity"])
    parser.add_argument("--model", default="smol")
    parser.add_argument("--tasks", default=",".join(SPEED))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--choices", type=int, default=2000)
    parser.add_argument("--texts", type=int, default=100)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/evaluation"))
    given = parser.parse_args()
    model, tokenizer = load(given.model)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    if given.what == "speed":
        steps = speed(model, tokenizer, given.tasks.split(","), given.repeats)
    else:
        steps = parity(model, tokenizer, given.choices, given.texts, given.new_tokens)
    for found in steps:  # a run of an hour that is cut short keeps what it has measured
        write(given.out, given.what, given.model, found)


if __name__ == "__main__":
    main()
