"""Second moments of what goes into every weight: E[x x'], the cross terms that importances leave out.

Collected like importances, through the evaluation callback; weights that read the same input (query, key and value;
gate and up) share one matrix. A matrix of n channels takes 4 n^2 bytes, so a model is walked in as many passes as
`MEMORY` asks for. Invariant: the diagonal is the importance matrix of the same text.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
from lathe.engine.measure.chunks import Chunks, broken
from lathe.engine.measure.imatrix import Run
from lathe.engine.native.llama import LlamaContext, LlamaModel
from lathe.engine.native.tensors import F32, GgmlTensor, operations, values, weight_name

Moments = npt.NDArray[np.float32]
Progress = Callable[[int, int], None]
"""(chunks done, chunks in all), over every pass."""

MEMORY = 2 * 1024**3
"""Bytes of moments held at a time."""


class MomentCollector:
    """The callback of one pass."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = frozenset(names)
        self._product = operations()["MUL_MAT"]
        self._sums: dict[str, Moments] = {}
        self._owner: dict[str, str] = {}
        """Weight -> the weight whose sum it shares."""
        self._counts: dict[str, int] = {}
        self._last: tuple[int, str] | None = None
        """The input seen last and the weight it was summed for."""

    def on_node(self, address: int, ask: bool) -> bool:
        """Say whether a node is wanted; take in one that was."""
        node = GgmlTensor.from_address(address)
        if node.op != self._product:
            return False
        name = weight_name(node.src[0].contents)
        given = node.src[1].contents
        if name not in self._names or given.type != F32 or node.src[0].contents.ne[2] != 1:
            return False
        if not ask:
            self._take(name, given)
        return True

    def _take(self, name: str, given: GgmlTensor) -> None:
        source = ctypes.addressof(given)
        if name not in self._owner:
            shared = self._last is not None and self._last[0] == source
            self._owner[name] = self._last[1] if shared and self._last else name
        owner = self._owner[name]
        self._last = (source, owner)
        if owner != name:
            return
        rows = values(given).reshape(-1, given.ne[0])
        product = rows.T @ rows
        if not np.isfinite(product).all():
            raise broken()
        self._counts[name] = self._counts.get(name, 0) + len(rows)
        if name in self._sums:
            self._sums[name] += product
        else:
            self._sums[name] = product

    def moments(self) -> Iterator[tuple[tuple[str, ...], Moments]]:
        """Groups of weights that share an input, with its second moments."""
        for owner, sums in self._sums.items():
            group = tuple(name for name, of in self._owner.items() if of == owner)
            yield group, sums / np.float32(self._counts[owner])


def collect(
    model: LlamaModel,
    chunks: Chunks,
    channels: dict[str, int],
    *,
    threads: int = 0,
    progress: Progress | None = None,
    in_time: Callable[[float], bool] = lambda share: True,
) -> Iterator[tuple[tuple[str, ...], Moments]]:
    """Yield the moments of every weight in `channels` (name -> input channels), in as many passes as fit memory.

    Args:
        in_time: asked after each batch whether a pass, which should be over when this share of the work is, may go on.
    """
    passes = _passes(channels)
    total = len(passes) * chunks.n_chunks
    for number, names in enumerate(passes):
        collector = MomentCollector(names)
        run = Run(chunks, threads, whole=not model.generates)
        with LlamaContext(model, run.options, on_node=collector.on_node) as context:
            for done in run.decode(context, 0):
                if progress is not None:
                    progress(number * chunks.n_chunks + done, total)
                if not in_time((number + 1) / len(passes)):
                    break
        yield from collector.moments()


def _passes(channels: dict[str, int]) -> list[list[str]]:
    """Split the weights, in order, into groups whose moments fit; sharing is not counted on."""
    passes: list[list[str]] = [[]]
    used = 0
    for name, count in channels.items():
        size = 4 * count * count
        if passes[-1] and used + size > MEMORY:
            passes.append([])
            used = 0
        passes[-1].append(name)
        used += size
    return [names for names in passes if names]
