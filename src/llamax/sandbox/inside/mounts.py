"""A file system of the program's own: the Python installation, read-only, three devices, and an empty folder."""

import os

from . import kernel

RDONLY, NOSUID, NODEV, NOEXEC, REMOUNT, BIND, REC, PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
# Flags of a mount that must be kept when it is mounted again (statvfs's bit, mount's bit).
KEPT = ((2, NOSUID), (4, NODEV), (8, NOEXEC), (1024, 1024), (2048, 2048), (4096, 1 << 21))
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
BASE = "/tmp"  # a folder that every system has; covered by the new tree in this mount namespace only


def enter(readable: dict[str, str], hidden: list[str], links: dict[str, str], box: str, size: int) -> None:
    """Make the tree and move into it; everything else is gone from sight.

    `readable` names what is bound where, `hidden` folders there are covered by an empty one, `links` are made as they
    are. `box` is the writable folder, in memory, of at most `size` bytes. Raises: OSError.
    """
    kernel.mount(None, "/", None, REC | PRIVATE)
    # Opened before anything is covered; a path that leads through /tmp would be hidden by the tree itself.
    readable = readable | {path: path for path in DEVICES}
    sources = [(path, os.open(source, os.O_PATH)) for path, source in readable.items() if os.path.exists(source)]
    kernel.mount("tmpfs", BASE, "tmpfs", NOSUID | NODEV, "mode=755,size=1m")
    for path, handle in sources:
        target = BASE + path
        _make(target, os.path.isdir(f"/proc/self/fd/{handle}"))
        kernel.mount(f"/proc/self/fd/{handle}", target, None, BIND)
        os.close(handle)
        _read_only(target, 0 if path in DEVICES else NODEV)
    for path in hidden:
        if os.path.isdir(BASE + path):
            kernel.mount("tmpfs", BASE + path, "tmpfs", NOSUID | NODEV | RDONLY, "mode=755,size=4k")
    for path, target in links.items():
        if not os.path.lexists(BASE + path):
            _make(os.path.dirname(BASE + path), True)
            os.symlink(target, BASE + path)
    os.makedirs(BASE + box)
    options = f"mode=777,size={size},nr_inodes={max(64, size // 4096)}"
    kernel.mount("tmpfs", BASE + box, "tmpfs", NOSUID | NODEV | NOEXEC, options)
    _read_only(BASE, NODEV)
    _pivot(BASE)


def _make(path: str, folder: bool) -> None:
    """A folder or an empty file to mount something on."""
    os.makedirs(path if folder else os.path.dirname(path), exist_ok=True)
    if not folder:
        os.close(os.open(path, os.O_CREAT | os.O_CLOEXEC, 0o644))


def _read_only(path: str, flags: int) -> None:
    found = os.statvfs(path).f_flag
    kept = sum(ours for theirs, ours in KEPT if found & theirs)
    kernel.mount(None, path, None, BIND | REMOUNT | RDONLY | NOSUID | flags | kept)


def _pivot(root: str) -> None:
    """Make `root` the root of this process, and let go of the old one."""
    os.chdir(root)
    kernel.syscall("pivot_root", b".", b".")
    kernel.call("umount2", b".", 2)  # the old root lies on top of the new one: detach it
    os.chdir("/")
