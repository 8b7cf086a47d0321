"""Iteration-level scheduling: which tokens of which sequences are computed next.

    waiting --admit--> running: blocked (another computes its prefix) -> prompt -> decoding --> gone
       ^                  |
       '---- preempt -----'   its cells stay in the cache until they are needed: often nothing is computed again

Each `plan` is one batch: a row for every decoding sequence, then prompt tokens as `Pacer` allows. Invariants: the
cells of a plan are reserved before it is made; a cancelled or expired sequence is in no later plan; the sequence that
was admitted first is never preempted, so something always finishes.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from lathe.engine.errors import BusyError
from lathe.engine.scheduler.fairness import Shares
from lathe.engine.scheduler.ledger import Ledger
from lathe.engine.scheduler.pacing import Pacer
from lathe.engine.scheduler.radix import common_prefix
from lathe.engine.scheduler.sequence import Chunk, Plan, Sequence

LOOKAHEAD = 32
"""Tokens of each answer that admission keeps room for; the rest is a bet that preemption covers."""
WORTH_WAITING = 32
"""Tokens of shared prefix for which a sequence waits until another has computed them; they must also be at least a
quarter of what it would compute: where batches are cheap, waiting costs more than it saves."""


class Scheduler:
    """Decides; `lathe.engine.worker.backends` carries out."""

    def __init__(
        self, *, slots: int, batch_tokens: int, max_outputs: int, max_waiting: int, ledger: Ledger, share: bool = True
    ) -> None:
        """Start with nothing to do.

        Args:
            slots: sequences that run at once.
            batch_tokens: tokens of one batch.
            max_outputs: rows of logits of one batch; at least `slots`.
            max_waiting: sequences that may wait.
            ledger: the books of the KV cache.
            share: whether sequences wait for prefixes that others are computing.
        """
        self._slots = slots
        self._batch = batch_tokens
        self._outputs = max_outputs
        self._max_waiting = max_waiting
        self.ledger = ledger
        self._share = share
        self._pacer = Pacer(batch_tokens)
        self._shares = Shares()
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        """In order of admission."""
        self.preemptions = 0
        self._arrivals = 0
        self._lane: Hashable = None
        self._stuck = False
        """The next waiting sequence does not fit; nothing to look at until something ends."""

    # -- requests ------------------------------------------------------------------------------------------------
    def add(self, sequences: Iterable[Sequence]) -> None:
        """Queue the sequences of a request, all or none.

        Raises:
            BusyError: too many wait already.
        """
        added = list(sequences)
        if len(self.waiting) + len(added) > self._max_waiting:
            raise BusyError(f"{len(self.waiting)} requests are waiting", hint="try again later", code="E_QUEUE_FULL")
        for sequence in added:
            self._arrivals += 1
            sequence.order = self._arrivals
            self._shares.arrive(sequence.principal)
        self.waiting += added
        self._stuck = False

    def append(self, sequence: Sequence, token: int) -> None:
        """Add a generated token; it is computed in the next iteration."""
        sequence.tokens.append(token)
        self._shares.serve(sequence.principal, generated=1)

    def end(self, sequence: Sequence) -> None:
        """Take a sequence out, finished or cancelled; one that is out already is ignored."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        else:
            return
        self._release(sequence)
        self._shares.leave(sequence.principal)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self.running and not self.waiting

    # -- iterations ----------------------------------------------------------------------------------------------
    def plan(self, now: float) -> Plan:
        """Decide the next batch; it may be empty when only deadlines passed or everything is idle."""
        expired = self._expire(now)
        self._unblock(now)
        self._admit(now)
        if self.running:
            self.ledger.cool(hurry=not any(one.decoding for one in self.running))
        lane = self._next_lane()
        active = [one for one in self.running if one.hold is not None and one.lane == lane]
        streams = self._reserve_streams(active)
        prompts = [one for one in active if one.hold is not None and not one.decoding]
        chunks = [Chunk(one, one.computed, 1, 1) for one in streams]
        short, long = self._fill(prompts, chunks)
        if not chunks and prompts:
            self._make_way(prompts[0])
            short, long = self._fill(prompts[:1], chunks)
        effects, self.ledger.effects = self.ledger.effects, []
        return Plan(effects, chunks, expired, len(streams), short, long, lane)

    def complete(self, plan: Plan, seconds: float) -> None:
        """Note that a plan's batch was computed, and how long it took."""
        for chunk in plan.chunks:
            sequence = chunk.sequence
            if sequence.hold is None:
                continue
            self.ledger.compute(sequence.hold, chunk.count)
            sequence.outputs_from = max(sequence.outputs_from, chunk.start + chunk.count)
            if chunk.start < sequence.prompt_tokens:
                self.ledger.publish(sequence.hold, sequence.tokens)
                self._shares.serve(sequence.principal, prompt_tokens=chunk.count)
        if not plan.drafted:
            self._pacer.observe(plan.streams, plan.short, plan.long, seconds)

    def settle(self, sequence: Sequence) -> None:
        """Give back the cells of guesses that were wrong, once the right tokens are appended."""
        sequence.draft = []
        hold = sequence.hold
        if hold is not None:
            self.ledger.rewind(hold, min(hold.computed, len(sequence.tokens) - 1))
            sequence.outputs_from = hold.computed

    def undo(self, plan: Plan) -> None:
        """Note that a plan's batch was aborted; its tokens are planned again."""
        for chunk in plan.chunks:
            chunk.sequence.draft = []
            if chunk.sequence.hold is not None:
                self.ledger.undo(chunk.sequence.hold)

    # -- admission -----------------------------------------------------------------------------------------------
    def _expire(self, now: float) -> list[Sequence]:
        late = [one for one in (*self.running, *self.waiting) if one.deadline is not None and now >= one.deadline]
        for one in late:
            self.end(one)
        return late

    def _admit(self, now: float) -> None:
        while self.waiting and len(self.running) < self._slots and not self._stuck:
            chosen = min(self.waiting, key=lambda one: self._shares.key(one, now))
            leader, shared = self._leader_for(chosen)
            if self.running and not self._fits(chosen, shared):
                self._stuck = True
                return
            self.waiting.remove(chosen)
            self.running.append(chosen)
            chosen.leader, chosen.leader_at = leader, shared
            if leader is None:
                self._start(chosen, now)

    def _fits(self, sequence: Sequence, shared: int) -> bool:
        known, available = self.ledger.room_for(sequence.realm, sequence.tokens, self._limit(sequence))
        needed = len(sequence.tokens) - max(known, shared) + _growth(sequence)
        promised = sum(one.rest + _growth(one) for one in self.running)
        return needed + promised <= available

    def _start(self, sequence: Sequence, now: float) -> None:
        """Give a sequence its place in the cache, with all that it can borrow."""
        sequence.hold = hold = self.ledger.open(sequence.realm, sequence.tokens, self._limit(sequence))
        sequence.leader = None
        sequence.long = sequence.rest > self._batch
        if sequence.borrowed is None:
            sequence.borrowed = hold.computed
            sequence.scheduled_at = now

    @staticmethod
    def _limit(sequence: Sequence) -> int:
        """Positions from here on must be computed for their logits."""
        return min(len(sequence.tokens) - 1, sequence.outputs_from)

    def _leader_for(self, sequence: Sequence) -> tuple[Sequence | None, int]:
        """The running sequence that is computing most of this one's prefix, if that is worth waiting for."""
        best, best_at = None, 0
        if self._share:
            limit = self._limit(sequence)
            for other in self.running:
                if other is sequence or other.hold is None or other.decoding or other.realm != sequence.realm:
                    continue
                same = min(common_prefix(other.tokens, sequence.tokens), limit)
                if same > max(best_at, other.hold.published):
                    best, best_at = other, same
            known = self.ledger.known(sequence.realm, sequence.tokens, limit) if best is not None else 0
            if best_at - known < max(WORTH_WAITING, (len(sequence.tokens) - known) // 4):
                return None, 0
        return best, best_at

    def _unblock(self, now: float) -> None:
        for one in self.running:
            leader = one.leader
            if leader is None or (leader.hold is not None and leader.hold.published < one.leader_at):
                continue
            one.leader, one.leader_at = self._leader_for(one)
            if one.leader is None:
                self._start(one, now)

    # -- batches -------------------------------------------------------------------------------------------------
    def _next_lane(self) -> Hashable:
        """Take turns among the lanes that have work."""
        lanes = list(dict.fromkeys(one.lane for one in self.running if one.hold is not None))
        if not lanes:
            return None
        turn = lanes.index(self._lane) + 1 if self._lane in lanes else 0
        self._lane = lanes[turn % len(lanes)]
        return self._lane

    def _reserve_streams(self, active: list[Sequence]) -> list[Sequence]:
        """The decoding sequences, with a cell for each; those that got none are preempted."""
        streams = [one for one in active if one.decoding]
        while streams and not self.ledger.reserve(len(streams)):
            victim = self._victim(self.running[0])
            assert victim is not None, "a sequence was admitted that cannot fit alone"
            self._preempt(victim)
            streams = [one for one in streams if one.hold is not None]
        return streams

    def _fill(self, prompts: list[Sequence], chunks: list[Chunk]) -> tuple[int, int]:
        """Append prompt chunks, oldest first; return how many tokens of short and of long prompts."""
        streams = len(chunks)
        rest = {False: 0, True: 0}
        for one in prompts:
            rest[one.long] += one.rest
        allowed = dict(zip((False, True), self._pacer.allow(streams, rest[False], rest[True]), strict=True))
        total = allowed[False] + allowed[True]
        if not self.ledger.reserve(streams + total):
            room = max(0, self.ledger.capacity - self.ledger.used - streams)
            allowed[True] = min(allowed[True], room)
            allowed[False] = min(allowed[False], room - allowed[True])
        outputs = self._outputs - streams
        taken = {False: 0, True: 0}
        for one in prompts:
            count = min(one.rest, allowed[one.long] - taken[one.long])
            wanted = max(0, one.computed + count - one.outputs_from)
            if wanted > outputs:
                count -= wanted - outputs
                wanted = outputs
            if count <= 0:
                continue
            chunks.append(Chunk(one, one.computed, count, wanted))
            outputs -= wanted
            taken[one.long] += count
        return taken[False], taken[True]

    def _make_way(self, first: Sequence) -> None:
        """Nothing fits: preempt others until the oldest prompt can go on."""
        while not self.ledger.reserve(1):
            victim = self._victim(first, self.running[0])
            if victim is None:
                return  # the oldest sequence is of another lane, whose turn comes next
            self._preempt(victim)

    def _victim(self, *spared: Sequence) -> Sequence | None:
        """Whom to preempt: the lowest priority, of those the one that was admitted last."""
        candidates = [one for one in self.running if one.hold is not None and one not in spared]
        return min(reversed(candidates), key=lambda one: one.priority, default=None)

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._release(sequence)
        self.waiting.append(sequence)
        self.preemptions += 1
        self._stuck = True

    def _release(self, sequence: Sequence) -> None:
        hold, sequence.hold, sequence.leader = sequence.hold, None, None
        if hold is not None:
            self.ledger.close(hold, sequence.tokens)
        self._stuck = False


def _growth(sequence: Sequence) -> int:
    """Cells that a running answer is likely to need soon."""
    return min(LOOKAHEAD, sequence.answer_tokens - sequence.generated)
