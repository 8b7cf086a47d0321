"""llama-perplexity's file of a base model's log-probabilities, written and read.

    "_logits_"  n_ctx  n_vocab  n_chunk  tokens  then per scored token: scale, minimum (float32), n_vocab x uint16

A row's log-probabilities are minimum + scale * number, over the 16 nats below the most probable token. Files are
large (2 bytes x vocabulary per token): the streaming comparison needs none. Invariant: a reader maps the file and
checked its length against its header before the first row is read.
"""

from __future__ import annotations

import struct
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
import numpy.typing as npt
from lathe.engine.errors import DataError, MissingError
from lathe.engine.measure.chunks import Chunks
from lathe.engine.measure.logprobs import Floats, log_normalizer

_MAGIC = b"_logits_"
_HEADER = struct.Struct("<iii")
_RANGE = 16.0
"""Nats below the best token that are told apart."""
_STEPS = 65535
_MAX_VOCABULARY = 2_000_000
_MAX_CONTEXT = 1 << 24


def _row_numbers(n_vocab: int) -> int:
    """uint16s per row: an even number, after the two floats."""
    return 2 * ((n_vocab + 1) // 2) + 4


class BaseWriter:
    """Writes rows in the order of the chunks."""

    def __init__(self, path: Path, chunks: Chunks) -> None:
        self._file: BinaryIO = path.open("wb")
        tokens = chunks.tokens[: chunks.n_chunks * chunks.n_ctx].astype("<i4")
        self._file.write(_MAGIC + _HEADER.pack(chunks.n_ctx, chunks.n_vocab, chunks.n_chunks) + tokens.tobytes())
        self._numbers = _row_numbers(chunks.n_vocab)

    def write(self, logits: Floats) -> None:
        """Append rows of logits."""
        for row in logits:
            self._file.write(self._encoded(row[None, :]).tobytes())

    def _encoded(self, logits: Floats) -> npt.NDArray[np.uint16]:
        highest = logits.max()
        lowest = max(logits.min(), np.float32(highest - _RANGE))
        normalizer = np.float32(log_normalizer(logits, np.empty_like(logits))[0])
        scale = np.float32((highest - lowest) / _STEPS)
        row = np.zeros(self._numbers, np.uint16)
        row[:4] = np.array([scale, lowest - normalizer], np.float32).view(np.uint16)
        if scale > 0:
            row[4 : 4 + logits.shape[1]] = np.rint(np.maximum(logits[0] - lowest, 0) * np.float32(1 / scale))
        return row

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


class BaseFile:
    """A file's chunks and rows."""

    def __init__(self, path: Path) -> None:
        """Map a file.

        Raises:
            DataError: it is none, or its length is not what its header promises.
        """
        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                head = file.read(len(_MAGIC) + _HEADER.size)
        except FileNotFoundError as error:
            raise MissingError(f"no file of log-probabilities at {path}") from error
        if len(head) < len(_MAGIC) + _HEADER.size or not head.startswith(_MAGIC):
            raise DataError(f"{path.name} is no file of log-probabilities", hint="llama-perplexity writes them")
        n_ctx, self.n_vocab, n_chunks = _HEADER.unpack_from(head, len(_MAGIC))
        if not (4 <= n_ctx <= _MAX_CONTEXT and 0 < self.n_vocab <= _MAX_VOCABULARY and n_chunks > 0):
            raise DataError(f"{path.name} has an impossible header: {n_ctx}, {self.n_vocab}, {n_chunks}")
        self._rows = n_ctx - 1 - n_ctx // 2
        start = len(head) + 4 * n_ctx * n_chunks
        shape = (n_chunks * self._rows, _row_numbers(self.n_vocab))
        if size != start + 2 * shape[0] * shape[1]:
            raise DataError(
                f"{path.name} has {size:,} bytes, and its header promises {start + 2 * shape[0] * shape[1]:,}"
            )
        self.tokens = np.fromfile(path, "<i4", n_ctx * n_chunks, offset=len(head))
        self.n_ctx, self.n_chunks = n_ctx, n_chunks
        self._numbers = np.memmap(path, "<u2", "r", start, shape)

    def chunks(self, bos: int | None) -> Chunks:
        """The text as it was cut, for a model with this BOS."""
        return Chunks(tokens=self.tokens, n_ctx=self.n_ctx, n_chunks=self.n_chunks, bos=bos, n_vocab=self.n_vocab)

    def log_probabilities(self, start: int, stop: int) -> Floats:
        """Rows [start, stop) over all chunks, rows x n_vocab."""
        rows = np.asarray(self._numbers[start:stop])
        scale, lowest = np.ascontiguousarray(rows[:, :4]).view(np.float32).T
        result: Floats = rows[:, 4 : 4 + self.n_vocab] * scale[:, None] + lowest[:, None]
        return result
