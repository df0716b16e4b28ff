"""Resume a ZeRO checkpoint on another number of ranks: DeepSpeed's universal checkpoints, with what they get wrong.

Masters and Adam's moments are put together parameter by parameter and cut anew, so nothing is rounded: the run goes on
as it would have, up to the order of additions.
"""

import argparse
import contextlib
import io
import shutil
from pathlib import Path
from typing import Any

import torch

from llamax.files import clear_disk_errors

TAG = "deepspeed"


def saved_ranks(checkpoint: Path) -> int:
    """Number of ranks whose shards of the optimizer a checkpoint holds; 0: it is not sharded, and fits any number."""
    return len(list((checkpoint / TAG).glob("*_optim_states.pt")))


def load_resharded(engine: Any, checkpoint: Path) -> None:
    """Put a checkpoint of any number of ranks into a DeepSpeed `engine`, whose ranks all call this.

    The universal form lies beside the checkpoints meanwhile: 12 bytes for each trained parameter.
    Raises: DiskFullError.
    """
    converted = checkpoint.parent / f".step.for-{torch.distributed.get_world_size()}-ranks"  # swept at the next start
    if torch.distributed.get_rank() == 0:
        shutil.rmtree(converted, ignore_errors=True)
        with clear_disk_errors(converted):
            convert(checkpoint / TAG, converted / TAG)
    torch.distributed.barrier()
    adam = engine.basic_optimizer
    kept = [{key: value for key, value in group.items() if key != "params"} for group in adam.param_groups]
    # The public way, "checkpoint": {"load_universal": true} in DeepSpeed's JSON, is said before the engine is made and
    # holds for every load; a later rewind takes a checkpoint of these ranks, which is not universal.
    engine._config.load_universal_checkpoint = True
    try:
        engine.load_checkpoint(converted, tag=TAG, load_module_strict=False)
    finally:
        engine._config.load_universal_checkpoint = False
    # DeepSpeed gives every group the settings of the first (norms would decay as matrices do), and all states one and
    # the same counter of steps, which every group's step would then advance.
    for group, settings in zip(adam.param_groups, kept, strict=True):
        group.update(settings)
    for state in adam.state.values():
        if torch.is_tensor(state.get("step")):
            state["step"] = state["step"].clone()
    torch.distributed.barrier()
    if torch.distributed.get_rank() == 0:
        shutil.rmtree(converted)


def convert(source: Path, target: Path) -> None:
    """Write the universal form of a ZeRO checkpoint: masters and moments whole, a folder per parameter."""
    from deepspeed.checkpoint.ds_to_universal import main

    target.parent.mkdir(parents=True, exist_ok=True)
    settings = argparse.Namespace(
        input_folder=str(source),
        output_folder=str(target),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        main(settings)
