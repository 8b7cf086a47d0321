"""The toolchains of a workspace: `<home>/toolchain/<version>/` with the converter's files and a manifest of hashes.

A source archive comes from the package index that pip is set up with, by its known hash, or from a file that somebody
carried here. Invariant: a folder without a manifest that matches every file is not a toolchain.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import msgspec
from lathe.engine.errors import DataError, MissingError, PolicyError, UnavailableError, UsageError
from lathe.engine.process import child_environment
from lathe.engine.toolchain import archive
from lathe.quantize.artefact import file_sha256, new_artefact
from lathe.quantize.folder_artefact import new_folder
from lathe.quantize.progress import Report, silent

DISTRIBUTION = "llama-cpp-python"
KNOWN = {"0.3.36": "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"}
"""Version -> sha256 of its source archive."""
SCRIPT = "convert_hf_to_gguf.py"
_MANIFEST = "config.json"
"""Named as new folders are recognised by, so that a forced installation replaces nothing else."""
_IN_SOURCE = re.compile(r"[^/]+/vendor/llama\.cpp/((?:conversion|gguf-py/gguf)/.+\.py|convert_\w+_to_gguf\.py|LICENSE)")
_VERSION = re.compile(r"[0-9][0-9A-Za-z.]{0,30}")
_FETCH_S = 900.0


class Toolchain(msgspec.Struct, frozen=True, kw_only=True):
    """One installed version."""

    version: str
    source_sha256: str
    """Of the archive it came from."""
    files: dict[str, str]
    """Relative name -> sha256."""


def installed_version() -> str:
    """The version of the bindings here, which the converter has to fit."""
    return metadata.version(DISTRIBUTION)


def listed(root: Path) -> list[Toolchain]:
    """Every toolchain whose manifest can be read, by version."""
    found = []
    for folder in sorted(root.iterdir()) if root.is_dir() else ():
        try:
            found.append(msgspec.json.decode((folder / _MANIFEST).read_bytes(), type=Toolchain))
        except (OSError, msgspec.MsgspecError):
            continue
    return found


def checked(root: Path, version: str | None = None) -> Path:
    """The folder of a version, every file compared with the manifest.

    Raises:
        MissingError: it is not installed.
        DataError: a file was changed.
    """
    version = version or installed_version()
    folder = root / _plain(version)
    toolchain = next((one for one in listed(root) if one.version == version), None)
    if toolchain is None:
        raise MissingError(
            f"llama.cpp's own converter for {DISTRIBUTION} {version} is not installed",
            hint="`lathe --set general.offline=false toolchain install`, or carry a packed one here: `install --from`",
        )
    for name, digest in toolchain.files.items():
        path = folder / name
        if not path.is_file() or file_sha256(path) != digest:
            raise DataError(
                f"{path} is not what was installed", hint=f"`lathe toolchain remove {version}`, install anew"
            )
    return folder


def install(
    root: Path, *, source: Path | None = None, version: str | None = None, sha256: str | None = None,
    offline: bool = True, force: bool = False, report: Report = silent,
) -> Toolchain:  # fmt: skip
    """Install from a source archive or a packed toolchain; without `source`, fetch the archive through pip.

    Args:
        sha256: what the archive must hash to, where the version is not among the known ones.
    """
    version = _plain(version or installed_version())
    digest = sha256 or KNOWN.get(version)
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix="fetch-") as scratch:
        if source is None:
            if offline:
                raise PolicyError(
                    "the workspace is offline, and the converter's source would be fetched",
                    hint="`lathe --set general.offline=false toolchain install`, or `--from FILE`",
                )
            if digest is None:
                raise UsageError(f"the source of {DISTRIBUTION} {version} is not known here", hint="pass --sha256")
            report("fetching", 0, None, "")
            source = _fetched(Path(scratch), version, digest)
        if not source.is_file():
            raise MissingError(f"there is no archive at {source}")
        found = file_sha256(source, report)
        with new_folder(root / version, force=force, own=True) as part:
            packed = archive.extract(source, part, _packed)
            toolchain = _from_packed(part, packed, version, source) if packed else None
            if toolchain is None:
                if digest is None or found != digest:
                    raise DataError(
                        f"{source.name} hashes to {found[:16]}..., and the source of {version} is "
                        f"{(digest or 'unknown')[:16]}...", hint="fetch it again, or pass --sha256", code="E_HASH",
                    )  # fmt: skip
                files = archive.extract(source, part, _in_source)
                if SCRIPT not in files:
                    raise DataError(f"{source.name} holds no converter")
                toolchain = Toolchain(version=version, source_sha256=found, files=files)
                (part / _MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(toolchain), indent=1))
    return toolchain


def pack(root: Path, output: Path, version: str | None = None, *, force: bool = False) -> Path:
    """Write a version as one file that `install` takes on a machine without a network."""
    folder = checked(root, version)
    toolchain = msgspec.json.decode((folder / _MANIFEST).read_bytes(), type=Toolchain)
    with new_artefact(output, force=force) as part:
        archive.pack(folder, [_MANIFEST, *toolchain.files], part)
    return output


def remove(root: Path, version: str) -> None:
    """Delete a version; raises MissingError where there is none."""
    folder = root / _plain(version)
    if not folder.is_dir():
        raise MissingError(f"no toolchain {version} is installed")
    shutil.rmtree(folder)


def _packed(name: str) -> str | None:
    """Members of a packed toolchain stand at the top; those of a source archive below its own folder."""
    return None if re.match(r"llama_cpp_python-[^/]+/", name) else name


def _in_source(name: str) -> str | None:
    found = _IN_SOURCE.fullmatch(name)
    return found[1] if found else None


def _from_packed(part: Path, files: dict[str, str], version: str, source: Path) -> Toolchain:
    """Believe a packed toolchain when its manifest has the known hash of the source and of every file."""
    try:
        toolchain = msgspec.json.decode((part / _MANIFEST).read_bytes(), type=Toolchain)
    except (OSError, msgspec.MsgspecError) as error:
        raise DataError(f"{source.name} is no packed toolchain: {error}") from error
    if toolchain.version != version:
        raise DataError(f"{source.name} is for {toolchain.version[:20]!a}, and {version} is installed here")
    if files.keys() - {_MANIFEST} != toolchain.files.keys() or any(
        files[name] != digest for name, digest in toolchain.files.items()
    ):
        raise DataError(f"{source.name} is damaged: its files are not those of its manifest", code="E_HASH")
    expected = KNOWN.get(version)
    if expected is not None and toolchain.source_sha256 != expected:
        raise DataError(f"{source.name} was not made from the known source of {version}", code="E_HASH")
    return toolchain


def _fetched(folder: Path, version: str, digest: str) -> Path:
    """Let pip fetch the one archive, from wherever it is set up to fetch, and check it against the hash."""
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{DISTRIBUTION}=={version} --hash=sha256:{digest}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:",
               "--require-hashes", "--dest", str(folder), "--requirement", str(wanted)]  # fmt: skip
    environment = child_environment({name: value for name, value in os.environ.items() if name.startswith("PIP_")})
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_FETCH_S, env=environment)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"pip could not fetch {DISTRIBUTION} {version}: {error}") from error
    found = sorted(folder.glob("*.tar.gz"))
    if not found:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise UnavailableError(
            f"pip could not fetch {DISTRIBUTION} {version}: {said[-1][:300] if said else 'it said nothing'}",
            hint="fetch it on another machine with `pip download --no-deps --no-binary :all:` and pass --from FILE",
        )
    return found[0]


def _plain(version: str) -> str:
    if not _VERSION.fullmatch(version):
        raise UsageError(f"{version[:40]!a} is no version")
    return version
