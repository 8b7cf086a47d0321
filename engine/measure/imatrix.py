"""Collect an importance matrix: the squared inputs of every weight, seen while a text runs through the model.

llama-imatrix's procedure on our chunks: every matrix product of a layer's weight is watched through `cb_eval`, and the
squares of its right-hand side are summed per channel, per expert for mixtures. Invariant: a matrix that went through
a file and back continues as if it had never stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
from lathe.engine.errors import DataError
from lathe.engine.measure import chunks as chunked
from lathe.engine.measure.chunks import Chunks
from lathe.engine.native.batch import Batch
from lathe.engine.native.llama import ContextOptions, LlamaContext, LlamaModel
from lathe.engine.native.tensors import F32, GgmlTensor, operations, values, weight_name
from lathe.engine.native.vectors import MODELS_OWN, NONE
from lathe.quantize.imatrix import Entry, Imatrix

Progress = Callable[[int, int, Imatrix], None]
"""(chunks done, chunks in all, the matrix so far); called after each batch."""

_SMALLEST_BATCH = 16
"""Products of fewer tokens are not looked at, as in llama-imatrix."""


class Collector:
    """The callback and its sums, in double precision."""

    def __init__(self, *, output: bool = False) -> None:
        """`output`: watch the output matrix, too; where embeddings are tied, that is `token_embd.weight`."""
        known = operations()
        self._product, self._routed = known["MUL_MAT"], known["MUL_MAT_ID"]
        self._output = ("output.weight", "token_embd.weight") if output else ()
        self._sums: dict[str, npt.NDArray[np.float64]] = {}
        self._counts: dict[str, npt.NDArray[np.int64]] = {}

    def start_from(self, matrix: Imatrix) -> None:
        """Continue a matrix."""
        for name, entry in matrix.entries.items():
            self._sums[name] = entry.sums.astype(np.float64).reshape(len(entry.counts), -1)
            self._counts[name] = entry.counts.copy()

    def on_node(self, address: int, ask: bool) -> bool:
        """Say whether a node is wanted; take in one that was."""
        node = GgmlTensor.from_address(address)
        if node.op != self._product and node.op != self._routed:
            return False
        weight, given = node.src[0].contents, node.src[1].contents
        name = weight_name(weight)
        if ask:
            return node.op == self._routed or (
                given.ne[1] >= _SMALLEST_BATCH
                and given.type == F32
                and (name.startswith("blk.") or name in self._output)
            )
        if node.op == self._routed:
            self._take_routed(name, weight.ne[2], values(given)[0], values(node.src[2].contents, np.int32)[0, 0])
        else:
            self._take(name, (weight.ne[3], weight.ne[2]), values(given))
        return True

    def matrix(self, datasets: tuple[str, ...], chunks: int, chunk_size: int) -> Imatrix:
        """What has been seen of that many chunks, of which products of few tokens are missing."""
        entries = {
            name: Entry(sums.astype(np.float32).reshape(len(self._counts[name]), -1), self._counts[name].copy())
            for name, sums in self._sums.items()
        }
        return Imatrix(entries=entries, datasets=datasets, chunks=chunks, chunk_size=chunk_size)

    def _take(self, name: str, matrices: tuple[int, int], given: npt.NDArray[np.float32]) -> None:
        """One product: `given` is (ne3, ne2, tokens, channels), shared out over the weight's matrices."""
        count = matrices[0] * matrices[1]
        sums = self._sums_of(name, count, given.shape[-1], 1)
        for outer in range(given.shape[0]):
            for inner in range(given.shape[1]):
                at = (outer % matrices[0]) * matrices[1] + inner % matrices[1]
                sums[at] += _squares(given[outer, inner])
        self._counts[name] += given.shape[0] * given.shape[1] * given.shape[2] // count

    def _take_routed(
        self, name: str, experts: int, given: npt.NDArray[np.float32], chosen: npt.NDArray[np.int32]
    ) -> None:
        """One routed product: `given` is (tokens, slots, channels), `chosen` (tokens, experts used)."""
        sums = self._sums_of(name, experts, given.shape[-1], experts)
        for slot in range(chosen.shape[1]):
            rows = given[:, slot % given.shape[1]]
            for expert in np.unique(chosen[:, slot]):
                routed = chosen[:, slot] == expert
                sums[expert] += _squares(rows[routed])
                self._counts[name][expert] += int(routed.sum())

    def _sums_of(self, name: str, matrices: int, channels: int, counts: int) -> npt.NDArray[np.float64]:
        if name not in self._sums:
            self._sums[name] = np.zeros((matrices, channels))
            self._counts[name] = np.zeros(counts, np.int64)
        if self._sums[name].size != matrices * channels:
            raise DataError(
                f"the matrix to continue has {self._sums[name].size} sums for {name}, the model {matrices * channels}",
                hint="it was made from another model",
            )
        self._sums[name] = self._sums[name].reshape(matrices, channels)
        return self._sums[name]


def _squares(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    sums: npt.NDArray[np.float64] = np.einsum("ij,ij->j", rows, rows, dtype=np.float32).astype(np.float64)
    if not np.isfinite(sums).all():
        raise chunked.broken()
    return sums


def collect(
    model: LlamaModel,
    chunks: Chunks,
    dataset: str,
    *,
    threads: int = 0,
    output: bool = False,
    earlier: Imatrix | None = None,
    start: int = 0,
    progress: Progress | None = None,
    enough: Callable[[], bool] = lambda: False,
) -> Imatrix:
    """Run the chunks from `start` on and return the matrix, `earlier` included.

    Args:
        enough: asked after each batch; the matrix says how many chunks went into it.
    """
    collector = Collector(output=output)
    datasets: tuple[str, ...] = (dataset,)
    before = 0
    if earlier is not None:
        collector.start_from(earlier)
        datasets, before = tuple(dict.fromkeys((*earlier.datasets, dataset))), earlier.chunks

    def seen(done: int) -> Imatrix:
        return collector.matrix(datasets, before + done - start, chunks.n_ctx)

    done = start
    runner = Run(chunks, threads, whole=not model.generates)
    with LlamaContext(model, runner.options, on_node=collector.on_node) as context:
        for done in runner.decode(context, start):
            if progress is not None:
                progress(done, chunks.n_chunks, seen(done))
            if enough():
                break
    return seen(done)


class Run:
    """The chunks with every position an output: the last layer skips tokens whose logits nobody wants."""

    def __init__(self, chunks: Chunks, threads: int, *, whole: bool = False) -> None:
        """Plan the batches; `whole`: for what looks both ways, so that its chunks and batches come in one piece."""
        affordable = max(_SMALLEST_BATCH, chunked.LOGITS_BUDGET // (4 * chunks.n_vocab))
        size = max(chunked.BATCH_TOKENS, chunks.n_ctx) if whole else min(chunked.BATCH_TOKENS, affordable)
        self._chunks = chunks
        self._together = max(1, min(size // chunks.n_ctx, chunks.n_chunks))
        self._step = min(size, chunks.n_ctx)
        self._size = self._together * self._step
        self.options = ContextOptions(
            n_ctx=self._together * chunks.n_ctx,
            n_batch=self._size,
            n_ubatch=self._size if whole else min(512, self._size),
            n_seq_max=self._together,
            n_threads=threads,
            # Rows as wide as the model instead of its vocabulary, which would take gigabytes for nothing.
            embeddings=whole,
            pooling=NONE if whole else MODELS_OWN,
        )

    def decode(self, context: LlamaContext, start: int) -> Iterator[int]:
        """Compute from chunk `start` on; yields how many chunks are done."""
        chunks, batch = self._chunks, Batch(self._size)
        for chunk in range(start, chunks.n_chunks, self._together):
            count = min(self._together, chunks.n_chunks - chunk)
            context.clear()
            for position in range(0, chunks.n_ctx, self._step):
                positions = np.arange(position, min(position + self._step, chunks.n_ctx))
                chunked.fill(batch, chunks, range(chunk, chunk + count), positions, np.ones(len(positions), bool))
                context.decode(batch)
            yield chunk + count
