"""A ring without a model: carries plans out on the naive cache, with time from a cost model."""

from __future__ import annotations

from collections.abc import Callable

from lathe.engine.scheduler.ledger import Ledger
from lathe.engine.scheduler.scheduler import Scheduler
from lathe.engine.scheduler.sequence import Plan, Sequence
from support.naive_cache import NaiveCache

Cost = Callable[[Plan], float]


def cpu_cost(plan: Plan) -> float:
    """Seconds of a batch on a small CPU: 10 ms for the weights, 1 ms per row beyond the first few."""
    return 0.010 + 0.001 * max(0, plan.rows - 4)


class SimulatedEngine:
    """Generates token `1000 + position` for everyone, until `answer_tokens`."""

    def __init__(
        self,
        *,
        slots: int = 4,
        batch_tokens: int = 32,
        capacity: int = 400,
        sequences: int = 16,
        max_outputs: int = 32,
        max_waiting: int = 1000,
        cost: Cost = cpu_cost,
        share: bool = True,
        check_cells: bool = True,
        idle_tokens: int | None = None,
    ) -> None:
        self.ledger = Ledger(capacity, sequences, share=share, evict_at_least=8, idle_tokens=idle_tokens)
        self.cache = NaiveCache(capacity)
        self.scheduler = Scheduler(
            slots=slots, batch_tokens=batch_tokens, max_outputs=max_outputs, max_waiting=max_waiting,
            ledger=self.ledger, share=share,
        )  # fmt: skip
        self.limits = (slots, batch_tokens, max_outputs)
        self.cost = cost
        self.check_cells = check_cells
        self.now = 0.0
        self.outputs: dict[int, list[int]] = {}
        """request -> positions whose logits came, in order."""
        self.token_times: dict[int, list[float]] = {}
        self.computed: dict[int, int] = {}
        """request -> tokens that were computed for it."""
        self.finished: list[int] = []
        self.expired: list[int] = []
        self.plans: list[Plan] = []
        self.gone: set[int] = set()

    def add(self, request: int, tokens: list[int], answer: int, **fields: object) -> Sequence:
        fields.setdefault("realm", "me")
        sequence = Sequence(request, tokens, answer, queued_at=self.now, **fields)  # type: ignore[arg-type]
        self.scheduler.add([sequence])
        self.outputs[request], self.token_times[request], self.computed[request] = [], [], 0
        return sequence

    def cancel(self, sequence: Sequence) -> None:
        self.scheduler.end(sequence)
        self.gone.add(sequence.request)

    def step(self, *, abort: bool = False) -> Plan:
        """One iteration: plan, check the plan, compute, sample."""
        slots, batch_tokens, max_outputs = self.limits
        plan = self.scheduler.plan(self.now)
        for late in plan.expired:
            self.expired.append(late.request)
            self.gone.add(late.request)
        if self.check_cells:
            self.cache.apply(plan.effects)
        assert plan.rows == sum(chunk.count for chunk in plan.chunks) <= max(batch_tokens, slots + 4)
        assert sum(chunk.outputs for chunk in plan.chunks) <= max_outputs
        assert len(self.scheduler.running) <= slots
        assert len({chunk.sequence.lane for chunk in plan.chunks}) <= 1
        assert len({chunk.sequence.request for chunk in plan.chunks}) == len(plan.chunks)
        for chunk in plan.chunks:
            sequence = chunk.sequence
            assert sequence.request not in self.gone, "planned after its end"
            assert sequence.hold is not None
            if self.check_cells:
                self.cache.compute(sequence.hold.sequence, sequence.tokens, chunk.start, chunk.count)
        if abort:
            self.scheduler.undo(plan)
            return plan
        seconds = self.cost(plan)
        self.now += seconds
        self.scheduler.complete(plan, seconds)
        for chunk in plan.chunks:
            self._sample(chunk.sequence, chunk.start + chunk.count, chunk.count, chunk.outputs)
        self.plans.append(plan)
        return plan

    def _sample(self, sequence: Sequence, end: int, count: int, outputs: int) -> None:
        self.computed[sequence.request] += count
        self.outputs[sequence.request] += range(end - outputs, end)
        if end < len(sequence.tokens):
            return
        if sequence.generated < sequence.answer_tokens:
            self.scheduler.append(sequence, 1000 + end)
            self.token_times[sequence.request].append(self.now)
        if sequence.generated >= sequence.answer_tokens:
            self.scheduler.end(sequence)
            self.gone.add(sequence.request)
            self.finished.append(sequence.request)

    def run(self, limit: int = 100_000) -> None:
        """Step until nothing is left."""
        for _ in range(limit):
            if self.scheduler.idle:
                return
            plan = self.step()
            assert plan.chunks or plan.expired, "a plan that does nothing while work is left"
        raise AssertionError("no end in sight")
