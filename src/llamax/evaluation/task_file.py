"""A task file of our own (`evaluation/tasks/`), held against lm-eval's format before anything is read or run.

lm-eval finds a wrong field where it stumbles over it, with a traceback, and often after the model has answered.
"""

from pathlib import Path
from typing import Any, Literal, Self

from jinja2 import TemplateError
from lm_eval.tasks._yaml_loader import load_yaml
from lm_eval.utils import env
from pydantic import ConfigDict, Field, PositiveInt, StrictInt, ValidationError, field_validator, model_validator

from llamax.config import Parameters, explain
from llamax.errors import ParameterError

PER_ITEM = {
    "multiple_choice": ("acc", "acc_norm", "acc_bytes", "acc_mutual_info"),
    "generate_until": ("exact_match",),
    "loglikelihood": ("acc",),
}
"""Metrics of lm-eval's that score a single item, by the kind of question."""

NEEDED = ("task", "dataset_path", "output_type", "doc_to_text", "doc_to_target", "metric_list")
JUDGED = {"metric_list": [{"metric": "bypass"}], "filter_list": None, "unsafe_code": False}

Function = Any  # what `!function` names; of a judged benchmark only the name
Template = Any  # a Jinja template, a column's name, or a function


class Metric(Parameters):
    """An entry of `metric_list`; what else stands there is handed to the metric."""

    model_config = ConfigDict(extra="allow")

    metric: Any  # a name of lm-eval's, or a function


class Step(Parameters):
    """A step of a filter; what else stands there is handed to it."""

    model_config = ConfigDict(extra="allow")

    function: Any  # a name of lm-eval's, or a class of filters

    @field_validator("function")
    @classmethod
    def _known(cls, value: Any) -> Any:
        if callable(value):
            return value
        import lm_eval.filters  # noqa: F401  (fills the registry)
        from lm_eval.api.registry import filter_registry

        if value not in filter_registry:
            raise ValueError(f"lm-eval has no such filter; it has {', '.join(sorted(filter_registry.keys()))}")
        return value


class Filter(Parameters):
    """An entry of `filter_list`: what is done to an answer before it is scored, and how that is called."""

    name: str = Field(min_length=1)
    filter: list[Step] = Field(min_length=1)


class Generation(Parameters):
    """`generation_kwargs`. Answers are greedy, or sampled as a run says (`Settings`), not as a file does."""

    until: str | tuple[str, ...] = ()
    max_gen_toks: PositiveInt | None = None
    do_sample: Literal[False] = False
    temperature: Literal[0, 0.0] = 0.0


class TaskFile(Parameters):
    """The fields of lm-eval's `TaskConfig` that are honoured here."""

    task: str
    dataset_path: str = Field(min_length=1)
    output_type: Literal["multiple_choice", "generate_until", "loglikelihood"]
    doc_to_text: Template
    doc_to_target: Template
    metric_list: list[Metric] = Field(min_length=1)
    task_alias: str | None = None
    tag: str | list[str] | None = None
    group: str | list[str] | None = None
    dataset_name: str | None = None
    dataset_kwargs: dict[str, Any] | None = None
    training_split: str | None = None
    validation_split: str | None = None
    test_split: str | None = None
    fewshot_split: str | None = None
    process_docs: Function = None
    process_results: Function = None
    doc_to_choice: Template = None
    description: str = ""
    target_delimiter: str = " "
    fewshot_delimiter: str = "\n\n"
    fewshot_config: dict[str, Any] | None = None
    num_fewshot: StrictInt | None = Field(None, ge=0)
    generation_kwargs: Generation | None = None
    filter_list: list[Filter] | None = Field(None, min_length=1)
    repeats: Literal[1] = 1
    unsafe_code: bool = False
    gen_prefix: str | None = None
    should_decontaminate: bool = False
    doc_to_decontamination_query: str | None = None
    metadata: dict[str, Any] | None = None

    @field_validator("doc_to_text", "doc_to_target", "doc_to_choice", "description", "gen_prefix")
    @classmethod
    def _can_be_read(cls, value: Any) -> Any:
        if isinstance(value, str):
            try:
                env.from_string(value)
            except TemplateError as error:
                raise ValueError(f"the template cannot be read: {error}") from None
        return value

    @field_validator("doc_to_text")
    @classmethod
    def _asks(cls, value: Any) -> Any:
        if not isinstance(value, str) and not callable(value):
            raise ValueError("should be a template, a column's name, or a function")
        return value

    @field_validator("doc_to_choice")
    @classmethod
    def _are_texts(cls, value: Any) -> Any:
        if isinstance(value, list) and not all(isinstance(one, str) for one in value):
            raise ValueError("options should be texts; YAML reads yes, no and 1 as something else: quote them")
        return value

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.output_type == "multiple_choice" and self.doc_to_choice is None:
            raise ValueError("doc_to_choice is missing: multiple_choice chooses among it")
        if not (self.test_split or self.validation_split):
            raise ValueError("test_split is missing, or validation_split: whose items are asked")
        return self


def read(file: Path) -> dict[str, Any]:
    """A definition that can be run, its functions imported.

    The functions, filters and metrics of a judged benchmark (`metadata.judge`) are neither imported nor used: answers
    are programs for our judge. Which it is has to be read first.

    Raises: ParameterError: no such file as lm-eval's; a field is missing, unknown or of a wrong kind; a template or a
        function cannot be read; a metric or filter that lm-eval does not have.
    """
    try:
        definition = load_yaml(file, resolve_func=False)
    except Exception as error:  # of an include, too, lm-eval's reader raises whatever comes
        raise ParameterError(f"{file}: not a task definition ({' '.join(str(error).split())})") from None
    if missing := [key for key in NEEDED if key not in definition]:
        raise ParameterError(f"{file}: lacks {missing[0]!r}; a definition has {', '.join(NEEDED)} and a split to test")
    metadata = definition["metadata"] if isinstance(definition.get("metadata"), dict) else {}
    judged = bool(metadata.get("judge"))
    definition = definition | JUDGED if judged else _with_functions(file)
    try:
        found = TaskFile.model_validate(definition)
    except ValidationError as error:
        raise ParameterError(explain(error, TaskFile, str(file))) from None
    except RecursionError:
        raise ParameterError(f"{file}: nested too deeply") from None
    if not judged and found.process_results is None:
        _check_metrics(file, found)
    return definition


def _with_functions(file: Path) -> dict[str, Any]:
    """The definition with its functions. Raises: ParameterError: what a `!function` names cannot be imported."""
    try:
        return load_yaml(file, resolve_func=True)
    except Exception as error:  # whatever a module may raise when it is imported
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ParameterError(f"{file}: a !function of it cannot be imported ({reason})") from None


def _check_metrics(file: Path, found: TaskFile) -> None:
    """Raises: ParameterError: a metric that gives no number for each single item of this kind."""
    known = PER_ITEM[found.output_type]
    for metric in (entry.metric for entry in found.metric_list):
        if metric not in known and not (callable(metric) and found.output_type == "generate_until"):
            own = ", or a function of one's own" if found.output_type == "generate_until" else ""
            raise ParameterError(
                f"{file}: metric {metric!r} gives no number for each item of {found.output_type}; "
                f"these do: {', '.join(known)}{own}; others go by process_results"
            )
