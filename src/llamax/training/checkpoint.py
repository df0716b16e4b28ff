"""Checkpoints that are whole or absent, that know which run they belong to, and that notice a flipped byte.

out/checkpoints/step-00000040/
    torch.pt | deepspeed/*     weights and optimizer, as the engine wrote them
    rng-0.pt ...               random state of every rank
    run.json                   step, identity of the run, metrics of every step so far, spikes met
    manifest.json              sha256 of every file above, written last
"""

import contextlib
import json
import random
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from llamax.errors import CheckpointError, DiskFullError, TrainingError
from llamax.files import clear_disk_errors, sha256_file, sweep, sync_folder
from llamax.training.engines import Engine
from llamax.training.history import Event, StepMetrics

# How torch's zip writer, which goes around Python's files, words a write that did not take all bytes.
SHORT_WRITE = re.compile(r"PytorchStreamWriter|iostream|unexpected pos|No space left")
ELASTIC = {"train.ranks", "train.micro_batch"}
"""Where a step is computed and in which pieces, not what: a run may go on with others."""


class Past(NamedTuple):
    """What a checkpoint remembers: the step to go on from, the metrics of those done, the spikes met."""

    step: int = 0
    steps: tuple[StepMetrics, ...] = ()
    events: tuple[Event, ...] = ()


class Checkpoints(NamedTuple):
    """The checkpoints of one run. identity: a JSON object; a checkpoint with another one is refused."""

    folder: Path
    identity: dict[str, Any]
    keep: int

    def save(self, engine: Engine, step: int, steps: list[StepMetrics], events: Sequence[Event] = ()) -> None:
        """Write the state after `step` optimizer steps, then drop all but the newest `keep`; every rank calls it.

        Raises: DiskFullError: the older checkpoints are untouched.
        """
        work, final = self.folder / f".step.{step:08d}", self.folder / f"step-{step:08d}"
        if engine.rank == 0:
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(parents=True)
        engine.gather(None)
        with _all_or_nothing(work, engine):
            engine.save(work)
            with open(work / f"rng-{engine.rank}.pt", "wb") as file:
                torch.save(random_state(), file)
            if engine.rank == 0:
                past = {"step": step, "identity": self.identity, "steps": steps, "events": events}
                _write_json(work / "run.json", past)
            engine.gather(None)
            hashes = _hash_together(engine, sorted(_files(work)), work)
            if engine.rank == 0:
                _write_json(work / "manifest.json", hashes)
                sync_folder(work)
                shutil.rmtree(final, ignore_errors=True)
                work.rename(final)
                for old in self.complete()[: -self.keep]:
                    _drop(old)
        engine.gather(None)

    def complete(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(self.folder.glob("step-????????"))

    def resume(self, engine: Engine) -> Past:
        """Put the newest checkpoint into `engine`; give what lies behind it, nothing if there is none.

        Raises: CheckpointError: it is damaged, or is another run's. No older one is taken in silence.
        """
        if engine.rank == 0:
            sweep(self.folder / "step")
        newest = self.complete()[-1:]
        engine.gather(None)
        return self._restore(newest[0], engine) if newest else Past()

    def go_back(self, engine: Engine, step: int) -> Past:
        """Put the newest checkpoint of at most `step` steps, or else the oldest, into `engine`; delete those after it.

        Raises: TrainingError: there is none. CheckpointError: as `resume`.
        """
        there = self.complete()
        if not there:
            raise TrainingError(f"no checkpoint to go back to under {self.folder}")
        chosen = [folder for folder in there if _step_of(folder) <= step][-1:] or there[:1]
        engine.gather(None)  # everyone has looked
        if engine.rank == 0:
            for newer in there[there.index(chosen[0]) + 1 :]:
                _drop(newer)
        return self._restore(chosen[0], engine)

    def _restore(self, checkpoint: Path, engine: Engine) -> Past:
        """Check a checkpoint and put it into `engine`."""
        self._verify(checkpoint, engine)
        state = json.loads((checkpoint / "run.json").read_text())
        self._check_identity(checkpoint, state["identity"])
        engine.load(checkpoint)
        self.restore_random_state(engine, state["step"])
        steps, events = state["steps"], state.get("events", [])
        return Past(state["step"], tuple(StepMetrics(*step) for step in steps), tuple(map(Event.of, events)))

    def restore_random_state(self, engine: Engine, step: int) -> None:
        """Undo all drawing on this rank since the checkpoint of `step`."""
        saved = self.folder / f"step-{step:08d}" / f"rng-{engine.rank}.pt"
        if saved.exists():  # a rank that there was not before keeps the state of its own seed
            set_random_state(torch.load(saved, weights_only=True))

    def _verify(self, checkpoint: Path, engine: Engine) -> None:
        """Compare every file with the manifest."""
        manifest = checkpoint / "manifest.json"
        try:
            expected = json.loads(manifest.read_text())
        except (OSError, ValueError):
            raise self._damaged(manifest) from None
        for name in expected:
            if not (checkpoint / name).is_file():
                raise self._damaged(checkpoint / name)
        found = _hash_together(engine, [checkpoint / name for name in expected], checkpoint)
        for name, digest in expected.items():
            if found[name] != digest:
                raise self._damaged(checkpoint / name)

    def _damaged(self, file: Path) -> CheckpointError:
        """The error for a file that is missing or altered, with what can be done about it."""
        older = self.complete()[:-1]
        remedy = f"to go on from {older[-1].name}" if older else "to start over (there is no older checkpoint)"
        return CheckpointError(
            f"{file}: damaged or missing (it does not match the checkpoint's manifest); "
            f"delete the folder {self.complete()[-1]} {remedy}"
        )

    def _check_identity(self, checkpoint: Path, saved: dict[str, Any]) -> None:
        """Refuse a checkpoint of another run, naming what differs."""
        before, now = _flat(json.loads(json.dumps(saved))), _flat(json.loads(json.dumps(self.identity)))
        changed = [key for key in before | now if before.get(key) != now.get(key) and key not in ELASTIC]
        if changed:
            differences = "; ".join(f"{key} was {before.get(key)!r}, is {now.get(key)!r}" for key in changed)
            raise CheckpointError(
                f"{checkpoint} belongs to another run: {differences}; use another output folder or delete it"
            )


def random_state() -> dict[str, Any]:
    """Python's, numpy's and torch's random state, as tensors and plain values."""
    algorithm, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [algorithm, torch.from_numpy(keys.astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Undo all drawing since `random_state`."""
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    algorithm, keys, *rest = state["numpy"]
    np.random.set_state((algorithm, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch; only dropout draws from them."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextlib.contextmanager
def _all_or_nothing(work: Path, engine: Engine) -> Iterator[None]:
    """Remove a half-written folder; a full disk becomes a `DiskFullError`, whichever way torch reports it."""
    try:
        with clear_disk_errors(work):
            yield
    except BaseException as error:
        if engine.ranks == 1:  # with more ranks others may be writing; the launcher or the next start removes it
            shutil.rmtree(work, ignore_errors=True)
        if isinstance(error, RuntimeError) and SHORT_WRITE.search(str(error)):
            raise DiskFullError(f"no disk space to write {work}; free some and run again to resume") from error
        raise


def _drop(checkpoint: Path) -> None:
    """Delete a checkpoint. Killed on the way, what is left is none any more, and is swept at the next start."""
    dropped = checkpoint.with_name(f".step.{_step_of(checkpoint):08d}.dropped")
    shutil.rmtree(dropped, ignore_errors=True)
    checkpoint.rename(dropped)
    shutil.rmtree(dropped)


def _hash_together(engine: Engine, files: list[Path], root: Path) -> dict[str, str]:
    """sha256 of every file, by name relative to `root`; each rank reads its share."""
    mine = {str(file.relative_to(root)): sha256_file(file) for file in files[engine.rank :: engine.ranks]}
    return {name: digest for part in engine.gather(mine) for name, digest in part.items()}


def _step_of(checkpoint: Path) -> int:
    """Steps that a checkpoint has behind it."""
    return int(checkpoint.name.removeprefix("step-"))


def _files(folder: Path) -> Iterator[Path]:
    """All files below `folder`."""
    return (path for path in folder.rglob("*") if path.is_file())


def _write_json(path: Path, value: Any) -> None:
    """Plain write: the folder around it is what is atomic."""
    path.write_text(json.dumps(value))


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Leaves of nested JSON objects by dotted name."""
    if not isinstance(value, dict):
        return {name: value}
    return {leaf: v for key, inner in value.items() for leaf, v in _flat(inner, f"{name}.{key}".strip(".")).items()}
