"""A rehearsal: everything of a GPU profile as it is, its model shrunk to nano, on two CPU ranks, in about a minute.

It is the real notebook under papermill, in `runs/rehearsals/`, never a result. One rank is killed on the way and the
run started again, as on a cluster. What a direction shrinks, and what it looks at in the end, is its own business:
`llamax.<direction>.rehearsal` with `shrink(config, folder)` and `parts(config, record, scratch)`.
"""

import contextlib
import importlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from llamax.config import Config
from llamax.errors import LlamaxError, RunError
from llamax.models.source import NANO_FOLDER
from llamax.runs.keys import run_key
from llamax.runs.notebook import execute
from llamax.runs.parameters import differences, parse_parameters
from llamax.runs.session import run_name
from llamax.runs.store import Store
from llamax.training.preflight import KILL, REHEARSAL, check_trainings, trainings

KILLED = "ended without a traceback: killed"
WINDOW = 16_384  # tokens: a benchmark's prompt with its examples is long in a vocabulary of 2,048


class Shrunk(NamedTuple):
    """A smaller study: what is set otherwise, and which rank dies after which step of its first training."""

    overrides: dict[str, Any]
    kill: str


def rehearse(
    direction: str,
    profile: str,
    overrides: dict[str, Any] | None = None,
    seed: int = 0,
    *,
    say: Callable[[str], None] = print,
) -> None:
    """Rehearse a profile; say what the real run will need, what is changed for the rehearsal, and what was rehearsed.

    Raises: LlamaxError: the line that the real run would have ended with.
    """
    start = time.perf_counter()
    config = parse_parameters(direction, profile, seed, overrides)
    if not any(train.engine == "deepspeed" for train in trainings(config)):
        raise RunError(
            f"profile {profile}: {direction} trains nothing with DeepSpeed there: run it, it is its rehearsal"
        )
    room = _room(direction)
    say(f"what profile {profile} will need:\n{needs(direction, profile, overrides, config)}\n")
    with _environment({REHEARSAL: profile, "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}):
        check_trainings(config)
        folder = Store().scratch(direction, "material")
        shrunk = room.shrink(config, folder)
        small = parse_parameters(direction, profile, seed, shrunk.overrides)
        say("as in the profile, except:")
        for name, value in differences(config, small).items():
            say(f"  {name}: {_shown(_at(config, name))} -> {_shown(value)}")
        scratch = Store().scratch(direction, run_name(small, run_key(direction, small)))
        shutil.rmtree(scratch, ignore_errors=True)
        record = _twice(direction, small, shrunk, scratch)
        say(f"\nrehearsed, {profile}:")
        for part in room.parts(small, record, scratch):
            say(f"  ✓ {part}")
    say(f"in {time.perf_counter() - start:.0f} s; everything is in {scratch.relative_to(Store().root)}")


def _twice(direction: str, config: Config, shrunk: Shrunk, scratch: Path) -> Any:
    """Run the notebook until a rank is killed, and again until the end; the record. Raises: RunError."""
    arguments = (direction, config.profile, shrunk.overrides, config.seed)
    try:
        with _environment({KILL: shrunk.kill}):
            execute(*arguments)
    except RunError as error:
        if KILLED not in str(error):
            raise
    else:
        raise RunError(f"the rehearsal's run did not stop although rank:step {shrunk.kill} was to be killed")
    if not list(scratch.glob("*/checkpoints/step-*")):
        raise RunError(f"no checkpoint in {scratch} when rank:step {shrunk.kill} was killed: checkpoint_every?")
    return execute(*arguments)


def needs(direction: str, profile: str, overrides: dict[str, Any] | None, config: Config) -> str:
    """The plan of the real run, on as many A100-80GB as it has ranks, without checks of what is not known here."""
    from llamax.runs.planning import plan_profile
    from llamax.training.plan import parse_hardware, report

    ranks = max(train.ranks for train in trainings(config))
    nodes, each = (ranks // 8, 8) if ranks % 8 == 0 else (1, ranks)
    try:
        hardware = parse_hardware(f"{nodes}x{each}xA100-80GB")
        return report(plan_profile(hardware, direction=direction, profile=profile, overrides=overrides))
    except LlamaxError as error:
        return f"no plan: {error}"


def little_model(folder: Path) -> Path:
    """The nano model with a window of `WINDOW` tokens, as a folder."""
    target = folder / "model"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(NANO_FOLDER, target, ignore=shutil.ignore_patterns("llamax.json", "README.md", "__pycache__"))
    for name, key in (("config.json", "max_position_embeddings"), ("tokenizer_config.json", "model_max_length")):
        values = json.loads((target / name).read_text())
        (target / name).write_text(json.dumps(values | {key: WINDOW}))
    return target


def _room(direction: str) -> ModuleType:
    """`llamax.<direction>.rehearsal`. Raises: RunError: the direction has none."""
    name = f"llamax.{direction}.rehearsal"
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise RunError(f"{direction} cannot be rehearsed: it has no module {name}") from None


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """These variables, for kernels and ranks started in the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _at(config: Config, name: str) -> Any:
    """The value of a dotted name."""
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    return value


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
