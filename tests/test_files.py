"""Folders that are whole or absent, whatever happens while they are replaced."""

import contextlib
import os

import pytest

from llamax import files
from llamax.errors import DiskFullError


def write(path, text):
    with files.atomic_folder(path) as work:
        (work / "a").write_text(text)


def names(path):
    return sorted(child.name for child in path.iterdir())


@pytest.mark.parametrize("swaps", [True, False])
def test_a_folder_is_replaced_whole(tmp_path, monkeypatch, swaps):
    if not swaps:
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    write(tmp_path / "x", "old")
    write(tmp_path / "x", "new")
    assert (tmp_path / "x" / "a").read_text() == "new"
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize("swaps", [True, False])
def test_whatever_interrupts_a_replacement_the_old_or_the_new_is_there(tmp_path, monkeypatch, swaps):
    """Every rename in turn is interrupted before it takes effect."""
    if not swaps:
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    replace = os.replace
    for stop_at in range(3):
        write(tmp_path / "x", "old")
        count = iter(range(100))

        def interrupted(one, other, count=count, stop_at=stop_at):
            if next(count) == stop_at:
                raise KeyboardInterrupt
            replace(one, other)

        monkeypatch.setattr(files.os, "replace", interrupted)
        with contextlib.suppress(KeyboardInterrupt):
            write(tmp_path / "x", "new")
        monkeypatch.setattr(files.os, "replace", replace)
        assert (tmp_path / "x" / "a").read_text() in ("old", "new")


def test_linux_swaps_two_folders_in_one_step(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert files._exchange(tmp_path / "one", tmp_path / "other")
    assert (names(tmp_path / "one"), names(tmp_path / "other")) == (["other"], ["one"])
    assert not files._exchange(tmp_path / "one", tmp_path / "absent")


def test_sweep_removes_what_the_dead_left_and_nothing_else(tmp_path):
    write(tmp_path / "x", "kept")
    (tmp_path / ".x.dead").mkdir()
    (tmp_path / ".x.dead" / "half").touch()
    (tmp_path / ".x.file").touch()
    (tmp_path / ".y.alive").mkdir()
    files.sweep(tmp_path / "x")
    assert names(tmp_path) == [".y.alive", "x"]


def test_a_name_is_looked_for_here_and_then_in_the_repository(tmp_path, monkeypatch):
    (tmp_path / "home" / "data").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("LLAMAX_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    assert files.locate("data") == tmp_path / "home" / "data"
    (tmp_path / "here" / "data").mkdir()
    assert files.locate("data").resolve() == tmp_path / "here" / "data"
    assert str(files.locate("absent")) == "absent"


def test_a_full_disk_is_known_by_its_text_too(tmp_path):
    """safetensors has an exception of its own, without an errno."""
    with pytest.raises(DiskFullError, match="no disk space to write x"), files.clear_disk_errors("x"):
        raise RuntimeError("I/O error: No space left on device (os error 28)")
    with pytest.raises(RuntimeError, match="else"), files.clear_disk_errors("x"):
        raise RuntimeError("something else")
