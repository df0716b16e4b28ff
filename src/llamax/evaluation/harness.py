"""Public benchmarks through lm-eval: its task definitions (prompts, shots, filters, metrics), our decoding and scoring.

`evaluate_tasks` runs MMLU, GSM8K and TruthfulQA from local files or the hub and returns an outcome per item.
"""

import logging
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import lm_eval
import lm_eval.tasks
import numpy as np
import pandas as pd
from lm_eval.api.instance import Instance
from lm_eval.api.samplers import FirstNSampler
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.defaults import DEFAULT_OTHER_SEED
from lm_eval.tasks._index import Kind
from lm_eval.tasks._yaml_loader import load_yaml
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llamax.errors import ParameterError
from llamax.evaluation.backend import MAX_NEW_TOKENS, Backend
from llamax.evaluation.benchmarks import dataset_loader

# Where lm-eval keeps each task: indexing these folders takes a moment, indexing all of its 10,000 tasks many seconds.
FOLDERS = {"mmlu": "mmlu/default", "gsm8k": "gsm8k", "truthfulqa_mc1": "truthfulqa", "truthfulqa_mc2": "truthfulqa"}


def evaluate_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: dict[str, int | None],
    *,
    shots: int = 5,
    max_new_tokens: int = MAX_NEW_TOKENS,
    seed: int = 0,
    batch_size: int = 32,
    progress: bool = False,
) -> pd.DataFrame:
    """Run benchmarks; one row per item and metric.

    Args:
        tasks: name (mmlu, gsm8k, truthfulqa_mc1, truthfulqa_mc2) -> how many items, None for all. A part is drawn by
            `seed`, spread over the whole, for MMLU over all subjects; the same seed and number are the same items.
        shots: worked examples in the prompt; TruthfulQA always has its own fixed preamble and no others.
        max_new_tokens: cap of a generated answer; another value than lm-eval's 256 is another protocol.

    Returns: columns item, task, metric, outcome, cluster (MMLU: the subject; else the item), no text of the benchmark.
        `attrs["protocol"]` says for each task what was run.

    Raises: ParameterError: an unknown task. DataError: no data and no network.
    """
    parts = [part for name, limit in tasks.items() for part in prepare(name, limit, shots, max_new_tokens, seed)]
    respond(Backend(model, tokenizer, batch_size=batch_size, progress=progress), parts)
    rows = [row for part in parts for row in outcomes(part)]
    table = pd.DataFrame(rows, columns=["item", "task", "metric", "outcome", "cluster"])
    table.attrs["protocol"] = {name: protocol(name, shots, max_new_tokens) for name in tasks}
    return table


def protocol(name: str, shots: int = 5, max_new_tokens: int = MAX_NEW_TOKENS) -> str:
    """What a score of this benchmark means: scores of different protocols are not to be compared."""
    given = 0 if name.startswith("truthfulqa") else shots
    cap = f", at most {max_new_tokens} new tokens" if name == "gsm8k" else ""
    return f"lm-eval {lm_eval.__version__}, {given} shots{cap}"


class Part(NamedTuple):
    """One of lm-eval's tasks with the requests of the chosen items: a subject of MMLU, or a whole benchmark."""

    name: str
    task: Task
    requests: list[Instance]


def prepare(name: str, limit: int | None, shots: int, max_new_tokens: int, seed: int) -> list[Part]:
    """Load a benchmark, choose items, and write their prompts."""
    tasks = load_tasks(name, shots, max_new_tokens)
    chosen = select({task: len(tasks[task].eval_docs) for task in tasks}, limit, seed)
    return [Part(name, tasks[task], build_requests(tasks[task], items)) for task, items in chosen.items()]


def load_tasks(name: str, shots: int, max_new_tokens: int) -> dict[str, Task]:
    """lm-eval's tasks of a benchmark (MMLU: one per subject) by name, their data read by `benchmarks`."""
    if name not in FOLDERS:
        raise ParameterError(f"unknown benchmark {name!r}: valid are {', '.join(FOLDERS)}")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    folder = Path(lm_eval.tasks.__file__).parent / FOLDERS[name]
    index = lm_eval.tasks.TaskManager(include_defaults=False, include_path=folder).task_index
    tasks = {}
    for task_name in sorted(index):
        if index[task_name].kind is not Kind.TASK or not (task_name == name or name == "mmlu"):
            continue
        config = dict(load_yaml(index[task_name].yaml_path, resolve_func=True))
        config.pop("tag", None)
        config["custom_dataset"] = dataset_loader(config["dataset_path"], config.get("dataset_name"))
        if config.get("num_fewshot") != 0:  # a task that says 0 has its examples in its prompt
            config["num_fewshot"] = shots
        if config["output_type"] == "generate_until":
            config["generation_kwargs"] = config["generation_kwargs"] | {"max_gen_toks": max_new_tokens}
        tasks[task_name] = ConfigurableTask(config=config)
        tasks[task_name].set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
    return tasks


def select(sizes: dict[str, int], limit: int | None, seed: int) -> dict[str, list[int]]:
    """Choose `limit` items in all: as evenly over the tasks as their sizes allow, and spread over each task.

    Every task's items are cut into equal stretches, one item drawn from each: files are often ordered by topic.
    """
    if limit is None:
        return {task: list(range(size)) for task, size in sizes.items()}
    rng = np.random.default_rng(seed)
    counts = dict.fromkeys(sizes, 0)
    order = [list(sizes)[i] for i in rng.permutation(len(sizes))]
    left = min(limit, sum(sizes.values()))
    while left:
        for task in order:
            if left and counts[task] < sizes[task]:
                counts[task] += 1
                left -= 1
    chosen = {}
    for task, count in counts.items():
        edges = np.linspace(0, sizes[task], count + 1).astype(int)
        if count:
            chosen[task] = [int(rng.integers(low, high)) for low, high in pairwise(edges)]
    return chosen


def build_requests(task: Task, items: list[int]) -> list[Instance]:
    """lm-eval's requests for these items, each with the examples that lm-eval's own run over all items shows it.

    GSM8K draws the examples of one item after the other from one random stream, so an item's examples depend on all
    items before it: those are drawn too.
    """
    docs, shots, requests = task.eval_docs, task.config.num_fewshot, []
    drawn = shots > 0 and not isinstance(task.sampler, FirstNSampler)
    same_split = task.fewshot_cfg.split == task.config.test_split
    wanted = set(items)
    for item in range(max(wanted) + 1):
        if item not in wanted:
            if drawn:
                task.sampler.sample(n=shots, eval_doc=docs[item] if same_split else None)
            continue
        made = task.construct_requests(
            doc=docs[item],
            ctx=task.fewshot_context(docs[item], num_fewshot=shots),
            metadata=(task.config.task, item, 1),
            apply_chat_template=False,
            chat_template=None,
        )
        requests.extend(made if isinstance(made, list) else [made])
    return requests


def respond(backend: Backend, parts: list[Part]) -> None:
    """Run all requests of one kind together, so that tasks with the same questions share the work."""
    kinds: dict[str, list[Instance]] = {}
    for part in parts:
        for request in part.requests:
            kinds.setdefault(request.request_type, []).append(request)
    for kind, requests in kinds.items():
        for request, response in zip(requests, getattr(backend, kind)(requests), strict=True):
            request.resps.append(response)


def outcomes(part: Part) -> Iterator[tuple[str, str, str, float, str]]:
    """(item, task, metric, outcome, cluster) of every item, by the task's own filters and metrics."""
    task, task_name = part.task, part.task.config.task
    task._instances = part.requests  # what `build_all_requests` would have made, and `apply_filters` works on
    task.apply_filters()
    metrics = {metric["metric"] for metric in task.config.metric_list}
    of_item: dict[int, list[Instance]] = {}
    for request in part.requests:
        of_item.setdefault(request.doc_id, []).append(request)
    for number, requests in of_item.items():
        requests.sort(key=lambda request: request.idx)
        item = f"{task_name}/{number}"
        cluster = task_name.removeprefix("mmlu_") if part.name == "mmlu" else item
        for key in requests[0].filtered_resps:
            results = task.process_results(requests[0].doc, [request.filtered_resps[key] for request in requests])
            for metric in sorted(metrics & results.keys()):
                label = metric if key == "none" else f"{metric},{key}"
                yield item, part.name, label, float(results[metric]), cluster
