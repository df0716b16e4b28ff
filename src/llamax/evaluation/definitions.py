"""Which benchmarks there are, and the task definitions behind them: lm-eval's YAML files and ours, in one format.

Prompts, shots, stops, filters and metrics are lm-eval's wherever it has the task (`LM_EVAL` says where in its package);
the rest are YAML files in `evaluation/tasks/`. A new benchmark is one such file and one data card: `dataset_path` is the
card's hub id or name, and `metadata` holds what lm-eval's format has no place for (`Extras`).
"""

import difflib
import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml
from datasets import Dataset
from lm_eval.tasks._yaml_loader import load_yaml

from llamax.config import Config
from llamax.errors import DataError, ParameterError
from llamax.evaluation import benchmarks

OURS = Path(__file__).parent / "tasks"


class Extras(Config):
    """What a benchmark is beyond lm-eval's format: in our YAML files the keys of `metadata`."""

    version: float = 1.0  # lm-eval's own
    title: str = ""  # the data card's, if empty
    type: Literal["A", "B"] = "B"  # A: a new version must be better on each; B: from 3.6.0 on too
    headline: str = ""  # the metric by which it is reported and judged; if empty, the definition's first
    question: str = ""  # template of an item's question alone, for contamination checks; if empty, the whole prompt
    cluster: str = ""  # the column that says which items belong together; if empty, each item is its own
    judge: str = ""  # answers are programs: the function of `llamax.evaluation.judge` that knows their tests
    shots: int | None = None  # how many are usual where the definition leaves it open
    items: int | None = None  # how many it has, where it is not the whole of its data card's split


class Benchmark(NamedTuple):
    """One benchmark: its name, its YAML files (MMLU and its like: one per subject), and what they do not say."""

    name: str
    files: tuple[Path, ...]
    extras: Extras


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
        "humaneval": one("humaneval/humaneval.yaml", "pass@1", "{{prompt}}", type="A", judge="humaneval"),
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


AP_TITLE = "AP-like (13 high-school subjects of MMLU)"
LM_EVAL = _sources()


def names() -> list[str]:
    """All benchmarks: lm-eval's that we run, then ours."""
    return [*LM_EVAL, *(file.stem for file in _our_files())]


def find(name: str) -> Benchmark:
    """The benchmark of that name. Raises: ParameterError: there is none, or its YAML file is not as it should be."""
    if name in LM_EVAL:
        folder = Path(importlib.util.find_spec("lm_eval.tasks").origin).parent
        source = LM_EVAL[name]
        files = tuple(file for pattern in source.files for file in sorted(folder.glob(pattern)))
        return Benchmark(name, files, source.extras)
    file = next((file for file in _our_files() if file.stem == name), None)
    if file is None:
        near = difflib.get_close_matches(name, names(), n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ParameterError(f"unknown benchmark {name!r}: {hint}valid are {', '.join(names())}")
    return Benchmark(name, (file,), Extras.parse(_our_definition(file).get("metadata") or {}, f"{file.name}, metadata"))


def _our_files() -> list[Path]:
    """Our YAML files; those whose names begin with _ are there to be included."""
    return sorted(file for file in OURS.glob("*.yaml") if not file.name.startswith("_"))


def _our_definition(file: Path) -> dict[str, Any]:
    """Our YAML file, if it has what every definition needs. Raises: ParameterError."""
    try:
        definition = load_yaml(file, resolve_func=False)
    except (yaml.YAMLError, ValueError, OSError) as error:
        raise ParameterError(f"{file}: not a task definition ({' '.join(str(error).split())})") from None
    needed = ("task", "dataset_path", "output_type", "doc_to_text", "metric_list")
    if missing := [key for key in needed if key not in definition]:
        raise ParameterError(f"{file}: lacks {missing[0]!r}; a definition has {', '.join(needed)} and a split to test")
    if definition["task"] != file.stem:
        raise ParameterError(f"{file}: task is {definition['task']!r}, should be {file.stem!r} like the file")
    return definition


def configs(benchmark: Benchmark) -> dict[str, dict[str, Any]]:
    """lm-eval's task configurations of a benchmark by task name, as the YAML files say.

    A judged benchmark's functions are left alone: lm-eval's HumanEval imports a metric from the hub. Its answers are
    programs for our judge, so neither filter nor metric of the file is used.
    """
    found = {}
    for file in benchmark.files:
        config = dict(load_yaml(file, resolve_func=not benchmark.extras.judge))
        if benchmark.extras.judge:
            config |= {"metric_list": [{"metric": "bypass"}], "filter_list": None, "unsafe_code": False}
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
    return process(data[split]) if process else data[split]


def check_size(benchmark: Benchmark, sizes: dict[str, int], config: dict[str, Any]) -> None:
    """Raise `DataError` unless the benchmark has as many items as its data card says."""
    card = benchmarks.card_of(config["dataset_path"])
    split = split_of(config)
    if split not in card.splits:
        raise DataError(f"{card.name}: its data card lacks the split {split!r}")
    wanted = benchmark.extras.items or card.splits[split].items
    if (total := sum(sizes.values())) != wanted:
        raise DataError(f"{benchmark.name}: has {total} items, should be {wanted} (data card {card.name})")
