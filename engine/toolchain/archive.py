"""Out of a tar and into one, member by member: plain files with expected names, under caps.

`extractall` is never used: its filters were bypassed more than once. Invariant: nothing is written but regular files
below the target whose relative names passed the allow-list.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import re
import tarfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from lathe.engine.errors import DataError

MAX_FILE_BYTES = 8 << 20
MAX_FILES = 2000
MAX_TOTAL_BYTES = 64 << 20
MAX_MEMBERS = 100_000
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")

Wanted = Callable[[str], str | None]
"""Name of a member -> its name below the target, or None."""


def extract(archive: Path, target: Path, wanted: Wanted) -> dict[str, str]:
    """Write the wanted members below `target`; returns their names with the sha256 of each.

    Raises:
        DataError: the archive is broken, or a wanted member is no plain file, too large, or oddly named.
    """
    hashes: dict[str, str] = {}
    total = 0
    try:
        with tarfile.open(archive, "r:*") as tar:
            for number, member in enumerate(tar):
                if number >= MAX_MEMBERS:
                    raise DataError(f"{archive.name} has more than {MAX_MEMBERS:,} members")
                name = wanted(member.name)
                if name is None or member.isdir():
                    continue
                data = _read(tar, member, name, archive)
                total += len(data)
                if len(hashes) >= MAX_FILES or total > MAX_TOTAL_BYTES or name in hashes:
                    raise DataError(f"{archive.name} holds more than a toolchain does")
                path = target / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
                hashes[name] = hashlib.sha256(data).hexdigest()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{archive} cannot be read: {error}") from error
    return hashes


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo, name: str, archive: Path) -> bytes:
    if not all(_PLAIN.fullmatch(part) for part in PurePosixPath(name).parts):
        raise DataError(f"{archive.name} holds a file called {name[:80]!a}")
    stream = tar.extractfile(member) if member.isreg() else None
    if stream is None or member.size > MAX_FILE_BYTES:
        raise DataError(f"{archive.name}: {name} is no plain file of at most {MAX_FILE_BYTES >> 20} MiB")
    return stream.read(MAX_FILE_BYTES + 1)


def pack(folder: Path, names: list[str], target: Path) -> None:
    """Write files as a gzipped tar that is the same every time: sorted, without owners and times."""
    with (
        target.open("wb") as file,
        gzip.GzipFile("", "wb", 9, file, mtime=0) as packed,
        tarfile.open(mode="w", fileobj=packed) as tar,
    ):
        for name in sorted(names):
            data = (folder / name).read_bytes()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
