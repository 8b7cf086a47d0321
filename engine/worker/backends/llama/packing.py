"""Texts to score that stand alone, in batches of their own: whole trees of continuations at once.

Tokens that several continuations share belong to the native sequence of each and are computed once, so a question with
its choices takes one batch, and several questions share it. Nothing of it stays: cells and sequences are lent by the
ledger and empty again before the next plan, which keeps the part of the cache small that attention passes over. What
begins like others of its realm goes to the scheduler instead, whose prefix cache computes the beginning once for all.
Invariant: a text is in one place, here or with the scheduler, from `add` until `step` or `remove` gives it back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

import msgspec
from lathe.engine.native.batch import Batch
from lathe.engine.scheduler.ledger import Drop, Ledger, Realm
from lathe.engine.scheduler.radix import common_prefix
from lathe.engine.worker.backends.llama.probabilities import Judged
from lathe.engine.worker.backends.llama.ring import Ring
from lathe.engine.worker.backends.llama.scoring import Branch, Scoring

WINDOW = 256
"""Tokens of a batch on the CPU: llama.cpp rounds the cells it passes over up to this, so each costs least here."""
_LONGEST = 1024
"""Tokens of a text that is still computed whole, if nobody waits for the next token of an answer meanwhile."""
_WORTH_SHARING = 64
"""Tokens of a common beginning from which on the prefix cache is the better place, if it is half of the text, too."""
_REMEMBERED = 16
_CONSIDERED = 64
"""Waiting texts that are looked at to fill a batch."""


class Run(msgspec.Struct, frozen=True):
    """Consecutive tokens that the same branches begin with."""

    tokens: list[int]
    start: int
    branches: list[Branch]


class Packed(msgspec.Struct, frozen=True):
    """What one step did."""

    done: list[Scoring]
    tokens: int = 0
    seconds: float = 0.0


class Packer:
    """The queue of such texts, and the batches made of it."""

    def __init__(self, ring: Ring, ledger: Ledger, *, batch_tokens: int, max_outputs: int, sequences: int) -> None:
        """Start empty.

        Args:
            batch_tokens: tokens of one batch.
            max_outputs: rows of logits of one batch.
            sequences: native sequences of the context.
        """
        self._ring = ring
        self._ledger = ledger
        self._batch = Batch(batch_tokens)
        self._outputs = max_outputs
        self._most = sequences // 2
        """Branches at once; the others are left to requests that run."""
        self._queues: dict[str, deque[Scoring]] = {}
        """By principal; whoever was served last stands last."""
        self._sizes: dict[int, int] = {}
        self._recent: deque[tuple[Realm, list[int]]] = deque(maxlen=_REMEMBERED)

    def __len__(self) -> int:
        return len(self._sizes)

    def takes(self, work: Scoring, *, alone: bool) -> bool:
        """Whether a text is better computed here; `alone`: no request runs that would have to wait for it."""
        longest = max((branch.sequence for branch in work.branches), key=lambda one: len(one.tokens))
        context = longest.tokens[: longest.outputs_from]
        shared = self._ledger.known(longest.realm, context, len(context))
        for realm, tokens in self._recent:
            if realm == longest.realm:
                shared = max(shared, common_prefix(tokens, context))
        self._recent.append((longest.realm, context))
        if shared >= max(_WORTH_SHARING, len(context) // 2) or len(work.branches) > self._most:
            return False
        size = _size(work)
        if size > (_LONGEST if alone else self._batch.capacity) or 2 * size > self._ledger.capacity:
            return False
        self._sizes[work.id] = size
        return True

    def add(self, work: Scoring) -> None:
        """Queue a text that is taken."""
        self._queues.setdefault(work.request.principal, deque()).append(work)

    def remove(self, work: Scoring) -> bool:
        """Take a text out; False where it is not here."""
        if self._sizes.pop(work.id, None) is None:
            return False
        queue = self._queues[work.request.principal]
        queue.remove(work)
        if not queue:
            del self._queues[work.request.principal]
        return True

    def step(self) -> Packed | None:
        """Compute what fits one batch, or one text that needs several; None where the cache has no room for it now."""
        works = self._chosen()
        runs = [run for alike in _by_realm(works) for run in _tree(alike)]
        branches = list(dict.fromkeys(branch for run in runs for branch in run.branches))
        tokens = sum(len(run.tokens) for run in runs)
        lent = self._ledger.lend(tokens, len(branches))
        if lent is None:
            return None
        effects, self._ledger.effects = self._ledger.effects, []
        self._ring.apply(effects)
        seconds = self._compute(runs, dict(zip(branches, lent, strict=True)))
        self._ring.apply([Drop(sequence) for sequence in lent])
        self._ledger.take_back(lent)
        if seconds is None:
            for work in works:
                work.restart()
            return Packed([])
        for work in works:
            self.remove(work)
        for principal in {work.request.principal for work in works} & self._queues.keys():
            self._queues[principal] = self._queues.pop(principal)
        return Packed(works, tokens, seconds)

    def _chosen(self) -> list[Scoring]:
        """Whom the next batch is for: principals in turn, each in order of arrival, as long as all fit."""
        chosen: list[Scoring] = []
        room, branches, looked = self._batch.capacity, self._most, 0
        queues = [iter(queue) for queue in self._queues.values()]
        while queues and looked < _CONSIDERED:
            for queue in list(queues):
                work = next(queue, None)
                if work is None:
                    queues.remove(queue)
                    continue
                looked += 1
                size = self._sizes[work.id]
                if not chosen or (size <= room and len(work.branches) <= branches):
                    chosen.append(work)
                    room -= size
                    branches -= len(work.branches)
        return chosen

    def _compute(self, runs: list[Run], lent: dict[Branch, int]) -> float | None:
        """Compute all runs and hand out their logits; the seconds it took, None when it was given up."""
        total = 0.0
        batch = self._batch
        pending: list[tuple[Run, int, int]] = []
        """(run, position of its first output in this batch, how many)."""
        flight: dict[int, int] = {}

        def flush() -> bool:
            nonlocal total
            seconds = self._ring.decode(batch, flight)
            if seconds is None:
                return False
            total += seconds
            judged = Judged(self._ring.rows()[: batch.n_outputs])
            row = 0
            for run, position, count in pending:
                for branch in run.branches:
                    branch.take(position, judged[row : row + count])
                row += count
            batch.clear()
            pending.clear()
            flight.clear()
            return True

        batch.clear()
        rows = 0
        for run in runs:
            wanted = min(branch.sequence.outputs_from for branch in run.branches)
            done = 0
            while done < len(run.tokens):
                room = batch.capacity - batch.n_tokens
                if not room or rows >= self._outputs:
                    if not flush():
                        return None
                    rows, room = 0, batch.capacity
                position = run.start + done
                silent = max(0, wanted - position)
                count = min(len(run.tokens) - done, room, silent + self._outputs - rows)
                outputs = max(0, count - silent)
                where = batch.extend_shared(
                    run.tokens[done : done + count], position, [lent[branch] for branch in run.branches]
                )
                if outputs:
                    batch.output[where.stop - outputs : where.stop] = 1
                    pending.append((run, position + count - outputs, outputs))
                    rows += outputs
                owner = run.branches[0].scoring.id
                flight[owner] = flight.get(owner, 0) + count
                done += count
        return total if flush() else None


def _size(work: Scoring) -> int:
    return sum(len(run.tokens) for run in _tree([work]))


def _by_realm(works: Sequence[Scoring]) -> list[list[Scoring]]:
    """Works whose tokens may be computed together."""
    realms: dict[Realm, list[Scoring]] = {}
    for work in works:
        realms.setdefault(work.branches[0].sequence.realm, []).append(work)
    return list(realms.values())


def _tree(works: Sequence[Scoring]) -> Iterator[Run]:
    """What is to compute, each token once: a run before those that follow it."""
    branches = sorted((branch for work in works for branch in work.branches), key=lambda one: one.sequence.tokens)
    waiting = [(branches, 0)]
    while waiting:
        alike, depth = waiting.pop()
        first = alike[0].sequence.tokens
        # Sorted, so what the first and the last have in common, all have.
        end = depth + common_prefix(first, alike[-1].sequence.tokens, depth, depth)
        if end > depth:
            yield Run(first[depth:end], depth, alike)
        groups: dict[int, list[Branch]] = {}
        for branch in alike:
            if len(branch.sequence.tokens) > end:
                groups.setdefault(branch.sequence.tokens[end], []).append(branch)
        waiting += [(group, end) for group in reversed(groups.values())]
