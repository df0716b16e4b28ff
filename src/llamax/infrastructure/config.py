"""Parameters of direction 07, as `notebooks/profiles/*.yaml` set them and a notebook's `overrides` change them."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from llamax.config import Parameters
from llamax.training.config import TrainConfig

Precision = Literal["fp32", "bf16"]
Sizes = Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
SHARDINGS: dict[str, dict[str, Any]] = {
    "ZeRO-0": {"zero_stage": 0},
    "ZeRO-1": {"zero_stage": 1},
    "ZeRO-2": {"zero_stage": 2},
    "ZeRO-3": {"zero_stage": 3},
    "ZeRO-2, optimizer offloaded": {"zero_stage": 2, "offload_optimizer": True},
    "ZeRO-3, optimizer offloaded": {"zero_stage": 3, "offload_optimizer": True},
    "ZeRO-3, all offloaded": {"zero_stage": 3, "offload_optimizer": True, "offload_parameters": True},
}
"""How the states of a training are spread over its ranks and the host."""
BUCKET = 10**6
"""Elements of the reduce bucket under ZeRO-1 and 2, whose default of 5e8 would outweigh a small model many times."""


class StepData(Parameters):
    """What the steps are made of."""

    source: str = Field("nano", description="named source (data_cards/), hub id, file, or `nano`")
    format: str = "auto"
    template: str = "chatml"
    max_examples: PositiveInt = 600


class Waterfall(Parameters):
    """One epoch of `documents` by every way, `repeats` times, interleaved.

    batch: documents per optimizer step; packed rows of `length` tokens are dealt so that there are as many steps.
    micro_batch: padded documents per forward.
    """

    documents: PositiveInt = 256
    length: int = Field(512, ge=2, description="tokens per packed row")
    batch: PositiveInt = 64
    micro_batch: PositiveInt = 8
    learning_rate: float = Field(2e-5, gt=0)
    repeats: int = Field(3, ge=2, description="an interval needs two")

    @model_validator(mode="after")
    def _pieces_fit(self) -> Self:
        if self.batch % self.micro_batch:
            raise ValueError(f"batch {self.batch} must be a multiple of micro_batch {self.micro_batch}")
        if self.documents % self.batch or self.documents < 2 * self.batch:
            raise ValueError(f"documents {self.documents} must be a multiple of batch {self.batch}, twice it at least")
        return self


class Sweep(Parameters):
    """One process, engine torch: `length` x `micro_batch` is the base, from which one thing changes at a time."""

    length: int = Field(256, ge=2)
    micro_batch: PositiveInt = 4
    lengths: Sizes = (64, 128, 256, 512, 1024)
    micro_batches: Sizes = (1, 2, 4, 8)
    rows: PositiveInt = Field(8, description="rows per optimizer step")
    steps: int = Field(5, ge=2, description="steps that are timed, after two that are not")
    precision: Precision = "bf16"

    @model_validator(mode="after")
    def _pieces_fit(self) -> Self:
        for size in (self.micro_batch, *self.micro_batches):
            if self.rows % size:
                raise ValueError(f"rows {self.rows} must be a multiple of every micro-batch, {size} among them")
        return self


class Ranks(Parameters):
    """Two ranks or more, engine DeepSpeed: `length` x `micro_batch` on each, one forward per step."""

    ranks: int = Field(2, ge=2)
    cases: tuple[str, ...] = Field(tuple(SHARDINGS), description="none: no rank is started")
    length: int = Field(256, ge=2)
    micro_batch: PositiveInt = 4
    steps: int = Field(5, ge=2)
    precision: Precision = Field("fp32", description="ZeRO-0 takes fp32 alone")

    @model_validator(mode="after")
    def _known(self) -> Self:
        for name in self.cases:
            if name not in SHARDINGS:
                raise ValueError(f"cases: {name!r} is none of {'; '.join(SHARDINGS)}")
        if self.precision != "fp32" and "ZeRO-0" in self.cases:
            raise ValueError(f"cases: ZeRO-0 takes precision fp32 alone, not {self.precision}: leave it out")
        return self


class InfrastructureConfig(Parameters):
    """One study: a model and its data, the ways of the waterfall, the sweep in one process, the shardings."""

    profile: str
    seed: int = Field(0, ge=0, lt=1_000_000)
    model: str = "nano"
    pad_token: str | None = None
    data: StepData = StepData()
    waterfall: Waterfall = Waterfall()
    sweep: Sweep = Sweep()
    ranks: Ranks = Ranks()

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.data.max_examples < self.waterfall.documents:
            raise ValueError(f"data.max_examples {self.data.max_examples}: waterfall.documents wants more")
        return self

    def datasets(self) -> list[str]:
        """Data whose fingerprints enter the run key."""
        return [self.data.source]

    def models(self) -> list[str]:
        """Models whose fingerprints enter the run key."""
        return [self.model]

    def swept(self) -> dict[str, tuple[int, bool, TrainConfig]]:
        """Name -> (row length, packed, training) of every case of the sweep, the base first."""
        sweep = self.sweep

        def case(length: int, micro: int, packed: bool = True, checkpointing: bool = False) -> tuple:
            train = TrainConfig(
                batch_size=sweep.rows, micro_batch=micro, precision=sweep.precision, seed=self.seed,
                gradient_checkpointing=checkpointing, max_steps=sweep.steps + 2, epochs=sweep.steps + 2,
            )  # fmt: skip
            return length, packed, train

        base = (sweep.length, sweep.micro_batch)
        found = {"base": case(*base)}
        found |= {f"length {n}": case(n, sweep.micro_batch) for n in sweep.lengths if n != sweep.length}
        found |= {f"micro-batch {n}": case(sweep.length, n) for n in sweep.micro_batches if n != sweep.micro_batch}
        return found | {"not packed": case(*base, packed=False), "checkpointing": case(*base, checkpointing=True)}

    def sharded(self) -> dict[str, TrainConfig]:
        """Name -> training of every case on several ranks."""
        ranks = self.ranks
        shared = {
            "batch_size": ranks.ranks * ranks.micro_batch, "micro_batch": ranks.micro_batch, "seed": self.seed,
            "precision": ranks.precision, "engine": "deepspeed", "ranks": ranks.ranks,
            "max_steps": ranks.steps + 2, "epochs": ranks.steps + 2,
        }  # fmt: skip
        bucket = {"deepspeed_json": {"zero_optimization": {"reduce_bucket_size": BUCKET}}}
        own = {name: SHARDINGS[name] for name in ranks.cases}
        return {
            name: TrainConfig(**shared, **changes, **(bucket if changes["zero_stage"] in (1, 2) else {}))
            for name, changes in own.items()
        }


CONFIG = InfrastructureConfig
