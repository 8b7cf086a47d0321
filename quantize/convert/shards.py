"""A GGUF split over several files, for file systems and hubs with a limit: `NAME-00001-of-00003.gguf`.

The first file carries the metadata, each carries its own tensors. Invariant: a tensor is never split, and the files
appear together, the first one last.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lathe.quantize.artefact import new_artefact
from lathe.quantize.convert.writer import Metadata, TensorEntry, Value, file_bytes, write_gguf
from lathe.quantize.errors import OutputError
from lathe.quantize.gguf.shards import MAX_SHARDS, shard_name
from lathe.quantize.gguf.types import ValueType
from lathe.quantize.safetensors import Array


def split(entries: Sequence[TensorEntry], limit: int | None) -> list[range]:
    """Cut the tensors into runs of at most `limit` bytes each (one that is larger stands alone)."""
    starts, size = [0], 0
    for index, entry in enumerate(entries):
        if limit is not None and index > starts[-1] and size + entry.nbytes > limit:
            starts.append(index)
            size = 0
        size += entry.nbytes
    if len(starts) > MAX_SHARDS:
        raise OutputError(f"{len(starts):,} files of {limit:,} bytes are too many; the limit is {MAX_SHARDS:,}")
    return [range(start, stop) for start, stop in itertools.pairwise([*starts, len(entries)])]


class GgufFiles:
    """The files of one model, planned to the byte."""

    def __init__(self, output: Path, metadata: Metadata, entries: Sequence[TensorEntry], limit: int | None) -> None:
        self._entries = entries
        self._runs = split(entries, limit)
        count = len(self._runs)
        names = [output.name] if count == 1 else [shard_name(output.stem, 1 + shard, count) for shard in range(count)]
        self.paths = [output.with_name(name) for name in names]
        self._metadata = [metadata] if count == 1 else [self._numbered(shard, metadata) for shard in range(count)]
        runs = zip(self._metadata, self._runs, strict=True)
        self._sizes = [file_bytes(facts, entries[run.start : run.stop]) for facts, run in runs]

    @property
    def bytes(self) -> int:
        """Size of all files together."""
        return sum(self._sizes)

    @contextmanager
    def parts(self, inputs: Iterable[Path], *, force: bool) -> Iterator[list[Path]]:
        """Yield the part files to write; see `new_artefact`."""
        inputs = list(inputs)
        with ExitStack() as stack:  # unwinds from the last: the file that tools open first appears at the end
            yield [
                stack.enter_context(
                    new_artefact(path, inputs=inputs, expected_bytes=None if number else self.bytes, force=force)
                )
                for number, path in enumerate(self.paths)
            ]

    def write(self, parts: Sequence[Path], pieces: Iterable[tuple[int, Array]]) -> None:
        """Write all files front to back; `pieces` are (index of its tensor in the whole model, bytes)."""
        shard_of = [shard for shard, run in enumerate(self._runs) for _ in run]
        for shard, group in itertools.groupby(pieces, key=lambda piece: shard_of[piece[0]]):
            run = self._runs[shard]
            within = ((index - run.start, data) for index, data in group)
            write_gguf(parts[shard], self._metadata[shard], self._entries[run.start : run.stop], within)

    def _numbered(self, shard: int, metadata: Metadata) -> Metadata:
        numbers = {
            "split.no": Value(ValueType.UINT16, shard),
            "split.count": Value(ValueType.UINT16, len(self._runs)),
            "split.tensors.count": Value(ValueType.INT32, len(self._entries)),
        }
        return metadata | numbers if shard == 0 else numbers
