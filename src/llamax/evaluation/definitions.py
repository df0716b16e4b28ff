"""Which benchmarks there are, and the task definitions behind them: lm-eval's YAML files and ours, in one format.

Prompts, shots, stops, filters and metrics are lm-eval's wherever it has the task (`LM_EVAL` says where in its package);
the rest are YAML files in `evaluation/tasks/`. A new benchmark is one such file and one data card: `dataset_path` is
the card's hub id or name, and `metadata` holds what lm-eval's format has no place for (`Extras`).
"""

import difflib
import importlib.util
import inspect
import re
import string
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import lm_eval
from datasets import Dataset
from lm_eval.defaults import DEFAULT_OTHER_SEED
from lm_eval.tasks._yaml_loader import load_yaml
from pydantic import Field, PositiveInt

from llamax.config import Config
from llamax.data.sources import data_folder
from llamax.errors import DataError, ParameterError
from llamax.evaluation import benchmarks, own_tasks, task_file
from llamax.evaluation.wordings import AS_DEFINED, REAL, unknown
from llamax.files import sha256_json


class Extras(Config):
    """What a benchmark is beyond lm-eval's format: in our YAML files the keys of `metadata`."""

    version: float = 1.0  # lm-eval's own
    title: str = ""  # the data card's, if empty
    type: Literal["A", "B"] = "B"  # A: a new version must be better on each; B: from 3.6.0 on too
    headline: str = ""  # the metric by which it is reported and judged; if empty, the definition's first
    question: str = ""  # template of an item's question alone, for contamination checks; if empty, the whole prompt
    cluster: str = ""  # the column that says which items belong together; if empty, each item is its own
    judge: Literal["", "humaneval", "leetcode"] = ""  # answers are programs: whose tests `evaluation.judge` runs
    begun: str = ""  # template of a judged program's beginning, which the answer continues
    shots: int | None = Field(None, ge=0)  # how many are usual where the definition leaves it open
    items: PositiveInt | None = None  # how many it has, where it is not the whole of its data card's split


PASSED_OVER = {"canonical_task", "task_pretty_name", "num_samples", "description", "num_fewshot"}
"""Keys of `metadata` in lm-eval's own files, which lm-eval does nothing with either."""


class Benchmark(NamedTuple):
    """One benchmark: its name, its YAML files (MMLU and its like: one per subject), and what they do not say.

    `own`: what our own file says, read and checked.
    """

    name: str
    files: tuple[Path, ...]
    extras: Extras
    own: dict[str, Any] | None = None


class Settings(Config):
    """How benchmarks are run; what is left open is as the definition says."""

    protocol: Literal["lm-eval", "llamax"] = "lm-eval"  # llamax: the known faults of lm-eval's scoring mended (`MENDS`)
    shots: int | None = Field(None, ge=0)  # where examples come from a pool; a prompt with its own, or none, keeps it
    max_new_tokens: PositiveInt | None = None
    samples: PositiveInt = 1  # answers per item, where answers are generated
    temperature: float = Field(0.0, ge=0)  # 0: greedy
    seed: int = 0  # chooses the items of a part of a benchmark, and what is sampled
    wording: str = AS_DEFINED  # another way to put the same questions: `wordings.REAL`
    examples_seed: int = DEFAULT_OTHER_SEED  # of the worked examples that are drawn; lm-eval's own


class Source(NamedTuple):
    """Where lm-eval's package has the YAML files of a benchmark (patterns below its tasks), and what they lack."""

    files: tuple[str, ...]
    extras: Extras


# Subjects of MMLU named after a course of the Advanced Placement programme (geography is AP Human Geography, government
# and politics AP US Government and Politics). high_school_mathematics is none: it is no calculus.
AP_SUBJECTS = ["biology", "chemistry", "computer_science", "european_history", "geography", "government_and_politics"]
AP_SUBJECTS += ["macroeconomics", "microeconomics", "physics", "psychology", "statistics", "us_history"]
AP_SUBJECTS += ["world_history"]
MMMLU_LANGUAGES = ["ar_xy", "bn_bd", "de_de", "es_la", "fr_fr", "hi_in", "id_id", "it_it", "ja_jp", "ko_kr", "pt_br"]
MMMLU_LANGUAGES += ["sw_ke", "yo_ng", "zh_cn"]
PROXIES = {
    "sat_math": "SAT mathematics",
    "sat_en": "SAT English",
    "lsat_ar": "LSAT analytical reasoning",
    "lsat_lr": "LSAT logical reasoning",
    "lsat_rc": "LSAT reading comprehension",
}
# GSM8K by the answer rather than its format: tuning changes the format, and that would pass for a gain.
FLEXIBLE = "exact_match,flexible-extract"
AGIEVAL = "{{query.split(' Answer Choices: ')[0]}}"  # its prompt ends in words that many training texts have


def _sources() -> dict[str, Source]:
    """lm-eval's tasks that we run, by our names."""

    def one(file: str, headline: str = "acc", question: str = "{{question}}", **more: Any) -> Source:
        return Source((file,), Extras(headline=headline, question=question, **more))

    ap = tuple(f"mmlu/default/mmlu_high_school_{subject}.yaml" for subject in AP_SUBJECTS)
    found = {
        "mmlu": one("mmlu/default/mmlu_*.yaml", type="A", shots=5),
        "humaneval": one("humaneval/humaneval.yaml", "pass@1", "{{prompt}}", type="A", **HUMANEVAL),
        "gsm8k": one("gsm8k/gsm8k.yaml", FLEXIBLE, type="A", shots=5),
        "gsm8k_cot": one("gsm8k/gsm8k-cot.yaml", FLEXIBLE, type="A", title="GSM8K, chain of thought"),
        "nq_open": one("nq_open/nq_open.yaml", "exact_match,remove_whitespace", type="A", shots=5),
        "truthfulqa_mc1": one("truthfulqa/truthfulqa_mc1.yaml", type="A", title="TruthfulQA MC1"),
        "truthfulqa_mc2": one("truthfulqa/truthfulqa_mc2.yaml", type="A", title="TruthfulQA MC2"),
        "gre_like": one("agieval/aqua-rat.yaml", question=AGIEVAL, title="GRE-like quantitative (AQuA-RAT)"),
        "ap_like": Source(ap, Extras(headline="acc", question="{{question}}", title=AP_TITLE, shots=5, items=3150)),
        "cmmlu": one("cmmlu/cmmlu_*.yaml", question="{{Question}}", shots=5),
    }
    for name, title in PROXIES.items():
        file = f"agieval/{name.replace('_', '-')}.yaml"
        found[f"{name}_proxy"] = one(file, question=AGIEVAL, title=f"Graduate-admission proxy: {title}")
    for language in MMMLU_LANGUAGES:
        file, title = f"openai-mmmlu/default/mmmlu_{language}_*.yaml", f"MMMLU {language[:2].upper()}"
        found[f"mmmlu_{language}"] = one(file, question="{{Question}}", title=title, shots=0)
    return found


HUMANEVAL = {"judge": "humaneval", "begun": "{{prompt}}"}
AP_TITLE = "AP-like (13 high-school subjects of MMLU)"
LM_EVAL = _sources()


def names() -> list[str]:
    """All benchmarks: lm-eval's that we run, then ours."""
    return [*LM_EVAL, *(file.stem for file in own_tasks.own_files())]


def find(name: str) -> Benchmark:
    """The benchmark of that name. Raises: ParameterError: there is none, or its YAML file is not as it should be."""
    file = next((file for file in own_tasks.own_files() if file.stem == name), None)
    if name in LM_EVAL:
        if file:
            raise ParameterError(f"{file}: {name} is a benchmark of lm-eval's already; give it another name")
        folder = Path(importlib.util.find_spec("lm_eval.tasks").origin).parent
        source = LM_EVAL[name]
        files = tuple(file for pattern in source.files for file in sorted(folder.glob(pattern)))
        return Benchmark(name, files, source.extras)
    if file is None:
        near = difflib.get_close_matches(name, names(), n=1, cutoff=0.8)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ParameterError(f"unknown benchmark {name!r}: {hint}valid are {', '.join(names())}")
    return _own(file)


def _own(file: Path) -> Benchmark:
    """The benchmark of our own YAML file. Raises: ParameterError: a fault in it."""
    definition = task_file.read(file)
    if definition["task"] != file.stem:
        raise ParameterError(f"{file}: task is {definition['task']!r}, should be {file.stem!r} like the file")
    said = {key: value for key, value in (definition.get("metadata") or {}).items() if key not in PASSED_OVER}
    extras = Extras.parse(said, f"{file.name}, metadata")
    known = labels(definition)
    if extras.headline and not extras.judge and not definition.get("process_results") and extras.headline not in known:
        outcomes = ", ".join(known)
        raise ParameterError(f"{file.name}, metadata: no metric {extras.headline!r}; its outcomes are {outcomes}")
    if extras.judge and definition["output_type"] != "generate_until":
        raise ParameterError(f"{file}: programs are judged that are generated: output_type should be generate_until")
    return Benchmark(file.stem, (file,), extras, definition)


def configs(benchmark: Benchmark) -> dict[str, dict[str, Any]]:
    """lm-eval's task configurations of a benchmark by task name, as the YAML files say.

    A judged benchmark's functions are left alone: lm-eval's HumanEval imports a metric from the hub. Its answers are
    programs for our judge, so neither filter nor metric of the file is used.
    """
    found = {}
    for file in benchmark.files:
        config = benchmark.own or load_yaml(file, resolve_func=not benchmark.extras.judge)
        config = config | (task_file.JUDGED if benchmark.extras.judge else {})
        found[config["task"]] = {key: value for key, value in config.items() if key not in ("tag", "task_alias")}
    return found


def split_of(config: dict[str, Any]) -> str:
    """The split whose items are asked. Raises: ParameterError: the definition names none."""
    split = config.get("test_split") or config.get("validation_split")
    if split is None:
        raise ParameterError(f"{config['task']}: its definition names neither test_split nor validation_split")
    return split


def loader() -> Callable[[dict[str, Any]], Any]:
    """A function from a configuration to its data, which reads what several configurations share only once."""
    read = cache(benchmarks.load)
    return lambda config: read(config["dataset_path"], config.get("dataset_name"))


def documents(config: dict[str, Any], data: Any) -> Dataset:
    """The items of a task, in the order of their numbers. Raises: DataError: the data has no such split."""
    split = split_of(config)
    if split not in data:
        raise DataError(f"{config['dataset_path']}: has no split {split!r}, only {', '.join(data)}")
    process = config.get("process_docs")
    if process is None:
        return data[split]
    try:
        found = process(data[split])
    except Exception as error:
        raise ParameterError(f"{config['task']}: process_docs fails: {type(error).__name__}: {error}") from None
    if not isinstance(found, Dataset):
        raise ParameterError(f"{config['task']}: process_docs gives {type(found).__name__}, should give a Dataset")
    return found


def check_splits(config: dict[str, Any], data: Any) -> None:
    """Raise `DataError` where the definition names a split that the data lacks; `documents` looks for the one asked."""
    for field in ("training_split", "validation_split", "fewshot_split"):
        if (split := config.get(field)) and split not in data:
            raise DataError(f"{config['task']}: {field} is {split!r}; its data has {', '.join(data)}")


def check_size(benchmark: Benchmark, sizes: dict[str, int], config: dict[str, Any]) -> None:
    """Raise `DataError` unless the benchmark has as many items as its data card says."""
    card = benchmarks.card_of(config["dataset_path"])
    split = split_of(config)
    if split not in card.splits:
        raise DataError(f"{card.name}: its data card lacks the split {split!r}")
    wanted = benchmark.extras.items or card.splits[split].items
    if (total := sum(sizes.values())) != wanted:
        raise DataError(f"{benchmark.name}: has {total} items, should be {wanted} (data card {card.name})")


# -- a definition as it is run ----------------------------------------------------------------------------------------

DEFAULT_NEW_TOKENS = 256  # lm-eval's own default for tasks that generate and name no number
TOP_P = 0.95  # of sampled answers, as in lm-eval's humaneval_64


def resolved(benchmark: Benchmark, settings: Settings) -> dict[str, dict[str, Any]]:
    """The task configurations as they are run: shots, caps, sampling, and the protocol's mends.

    Raises: ParameterError: several samples of a greedy answer, or of a choice.
    """
    found = {}
    if settings.wording not in REAL:
        raise ParameterError(unknown(settings.wording, REAL))
    for task, config in configs(benchmark).items():
        config = REAL[settings.wording](config)
        config["num_fewshot"] = shots_of(benchmark, config, settings)
        if config["output_type"] == "generate_until":
            config["generation_kwargs"] = _generation(config.get("generation_kwargs") or {}, settings)
        elif settings.samples > 1 or settings.temperature > 0:
            raise ParameterError(f"{benchmark.name}: chooses among options: it takes no samples and no temperature")
        found[task] = MENDS.get(task, dict)(config) if settings.protocol == "llamax" else config
    return found


def shots_of(benchmark: Benchmark, config: dict[str, Any], settings: Settings) -> int:
    """How many worked examples the prompts show."""
    usual = benchmark.extras.shots
    usual = config.get("num_fewshot") or 0 if usual is None else usual
    own = "samples" in (config.get("fewshot_config") or {})
    return usual if own or not usual or settings.shots is None else settings.shots


def _generation(given: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """Generation settings of a task, in lm-eval's terms."""
    if settings.samples > 1 and not settings.temperature:
        raise ParameterError(f"samples={settings.samples} at temperature 0 are all the same; give a temperature, or 1")
    cap = settings.max_new_tokens or given.get("max_gen_toks", DEFAULT_NEW_TOKENS)
    sampling = {"do_sample": False, "temperature": 0.0}
    if settings.temperature:
        sampling = {"do_sample": True, "temperature": settings.temperature, "top_p": TOP_P}
    return given | {"max_gen_toks": cap} | sampling


def fingerprint(
    benchmark: Benchmark, resolved: dict[str, dict[str, Any]], pools: Sequence[Any], examples_seed: int
) -> str:
    """Hex sha256 over what decides prompts and scores: the definitions with their functions' sources, lm-eval's version
    (its code is what a metric's name means) and the rows that worked examples are drawn from.

    The same from a local copy and from the hub, if both have the same rows.
    """
    tasks = {task: {k: v for k, v in config.items() if k != "metadata"} for task, config in resolved.items()}
    judged = [benchmark.extras.judge, benchmark.extras.begun]
    return sha256_json(
        {"lm_eval": lm_eval.__version__, "tasks": plain(tasks), "judged": judged, "pools": [*pools, examples_seed]}
    )


def plain(value: Any) -> Any:
    """A definition as JSON: a function is its source, one with arguments filled in those too."""
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, partial):
        return plain([value.func, *value.args, value.keywords])
    try:
        return inspect.getsource(value) if callable(value) else value
    except (TypeError, OSError):
        raise ParameterError(f"{value!r}: a task file's functions should be plain ones, with a source") from None


def describe(name: str, settings: Settings) -> str:
    """What a score of this benchmark means, for people. Scores are comparable where their `Measured` agree."""
    benchmark = find(name)
    config = next(iter(resolved(benchmark, settings).values()))
    card = benchmarks.card_of(config["dataset_path"])
    parts = [f"lm-eval {lm_eval.__version__}"] if name in LM_EVAL else ["llamax"]
    if config["task"] in MENDS and settings.protocol == "llamax":
        parts.append("its known faults mended")
    shots = f"{config['num_fewshot']} shots"
    pool = card.splits.get(config.get("fewshot_split") or config.get("training_split") or "")
    if config["num_fewshot"] and pool and pool.hub_items and data_folder():
        shots += f" from {pool.items} rows of {pool.local}, not from the hub's {pool.hub_items}"
    parts.append(shots)
    if kwargs := config.get("generation_kwargs"):
        parts.append(f"at most {kwargs['max_gen_toks']} new tokens")
        parts += [f"{settings.samples} samples at temperature {settings.temperature:g}"] if settings.temperature else []
    return ", ".join(parts)


def headline(name: str) -> str:
    """The metric by which a benchmark is reported and judged."""
    benchmark = find(name)
    if benchmark.extras.headline:
        return benchmark.extras.headline
    if benchmark.extras.judge:
        return "pass@1"
    return labels(next(iter(configs(benchmark).values())))[0]


def labels(config: dict[str, Any]) -> list[str]:
    """How the outcomes of a definition are called: every metric under every filter."""
    filters = [one["name"] for one in config.get("filter_list") or []] or ["none"]
    return [label(metric_name(one["metric"]), name) for one in config["metric_list"] for name in filters]


def metric_name(metric: Any) -> str:
    """Name of an entry of a metric list, which may be a function."""
    return metric.__name__ if callable(metric) else metric


def label(metric: str, filter_name: str) -> str:
    """How a metric is called in outcome tables: with its filter, where there is one."""
    return metric if filter_name == "none" else f"{metric},{filter_name}"


# -- mends ------------------------------------------------------------------------------------------------------------


def mend_answer_regex(config: dict[str, Any]) -> dict[str, Any]:
    """gsm8k_cot's `The answer is (\\-?[0-9\\.\\,]+).` ends in an unescaped dot, which eats the last digit of an answer
    without a full stop: "The answer is 18" gives 1. Mended, the number ends in a digit and nothing need follow."""
    faulty, right = r"The answer is (\-?[0-9\.\,]+).", r"The answer is (\-?[0-9\.\,]*[0-9])"
    filters = []
    for one in config["filter_list"]:
        steps = [
            step | {"regex_pattern": right} if step.get("regex_pattern") == faulty else step for step in one["filter"]
        ]
        filters.append(one | {"filter": steps})
    return config | {"filter_list": filters}


def mend_spaces(config: dict[str, Any]) -> dict[str, Any]:
    """NQ-open's exact match drops articles and punctuation but leaves their spaces: "Rock & Roll" is not "Rock Roll".
    Mended, any run of spaces is one, as in SQuAD's normalisation (Rajpurkar et al. 2016)."""
    return config | {"metric_list": [one | {"metric": exact_match} for one in config["metric_list"]]}


def exact_match(
    predictions: Sequence[str],
    references: Sequence[str],
    regexes_to_ignore: Sequence[str] = (),
    ignore_case: bool = False,
    ignore_punctuation: bool = False,
) -> dict[str, float]:
    """lm-eval's `exact_match`, step by step, and then every run of spaces made one and those at the ends none."""

    def normal(text: str) -> str:
        for pattern in regexes_to_ignore:
            text = re.sub(pattern, "", text)
        text = text.lower() if ignore_case else text
        text = text.translate(str.maketrans("", "", string.punctuation)) if ignore_punctuation else text
        return " ".join(text.split())

    pairs = zip(predictions, references, strict=True)
    return {"exact_match": sum(normal(given) == normal(wanted) for given, wanted in pairs) / len(references)}


MENDS = {"gsm8k_cot": mend_answer_regex, "nq_open": mend_spaces}
