"""One rank of a training job: load, train, save. In this process (`run_job`), or started by `launch` as a module."""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from transformers.initialization import no_init_weights

from llamax.errors import TrainingError
from llamax.files import sweep, write_atomic
from llamax.models.precision import DTYPES, cast
from llamax.training.checkpoint import seed_everything
from llamax.training.config import Job, TrainConfig
from llamax.training.data import load_data
from llamax.training.history import History, StepMetrics
from llamax.training.loop import fit
from llamax.training.lora import apply_lora, merge_lora
from llamax.training.preflight import KILL
from llamax.training.ranks import rank_of


def run_job(job: Job, *, on_step: Callable[[StepMetrics], None] | None = None) -> History:
    """Train `job.model` on `job.rows` and save the result, adapters merged, under `out/model`.

    Raises: ModelError, DataError, TrainingError, CheckpointError, DiskFullError.
    """
    from llamax.models.fingerprint import fingerprint
    from llamax.models.load import load
    from llamax.models.save import save
    from llamax.training.sharded import load_sharded

    config = job.train
    rows = load_data(job.rows)
    if config.zero_stage == 3:
        model, tokenizer = load_sharded(job.model, config, pad_token=job.pad_token)
    else:  # DeepSpeed's masters start from the precision that is loaded
        dtype = torch.float32 if config.engine == "torch" else DTYPES[config.precision]
        model, tokenizer = load(job.model, dtype=dtype, pad_token=job.pad_token)
    if config.lora:
        seed_everything(config.seed)
        model = apply_lora(model, config.lora)
    meta = {"model": fingerprint(job.model), "template": job.template}
    history = fit(model, rows, config, job.out, pad_id=tokenizer.pad_token_id, on_step=on_step, meta=meta)
    plain = whole_model(model, config)
    if plain is not None:
        notes = meta | {"train": config.model_dump(mode="json"), "steps": len(history.steps), "rows": rows.fingerprint}
        sweep(Path(job.out) / "model")
        save(plain, tokenizer, Path(job.out) / "model", notes=notes)
    return history


def whole_model(model: nn.Module, config: TrainConfig) -> nn.Module | None:
    """The trained model in one piece, adapters merged, on rank 0; None elsewhere. Every rank must call it."""
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        state = gather_parameters(model)
        model = rebuild(model, state, config) if state is not None else None
    elif torch.distributed.is_initialized() and torch.distributed.get_rank():
        return None
    return merge_lora(model) if model is not None and config.lora else model


def gather_parameters(model: nn.Module) -> dict[str, torch.Tensor] | None:
    """Whole parameters by name, on the CPU of rank 0, gathered one at a time; None on other ranks."""
    from deepspeed.runtime.zero.partition_parameters import GatheredParameters

    state = {}
    for name, parameter in model.named_parameters():
        with GatheredParameters([parameter]):
            if torch.distributed.get_rank() == 0:
                state[name] = parameter.detach().cpu().clone()
    return state if torch.distributed.get_rank() == 0 else None


def rebuild(model: nn.Module, state: dict[str, torch.Tensor], config: TrainConfig) -> nn.Module:
    """An unsharded model like `model` with these parameters. Raises: TrainingError: one is missing."""
    base = model.get_base_model() if config.lora else model
    with no_init_weights():  # drawing billions of numbers only to overwrite them takes minutes
        whole = cast(type(base)(base.config), next(iter(state.values())).dtype)
    whole.tie_weights()
    if config.lora:
        whole = apply_lora(whole, config.lora)
    names = {name for name, _ in whole.named_parameters()}
    if names != set(state):
        raise TrainingError(f"cannot save: sharded and whole model differ in {sorted(names ^ set(state))[:3]}")
    whole.load_state_dict(state, strict=False)  # tied names and buffers are not parameters of their own
    return whole


def main(job_file: str) -> None:
    """Run the job as the rank that the launcher's environment names."""
    with rank_of(job_file) as (rank, world):
        job = Job.parse(json.loads(Path(job_file).read_text()), job_file)
        folder = Path(job.out) / "ranks"
        if world != job.train.ranks:
            raise TrainingError(f"the launcher started {world} ranks, the job has ranks = {job.train.ranks}")
        if rank == 0:
            with open(folder / "steps.jsonl", "w", buffering=1) as steps:

                def tell(metrics: StepMetrics) -> None:
                    steps.write(json.dumps(metrics) + "\n")
                    die_on_purpose(rank, metrics.step)

                history = run_job(job, on_step=tell)
            write_atomic(folder / "history.json", history.to_json())
        else:
            run_job(job, on_step=lambda metrics: die_on_purpose(rank, metrics.step))


def die_on_purpose(rank: int, step: int) -> None:
    """Be killed where a rehearsal wants it: `LLAMAX_KILL=RANK:STEP`, after that step and before its checkpoint."""
    if os.environ.get(KILL) == f"{rank}:{step}":
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1])
