"""The weights on their way through: read from the mapped checkpoint, rearranged, encoded, handed on in file order.

A few threads encode (numpy lets go of the interpreter), the caller writes. Invariant: a bounded number of pieces is in
memory, and mapped pages are given back as soon as their piece is done.
"""

from __future__ import annotations

import functools
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from lathe.quantize.checkpoint import Weights
from lathe.quantize.convert.encode import Encoded, encode, row_pieces, to_float32
from lathe.quantize.convert.hparams import Hparams
from lathe.quantize.convert.plan import PlannedTensor
from lathe.quantize.convert.writer import Encoding
from lathe.quantize.errors import CheckpointError
from lathe.quantize.progress import Report
from lathe.quantize.safetensors import Array

THREADS = min(4, os.cpu_count() or 1)
"""More would wait for the disk."""
AHEAD = 2 * THREADS
"""Pieces that are encoded before the one that is written next."""

Job = tuple[int, Callable[[], Encoded]]


def encoded_pieces(
    plan: Sequence[PlannedTensor], weights: Weights, hparams: Hparams, report: Report, faults: dict[str, int]
) -> Iterator[tuple[int, Array]]:
    """Yield (index of the tensor, bytes) in order; count in `faults` what is not finite, by tensor."""
    total, done = sum(tensor.entry.nbytes for tensor in plan), 0
    for index, encoded in _in_order(_jobs(plan, weights, hparams)):
        entry, source = plan[index].entry, plan[index].source
        if encoded.faults:
            faults[entry.name] = faults.get(entry.name, 0) + encoded.faults
        yield index, encoded.data
        if source is not None:
            weights.release(source.name)  # not earlier: bytes that stay as they are come straight from the mapping
        done += encoded.data.nbytes
        report(entry.name, done, total, "B")


def _in_order(jobs: Iterator[Job]) -> Iterator[tuple[int, Encoded]]:
    """Run jobs on threads, a bounded number ahead; yield their results in the order of the jobs."""
    with ThreadPoolExecutor(THREADS, thread_name_prefix="encode") as pool:
        running: deque[tuple[int, Future[Encoded]]] = deque()
        for index, work in jobs:
            running.append((index, pool.submit(work)))
            if len(running) > AHEAD:
                first, future = running.popleft()
                yield first, future.result()
        for index, future in running:
            yield index, future.result()


def _jobs(plan: Sequence[PlannedTensor], weights: Weights, hparams: Hparams) -> Iterator[Job]:
    for index, tensor in enumerate(plan):
        for work in _tensor_jobs(tensor, weights, hparams):
            yield index, work


def _tensor_jobs(tensor: PlannedTensor, weights: Weights, hparams: Hparams) -> Iterator[Callable[[], Encoded]]:
    """Cut a tensor into pieces of rows, in output order."""
    target, rule, source = Encoding(tensor.entry.type), tensor.rule, tensor.source
    if source is None:
        made = tensor.made
        assert made is not None
        yield lambda: encode(made, "F32", target)
        return
    stored = rule.view(weights.read(source.name), hparams)
    order = rule.rows(len(stored), hparams) if rule.rows else None

    def work(rows: slice) -> Encoded:
        piece, dtype = stored[rows] if order is None else stored[order[rows]], source.dtype
        if rule.value is not None:
            piece, dtype = rule.value(to_float32(piece, dtype)), "F32"
        return encode(piece, dtype, target)

    for rows in row_pieces(stored.shape):
        yield functools.partial(work, rows)


def refusing_faults(pieces: Iterator[tuple[int, Array]], faults: dict[str, int]) -> Iterator[tuple[int, Array]]:
    """Pass pieces on until one is at fault; raise `CheckpointError` then."""
    for piece in pieces:
        for name, count in faults.items():
            raise CheckpointError(
                fault(name, count), hint="the checkpoint is damaged, or needs a wider type; force it to keep them"
            )
        yield piece


def fault(name: str, count: int) -> str:
    """Say what is wrong with a tensor's values."""
    return f"tensor {name} has at least {count:,} values that are infinite, no number, or too large for its type"
