"""Landlock: a process may read, write and run only what it is granted, and no root can undo that.

Rights that the kernel's version does not know are left out; what that leaves open (`truncate`, changes of mode and
owner) the system call filter closes where there is no file system of the program's own.
"""

import ctypes
import os
import struct

from . import kernel

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
REMOVE_DIR, REMOVE_FILE, MAKE_DIR, MAKE_REG, MAKE_SYM = 1 << 4, 1 << 5, 1 << 7, 1 << 8, 1 << 12
REFER, TRUNCATE = 1 << 13, 1 << 14
READ = EXECUTE | READ_FILE | READ_DIR
OWN = WRITE_FILE | READ_FILE | READ_DIR | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | MAKE_SYM | REFER | TRUNCATE
OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE
RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}  # how many rights of files each version knows; 16 from version 5 on
NET = 0b11  # bind and connect TCP, from version 4 on
SCOPES = 0b11  # abstract unix sockets and signals, from version 6 on


def version() -> int:
    """Landlock's version on this kernel. Raises: OSError: it has none, or it is switched off."""
    return kernel.syscall("landlock", None, 0, 1, number=kernel.LANDLOCK_CREATE_RULESET)


def restrict(
    readable: tuple[str, ...], listed: tuple[str, ...], writable: tuple[str, ...], devices: tuple[str, ...]
) -> None:
    """Confine this process: read below `readable`, see the names below `listed`, do anything below `writable`, read
    and write `devices`.

    Paths that are not there are left out. `no_new_privs` must be set. Raises: OSError.
    """
    known = version()
    handled = (1 << RIGHTS.get(known, 16)) - 1
    fields = [handled] + [NET] * (known >= 4) + [SCOPES] * (known >= 6)
    attributes = struct.pack(f"{len(fields)}Q", *fields)
    ruleset = kernel.syscall("landlock", attributes, len(attributes), 0, number=kernel.LANDLOCK_CREATE_RULESET)
    for paths, rights in ((readable, READ), (listed, READ_DIR), (writable, OWN), (devices, READ_FILE | WRITE_FILE)):
        for path in paths:
            _grant(ruleset, path, rights & handled)
    kernel.syscall("landlock", ruleset, 0, number=kernel.LANDLOCK_RESTRICT_SELF)
    os.close(ruleset)


def _grant(ruleset: int, path: str, rights: int) -> None:
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    if not os.path.isdir(path):
        rights &= OF_FILES
    beneath = ctypes.create_string_buffer(struct.pack("=Qi", rights, handle))
    kernel.syscall("landlock", ruleset, 1, beneath, 0, number=kernel.LANDLOCK_ADD_RULE)
    os.close(handle)
