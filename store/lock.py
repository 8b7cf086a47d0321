"""The writer's lock of a store: one process writes, and everyone else learns who.

free --acquire--> held --release / death--> free      (the kernel frees it, so a crash leaves no stale lock)

Two files stand beside the store: `NAME.lock`, which the kernel locks and nobody deletes, and `NAME.owner`, a record of
pid, boot and start time that only names the holder. Invariant: the record never decides who holds the lock; forged,
torn or stale, it changes a message and nothing else.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

import msgspec
import psutil
from filelock import FileLock, Timeout
from lathe.store.errors import StoreError, StoreLocked, StoreReadOnly
from lathe.store.files import discard

_RECORD_LIMIT = 4096
_NETWORK = frozenset({
    "9p", "afpfs", "afs", "beegfs", "ceph", "cifs", "davfs", "fuse.davfs", "fuse.glusterfs", "fuse.rclone",
    "fuse.s3fs", "fuse.sshfs", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "smb2", "smb3",
    "smbfs", "webdav",
})  # fmt: skip
"""File systems whose locks do not reliably reach other machines."""


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """The process that holds, or last held, a lock."""

    pid: int
    boot: str
    """Id of the boot it ran in: pids of another boot mean nothing."""
    started: str
    """When the process started, in the kernel's own count, which no change of the clock moves."""
    since: float = 0.0
    """Unix seconds at which it took the lock; for display."""
    program: str = ""

    @classmethod
    def myself(cls, since: float) -> Holder:
        """Describe this process."""
        program = Path(sys.argv[0]).name[:80] if sys.argv else ""
        return cls(pid=os.getpid(), boot=boot_id(), started=start_time(os.getpid()) or "", since=since, program=program)

    def is_alive(self) -> bool:
        """Tell whether that very process still runs: a reused pid or another boot does not count."""
        return self.boot == boot_id() and self.started != "" and start_time(self.pid) == self.started


class StoreLock:
    """The right to write one store, held by at most one process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._owner = path.with_name(f"{path.name}.owner")
        # Not per thread: a store is often opened in one thread and closed in another.
        self._lock = FileLock(path.with_name(f"{path.name}.lock"), mode=0o600, thread_local=False)

    def acquire(self, now: float, *, allow_network: bool = False) -> Holder | None:
        """Take the lock, or raise StoreLocked with the holder's name.

        Returns the record of a former holder that ended without releasing, None after a clean end.
        """
        if not allow_network:
            refuse_network(self._path)
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            raise self._locked() from None
        except OSError as error:
            raise StoreReadOnly(
                f"the lock of {self._path} cannot be taken: {error.strerror or error}",
                hint=f"check the permissions of {self._path.parent}, or open it read-only",
            ) from error
        former = read_holder(self._owner)
        self._record(Holder.myself(now))
        return former

    def release(self) -> None:
        """Give the lock back; harmless when it is not held."""
        if self._lock.is_locked:
            with suppress(OSError):
                discard(self._owner)
            self._lock.release()

    def _record(self, holder: Holder) -> None:
        # Only a message depends on the record, so a full disk must not keep the store closed.
        part = self._owner.with_name(f"{self._owner.name}.part")
        with suppress(OSError):
            part.write_bytes(msgspec.json.encode(holder))
            part.replace(self._owner)

    def _locked(self) -> StoreLocked:
        holder = read_holder(self._owner)
        if holder is None:
            who = "another process"
        elif holder.is_alive():
            who = f"process {holder.pid}" + (f" ({holder.program})" if holder.program.isprintable() else "")
        else:
            who = f"a process that outlived its starter {holder.pid}"
        return StoreLocked(
            f"{self._path} is being written by {who}", hint="open it read-only, or stop that process and try again"
        )


def read_holder(path: Path) -> Holder | None:
    """Read a holder's record; None where there is none that makes sense."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        return msgspec.json.decode(os.read(descriptor, _RECORD_LIMIT), type=Holder)
    except (OSError, msgspec.DecodeError):
        return None
    finally:
        os.close(descriptor)


def boot_id() -> str:
    """Name this boot of the machine."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return str(round(psutil.boot_time()))


def start_time(pid: int) -> str | None:
    """Say when a process started; None where there is no such process or it cannot be asked."""
    with suppress(OSError, ValueError):
        # The command name in parentheses may hold anything. After it: the state, and 19 fields on the start in ticks.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return None if fields[0] in (b"Z", b"X") else fields[19].decode()
    with suppress(psutil.Error, ValueError, OverflowError):
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else str(process.create_time())
    return None


def refuse_network(path: Path) -> None:
    """Raise StoreError where the file would lie on a network file system."""
    kind = file_system(path.parent)
    if kind in _NETWORK:
        raise StoreError(
            f"{path} lies on a network file system ({kind}), whose locks cannot be trusted",
            hint="set LATHE_HOME to a local disk, or force it if no other machine writes there",
        )


def file_system(folder: Path) -> str:
    """Name the type of the file system that a folder is on; empty where unknown."""
    real = folder.resolve()
    best, kind = -1, ""
    for mount in psutil.disk_partitions(all=True):
        # Later mounts hide earlier ones on the same point.
        if real.is_relative_to(mount.mountpoint) and len(mount.mountpoint) >= best:
            best, kind = len(mount.mountpoint), mount.fstype.lower()
    return kind
