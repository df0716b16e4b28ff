"""The system calls that Python 3.11 has no function for. Each raises OSError with the call's name."""

import ctypes
import os

MACHINE = os.uname().machine
NUMBERS = {"x86_64": {"seccomp": 317, "pivot_root": 155, "capset": 126},
           "aarch64": {"seccomp": 277, "pivot_root": 41, "capset": 91}}  # fmt: skip
LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446  # the same everywhere

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000

PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_SECUREBITS, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 24, 28, 36, 38
SECBITS = 0b101111  # root is no better than others (NOROOT, NO_SETUID_FIXUP), nor are capabilities kept; all locked

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def call(name: str, *arguments: object) -> int:
    """A function of the C library; -1 is an OSError."""
    return _checked(name, getattr(libc, name)(*arguments))


def syscall(name: str, *arguments: object, number: int | None = None) -> int:
    """A system call by number; integers travel as 64 bits."""
    number = NUMBERS.get(MACHINE, {}).get(name) if number is None else number
    if number is None:
        raise OSError(38, f"{name}: its number on {MACHINE} is not known")
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return _checked(name, libc.syscall(ctypes.c_long(number), *wide))


def _checked(name: str, result: int) -> int:
    if result == -1:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")
    return result


def prctl(option: int, value: int = 0) -> None:
    """prctl with one argument."""
    call("prctl", option, *map(ctypes.c_ulong, (value, 0, 0, 0)))


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """mount(2)."""
    texts = [None if text is None else os.fsencode(text) for text in (source, target, kind, options)]
    call("mount", texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3])


def lock_capabilities() -> None:
    """No program started from here on gains a capability, not even as root. Needs the right to say so, or nothing."""
    for capability in range(64):
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except OSError:  # there are no more, or this process has no say
            break
    try:
        prctl(PR_SET_SECUREBITS, SECBITS)
    except OSError:
        if os.getuid() == 0:
            raise


def drop_capabilities() -> None:
    """Give up every capability that this process has."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    syscall("capset", header, (ctypes.c_uint32 * 6)())
