"""File locks: held by a living process and by nothing else, so that they say who is still at work.

They are `flock`s: the operating system drops them when the process ends, however it ends.
"""

from pathlib import Path

from filelock import FileLock, Timeout

GRACE = 2.0
"""Seconds to wait for a lock: longer than another process needs to look whether it is held."""


def hold(path: Path, wait: float = GRACE) -> FileLock | None:
    """Take the lock, which its holder must `release()`; None when another run holds it for more than `wait` seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=wait, poll_interval=0.02)
    except Timeout:
        return None
    return lock


def is_held(path: Path) -> bool:
    """Whether a living process holds the lock."""
    if not path.exists():
        return False
    lock = hold(path, wait=0)
    if lock is None:
        return True
    lock.release()
    return False
