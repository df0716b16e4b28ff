"""Parameters of direction 01, as `notebooks/profiles/*.yaml` set them and a notebook's `overrides` change them."""

from typing import Literal

from pydantic import Field, PositiveInt

from llamax.config import Config
from llamax.training.config import LoraConfig, TrainConfig

Method = Literal["full", "lora"]


class InstructionData(Config):
    """What is learned from, and how it becomes rows of token ids."""

    source: str = Field("nano", description="named source (data_cards/), hub id, file, or `nano`")
    format: str = "auto"
    template: str = "chatml"
    max_examples: PositiveInt | None = None
    length: PositiveInt = Field(256, description="tokens per row")
    packing: bool = True
    over_long: Literal["error", "reject", "split"] = "reject"


class Evaluation(Config):
    """What every model of the study is asked, before and after."""

    suite: Literal["nano", "real"] = "nano"
    protocols: tuple[Literal["plain", "chat"], ...] = ("plain", "chat")
    limits: dict[str, PositiveInt | None] = Field({}, description="items per task; null = all of them")
    batch_size: PositiveInt = 32
    precision: Literal["fp32", "bf16"] = Field("fp32", description="fp32: answers do not depend on the batch size")
    max_new_tokens: PositiveInt = 32
    text_documents: PositiveInt = Field(100, description="held-out documents for the plain-text loss")


class InstructionTuningConfig(Config):
    """One study: a base model, a data set, methods × replicates of training, one evaluation for all of them."""

    profile: str
    seed: int = Field(0, ge=0)
    model: str = "nano"
    pad_token: str | None = None
    data: InstructionData = InstructionData()
    train: TrainConfig
    lora: LoraConfig = LoraConfig()
    lora_learning_rate: float = Field(1e-3, gt=0, description="LoRA wants about ten times the rate of full tuning")
    methods: tuple[Method, ...] = ("full", "lora")
    replicates: PositiveInt = Field(1, description="trainings per method, each with its own seed and data order")
    evaluation: Evaluation = Evaluation()
    answers: int = Field(10, ge=0, description="prompts whose answers are shown side by side")

    def datasets(self) -> list[str]:
        """Data whose fingerprints enter the run key."""
        real = ["mmlu", "gsm8k", "truthfulqa"] if self.evaluation.suite == "real" else []
        return [self.data.source, *(["nano"] if self.data.source != "nano" else []), *real]

    def models(self) -> list[str]:
        """Models whose fingerprints enter the run key."""
        return [self.model]

    def train_config(self, method: Method, replicate: int) -> TrainConfig:
        """Training parameters of one arm: LoRA brings its adapter and its own rate, a replicate its own seed."""
        change: dict = {"seed": 1000 * self.seed + replicate}
        if method == "lora":
            change |= {"lora": self.lora, "learning_rate": self.lora_learning_rate}
        return self.train.model_copy(update=change)


CONFIG = InstructionTuningConfig
