"""What the kernel lets a confined process do: compute, read the interpreter's own files, write into one folder.

Three walls, set by the process itself before it reads a foreign byte, none of which it can take down again: resource
limits, Landlock (files), and a seccomp filter (system calls: no sockets, no other programs, no new processes, no
signals to others). Linux on x86-64 and arm64 only; elsewhere nothing foreign is run. Invariant: `confine` either
returns with all three walls up or raises.

References: seccomp(2), landlock(7), linux/audit.h, linux/filter.h.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import sys
from collections.abc import Iterable
from pathlib import Path

_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_SECCOMP = 22
_SECCOMP_MODE_FILTER = 2
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_LOAD, _EQUAL, _ANY_BIT, _AT_LEAST, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
_EPERM, _ENOSYS = 1, 38
_CLONE_THREAD = 0x00010000
_X32 = 0x40000000
"""System calls of x86-64's second ABI, which would pass by other numbers."""
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

_NAMES = {
    # Name: (x86-64, arm64); None: the machine has no such call.
    "socket": (41, 198), "connect": (42, 203), "accept": (43, 202), "sendto": (44, 206), "sendmsg": (46, 211),
    "bind": (49, 200), "listen": (50, 201), "socketpair": (53, 199), "sendmmsg": (307, 269), "accept4": (288, 242),
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281),
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "pidfd_send_signal": (424, 424), "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438), "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "prlimit64": (302, 261), "setrlimit": (160, 164), "kcmp": (312, 272),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97),
    "setns": (308, 268), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104),
    "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225), "settimeofday": (164, 170),
    "clock_settime": (227, 112), "adjtimex": (159, 171), "acct": (163, 89), "quotactl": (179, 60),
    "setuid": (105, 146), "setgid": (106, 144), "setresuid": (117, 147), "setresgid": (119, 149), "capset": (126, 91),
    "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180), "memfd_create": (319, 279),
    "personality": (135, 92), "syslog": (103, 116), "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53),
    "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "utimensat": (280, 88),
    "setxattr": (188, 5), "truncate": (76, 45), "ioctl": (16, 29),
}  # fmt: skip
_CLONE, _CLONE3 = (56, 220), (435, 435)

_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_FS_EXECUTE, _FS_WRITE_FILE, _FS_READ_FILE, _FS_READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_FS_REMOVE_DIR, _FS_REMOVE_FILE, _FS_MAKE_DIR, _FS_MAKE_REG = 1 << 4, 1 << 5, 1 << 7, 1 << 8
_FS_BITS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""Landlock's version -> how many rights over files it knows; later versions add none."""


class CannotConfine(OSError):
    """This kernel or machine lacks one of the walls."""


class _Filter(ctypes.Structure):
    _fields_ = [("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte), ("k", ctypes.c_uint32)]


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.POINTER(_Filter))]


class _Ruleset(ctypes.Structure):
    _fields_ = [("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64)]


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32)]


def unavailable() -> str | None:
    """Why nothing can be confined here, if so."""
    if sys.platform != "linux" or platform.machine() not in _ARCHITECTURES:
        return f"{sys.platform} on {platform.machine()} has no Landlock and seccomp"
    if not _landlock_version():
        return "this kernel has no Landlock (5.13 or later, switched on, has)"
    return None


def confine(folder: Path, *, cpu_s: int, memory_bytes: int, file_bytes: int) -> None:
    """Put up all three walls around this process; `folder` alone stays writable.

    Raises:
        CannotConfine: one of them cannot be.
    """
    reason = unavailable()
    if reason:
        raise CannotConfine(reason)
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))  # a second to die of SIGXCPU, which tells why
    for kind, limit in (
        (resource.RLIMIT_AS, memory_bytes), (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_NOFILE, 64), (resource.RLIMIT_CORE, 0),
    ):  # fmt: skip
        resource.setrlimit(kind, (limit, limit))
    _call(_libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no new privileges")
    _landlock(folder)
    _seccomp()


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _call(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise CannotConfine(number, f"{what}: {os.strerror(number)}")
    return result


def _landlock_version() -> int:
    return max(0, int(_libc().syscall(_LANDLOCK_CREATE, None, 0, 1)))


def _landlock(folder: Path) -> None:
    """Files: read the interpreter and its libraries, write below `folder`, nothing else."""
    libc, version = _libc(), _landlock_version()
    every = (1 << _FS_BITS.get(version, 16)) - 1
    # Binding and connecting TCP are refused as well where Landlock knows them (version 4).
    rules = _Ruleset(every, 0b11 if version >= 4 else 0, 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = _call(libc.syscall(_LANDLOCK_CREATE, ctypes.byref(rules), size, 0), "Landlock")
    reading = _FS_READ_FILE | _FS_READ_DIR
    writing = reading | _FS_WRITE_FILE | _FS_REMOVE_FILE | _FS_REMOVE_DIR | _FS_MAKE_REG | _FS_MAKE_DIR
    for path, allowed in [*((part, reading | _FS_EXECUTE) for part in _readable()), (folder, writing)]:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            beneath = _Beneath(allowed & every, descriptor)
            _call(libc.syscall(_LANDLOCK_ADD, ruleset, 1, ctypes.byref(beneath), 0), f"Landlock: {path}")
        finally:
            os.close(descriptor)
    _call(libc.syscall(_LANDLOCK_RESTRICT, ruleset, 0), "Landlock")
    os.close(ruleset)


def _readable() -> Iterable[Path]:
    """Folders of the interpreter, its packages and the system's libraries; no home, no workspace."""
    found = {Path(path).resolve() for path in (sys.prefix, sys.base_prefix, sys.exec_prefix)}
    found |= {Path(path) for path in ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/share/zoneinfo")}
    return sorted(path for path in found if path.is_dir() and path != Path("/"))


def _seccomp() -> None:
    """System calls: refuse those in the table; threads may be made, processes not."""
    column = 0 if platform.machine() == "x86_64" else 1
    numbers = sorted({pair[column] for pair in _NAMES.values()} - {None})  # type: ignore[type-var]
    clone, clone3 = _CLONE[column], _CLONE3[column]
    rows = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, _ARCHITECTURES[platform.machine()]), (_RETURN, 0, 0, _KILL)]
    rows += [(_LOAD, 0, 0, 0)]
    if column == 0:
        rows += [(_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _KILL)]
    for number in numbers:
        rows += [(_EQUAL, 0, 1, int(number or 0)), (_RETURN, 0, 0, _REFUSE | _EPERM)]
    # clone3 takes a pointer that a filter cannot follow: without it libc falls back to clone, whose flags are plain.
    rows += [(_EQUAL, 0, 1, clone3), (_RETURN, 0, 0, _REFUSE | _ENOSYS)]
    rows += [
        (_EQUAL, 0, 3, clone),
        (_LOAD, 0, 0, 16),
        (_ANY_BIT, 1, 0, _CLONE_THREAD),
        (_RETURN, 0, 0, _REFUSE | _EPERM),
    ]
    rows += [(_RETURN, 0, 0, _ALLOW)]
    table = (_Filter * len(rows))(*(_Filter(*row) for row in rows))
    program = _Program(len(rows), table)
    _call(_libc().prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0), "seccomp")
