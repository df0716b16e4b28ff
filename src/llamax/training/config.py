"""What a training run is told; no torch, so that every direction's config can hold one."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from llamax.config import Config, Parameters

Beta = Annotated[float, Field(ge=0, lt=1)]
ONE_OWNER = {
    "train_batch_size": "batch_size",
    "train_micro_batch_size_per_gpu": "micro_batch",
    "gradient_accumulation_steps": "batch_size, micro_batch and ranks",
    "elasticity": "batch_size, micro_batch and ranks",
    "prescale_gradients": "the engine, which weighs every supervised token alike",
    "gradient_clipping": "grad_clip",
    "optimizer": "learning_rate, betas, eps and weight_decay",
    "scheduler": "schedule and warmup_ratio",
    "fp16.enabled": "precision",
    "fp16.loss_scale": "the engine: a step that overflows is repeated at half the scale, so it cannot be fixed",
    "bf16.enabled": "precision",
    "torch_autocast": "precision",
    "amp": "precision",
    "data_types.grad_accum_dtype": "the engine, which sums micro-batches in fp32",
    "zero_optimization.stage": "zero_stage",
    "zero_optimization.offload_optimizer.device": "offload_optimizer",
    "zero_optimization.offload_param.device": "offload_parameters",
    "zero_optimization.cpu_offload": "offload_optimizer",
    "zero_optimization.cpu_offload_param": "offload_parameters",
    "checkpoint.load_universal": "the engine, which cuts a checkpoint anew for other ranks itself",
    "zero_optimization.stage3_gather_16bit_weights_on_model_save": (
        "the engine, which keeps it on: without it DeepSpeed saves no weights, in silence"
    ),
    "zero_optimization.gather_16bit_weights_on_model_save": "the engine, which keeps it on",
    "zero_optimization.stage3_gather_fp16_weights_on_model_save": "the engine, which keeps it on",
}
"""Keys of DeepSpeed's JSON that are decided elsewhere, and where. A second owner is how a rate gets stuck at 0."""


class LoraConfig(Parameters):
    """Low-rank adapters (Hu et al. 2021): `W + alpha / rank * B A`, with `A` random and `B` zero at the start."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: str | Annotated[tuple[str, ...], Field(min_length=1)] = "all-linear"


class StabilityConfig(Parameters):
    """What counts as a spike, and what is done about it; see `llamax.training.monitors`. Defaults are cautious.

    window: trailing steps by which a step is judged, once there are `fewest`. loss_z, grad_z: robust z-score from which
    the loss, the logarithm of the gradient norm, is a spike; 0 does not look. rewind: steps from the spike back to the
    checkpoint at least; 0: the newest. skip_before, skip_after: batches left out beside the one of the spike (PaLM:
    rewind about 100, 200 to 500 batches skipped). max_rollbacks: after so many the run stops.
    not_finite: what becomes of a loss or gradient that is no number: the run stops, or it counts as a spike. In fp16
    the run stops with either where gradients overflow at the smallest loss scale: one that cannot shrink is no spike.
    """

    window: int = Field(128, ge=4)
    fewest: int = Field(32, ge=4)
    loss_z: float = Field(8.0, ge=0)
    grad_z: float = Field(8.0, ge=0)
    rewind: int = Field(0, ge=0)
    skip_before: int = Field(0, ge=0)
    skip_after: int = Field(0, ge=0)
    max_rollbacks: int = Field(8, ge=0)
    not_finite: Literal["stop", "skip"] = "stop"

    @model_validator(mode="after")
    def _window_fills(self) -> Self:
        if self.fewest > self.window:
            raise ValueError(f"fewest {self.fewest} must not exceed window {self.window}")
        if not self.loss_z and not self.grad_z and self.not_finite == "stop":
            raise ValueError("loss_z 0 and grad_z 0 watch nothing: leave stability out, or set one of them")
        if self.skip_before > self.rewind:
            raise ValueError(f"skip_before {self.skip_before} must not exceed rewind {self.rewind}")
        return self


class TrainConfig(Parameters):
    """One optimisation: how fast, how long, in which pieces, on which engine. Defaults: the original 7B recipe.

    batch_size: rows per optimizer step, over all ranks. micro_batch: rows per forward on one rank.
    max_steps: stop after so many optimizer steps, if that is earlier than `epochs`.
    warmup_ratio: part of all steps in which the rate rises. grad_clip: largest global L2 norm; 0 leaves it alone.
    checkpoint_every: optimizer steps between checkpoints; 0 writes none.
    deepspeed_json: laid over the JSON that the engine makes for DeepSpeed from all this.
    z_loss: weight of log(Z)^2 per supervised token in the gradient (PaLM: 1e-4); the loss that is shown is without it.
    stability: watch for spikes, go back and skip; None does not.
    """

    learning_rate: float = Field(2e-5, gt=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: float = Field(0.03, ge=0, lt=1)
    epochs: int = Field(3, ge=1)
    max_steps: int | None = Field(None, ge=1)
    batch_size: int = Field(64, ge=1)
    micro_batch: int = Field(4, ge=1)
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    grad_clip: float = Field(1.0, ge=0)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    gradient_checkpointing: bool = False
    lora: LoraConfig | None = None
    engine: Literal["torch", "deepspeed"] = "torch"
    ranks: int = Field(1, ge=1)
    zero_stage: Literal[0, 1, 2, 3] = 0
    offload_optimizer: bool = False
    offload_parameters: bool = False
    deepspeed_json: dict[str, Any] = Field({})
    seed: int = Field(0, ge=0, lt=2**32)
    checkpoint_every: int = Field(0, ge=0)
    keep_checkpoints: int = Field(2, ge=1)
    z_loss: float = Field(0.0, ge=0)
    stability: StabilityConfig | None = None

    @model_validator(mode="after")
    def _pieces_fit(self) -> Self:
        """Every rank does the same number of forwards of the same size, so the batch must divide."""
        if self.batch_size % (self.micro_batch * self.ranks):
            pieces = f"micro_batch {self.micro_batch} x ranks {self.ranks}"
            raise ValueError(f"batch_size {self.batch_size} must be a multiple of {pieces}")
        if self.engine == "torch" and (self.ranks > 1 or self.zero_stage or self.offload_optimizer):
            raise ValueError("engine 'torch' is one device: ranks, zero_stage and offload need engine 'deepspeed'")
        if self.engine == "torch" and (self.precision == "fp16" or self.deepspeed_json):
            raise ValueError("precision fp16 (its loss scale) and deepspeed_json need engine 'deepspeed'")
        if self.engine == "deepspeed" and self.precision != "fp32" and not self.zero_stage:
            # DeepSpeed 0.19.8 takes an empty optimizer step when it starts there, so Adam's bias correction is off.
            raise ValueError(f"precision {self.precision} with engine 'deepspeed' needs zero_stage 1, 2 or 3")
        if self.offload_optimizer and not self.zero_stage:
            raise ValueError("offload_optimizer needs zero_stage 1, 2 or 3")
        if self.offload_parameters and self.zero_stage != 3:
            raise ValueError("offload_parameters needs zero_stage 3")
        _check_owners(self.deepspeed_json)
        reach = (self.keep_checkpoints - 1) * self.checkpoint_every
        if self.stability and (not self.checkpoint_every or reach < self.stability.rewind):
            reach = f"{self.keep_checkpoints} of them every {self.checkpoint_every} steps"
            raise ValueError(f"stability goes back to checkpoints: {reach} do not reach rewind {self.stability.rewind}")
        return self

    @property
    def micro_steps(self) -> int:
        """Forwards of one rank per optimizer step (the gradient accumulation)."""
        return self.batch_size // (self.micro_batch * self.ranks)


def _check_owners(settings: dict[str, Any]) -> None:
    """Raise ValueError for an owned key, and for a section that takes one away by being no object (null, say)."""
    for name, owner in ONE_OWNER.items():
        value, parts = settings, name.split(".")
        for depth, part in enumerate(parts, 1):
            if part not in value:
                break
            value, path = value[part], ".".join(parts[:depth])
            if depth == len(parts):
                raise ValueError(f"deepspeed_json: {name} is decided by {owner}; leave it out")
            if not isinstance(value, dict):
                inner = ".".join(parts[depth:])
                raise ValueError(
                    f"deepspeed_json: {path} = {value!r}: should be an object, whose {inner} is decided by {owner}"
                )


class Job(Config):
    """A training run that can start in another process: everything by name, nothing by reference.

    model: a spec for `llamax.models.load`. rows: a folder written by `Rows.save` or `Windows.save`.
    template: fingerprint of the template the rows were rendered with, stored with the model; None for plain text.
    out: gets `checkpoints/`, `model/` and the logs.
    port: of the first rank; chosen if not given. hostfile: DeepSpeed's, for several machines.
    """

    model: str
    pad_token: str | None = None
    rows: str
    train: TrainConfig
    out: str
    template: str | None
    hostfile: str | None = None
    port: int | None = Field(None, ge=1, le=65535)
