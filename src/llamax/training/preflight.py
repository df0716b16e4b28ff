"""What can be said against a training before anything is loaded: no GPU, too few, a key nobody knows. No torch.

`LLAMAX_RANKS` trains a run of another number of ranks here on so many; where a run is computed is no parameter of it.
A plan (`--gpus`) and notebook 07 (`ranks.ranks`) do not heed it: the number of ranks is what they are asked about.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

from llamax.errors import LaunchError
from llamax.training.config import TrainConfig
from llamax.training.hosts import check_hosts
from llamax.training.ranks import place

REHEARSAL = "LLAMAX_REHEARSAL"
"""In the environment: the run is a rehearsal, on whatever there is, and never a result."""
CPU = "LLAMAX_CPU"
"""In the environment: train with DeepSpeed on the CPU, meaning it."""
KILL = "LLAMAX_KILL"
"""In the environment: RANK:STEP, a rank that kills itself after a step, to see that the run survives it."""


def rehearsing() -> bool:
    """Whether this process belongs to a rehearsal."""
    return bool(os.environ.get(REHEARSAL))


def check_trainings(config: Any) -> None:
    """Raise `LaunchError`, one line, if what a direction's config trains cannot be started on this machine."""
    own, wanted = getattr(config, "train", None), os.environ.get("LLAMAX_RANKS") or "1"
    if isinstance(own, TrainConfig) and own.engine == "torch" and wanted != "1":  # (a `tune` has others to share with)
        raise LaunchError(
            f"LLAMAX_RANKS={wanted}: profile {config.profile} trains with engine 'torch', which is one device: unset "
            f"it, or -p train.engine=deepspeed"
        )
    for train in trainings(config):
        check_machine(train, config.profile)
        check_json(train)


def check_json(train: TrainConfig) -> None:
    """Raise `ParameterError`, one line, for keys of `deepspeed_json` that DeepSpeed would ignore or refuse."""
    if train.deepspeed_json:
        from llamax.training.deepspeed_keys import check_deepspeed
        from llamax.training.engines import deepspeed_config  # imports torch: seconds, for those who need it

        check_deepspeed(deepspeed_config(train, hidden_size=4096))


def trainings(config: Any) -> Iterator[TrainConfig]:
    """The trainings that a config describes: its `train`, or that of its `tune`."""
    for part in (config, getattr(config, "tune", None)):
        if isinstance(train := getattr(part, "train", None), TrainConfig):
            yield train


def check_machine(train: TrainConfig, profile: str | None = None) -> None:
    """Raise `LaunchError` if `train` wants more GPUs than there are here, and nothing says that it shall not have them.

    With a hostfile the GPUs are elsewhere; DeepSpeed's launcher counts them there, but the hosts must answer now.
    A rehearsal has fewer ranks than `train` says; its launcher looks at the hosts.
    """
    if train.engine != "deepspeed":
        return
    train = placed(train)
    where = place(train.ranks)
    if where.hostfile and not rehearsing():
        check_hosts(where.hostfile, train.ranks)
    if where.hostfile or rehearsing() or os.environ.get(CPU):
        return
    found, what = gpus(), f"profile {profile} trains" if profile else "this trains"
    if not found:
        rehearse = (
            f"rehearse it here with --rehearse, see what it needs with `llamax plan --profile {profile} --gpus "
            f"{train.ranks}xA100-80GB` "
        ) if profile else ""  # fmt: skip
        raise LaunchError(
            f"{what} on {train.ranks} GPUs and this machine has none: {rehearse}"
            f"({CPU}=1 trains on the CPU all the same)"
        )
    if found < train.ranks:
        raise LaunchError(
            f"{what} on {train.ranks} GPUs and this machine shows {found}: "
            f"LLAMAX_RANKS={found} trains on those, LLAMAX_HOSTFILE=FILE on several machines"
        )


def gpus() -> int:
    """GPUs that this process may use, counted without torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    if not shutil.which("nvidia-smi"):
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def placed(train: TrainConfig) -> TrainConfig:
    """`train` on `LLAMAX_RANKS` ranks, with the largest micro-batch up to its own that divides; as it is without.

    Raises: LaunchError: no number, or one that does not divide the batch.
    """
    wanted = os.environ.get("LLAMAX_RANKS")
    if not wanted or train.engine != "deepspeed":
        return train
    if not (wanted.isdecimal() and int(wanted)):
        raise LaunchError(f"LLAMAX_RANKS={wanted}: want a number of processes from 1")
    ranks = int(wanted)
    if train.batch_size % ranks:
        raise LaunchError(f"LLAMAX_RANKS={ranks}: batch_size {train.batch_size} should be a multiple of it")
    share = train.batch_size // ranks
    micro = max(size for size in range(1, min(train.micro_batch, share) + 1) if share % size == 0)
    return train.model_copy(update={"ranks": ranks, "micro_batch": micro})
