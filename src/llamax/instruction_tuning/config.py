"""Parameters of direction 01, as `notebooks/profiles/*.yaml` set them and a notebook's `overrides` change them."""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, StrictInt, model_validator

from llamax.config import Parameters
from llamax.evaluation.config import card_of
from llamax.training.config import LoraConfig, TrainConfig

Method = Literal["full", "lora"]
Protocol = Literal["plain", "chat"]
TASKS = {
    "nano": ("knowledge", "arithmetic", "open_qa", "truthfulness", "code"),
    "real": ("mmlu", "gsm8k", "truthfulqa_mc1", "truthfulqa_mc2"),
}
REPLICATES = 1000
LONGEST_ROW = 1_048_576  # tokens


class InstructionData(Parameters):
    """What is learned from, and how it becomes rows of token ids."""

    source: str = Field("nano", description="named source (data_cards/), hub id, file, or `nano`")
    format: str = "auto"
    template: str = "chatml"
    max_examples: PositiveInt | None = None
    length: int = Field(256, ge=2, le=LONGEST_ROW, description="tokens per row")
    packing: bool = True
    over_long: Literal["error", "reject", "split"] = "reject"


class Evaluation(Parameters):
    """What every model of the study is asked, before and after."""

    suite: Literal["nano", "real"] = "nano"
    protocols: tuple[Protocol, ...] = Field(("plain", "chat"), min_length=1, description="of the nano suite")
    limits: dict[str, Annotated[StrictInt, Field(gt=0)] | None] = Field({}, description="items per task; null = all")
    batch_size: PositiveInt = 32
    precision: Literal["fp32", "bf16"] = Field("fp32", description="fp32: answers do not depend on the batch size")
    max_new_tokens: PositiveInt = Field(256, description="of a real benchmark; lm-eval's own default is 256")
    text_documents: PositiveInt = Field(100, description="held-out documents for the plain-text loss")

    @model_validator(mode="after")
    def _belongs_together(self) -> Self:
        """What the chosen suite would not look at is refused, not ignored."""
        tasks = TASKS[self.suite]
        if unknown := sorted(self.limits.keys() - set(tasks)):
            raise ValueError(f"limits: the suite {self.suite!r} has no task {unknown[0]!r}; it has {', '.join(tasks)}")
        foreign = {"nano": "max_new_tokens", "real": "protocols"}[self.suite]
        if foreign in self.model_fields_set and getattr(self, foreign) != type(self).model_fields[foreign].default:
            raise ValueError(f"{foreign} has no effect on the suite {self.suite!r}: leave it out")
        if self.suite == "real" and not self.limits:
            raise ValueError(f"limits: name the benchmarks to run, of {', '.join(tasks)}")
        if len(set(self.protocols)) < len(self.protocols):
            raise ValueError(f"protocols: {', '.join(self.protocols)}: one is named twice")
        return self


class InstructionTuningConfig(Parameters):
    """One study: a base model, a data set, methods × replicates of training, one evaluation for all of them."""

    profile: str
    seed: int = Field(0, ge=0, lt=1_000_000)
    model: str = "nano"
    pad_token: str | None = None
    data: InstructionData = InstructionData()
    train: TrainConfig
    lora: LoraConfig = LoraConfig()
    lora_learning_rate: float = Field(1e-3, gt=0, description="LoRA wants about ten times the rate of full tuning")
    methods: tuple[Method, ...] = Field(("full", "lora"), min_length=1)
    replicates: int = Field(1, ge=1, lt=REPLICATES, description="trainings per method, each with a seed of its own")
    evaluation: Evaluation = Evaluation()
    answers: int = Field(10, ge=0, description="prompts whose answers are shown side by side")

    @model_validator(mode="after")
    def _one_owner_each(self) -> Self:
        """Method and seed have an owner; a second one would be believed or overruled in silence."""
        if self.train.lora is not None:
            raise ValueError("train.lora: methods decides about LoRA, and lora.rank, lora.alpha, ... describe it")
        if self.train.seed:
            raise ValueError("train.seed: every training gets its own, made from seed and its number")
        if len(set(self.methods)) < len(self.methods):
            raise ValueError(f"methods: {', '.join(self.methods)}: one is named twice")
        return self

    def datasets(self) -> list[str]:
        """Data whose fingerprints enter the run key."""
        real = [card_of(name) for name in self.evaluation.limits] if self.evaluation.suite == "real" else []
        return list(dict.fromkeys([self.data.source, "nano", *real]))

    def models(self) -> list[str]:
        """Models whose fingerprints enter the run key."""
        return [self.model]

    def train_config(self, method: Method, replicate: int) -> TrainConfig:
        """Training parameters of one arm: LoRA brings its adapter and its own rate, a replicate its own seed."""
        change: dict = {"seed": REPLICATES * self.seed + replicate}
        if method == "lora":
            change |= {"lora": self.lora, "learning_rate": self.lora_learning_rate}
        return self.train.model_copy(update=change)


CONFIG = InstructionTuningConfig
