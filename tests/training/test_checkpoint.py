"""Stop anywhere, go on, and nobody can tell; and every way in which a checkpoint can be bad is said."""

import json
import shutil

import pytest
import torch
from training_cases import PAD, log_of, new_config, new_model, new_rows, run_ranks

from llamax.errors import CheckpointError
from llamax.training import checkpoint
from llamax.training.config import LoraConfig
from llamax.training.history import History
from llamax.training.loop import fit, identity
from llamax.training.lora import apply_lora

EVERY = new_config(checkpoint_every=3)


class Stop(Exception):
    """Stands for whatever ends a run early."""


def stop_after(step):
    def on_step(metrics):
        if metrics.step == step:
            raise Stop

    return on_step


def train(out, config=EVERY, *, rows=None, stop=None, meta=None):
    """One run; gives the history and the final weights."""
    model = new_model()
    if config.lora:
        torch.manual_seed(0)
        model = apply_lora(model, config.lora)
    on_step = stop_after(stop) if stop is not None else None
    history = fit(model, rows or new_rows(), config, out, pad_id=PAD, on_step=on_step, meta=meta)
    return history, {name: p.detach() for name, p in model.named_parameters()}


def interrupted(out, step=7, **changes):
    """A run that stopped after `step`, with its checkpoints."""
    with pytest.raises(Stop):
        train(out, stop=step, **changes)
    return out / "checkpoints"


def assert_same(one, two):
    """Histories without their times, and weights, to the bit."""
    assert [m[:-1] for m in one[0].steps] == [m[:-1] for m in two[0].steps]
    assert all(torch.equal(one[1][name], two[1][name]) for name in one[1])


@pytest.mark.parametrize(
    "changes",
    [{}, {"lora": LoraConfig(rank=4, dropout=0.2)}, {"precision": "bf16"}],
    ids=["full", "lora with dropout", "bf16"],
)
def test_resumed_run_is_the_same_run(tmp_path, changes):
    config = new_config(checkpoint_every=3, **changes)
    whole = train(tmp_path / "whole", config)
    interrupted(tmp_path / "cut", config=config)
    resumed = train(tmp_path / "cut", config)
    assert resumed[0].resumed_from == 6
    assert_same(resumed, whole)


@pytest.mark.parametrize("step", [8, pytest.param(1, marks=pytest.mark.slow), pytest.param(5, marks=pytest.mark.slow)])
def test_killed_run_is_the_same_run(tmp_path, step):
    """SIGKILL before the first checkpoint, right at one, and between two; the last also half-way through a write."""
    whole = train(tmp_path / "whole")
    spec = {"out": str(tmp_path / "cut"), "config": EVERY.model_dump(mode="json"), "die_after": step}
    assert run_ranks(1, [spec], tmp_path) == [-9], log_of(tmp_path)
    half_written = tmp_path / "cut" / "checkpoints" / ".step.00000009"
    half_written.mkdir(parents=True)
    (half_written / "torch.pt").write_bytes(b"half")
    resumed = train(tmp_path / "cut")
    assert resumed[0].resumed_from == (step // 3) * 3
    assert_same(resumed, whole)
    assert {path.name for path in (tmp_path / "cut" / "checkpoints").iterdir()} == {"step-00000006", "step-00000009"}


def test_killed_while_an_old_one_is_deleted_the_run_goes_on(tmp_path, monkeypatch):
    def cut(folder, **options):
        if not (folder / "manifest.json").exists():
            return rmtree(folder, **options)
        (folder / "manifest.json").unlink()
        raise Stop

    whole, rmtree = train(tmp_path / "whole"), shutil.rmtree
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(checkpoint.shutil, "rmtree", cut)
        train(tmp_path / "cut")
    folder = tmp_path / "cut" / "checkpoints"
    assert len(list(folder.iterdir())) == EVERY.keep_checkpoints + 1
    assert all((left / "manifest.json").exists() for left in folder.glob("step-*"))
    assert_same(train(tmp_path / "cut"), whole)
    assert all(left.name.startswith("step-") for left in folder.iterdir())


def test_only_the_newest_are_kept(tmp_path):
    train(tmp_path, new_config(checkpoint_every=1, keep_checkpoints=3))
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == [
        f"step-{step:08d}" for step in (8, 9, 10)
    ]


@pytest.mark.parametrize("name", ["torch.pt", "rng-0.pt", "run.json", "manifest.json"])
def test_a_flipped_byte_is_found_and_named(tmp_path, name):
    checkpoints = interrupted(tmp_path)
    file = checkpoints / "step-00000006" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"damaged or missing .* to go on from step-00000003") as error:
        train(tmp_path)
    assert "step-00000006" in str(error.value) and "\n" not in str(error.value)
    if name != "manifest.json":  # a byte flipped in the list itself accuses the file whose hash or name it was
        assert str(file) in str(error.value)
    shutil.rmtree(checkpoints / "step-00000006")
    assert train(tmp_path)[0].resumed_from == 3


def test_a_missing_file_is_named(tmp_path):
    checkpoints = interrupted(tmp_path, step=4)
    (checkpoints / "step-00000003" / "rng-0.pt").unlink()
    with pytest.raises(CheckpointError, match=r"rng-0\.pt: damaged or missing .*no older checkpoint"):
        train(tmp_path)


def test_another_runs_checkpoint_is_refused_with_what_differs(tmp_path):
    interrupted(tmp_path, meta={"template": "aa"})
    with pytest.raises(CheckpointError, match=r"train\.learning_rate was 0\.005, is 0\.001"):
        train(tmp_path, new_config(checkpoint_every=3, learning_rate=1e-3), meta={"template": "aa"})
    with pytest.raises(CheckpointError, match=r"meta\.template was 'aa', is 'bb'"):
        train(tmp_path, meta={"template": "bb"})
    with pytest.raises(CheckpointError, match=r"belongs to another run: rows was '[0-9a-f]+', is '[0-9a-f]+'"):
        train(tmp_path, rows=new_rows(seed=1), meta={"template": "aa"})
    more_often = new_config(checkpoint_every=1, keep_checkpoints=5)
    assert train(tmp_path, more_often, meta={"template": "aa"})[0].resumed_from == 6


def test_full_disk_leaves_the_last_checkpoint_usable(tmp_path):
    whole = train(tmp_path / "whole")
    size = max(file.stat().st_size for file in (tmp_path / "whole" / "checkpoints").glob("step-*/torch.pt"))
    interrupted(tmp_path / "cut", step=4)
    spec = {"out": str(tmp_path / "cut"), "config": EVERY.model_dump(mode="json"), "max_file_bytes": size // 2}
    assert run_ranks(1, [spec], tmp_path) == [1]
    assert "DiskFullError: no disk space to write" in log_of(tmp_path).splitlines()[-1]
    assert [path.name for path in (tmp_path / "cut" / "checkpoints").iterdir()] == ["step-00000003"]
    assert_same(train(tmp_path / "cut"), whole)


def test_history_survives_as_text():
    history = History.from_json(json.dumps({"resumed_from": 2, "steps": [[0, 1.5, 1e-3, 0.1, 10, 5, 0.25]]}))
    assert History.from_json(history.to_json()) == history
    assert (history.losses, history.tokens, history.seconds) == ([1.5], 10, 0.25)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1}, {"precision": "bf16"}, {"batch_size": 4}, {"micro_batch": 2}, {"epochs": 3}, {"max_steps": 9},
        {"schedule": "linear"}, {"warmup_ratio": 0.2}, {"weight_decay": 0.1}, {"betas": (0.9, 0.95)}, {"eps": 1e-6},
        {"z_loss": 1e-4}, {"stability": {"fewest": 4}},
        {"grad_clip": 0.5}, {"gradient_checkpointing": True}, {"lora": LoraConfig(rank=4)},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_every_setting_that_changes_the_computation_is_part_of_a_checkpoints_identity(tmp_path, change):
    rows = new_rows()
    before, after = (identity(rows, new_config(checkpoint_every=3, **values), {}) for values in ({}, change))
    assert before != after
