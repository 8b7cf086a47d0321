"""Ollama's store: `manifests/HOST/NAMESPACE/MODEL/TAG` name blobs by digest, `blobs/sha256-HEX` hold them.

Invariant: a blob's path is built from 64 hex digits and nothing else of what a manifest says, and it stays in the
store's own `blobs` folder, links resolved (Ollama itself was twice led out of it by a forged digest).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
from lathe.engine.catalogue.recognise import Candidate
from lathe.engine.catalogue.walk import Folder, Problem, look_at, printable, problem

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})", re.ASCII)
_BLOB = re.compile(r"sha256-[0-9a-f]{64}", re.ASCII)
_MODEL_LAYER = "application/vnd.ollama.image.model"
_MANIFEST_LIMIT = 1 << 20
_MAX_MANIFESTS = 10_000
_LEVELS = 3
"""Host, namespace and model are folders, the tag is the file."""
_HOST, _NAMESPACE = "registry.ollama.ai", "library"


class _Layer(msgspec.Struct, frozen=True):
    mediaType: str  # noqa: N815 - as the format spells it
    digest: str


class _Manifest(msgspec.Struct, frozen=True):
    layers: tuple[_Layer, ...]


def is_store(folder: Folder) -> bool:
    """Tell whether a folder is such a store."""
    return {"manifests", "blobs"} <= set(folder.folders)


def read_store(root: Path) -> Iterator[Candidate | Problem]:
    """Yield a store's models under the names that Ollama gives them."""
    for number, manifest in enumerate(_manifests(root / "manifests")):
        if number == _MAX_MANIFESTS:
            yield Problem(printable(root), "E_SCAN_LIMIT", f"stopped after {_MAX_MANIFESTS:,} manifests")
            return
        yield manifest if isinstance(manifest, Problem) else _read(root, manifest)


def is_blob(path: Path) -> bool:
    """Tell whether a path has the form of a blob's."""
    return path.parent.name == "blobs" and _BLOB.fullmatch(path.name) is not None


def blob_path(root: Path, digest: str) -> Path | None:
    """Where a blob lies; None where the digest is none or its file leads out of the store."""
    match = _DIGEST.fullmatch(digest)
    if match is None:
        return None
    blobs = (root / "blobs").resolve()
    path = root / "blobs" / f"sha256-{match[1]}"
    return path if path.resolve().parent == blobs else None


def _manifests(folder: Path, level: int = 0) -> Iterator[Path | Problem]:
    """Manifest files, four levels down, in order of name; links to folders are not followed."""
    try:
        children = sorted(folder.iterdir())
    except OSError as error:
        yield problem(folder, error)
        return
    for child in children:
        is_folder = child.is_dir() and not child.is_symlink()
        if level == _LEVELS:
            yield from [] if is_folder else [child]
        elif is_folder:
            yield from _manifests(child, level + 1)


def _read(root: Path, path: Path) -> Candidate | Problem:
    where = printable(path)
    try:
        if look_at(path).size > _MANIFEST_LIMIT:
            return Problem(where, "E_OLLAMA", "the manifest is longer than any honest one")
        manifest = msgspec.json.decode(path.read_bytes(), type=_Manifest)
    except OSError as error:
        return problem(path, error)
    except (msgspec.MsgspecError, RecursionError) as error:
        return Problem(where, "E_OLLAMA", f"the manifest does not parse: {error}")
    digests = [layer.digest for layer in manifest.layers if layer.mediaType == _MODEL_LAYER]
    if len(digests) != 1:
        return Problem(where, "E_OLLAMA", f"the manifest names {len(digests)} GGUF files; one was expected")
    blob = blob_path(root, digests[0])
    if blob is None:
        return Problem(where, "E_UNSAFE", "the manifest's digest is not a sha256 of a file in this store")
    try:
        return Candidate(blob, "gguf", (look_at(blob),), "ollama", _name(path))
    except OSError as error:
        return problem(blob, error)


def _name(manifest: Path) -> str:
    host, namespace, model, tag = manifest.parts[-4:]
    name = f"{model}:{tag}"
    if namespace != _NAMESPACE:
        name = f"{namespace}/{name}"
    return name if host == _HOST else f"{host}/{name}"
