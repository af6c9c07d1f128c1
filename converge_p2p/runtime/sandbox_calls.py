"""The system calls that the process of an untrusted tool may not make, and their numbers.

Knows: numbers of Linux on two architectures. Must not know: how a filter is written (see `sandbox`).
Source: the kernel's `unistd.h` of each architecture. A call that a kernel adds later has a number above `newest`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Architecture:
    """One kind of processor.

    Attributes:
        audit: what the kernel calls it in a filter.
        newest: number of the last call that `REFUSED` was compared with.
        numbers: of the calls that matter here.
    """

    audit: int
    newest: int
    numbers: Mapping[str, int]


_NUMBERS: dict[str, tuple[int | None, int | None]] = {
    # other processes: making them, replacing this one, looking into them, signalling them
    "clone": (56, 220), "clone3": (435, 435), "fork": (57, None), "vfork": (58, None), "execve": (59, 221),
    "execveat": (322, 281), "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "kcmp": (312, 272), "process_madvise": (440, 440), "process_mrelease": (448, 448), "migrate_pages": (256, 238),
    "move_pages": (279, 239), "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424), "pidfd_getfd": (438, 438), "setsid": (112, 157), "setpgid": (109, 154),
    "prctl": (157, 167), "prlimit64": (302, 261), "setpriority": (141, 140), "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119), "sched_setaffinity": (203, 122), "sched_setattr": (314, 274),
    "ioprio_set": (251, 30),
    # the network, and a way around the filter for it
    "socket": (41, 198), "io_uring_setup": (425, 425),
    # memory that outlives the process, or that its limit does not count
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "semget": (64, 190), "semop": (65, 193),
    "semctl": (66, 191), "semtimedop": (220, 192), "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188),
    "msgctl": (71, 187), "mq_open": (240, 180), "memfd_create": (319, 279), "memfd_secret": (447, 447),
    # what Landlock does not watch of files
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None),
    "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "utime": (132, None), "utimes": (235, None),
    "futimesat": (261, None), "utimensat": (280, 88), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "fsetxattr": (190, 7), "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    "fanotify_init": (300, 262), "inotify_init": (253, None), "inotify_init1": (294, 26),
    "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264), "quotactl": (179, 60), "quotactl_fd": (443, 443),
    # the machine
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "mount": (165, 40),
    "umount2": (166, 39), "unshare": (272, 97), "setns": (308, 268), "chroot": (161, 51), "pivot_root": (155, 41),
    "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "open_tree": (428, 428),
    "move_mount": (429, 429), "mount_setattr": (442, 442), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "kexec_load": (246, 104), "kexec_file_load": (320, 294), "reboot": (169, 142),
    "swapon": (167, 224), "swapoff": (168, 225), "keyctl": (250, 219), "add_key": (248, 217),
    "request_key": (249, 218), "settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171),
    "clock_adjtime": (305, 266), "sethostname": (170, 161), "setdomainname": (171, 162), "iopl": (172, None),
    "ioperm": (173, None), "acct": (163, 89), "syslog": (103, 116), "personality": (135, 92), "vhangup": (153, 58),
    "lookup_dcookie": (212, 18), "capset": (126, 91), "setuid": (105, 146), "setgid": (106, 144),
    "setreuid": (113, 145), "setregid": (114, 143), "setresuid": (117, 147), "setresgid": (119, 149),
    "setgroups": (116, 159), "setfsuid": (122, 151), "setfsgid": (123, 152),
}  # fmt: skip

_BY_ARGUMENT = frozenset({"clone", "clone3", "kill", "tgkill", "prctl", "prlimit64", "socket"})

REFUSED: tuple[str, ...] = tuple(name for name in _NUMBERS if name not in _BY_ARGUMENT)
"""Calls that are refused whatever their arguments; the others are looked at more closely."""


def _numbers(column: int) -> dict[str, int]:
    return {name: number for name, numbers in _NUMBERS.items() if (number := numbers[column]) is not None}


ARCHITECTURES: Mapping[str, Architecture] = {
    "x86_64": Architecture(0xC000003E, 462, _numbers(0)),
    "aarch64": Architecture(0xC00000B7, 462, _numbers(1)),
}
"""By the name that `platform.machine()` gives."""
