"""Running benchmarks: write the prompts, let a backend answer, score the answers; an outcome per item.

`evaluate_tasks` does all of it. Its steps are there to put something between them: `prepare` gives parts with their
requests (lm-eval's `Instance`s), `respond` or anything else fills in `request.resps`, `outcomes` scores a part.
"""

import ast
import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from math import comb, isfinite, isnan
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jinja2 import TemplateError
from lm_eval.api.instance import Instance
from lm_eval.api.samplers import FirstNSampler
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.defaults import DEFAULT_OTHER_SEED
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llamax.errors import DataError, LlamaxError, ModelError, ParameterError
from llamax.evaluation import definitions
from llamax.evaluation.backend import Backend, item_of
from llamax.evaluation.definitions import Benchmark, Settings, describe, find, headline, label, metric_name
from llamax.evaluation.questions import template
from llamax.versions.measured import ITEM_COLUMNS, Measured, item_set

COLUMNS = [column for column in ITEM_COLUMNS if column not in ("model", "contaminated")]
PASS_AT = (2, 5, 10, 25, 50, 100)  # beside pass@1, of those that the number of samples allows
DEFAULTS = Settings()


class Row(NamedTuple):
    """One line of an outcome table: benchmark, metric and item by name; `outcome` from 0 to 1."""

    benchmark: str
    metric: str
    item: str
    sample: int
    outcome: float
    cluster: str


class Part(NamedTuple):
    """One of lm-eval's tasks with the requests of the chosen items: a subject of MMLU, or a whole benchmark."""

    benchmark: Benchmark
    task: Task
    requests: list[Instance]
    settings: Settings
    total: int  # items of the whole benchmark
    prompts: str  # fingerprint of the whole benchmark's definition

    @property
    def name(self) -> str:
        return self.benchmark.name


def evaluate_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: dict[str, int | None],
    *,
    settings: Settings = DEFAULTS,
    batch_size: int = 32,
    progress: bool = False,
) -> pd.DataFrame:
    """Run benchmarks; one row per item, metric and sample.

    Args:
        tasks: a name of `definitions.names()` -> how many items, None for all. A part is drawn by `settings.seed`,
            spread over the whole, for MMLU over all subjects; the same seed and number are the same items.

    Returns: columns `COLUMNS`, no text of the benchmark. `attrs["protocol"]` says for each benchmark what was run, and
        `attrs["measured"]` has the fields of its `Measured`.

    Raises: ParameterError: an unknown benchmark. DataError: no data and no network, or not what the data cards say.
    """
    parts = [part for name, limit in tasks.items() for part in prepare(name, limit, settings)]
    respond(Backend.of(model, tokenizer, seed=settings.seed, batch_size=batch_size, progress=progress), parts)
    table = pd.DataFrame([row for part in parts for row in outcomes(part, progress=progress)], columns=COLUMNS)
    table.attrs["protocol"] = {name: describe(name, settings) for name in tasks}
    precision = {"torch.float32": "fp32", "torch.bfloat16": "bf16", "torch.float16": "fp16"}[str(model.dtype)]
    table.attrs["measured"] = [one.model_dump(mode="json") for one in measured(parts, precision=precision)]
    return table


# -- prompts ----------------------------------------------------------------------------------------------------------


def prepare(name: str, limit: int | None = None, settings: Settings = DEFAULTS) -> list[Part]:
    """Load a benchmark, choose `limit` items (None: all), and write their prompts."""
    if limit is not None and limit < 1:
        raise ParameterError(f"{name}: limit {limit} should be a number of items from 1, or None for all")
    benchmark = find(name)
    tasks, prompts = load_tasks(benchmark, settings)
    sizes = {task: len(tasks[task].eval_docs) for task in tasks}
    total = sum(sizes.values())
    chosen = select(sizes, limit, settings.seed)
    _check_cluster(benchmark, next(iter(tasks.values())))
    parts = []
    for task, items in chosen.items():
        requests = build_requests(tasks[task], items, settings.samples, settings.examples_seed)
        parts.append(Part(benchmark, tasks[task], requests, settings, total, prompts))
    return parts


def _check_cluster(benchmark: Benchmark, task: Task) -> None:
    """Raise `ParameterError` if the column by which items are clustered is not there."""
    column, first = benchmark.extras.cluster, task.eval_docs[0]
    if column and column not in first:
        raise ParameterError(f"{benchmark.name}: clusters by {column!r}; its items have {', '.join(first)}")


def load_tasks(benchmark: Benchmark, settings: Settings) -> tuple[dict[str, Task], str]:
    """lm-eval's tasks of a benchmark (MMLU: one per subject) by name, and the fingerprint of their definition.

    Raises: DataError: the data are not what their card says. ParameterError: more shots than there are examples.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    resolved, data, tasks = definitions.resolved(benchmark, settings), definitions.loader(), {}
    sizes = {}
    for name, config in sorted(resolved.items()):
        sizes[name] = len(definitions.documents(config, data(config)))
    definitions.check_size(benchmark, sizes, next(iter(resolved.values())))
    for name, config in sorted(resolved.items()):
        definitions.check_splits(config, data(config))
        tasks[name] = _task(config, data(config))
    return tasks, definitions.fingerprint(
        benchmark, resolved, [_pool(task) for task in tasks.values()], settings.examples_seed
    )


def _pool(task: Task) -> list[dict[str, Any]]:
    """The rows that worked examples come from."""
    shots = task.config.num_fewshot
    if not shots:
        return []
    return list(task.sampler.df[:shots] if isinstance(task.sampler, FirstNSampler) else task.sampler.df)


def _task(config: dict[str, Any], data: Any) -> Task:
    """lm-eval's task over data that is there already."""
    name, ready = config["task"], {key: value for key, value in config.items() if key != "group"}
    ready["custom_dataset"] = lambda **_: data
    for field in ("doc_to_text", "doc_to_target"):
        if isinstance(text := config.get(field), str) and "{" in text:
            ready[field] = _compiled(text, name, config.get("doc_to_choice") is not None, field == "doc_to_target")
    with _clear_errors(f"{name}/0", definitions.documents(config, data)[0]):  # the task tries its templates on it
        task = ConfigurableTask(config=ready)
    task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
    shots = task.config.num_fewshot
    if shots > (pool := len(task.sampler.df) if hasattr(task, "sampler") else 0):
        raise ParameterError(f"{name}: {shots} shots asked of a pool of {pool} examples")
    return task


def _compiled(text: str, name: str, has_choices: bool, is_target: bool) -> Callable[[dict[str, Any]], Any]:
    """What lm-eval makes of a template, compiled once rather than for every item and example.

    By its rules digits are a number where there are options, and a target in brackets is a list.
    """
    fill = template(text, name)

    def filled(doc: dict[str, Any]) -> Any:
        found = fill(doc)
        if has_choices and found.isdigit():
            return ast.literal_eval(found)
        if is_target and len(found) >= 2 and found[0] + found[-1] == "[]":
            with contextlib.suppress(SyntaxError, ValueError):
                return ast.literal_eval(found)
        return found

    return filled


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


def build_requests(
    task: Task, items: list[int], samples: int = 1, examples_seed: int = DEFAULT_OTHER_SEED
) -> list[Instance]:
    """lm-eval's requests for these items, each with the examples that lm-eval's own run over all items shows it.

    GSM8K draws the examples of one item after the other from one random stream, so an item's examples depend on all
    items before it: those are drawn too. Several samples of an answer are as many requests, told apart by `idx`.
    """
    docs, shots, requests = task.eval_docs, task.config.num_fewshot, []
    task.set_fewshot_seed(seed=examples_seed)  # the requests of a task may be built more than once
    drawn = draws_examples(task)
    same_split = task.fewshot_cfg.split == task.config.test_split
    wanted = set(items)
    for item in range(max(wanted) + 1):
        if item not in wanted:
            if drawn:
                task.sampler.sample(n=shots, eval_doc=docs[item] if same_split else None)
            continue
        with _clear_errors(f"{task.config.task}/{item}", docs[item]):
            begun = task.doc_to_prefix(docs[item])
            prompt = task.fewshot_context(docs[item], num_fewshot=shots, gen_prefix=begun)
            for sample in range(samples):
                requests += _requests(task, docs[item], prompt, item, sample)
    return requests


@contextlib.contextmanager
def _clear_errors(name: str, doc: dict[str, Any]) -> Iterator[None]:
    """Say which item (its id is `name`) a template or a function of the definition fails on."""
    try:
        yield
    except LlamaxError:
        raise
    except TemplateError as error:
        raise ParameterError(f"{name}: a template of its definition: {error}; items have {', '.join(doc)}") from None
    except (ValueError, SyntaxError, IndexError) as error:
        raise DataError(f"{name}: no right answer, or no options ({error})") from None
    except Exception as error:  # whatever a function of a task file may raise
        raise ParameterError(f"{name}: its definition fails: {type(error).__name__}: {error}") from None


def _requests(task: Task, doc: dict[str, Any], prompt: str, item: int, sample: int) -> list[Instance]:
    """One request per option, or the one that asks for a text."""
    made = task.construct_requests(
        doc=doc, ctx=prompt, metadata=(task.config.task, item, 1), apply_chat_template=False, chat_template=None
    )
    if isinstance(made, list):
        _check_answer(task, doc, f"{task.config.task}/{item}")
        return made
    if task.config.process_results is None and task.doc_to_target(doc) in (None, "", []):
        raise DataError(f"{task.config.task}/{item}: has no right answer")
    made.idx = sample
    return [made]


def _check_answer(task: Task, doc: dict[str, Any], item: str) -> None:
    """Raise `DataError` if an item's right answer is none of its options, which lm-eval would count as a miss."""
    if task.config.process_results is not None:
        return  # it says by itself what is right
    # Where the options are contexts (Winogrande), the text is the number of the right one, and the target follows all.
    choices = task.doc_to_choice(doc)
    right = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    if right == []:
        raise DataError(f"{item}: has no right answer")
    for answer in right if isinstance(right, list) else [right]:
        if not (answer in choices if isinstance(answer, str) else 0 <= answer < len(choices)):
            raise DataError(f"{item}: its right answer {answer!r} is none of the {len(choices)} options")


# -- answers ----------------------------------------------------------------------------------------------------------


def respond(backend: Backend, parts: list[Part]) -> None:
    """Run all requests of one kind together, so that tasks with the same questions share the work."""
    kinds: dict[str, list[Instance]] = {}
    for part in parts:
        for request in part.requests:
            kinds.setdefault(request.request_type, []).append(request)
    for kind, requests in kinds.items():
        for request, response in zip(requests, getattr(backend, kind)(requests), strict=True):
            request.resps.append(response)


# -- scores -----------------------------------------------------------------------------------------------------------


def outcomes(part: Part, *, progress: bool = False) -> Iterator[Row]:
    """A row for every item, metric and sample of a part whose requests are answered.

    Raises: DataError: a request has no answer, or more than one. ModelError: a log-likelihood is NaN.
    """
    if odd := [request for request in part.requests if len(request.resps) != 1]:
        count = f"{len(odd)} of {len(part.requests)} requests have no answer, or more than one"
        raise DataError(f"{part.name}: {count}; the first of them, of {item_of(odd[0])}, has {len(odd[0].resps)}")
    chosen = [request for request in part.requests if request.request_type == "loglikelihood"]
    if items := sorted({item_of(request) for request in chosen if isnan(request.resps[0][0])}):
        raise ModelError(
            f"{part.name}: the log-likelihood of {len(items)} items is NaN, {items[0]} first; check the weights"
        )
    yield from _judged(part, progress) if part.benchmark.extras.judge else _scored(part)


def _scored(part: Part) -> Iterator[Row]:
    """Rows by the task's own filters and metrics."""
    task = part.task
    task._instances = part.requests  # what `build_all_requests` would have made, and `apply_filters` works on
    with _clear_errors(f"{task.config.task}, filters", {}):
        task.apply_filters()
    metrics = {metric_name(metric["metric"]) for metric in task.config.metric_list}
    for (item, sample), requests in _by_answer(part.requests).items():
        doc, cluster = requests[0].doc, _cluster(part, requests[0])
        for key in requests[0].filtered_resps:
            with _clear_errors(item, doc):
                results = task.process_results(doc, [request.filtered_resps[key] for request in requests])
                scores = {metric: float(results[metric]) for metric in sorted(metrics & results.keys())}
            if not scores or not all(map(isfinite, scores.values())):
                found = ", ".join(f"{name} {value}" for name, value in results.items())
                raise ParameterError(f"{item}: scored with {found}; its definition names {', '.join(metrics)}")
            for metric, score in scores.items():
                yield Row(part.name, label(metric, key), item, sample, score, cluster)


def _by_answer(requests: Iterable[Instance]) -> dict[tuple[str, int], list[Instance]]:
    """Requests by (item, sample): all options of a choice in order, or the one generated text."""
    found: dict[tuple[str, int], list[Instance]] = {}
    for request in requests:
        sample = 0 if request.request_type == "loglikelihood" else request.idx
        found.setdefault((item_of(request), sample), []).append(request)
    for together in found.values():
        together.sort(key=lambda request: request.idx)
    return found


def _cluster(part: Part, request: Instance) -> str:
    """What a request's item has in common with others: its subject where there are several, else only itself."""
    if column := part.benchmark.extras.cluster:
        return str(request.doc[column])
    if len(part.benchmark.files) > 1:
        return part.task.config.task.removeprefix(f"{part.name}_").removeprefix("mmlu_")
    return item_of(request)


def _judged(part: Part, progress: bool) -> Iterator[Row]:
    """Rows of generated programs, all of them judged together: pass@1 per sample, and pass@k per problem for k > 1."""
    from llamax.evaluation import judge

    begun = template(part.benchmark.extras.begun, part.name)
    problem_of = getattr(judge, part.benchmark.extras.judge)
    answers = {key: requests[0] for key, requests in _by_answer(part.requests).items()}
    submissions = [(begun(request.doc) + request.resps[0], problem_of(request.doc)) for request in answers.values()]
    passed: dict[str, list[bool]] = {}
    for (item, sample), verdict in zip(answers, judge.judge_all(submissions, progress=progress), strict=True):
        passed.setdefault(item, []).append(verdict.passed)
        yield Row(part.name, "pass@1", item, sample, float(verdict.passed), item)
    for item, results in passed.items():
        for k in PASS_AT:
            if k <= len(results):
                yield Row(part.name, f"pass@{k}", item, 0, pass_at(k, len(results), sum(results)), item)


def draws_examples(task: Task) -> bool:
    """Whether each item is shown examples of its own, drawn by a seed."""
    return task.config.num_fewshot > 0 and not isinstance(task.sampler, FirstNSampler)


def confidences(part: Part) -> Iterator[tuple[str, str, float, float, str]]:
    """(benchmark, item, probability that the model gave to what it chose, whether it was right, cluster) of each item
    that is a choice of one right option, by the sums of its options' log-probabilities, where these decide."""
    doubled = "acc_mutual_info" in map(metric_name, (m["metric"] for m in part.task.config.metric_list))
    if part.task.config.output_type != "multiple_choice" or headline(part.name) != "acc" or doubled:
        return
    if part.task.multiple_input:
        return  # the same words after several contexts: their shares are no probabilities
    right = {row.item: row.outcome for row in _scored(part) if row.metric == headline(part.name)}
    if not set(right.values()) <= {0.0, 1.0}:
        return  # TruthfulQA MC2 shares the probability out among several right ones
    for (item, _), requests in _by_answer(part.requests).items():
        values = np.array([request.resps[0][0] for request in requests])
        share = np.exp(values.max() - np.logaddexp.reduce(values))
        yield part.name, item, float(share), right[item], _cluster(part, requests[0])


def pass_at(k: int, n: int, c: int) -> float:
    """Unbiased estimate of the chance that one of `k` samples passes when `c` of `n` did (Chen et al. 2021, eq. 1)."""
    return 1.0 - comb(n - c, k) / comb(n, k)


def measured(parts: list[Part], *, precision: str = "fp32") -> list[Measured]:
    """What each benchmark's score means: one `Measured` per benchmark, in the order of the parts."""
    benchmarks: dict[str, list[Part]] = {}
    for part in parts:
        benchmarks.setdefault(part.name, []).append(part)
    return [_measured(name, together, precision) for name, together in benchmarks.items()]


def _measured(name: str, parts: list[Part], precision: str) -> Measured:
    first = parts[0]
    items = {item_of(request) for part in parts for request in part.requests}
    generates = first.task.config.output_type == "generate_until"
    return Measured(
        benchmark=name,
        metric=headline(name),
        protocol=first.settings.protocol,
        prompts=first.prompts,
        shots=first.task.config.num_fewshot,
        samples=first.settings.samples,
        temperature=first.settings.temperature,
        max_new_tokens=first.task.config.generation_kwargs["max_gen_toks"] if generates else None,
        items=len(items),
        total=first.total,
        item_set=item_set(items),
        precision=precision,
    )
