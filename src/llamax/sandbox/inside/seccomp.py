"""The filter of system calls: what a program that only computes has no use for is refused, and the refusal reported.

A refused call gives "operation not permitted". Where the kernel can, it first tells the launcher (`Listener`), which
is how a result knows what was refused; the answer is the same.
"""

import ctypes
import errno
import fcntl
import os
import struct

from . import kernel

ALLOW, KILL, ERRNO, NOTIFY = 0x7FFF0000, 0x80000000, 0x00050000, 0x7FC00000
LOAD, EQUAL, AT_LEAST, ANY_BIT, AND, RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
NR, ARCH = 0, 4
MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}  # audit number; column of the tables below
NEWEST = 462  # later calls are not known here: "not implemented", as on an older kernel

# Numbers on x86_64 and aarch64; None where the machine has no such call.
DENIED: dict[str, tuple[int | None, int | None]] = {
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201), "accept": (43, 202),
    "accept4": (288, 242), "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "kcmp": (312, 272), "pidfd_getfd": (438, 438), "process_madvise": (440, 440), "process_mrelease": (448, 448),
    "pidfd_send_signal": (424, 424), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    "statmount": (457, 457), "listmount": (458, 458), "unshare": (272, 97), "setns": (308, 268),
    "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "add_key": (248, 217), "request_key": (249, 218),
    "keyctl": (250, 219), "init_module": (175, 105), "delete_module": (176, 106), "finit_module": (313, 273),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "reboot": (169, 142), "swapon": (167, 224),
    "swapoff": (168, 225), "acct": (163, 89), "syslog": (103, 116), "quotactl": (179, 60), "quotactl_fd": (443, 443),
    "sethostname": (170, 161), "setdomainname": (171, 162), "settimeofday": (164, 170), "clock_settime": (227, 112),
    "adjtimex": (159, 171), "clock_adjtime": (305, 266), "vhangup": (153, 58), "personality": (135, 92),
    "fanotify_init": (300, 262), "lookup_dcookie": (212, 18), "migrate_pages": (256, 238), "move_pages": (279, 239),
    "iopl": (172, None), "ioperm": (173, None), "modify_ldt": (154, None), "uselib": (134, None),
    "lsm_get_self_attr": (459, 459), "lsm_set_self_attr": (460, 460), "lsm_list_modules": (461, 461),
    # Memory and queues that no limit of a process counts, and that may outlive it.
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "msgget": (68, 186),
    "semget": (64, 190), "mq_open": (240, 180),
}  # fmt: skip
# What else is refused where the program shares the file system's tree, because Landlock does not look at these.
SHARED_FILES: dict[str, tuple[int | None, int | None]] = {
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None),
    "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "utime": (132, None), "utimes": (235, None),
    "futimesat": (261, None), "utimensat": (280, 88), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "fsetxattr": (190, 7), "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    "truncate": (76, 45),
}  # fmt: skip
# What else is refused where the program sees other processes: a new process could not be found again for certain.
SHARED_PROCESSES: dict[str, tuple[int | None, int | None]] = {
    "fork": (57, None), "vfork": (58, None), "tkill": (200, 130), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "setpriority": (141, 140), "ioprio_set": (251, 30),
    "sched_setaffinity": (203, 122), "sched_setparam": (142, 118), "sched_setscheduler": (144, 119),
    "sched_setattr": (314, 274),
}  # fmt: skip
PARTLY: dict[str, tuple[int | None, int | None]] = {
    "clone": (56, 220), "clone3": (435, 435), "socketpair": (53, 199), "sendto": (44, 206), "kill": (62, 129),
    "tgkill": (234, 131), "prlimit64": (302, 261), "fcntl": (72, 25), "ioctl": (16, 29),
}  # fmt: skip
CLONE_NEW, CLONE_THREAD = 0x7E020000, 0x10000
SOCK_KIND, SOCK_STREAM = 0xF, 1
SET_OWNER, SET_OWNER_IOCTL = (8, 15), (0x8901, 0x8902)  # who gets a file's signals: a way to signal others


class Program:
    """A BPF program in the making: instructions whose jumps name labels."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, str, str, int]] = []
        self.labels: dict[str, int] = {}

    def add(self, code: int, value: int, yes: str = "", no: str = "") -> None:
        """One instruction; `yes` and `no` are the labels to jump to, nothing means the next instruction."""
        self.lines.append((code, yes, no, value))

    def label(self, name: str) -> None:
        """Name the next instruction."""
        self.labels[name] = len(self.lines)

    def argument(self, index: int, high: bool = False) -> None:
        """Load half of an argument of the call."""
        self.add(LOAD, 16 + 8 * index + 4 * high)

    def assemble(self) -> bytes:
        """The instructions as the kernel reads them."""

        def offset(name: str, here: int) -> int:
            return self.labels[name] - here - 1 if name else 0

        return b"".join(
            struct.pack("HBBI", code, offset(yes, at), offset(no, at), value)
            for at, (code, yes, no, value) in enumerate(self.lines)
        )


def program(refusal: int, *, own_files: bool, own_processes: bool) -> bytes:
    """The filter for this machine and process. `refusal`: what a refused call returns (ERRNO with a number, NOTIFY).

    `own_files`, `own_processes`: namespaces keep the program's files and processes apart from all others.
    """
    audit, column = MACHINES[kernel.MACHINE]
    bpf = Program()
    bpf.add(LOAD, ARCH)
    bpf.add(EQUAL, audit, no="kill")
    bpf.add(LOAD, NR)
    bpf.add(AT_LEAST, NEWEST + 1, yes="unknown")  # the x32 calls are there, too
    refused = DENIED | ({} if own_files else SHARED_FILES) | ({} if own_processes else SHARED_PROCESSES)
    for number in sorted(numbers[column] for numbers in refused.values() if numbers[column] is not None):
        bpf.add(EQUAL, number, yes="refuse")
    numbers = {name: both[column] for name, both in PARTLY.items()}
    bpf.add(EQUAL, numbers["clone3"], yes="unknown")  # its flags are out of sight; the C library then uses clone
    _partly(bpf, numbers, own_processes)
    bpf.label("allow")
    bpf.add(RETURN, ALLOW)
    bpf.label("refuse")
    bpf.add(RETURN, refusal)
    bpf.label("unknown")
    bpf.add(RETURN, ERRNO | errno.ENOSYS)
    bpf.label("kill")
    bpf.add(RETURN, KILL)
    return bpf.assemble()


def _partly(bpf: Program, numbers: dict[str, int], own_processes: bool) -> None:
    """Calls that are refused for some arguments."""

    def rule(name: str):
        bpf.add(EQUAL, numbers[name], no=f"not {name}")

    def done(name: str):
        bpf.label(f"not {name}")

    rule("clone")  # no namespaces; without a process namespace nothing but threads
    bpf.argument(0)
    bpf.add(ANY_BIT, CLONE_NEW, yes="refuse", no="allow" if own_processes else "")
    if not own_processes:
        bpf.add(ANY_BIT, CLONE_THREAD, yes="allow", no="refuse")
    done("clone")
    rule("socketpair")  # a pair of datagram sockets could still write to a name that it is given
    bpf.argument(1)
    bpf.add(AND, SOCK_KIND)
    bpf.add(EQUAL, SOCK_STREAM, yes="allow", no="refuse")
    done("socketpair")
    rule("sendto")
    for high in (False, True):
        bpf.argument(4, high)
        bpf.add(EQUAL, 0, no="refuse")
    bpf.add(RETURN, ALLOW)
    done("sendto")
    if own_processes:
        return
    for name in ("kill", "tgkill", "prlimit64"):  # itself only
        rule(name)
        bpf.argument(0)
        bpf.add(EQUAL, os.getpid(), yes="allow")
        bpf.add(EQUAL, 0 if name == "prlimit64" else os.getpid(), yes="allow", no="refuse")
        done(name)
    for name, commands in (("fcntl", SET_OWNER), ("ioctl", SET_OWNER_IOCTL)):
        rule(name)
        bpf.argument(1)
        bpf.add(EQUAL, commands[0], yes="refuse")
        bpf.add(EQUAL, commands[1], yes="refuse", no="allow")
        done(name)


def install(*, own_files: bool, own_processes: bool) -> int | None:
    """Filter this process and all it starts, for ever. Returns the listener's file descriptor, where there is one.

    `no_new_privs` must be set. Raises: OSError: no filters here, or an unknown machine.
    """
    if kernel.MACHINE not in MACHINES:
        raise OSError(errno.ENOSYS, f"seccomp: the numbers of system calls on {kernel.MACHINE} are not known")
    try:
        return _install(program(NOTIFY, own_files=own_files, own_processes=own_processes), 1 << 3)
    except OSError:  # a kernel before 5.0, or somebody outside listens already
        _install(program(ERRNO | errno.EPERM, own_files=own_files, own_processes=own_processes), 0)
        return None


def _install(code: bytes, flags: int) -> int:
    lines = ctypes.create_string_buffer(code)
    described = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(lines))
    return kernel.syscall("seccomp", 1, flags, ctypes.create_string_buffer(described))


class Listener:
    """Hears of each refused call and answers "operation not permitted"."""

    RECEIVE, SEND = 0xC0502100, 0xC0182101

    def __init__(self, handle: int):
        self.handle = handle
        column = MACHINES[kernel.MACHINE][1]
        tables = DENIED | SHARED_FILES | SHARED_PROCESSES | PARTLY
        self.names = {numbers[column]: name for name, numbers in tables.items()}

    def answer(self) -> str:
        """Answer one call and return its name; an empty text when its process is gone."""
        heard = bytearray(80)
        try:
            fcntl.ioctl(self.handle, self.RECEIVE, heard)
            key, _, _, number = struct.unpack_from("=QIIi", heard)
            fcntl.ioctl(self.handle, self.SEND, struct.pack("=QqiI", key, 0, -errno.EPERM, 0))
        except OSError:
            return ""
        return self.names.get(number, f"system call {number}")
