"""Parameters of direction 08, as `notebooks/profiles/*.yaml` set them and a notebook's `overrides` change them."""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, StrictInt, model_validator

from llamax.config import Parameters
from llamax.data.sources import cards
from llamax.errors import ParameterError
from llamax.evaluation import wordings
from llamax.evaluation.own_tasks import deciding_files, own_card
from llamax.training.config import TrainConfig

Count = Annotated[StrictInt, Field(gt=0)]
NANO = ("knowledge", "arithmetic", "open_qa", "truthfulness", "code")
CARDS = {"gsm8k_cot": "gsm8k", "ap_like": "mmlu", "gre_like": "agieval_aqua_rat"}
CURRENT, CANDIDATE = "current", "candidate"


class Tuning(Parameters):
    """How the candidate is made of the current model: instruction tuning of all weights."""

    source: str = Field("nano", description="named source (data_cards/), hub id, file, or `nano`")
    format: str = "auto"
    template: str = "chatml"
    max_examples: PositiveInt | None = None
    length: int = Field(256, ge=2, description="tokens per row")
    train: TrainConfig


class Variance(Parameters):
    """How much a score moves with the wording of the prompt and with the seed, on a part of the items."""

    limits: dict[str, Count | None] = Field({}, description="benchmarks, and how many items of each")
    wordings: tuple[str, ...] = ()
    seeds: int = Field(0, ge=0, description="nano: of sampled answers; else of the worked examples that are drawn")
    temperature: float = Field(0.7, gt=0, description="of nano's sampled answers")


class EvaluationConfig(Parameters):
    """One or two models, the benchmarks they answer, and how sure one can be of the difference."""

    profile: str
    seed: int = Field(0, ge=0, lt=1_000_000)
    model: str = Field("nano", description="the current version")
    candidate: str | None = Field(None, description="what might be the next; or `tune` makes it")
    tune: Tuning | None = None
    pad_token: str | None = None
    suite: Literal["nano", "real"] = "nano"
    limits: dict[str, Count | None] = Field({}, description="benchmarks and items of each; null = all")
    protocol: Literal["lm-eval", "llamax"] = Field("llamax", description="of real benchmarks")
    shots: int | None = Field(None, ge=0, description="of real benchmarks that leave it open; null = as is usual")
    max_new_tokens: PositiveInt | None = Field(None, description="of real benchmarks; null = as they are defined")
    samples: PositiveInt = Field(1, description="answers per programming problem")
    temperature: float = Field(0.0, ge=0, description="of several answers per problem")
    training_data: tuple[str, ...] = Field((), description="what the models learned from: items are looked for in it")
    variance: Variance = Variance()
    batch_size: PositiveInt = 32
    precision: Literal["fp32", "bf16"] = "fp32"
    engine: Literal["torch", "vllm"] = Field("torch", description="vllm: where it is installed; real benchmarks only")

    @model_validator(mode="after")
    def _belongs_together(self) -> Self:
        """What would not be looked at is refused, not ignored."""
        if self.candidate and self.tune:
            raise ValueError("candidate and tune: the candidate is given, or made by tuning; not both")
        if self.tune and self.training_data and self.tune.source not in self.training_data:
            raise ValueError(f"training_data: should have {self.tune.source!r} too, which the candidate is tuned on")
        if self.candidate == self.model:
            raise ValueError("candidate: it is the model itself: there is nothing to compare")
        if self.candidate == "":
            raise ValueError("candidate: should name a model, or be null")
        if self.suite == "nano":
            for name in (*self.limits, *self.variance.limits):
                if name not in NANO:
                    raise ValueError(f"limits: the suite 'nano' has no task {name!r}; it has {', '.join(NANO)}")
            foreign = ("protocol", "shots", "max_new_tokens", "samples", "temperature", "engine")
            if used := [name for name in foreign if getattr(self, name) != type(self).model_fields[name].default]:
                raise ValueError(f"{used[0]} has no effect on the suite 'nano': leave it out")
        elif not self.limits:
            raise ValueError("limits: name the benchmarks to run, such as {mmlu: 100, gsm8k: null}")
        else:
            self._limits_agree()
        self._wordings_exist()
        if (self.samples > 1) != (self.temperature > 0):
            raise ValueError("samples and temperature: several answers need a temperature, one answer is greedy")
        return self

    def _limits_agree(self) -> None:
        """Benchmarks that exist, those of `variance` among them; what is wrong with `limits` is told first."""
        foreign = [name for name in self.variance.limits if name not in self.limits]
        for name in self.limits:
            if foreign or card_of(name) not in cards():
                _exists(name)
        if foreign:
            _exists(foreign[0], "variance.limits")
            listed, lacks = ", ".join(self.limits), f"without {foreign[0]!r}, which variance.limits has"
            raise ValueError(f"limits: {listed}, {lacks}: add it, or give variance.limits too")

    def _wordings_exist(self) -> None:
        known = wordings.NANO if self.suite == "nano" else wordings.REAL
        said = self.variance.wordings
        for name in said:
            if name not in known:
                raise ValueError(f"variance.wordings: {wordings.unknown(name, known)}")
            if said.count(name) > 1:
                raise ValueError(f"variance.wordings: {name!r} is there twice")

    def datasets(self) -> list[str]:
        """Data whose fingerprints enter the run key."""
        learned = [*([self.tune.source] if self.tune else []), *self.training_data]
        if self.suite == "nano":
            return list(dict.fromkeys([*learned, "nano"]))
        return list(dict.fromkeys([*learned, *map(card_of, self.limits)]))

    def files(self) -> list[str]:
        """Files whose content enters the run key: our own task files."""
        return [str(file) for file in deciding_files(self.limits)] if self.suite == "real" else []

    def models(self) -> list[str]:
        """Models whose fingerprints enter the run key."""
        return [self.model, *([self.candidate] if self.candidate else [])]


def _exists(benchmark: str, where: str = "limits") -> None:
    """Raise `ValueError` for a benchmark that there is not; imports lm-eval, for when something is wrong anyway."""
    from llamax.evaluation.definitions import find

    try:
        find(benchmark)
    except ParameterError as error:
        raise ValueError(f"{where}: {error}") from None


def card_of(benchmark: str) -> str:
    """Name of the data card of a benchmark; without lm-eval, whose import takes seconds."""
    if own := own_card(benchmark):
        return own
    if benchmark.endswith("_proxy"):
        return f"agieval_{benchmark.removesuffix('_proxy')}"
    for family in ("mmmlu", "truthfulqa"):
        if benchmark.startswith(f"{family}_"):
            return family
    return CARDS.get(benchmark, benchmark)


CONFIG = EvaluationConfig
