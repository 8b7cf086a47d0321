"""Which files of a folder make which models, told by names and magic numbers; headers are read later.

    *.gguf                          one model each; `NAME-00001-of-00003.gguf` and its siblings make one together
    *.safetensors + config.json     the folder is a checkpoint (adapter_config.json: a LoRA adapter)
    *.onnx                          the folder is an ONNX model
    *.ggml, *.bin with old magic    one model each, of the time before GGUF
Invariant: a candidate's files are all there; what is incomplete becomes a problem that says what is missing.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from lathe.engine.catalogue.walk import File, Folder, Origin, Problem, is_part, printable, problem, suffix_of

Format = Literal["gguf", "safetensors", "onnx", "ggml"]

_SHARD = re.compile(r"(?P<prefix>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf", re.DOTALL | re.IGNORECASE)
_GGML_MAGIC = frozenset({b"lmgg", b"fmgg", b"tjgg", b"algg"})
_PICKLES = ("pytorch_model", "model.bin", "consolidated")


class Candidate(NamedTuple):
    """Files that look like one model."""

    path: Path
    """The file, the first shard, or the folder."""
    format: Format
    files: tuple[File, ...]
    """Everything that belongs to it, in order of name."""
    origin: Origin
    name: str = ""
    """What its store calls it; empty where only the path tells."""

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(file.size for file in self.files)

    @property
    def mtime_ns(self) -> int:
        """The newest change of any of its files."""
        return max(file.mtime_ns for file in self.files)

    @property
    def inode(self) -> tuple[int, int]:
        """Identity of the bytes of its first weights, whatever links lead to them."""
        return next((file.inode for file in self.files if not is_part(file.path.name)), self.files[0].inode)


def recognise(folder: Folder) -> Iterator[Candidate | Problem]:
    """Yield the models of one folder."""
    by_suffix: dict[str, list[File]] = defaultdict(list)
    for file in folder.files:
        by_suffix[suffix_of(file.path.name)].append(file)
    yield from _gguf(by_suffix[".gguf"], folder)
    yield from _checkpoint(by_suffix, folder)
    yield from _legacy(by_suffix[".ggml"] + by_suffix[".bin"], folder)


def _gguf(files: list[File], folder: Folder) -> Iterator[Candidate | Problem]:
    shards: dict[tuple[str, int], dict[int, File]] = defaultdict(dict)
    for file in files:
        match = _SHARD.fullmatch(file.path.name)
        if match is None:
            yield Candidate(file.path, "gguf", (file,), folder.origin)
        else:
            shards[match["prefix"], int(match["count"])][int(match["number"])] = file
    for (prefix, count), parts in sorted(shards.items()):
        missing = [number for number in range(1, min(count, 1000) + 1) if number not in parts]
        if missing or len(parts) != count:
            where = printable(folder.path / f"{prefix}-*-of-{count:05d}.gguf")
            yield Problem(where, "E_INCOMPLETE", f"{len(parts)} of {count} shards; missing: {_some(missing)}")
        else:
            yield Candidate(parts[1].path, "gguf", tuple(parts[number] for number in sorted(parts)), folder.origin)


def _checkpoint(by_suffix: dict[str, list[File]], folder: Folder) -> Iterator[Candidate | Problem]:
    names = folder.names()
    weights, graphs = by_suffix[".safetensors"], by_suffix[".onnx"]
    has_config = bool(names & {"config.json", "adapter_config.json"})
    if weights and has_config:
        yield Candidate(folder.path, "safetensors", _members(folder, ".safetensors"), folder.origin)
        if graphs:
            message = "holds a checkpoint and ONNX files; the checkpoint is listed, move the ONNX files to list them"
            yield Problem(printable(folder.path), "E_AMBIGUOUS", message)
    elif graphs:
        yield Candidate(folder.path, "onnx", _members(folder, ".onnx"), folder.origin)
    elif weights:
        yield Problem(printable(folder.path), "E_INCOMPLETE", "safetensors without config.json: not a whole checkpoint")
    elif has_config and any(name.startswith(_PICKLES) for name in names if name.endswith(".bin")):
        message = "only pickled weights, which can run code and are never loaded: convert them to safetensors"
        yield Problem(printable(folder.path), "E_UNSAFE", message)


def _members(folder: Folder, weights: str) -> tuple[File, ...]:
    """What belongs to a folder's model: its weights and the small files that say how to use them."""
    return tuple(file for file in folder.files if suffix_of(file.path.name) == weights or is_part(file.path.name))


def _legacy(files: list[File], folder: Folder) -> Iterator[Candidate | Problem]:
    for file in files:
        try:
            with file.path.open("rb") as opened:
                magic = opened.read(4)
        except OSError as error:
            yield problem(file.path, error)
            continue
        if magic in _GGML_MAGIC:
            yield Candidate(file.path, "ggml", (file,), folder.origin)


def _some(numbers: list[int]) -> str:
    shown = ", ".join(str(number) for number in numbers[:5])
    return f"{shown}, ..." if len(numbers) > 5 else shown or "none, but their numbers do not fit"
