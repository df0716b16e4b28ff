"""Where the arithmetic of a step happens: one device, or many under DeepSpeed. The loop does not know which.

An engine never divides by a count of its own: the loop hands in the scale, and asks for sums.
"""

import math
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from llamax.data.packing import Batch
from llamax.errors import TrainingError
from llamax.models.precision import DTYPES, cast
from llamax.training.buckets import zero_buckets
from llamax.training.config import TrainConfig
from llamax.training.deepspeed_keys import check_deepspeed
from llamax.training.elastic import TAG, load_resharded, saved_ranks
from llamax.training.objectives import Objective, ObjectiveModule
from llamax.training.optimizer import MasterAdamW, parameter_groups


class Engine(Protocol):
    """What the loop needs. `rank` of `ranks` processes, all of which make the same calls in the same order."""

    rank: int
    ranks: int
    overflowed: bool  # the last `step` changed no weight: a gradient was too large for fp16, the loss scale is halved

    def loss_and_backward(self, batch: Batch, scale: float) -> tuple[Tensor, int]:
        """Add the gradient of `scale * sum of losses` over this batch; give (sum of losses, targets) of this rank."""

    def loss(self, batch: Batch) -> float:
        """Sum of losses over this batch on this rank, without a gradient; every rank calls it."""

    def step(self, learning_rate: float) -> tuple[float, float]:
        """Update the weights; give (global gradient norm before clipping, rate that the optimizer used)."""

    def total(self, value: Tensor) -> float:
        """Sum of a scalar over all ranks."""

    def gather(self, value: Any) -> list[Any]:
        """`value` of every rank, in rank order; also a barrier."""

    def save(self, folder: Path) -> None:
        """Write this rank's trainable weights and optimizer state into `folder`, which exists."""

    def load(self, folder: Path) -> None:
        """Take back what `save` wrote."""


class TorchEngine:
    """One device: fp32, or bf16 weights under an fp32 master copy."""

    rank = 0
    ranks = 1
    overflowed = False

    def __init__(self, model: nn.Module, objective: Objective, config: TrainConfig):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model.to(self.device)
        self.model = model
        self.objective = objective
        self.optimizer = MasterAdamW(model, config, DTYPES[config.precision])
        cast(model, DTYPES[config.precision])  # the frozen parameters; the others are done

    def loss_and_backward(self, batch: Batch, scale: float) -> tuple[Tensor, int]:
        """See `Engine`."""
        loss, targets = self.objective(self.model, _to(batch, self.device))
        (loss * scale).backward()
        return loss.detach(), targets

    @torch.no_grad()
    def loss(self, batch: Batch) -> float:
        """See `Engine`."""
        return self.objective(self.model, _to(batch, self.device))[0].item()

    def step(self, learning_rate: float) -> tuple[float, float]:
        """See `Engine`."""
        return self.optimizer.step(learning_rate)

    def total(self, value: Tensor) -> float:
        """See `Engine`."""
        return value.item()

    def gather(self, value: Any) -> list[Any]:
        """See `Engine`."""
        return [value]

    def save(self, folder: Path) -> None:
        """Master weights in the order of the optimizer's groups, and Adam's moments."""
        state = {"masters": self.optimizer.masters, "adam": self.optimizer.adam.state_dict()}
        with open(folder / "torch.pt", "wb") as file:  # a file of ours, so that a full disk is an OSError
            torch.save(state, file)

    def load(self, folder: Path) -> None:
        """See `Engine`."""
        state = torch.load(folder / "torch.pt", map_location=self.device, weights_only=True)
        with torch.no_grad():
            for master, saved in zip(self.optimizer.masters, state["masters"], strict=True):
                master.copy_(saved)
        self.optimizer.adam.load_state_dict(state["adam"])
        self.optimizer.publish()


def deepspeed_config(config: TrainConfig, hidden_size: int) -> dict[str, Any]:
    """DeepSpeed's JSON for a run; the only place where its options are named. The rate is set by the loop.

    hidden_size: width of the model, from which ZeRO's buffers get their sizes.
    """
    import deepspeed

    on_cpu = deepspeed.get_accelerator().device_name() == "cpu"
    zero: dict[str, Any] = {"stage": config.zero_stage}
    if config.zero_stage >= 2:
        zero |= {"contiguous_gradients": True, "overlap_comm": not on_cpu}
    if config.zero_stage == 3:
        zero |= zero_buckets(hidden_size) | {"stage3_gather_16bit_weights_on_model_save": True}
    if config.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": not on_cpu}
    if config.offload_parameters:
        zero["offload_param"] = {"device": "cpu", "pin_memory": not on_cpu}
    adam = {"lr": config.learning_rate, "betas": list(config.betas), "eps": config.eps}
    # DeepSpeed's own CPU Adam must be compiled where it runs; torch's serves unless the optimizer lives beside a GPU.
    adam["torch_adam"] = on_cpu or not config.offload_optimizer
    made = {
        "train_micro_batch_size_per_gpu": config.micro_batch,
        "gradient_accumulation_steps": config.micro_steps,
        "train_batch_size": config.batch_size,
        "gradient_clipping": config.grad_clip,
        "bf16": {"enabled": config.precision == "bf16"},
        "data_types": {"grad_accum_dtype": "fp32"},  # as in `MasterAdamW`: micro-batches are summed in fp32
        "zero_optimization": zero,
        "optimizer": {"type": "AdamW", "params": adam},
        "steps_per_print": 10**9,
    }
    if config.precision == "fp16":
        # DeepSpeed's default, 2^16; the original's 2^32 overflowed in each of its first 16 steps. With a hysteresis of
        # 1 every overflow halves it, where the default of 2 repeats the first one at the same scale.
        made["fp16"] = {"enabled": True, "initial_scale_power": 16, "hysteresis": 1}
    return laid_over(made, config.deepspeed_json)


def laid_over(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` on `base`: objects are merged key by key, every other value replaces."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = laid_over(base[key], value) if both else value
    return merged


def prepare_deepspeed() -> None:
    """Where there is no GPU: what DeepSpeed wants to hear before it starts ranks on the CPU."""
    import deepspeed
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

    if deepspeed.get_accelerator().device_name() != "cpu":
        return
    # Its shared-memory collectives would be compiled at the first start (a minute, and only with a compiler)
    # and leave segments behind after kill -9; gloo serves.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

    class Cpu(CPU_Accelerator):
        def is_fp16_supported(self) -> bool:
            """DeepSpeed asks for the instruction; torch computes without it, slowly: enough for a rehearsal."""
            return True

    deepspeed.accelerator.set_accelerator(Cpu())


class DeepSpeedEngine:
    """Many ranks: ZeRO stages 0 to 3, offload. Needs the launcher's environment (RANK, WORLD_SIZE, MASTER_ADDR...)."""

    def __init__(self, model: nn.Module, objective: Objective, config: TrainConfig):
        import deepspeed

        prepare_deepspeed()
        self.config = config
        self.overflowed = False
        settings = deepspeed_config(config, model.config.get_text_config().hidden_size)
        check_deepspeed(settings)
        self.engine, *_ = deepspeed.initialize(
            model=ObjectiveModule(model, objective),
            model_parameters=parameter_groups(model, config.weight_decay),
            config=settings,
        )
        self.rank, self.ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()

    def loss_and_backward(self, batch: Batch, scale: float) -> tuple[Tensor, int]:
        """See `Engine`. DeepSpeed averages over ranks (and would over micro-steps), which the scale undoes."""
        loss, targets = self.engine(type(batch), *_to(batch, self.engine.device))
        self.engine.backward(loss * (scale * self.ranks), scale_wrt_gas=False)
        if not self.engine.is_gradient_accumulation_boundary():
            self.engine.step()  # only counts the micro-step
        return loss.detach(), targets

    @torch.no_grad()
    def loss(self, batch: Batch) -> float:
        """See `Engine`."""
        return self.engine(type(batch), *_to(batch, self.engine.device))[0].item()

    def step(self, learning_rate: float) -> tuple[float, float]:
        """See `Engine`."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate
        norm = self._unmanaged_norm()
        try:
            self.engine.step()
        except Exception as error:
            if "loss scale" not in str(error):
                raise
            raise TrainingError(
                f"fp16: gradients overflow at the smallest loss scale ({error}): the run has diverged; "
                "lower the learning rate"
            ) from None
        rate = self.engine.basic_optimizer.param_groups[0]["lr"]
        if not self.engine.was_step_applied():  # DeepSpeed skips a step of infinite gradients in silence, and the norm
            self.overflowed = self.config.precision == "fp16"  # it then tells is an earlier step's
            return math.inf, rate
        self.overflowed = False
        return float(self.engine.get_global_grad_norm() if norm is None else norm), rate

    def _unmanaged_norm(self) -> float | None:
        """Gradient norm where DeepSpeed keeps none: fp32 at stage 0, the gradients being whole on every rank."""
        if self.config.zero_stage or self.config.precision != "fp32":
            return None
        gradients = [p.grad for p in self.engine.module.parameters() if p.grad is not None]
        return nn.utils.get_total_norm(gradients).item()

    def total(self, value: Tensor) -> float:
        """See `Engine`."""
        value = value.clone()
        torch.distributed.all_reduce(value)
        return value.item()

    def gather(self, value: Any) -> list[Any]:
        """See `Engine`."""
        values = [None] * self.ranks
        torch.distributed.all_gather_object(values, value)
        return values

    def save(self, folder: Path) -> None:
        """See `Engine`."""
        self.engine.save_checkpoint(folder, tag=TAG, save_latest=False, exclude_frozen_parameters=True)

    def load(self, folder: Path) -> None:
        """See `Engine`. Written by another number of ranks, it is cut anew."""
        if saved_ranks(folder) not in (0, self.ranks):
            load_resharded(self.engine, folder)
        else:
            self.engine.load_checkpoint(folder, tag=TAG, load_module_strict=False)


def make_engine(model: nn.Module, objective: Objective, config: TrainConfig) -> Engine:
    """The engine that `config.engine` names, around `model` in training mode."""
    model.train()
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return {"torch": TorchEngine, "deepspeed": DeepSpeedEngine}[config.engine](model, objective, config)


def _to(batch: Batch, device: torch.device) -> Batch:
    """The same batch on `device`."""
    return type(batch)(*(field.to(device, non_blocking=True) for field in batch))
