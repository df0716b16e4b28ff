"""Writing that is all or nothing, hashes, and where the repository's folders are."""

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llamax.errors import DiskFullError

NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NO_SPACE_TEXT = re.compile(r"No space left on device|os error 28\b|Disk quota exceeded")


def repository() -> Path:
    """Root of the checkout: the folder that holds `notebooks/`, `papers/`, `results/`.

    `LLAMAX_HOME` moves it, which tests use to work on a copy.
    """
    home = os.environ.get("LLAMAX_HOME")
    return Path(home).resolve() if home else Path(__file__).resolve().parents[2]


def locate(name: str | Path) -> Path:
    """The path that a user's `name` means: relative to where the process is, else to the repository.

    A notebook's kernel works in `notebooks/`, the command line wherever it is called.
    """
    path = Path(os.path.expanduser(name))  # unlike pathlib's, these two fail for no name
    inside = repository() / path
    return inside if not os.path.exists(path) and os.path.exists(inside) else path


@contextlib.contextmanager
def clear_disk_errors(path: Path) -> Iterator[None]:
    """Turn "no space left", a quota or a file-size limit into a `DiskFullError` that names `path`.

    Libraries that write by themselves (safetensors) have their own exceptions: those are known by their text.
    """
    try:
        yield
    except Exception as error:
        if getattr(error, "errno", None) in NO_SPACE or NO_SPACE_TEXT.search(str(error)):
            raise DiskFullError(f"no disk space to write {path}; free some and run again") from error
        raise


def write_atomic(path: Path | str, content: str | bytes, mode: int = 0o644) -> Path:
    """Write a file that is either complete or not there: temporary file, fsync, rename.

    mode: who may read it. Raises: DiskFullError: the old content of `path` is untouched.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    with clear_disk_errors(path):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, mode)
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
            raise
    return path


@contextlib.contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; rename it to `path` only if the block succeeds.

    An existing `path` is replaced. Raises: DiskFullError: nothing is left behind but what was there before.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with clear_disk_errors(path):
        work = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        try:
            yield work
            sync_folder(work)
            os.chmod(work, 0o755)
            _take_the_place_of(path, work)
        finally:
            shutil.rmtree(work, ignore_errors=True)  # after success: what was there before


def _take_the_place_of(path: Path, work: Path) -> None:
    """Rename `work` to `path`; what was there is then called `work`. At no moment is there no `path`, on Linux."""
    if not path.exists():
        os.replace(work, path)
        return
    if _exchange(work, path):
        return
    old = work.with_name(work.name + ".old")
    os.replace(path, old)
    try:
        os.replace(work, path)
    except BaseException:
        os.replace(old, path)
        raise
    os.replace(old, work)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders' names in one step (Linux's renameat2); False where the system or the file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return renameat2 is not None and renameat2(here, os.fsencode(one), here, os.fsencode(other), swap) == 0


def sweep(path: Path | str) -> None:
    """Remove what a killed `atomic_folder(path)` or `write_atomic(path)` left behind: `.<name>.*` beside `path`.

    For callers that know that nobody else is writing `path` now. What cannot be removed stays: it is in nobody's way.
    """
    for leftover in Path(path).parent.glob(f".{Path(path).name}.*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """fsync every file below `folder`, so that a rename after it never publishes half a file."""
    for file in folder.rglob("*"):
        if file.is_file():
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())


def sha256_file(path: Path | str) -> str:
    """Hex sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Hex sha256 of a JSON value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
