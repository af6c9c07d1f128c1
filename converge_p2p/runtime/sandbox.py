"""What the process of an untrusted tool gives up before foreign code runs in it. Used by the process itself.

Knows: resource limits, capabilities, seccomp and Landlock of Linux. Must not know: which tool runs, trio, or the node.
Source: `docs/decisions/0018-tool-isolation.md`; seccomp(2), landlock(7), setrlimit(2). It takes neither root nor
namespaces.

Each lock is one call that cannot be taken back. What a system lacks is returned by name, never passed over.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import signal
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from converge_p2p.runtime.sandbox_calls import ARCHITECTURES, REFUSED, Architecture

NO_NETWORK = "network"
NO_FILES = "files"
NO_CHILDREN = "processes"
ALL = frozenset({NO_NETWORK, NO_FILES, NO_CHILDREN})

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP = 1, 38, 22
_SECCOMP_FILTER = 2
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_EXECUTE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 2, 1 << 3
_CAPABILITY_VERSION = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Limits:
    """What the process may use.

    Attributes:
        memory_bytes: address space.
        cpu_s: processor time, whole seconds.
        files: open files, pipes included.
    """

    memory_bytes: int
    cpu_s: int
    files: int


@dataclass(frozen=True, slots=True)
class Reach:
    """What the process may reach.

    Attributes:
        network: sockets of the internet families.
        read: files and folders whose content may be read.
        list_only: folders whose names may be listed, for the import system.
    """

    network: bool
    read: Sequence[str]
    list_only: Sequence[str]


def die_with(parent: int) -> None:
    """End this process when the thread that started it ends, so that no tool outlives its node."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        # it ended before the line above
        os._exit(1)


def lock_down(limits: Limits, reach: Reach) -> frozenset[str]:
    """Give up everything that the tool is not to have, for good.

    Returns:
        The names of the locks that this system lacks; of `ALL`.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits.files, limits.files))
    resource.setrlimit(resource.RLIMIT_CPU, (limits.cpu_s, limits.cpu_s + 1))
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory_bytes, limits.memory_bytes))
    _drop_capabilities()
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        return ALL
    missing = set()
    if not _restrict_files(reach):
        missing.add(NO_FILES)
    if not _restrict_calls(network=reach.network):
        missing |= {NO_NETWORK, NO_CHILDREN}
    if reach.network:
        missing.discard(NO_NETWORK)
    return frozenset(missing)


def _drop_capabilities() -> None:
    # root could raise its limits again. Whoever has no capabilities loses none, so a failure means nothing
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION, 0))
    _libc.capset(header, ctypes.create_string_buffer(24))


# ---------------------------------------------------------------- files: Landlock


def _restrict_files(reach: Reach) -> bool:
    version = _libc.syscall(_LANDLOCK_CREATE, None, 0, 1)
    # the first two versions let a file be truncated
    if version < 3:
        return False
    handled = (1 << (16 if version >= 5 else 15)) - 1
    # 2: neither named sockets of the abstract kind nor signals leave the process, where the kernel knows how
    attribute = struct.pack("=QQQ", handled, 0, 3)[: 24 if version >= 6 else 8]
    ruleset = _libc.syscall(_LANDLOCK_CREATE, attribute, len(attribute), 0)
    if ruleset < 0:
        return False
    try:
        _allow(ruleset, reach.read, _READ_FILE | _READ_DIR | _EXECUTE)
        _allow(ruleset, reach.list_only, _READ_DIR)
        return bool(_libc.syscall(_LANDLOCK_RESTRICT, ruleset, 0) == 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, paths: Iterable[str], rights: int) -> None:
    for path in paths:
        try:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            # what is not there needs no permission
            continue
        try:
            # of a file, the rights of a folder are refused
            granted = rights if os.path.isdir(path) else rights & (_READ_FILE | _EXECUTE)
            _libc.syscall(_LANDLOCK_ADD, ruleset, 1, struct.pack("=Qi", granted, descriptor), 0)
        finally:
            os.close(descriptor)


# ---------------------------------------------------------------- system calls: seccomp

_LOAD, _JUMP_EQUAL, _JUMP_FROM, _JUMP_BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
_CLONE_THREAD = 0x00010000
_AF_INET, _AF_INET6 = 2, 10


def _restrict_calls(*, network: bool) -> bool:
    known = ARCHITECTURES.get(platform.machine())
    if known is None:
        return False
    program = _program(known, os.getpid(), network=network)
    code = b"".join(struct.pack("=HBBI", *line) for line in program)
    holder = ctypes.create_string_buffer(code)
    head = struct.pack("@HP", len(program), ctypes.addressof(holder))
    return bool(_libc.prctl(_PR_SET_SECCOMP, _SECCOMP_FILTER, ctypes.create_string_buffer(head), 0, 0) == 0)


_Line = tuple[int, int, int, int]


def _program(known: Architecture, own_pid: int, *, network: bool) -> list[_Line]:
    """Write the filter: what is named is refused, what is newer than the tables does not exist, the rest may run."""
    refuse, absent = _ERRNO | errno.EPERM, _ERRNO | errno.ENOSYS
    lines: list[_Line] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_EQUAL, 1, 0, known.audit),
        # calls in the numbers of another architecture would pass the table
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_FROM, 0, 1, known.newest + 1),
        (_RETURN, 0, 0, absent),
        # libraries take its absence well, and then use the call whose flags a filter can see
        *_when(known.numbers["clone3"], [(_RETURN, 0, 0, absent)]),
        *_when(
            known.numbers["clone"],
            [(_LOAD, 0, 0, _FIRST_ARGUMENT), (_JUMP_BITS, 1, 0, _CLONE_THREAD), (_RETURN, 0, 0, refuse)],
        ),
        *_when(known.numbers["prctl"], _unless(_PR_SET_PDEATHSIG, refused_if_equal=True)),
        *_when(known.numbers["kill"], _unless(own_pid)),
        *_when(known.numbers["tgkill"], _unless(own_pid)),
        *_when(known.numbers["prlimit64"], _unless(0, own_pid)),
        *_when(known.numbers["socket"], _unless(_AF_INET, _AF_INET6) if network else [(_RETURN, 0, 0, refuse)]),
    ]
    for name in REFUSED:
        number = known.numbers.get(name)
        if number is not None:
            lines += _when(number, [(_RETURN, 0, 0, refuse)])
    return [*lines, (_RETURN, 0, 0, _ALLOW)]


def _when(number: int, then: list[_Line]) -> list[_Line]:
    """For one call, these lines and then the number again, for what follows."""
    if then[-1][0] == _RETURN and all(line[0] == _RETURN for line in then):
        return [(_JUMP_EQUAL, 0, len(then), number), *then]
    return [(_JUMP_EQUAL, 0, len(then) + 1, number), *then, (_LOAD, 0, 0, _NUMBER)]


def _unless(*values: int, refused_if_equal: bool = False) -> list[_Line]:
    """Refuse the call unless its first argument is one of these; or, the other way round, if it is."""
    refusal: _Line = (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    load: _Line = (_LOAD, 0, 0, _FIRST_ARGUMENT)
    if refused_if_equal:
        return [load, *[line for value in values for line in ((_JUMP_EQUAL, 0, 1, value), refusal)]]
    jumps: list[_Line] = [(_JUMP_EQUAL, len(values) - index, 0, value) for index, value in enumerate(values)]
    return [load, *jumps, refusal]
