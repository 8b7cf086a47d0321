"""The values between the scheduler and the ring that carries its plans out."""

from __future__ import annotations

from collections.abc import Hashable

import msgspec
from lathe.engine.scheduler.ledger import Effect, Hold, Realm


class Sequence:
    """One choice of one request: its tokens, and how far they are computed.

    The scheduler owns everything but `tokens`, which grows by `Scheduler.append`.
    """

    __slots__ = (
        "answer_tokens", "borrowed", "deadline", "draft", "hold", "lane", "leader", "leader_at", "long", "order",
        "outputs_from", "principal", "priority", "prompt_tokens", "queued_at", "realm", "request", "scheduled_at",
        "tokens",
    )  # fmt: skip

    def __init__(
        self,
        request: int,
        tokens: list[int],
        answer_tokens: int,
        *,
        queued_at: float,
        realm: Realm,
        lane: Hashable = None,
        principal: str = "local",
        priority: int = 0,
        deadline: float | None = None,
        outputs_from: int | None = None,
    ) -> None:
        """Describe a sequence.

        Args:
            request: the id that the caller knows it by.
            tokens: the prompt; the list is taken over.
            answer_tokens: at most so many will be appended; 0: the prompt is only scored.
            realm: sequences of one realm share prefixes.
            lane: sequences of different lanes never share a batch (adapters are set per batch).
            deadline: monotonic seconds.
            outputs_from: position of the first token whose logits are wanted; None: the last one of the prompt.
        """
        self.request = request
        self.tokens = tokens
        self.prompt_tokens = len(tokens)
        self.answer_tokens = answer_tokens
        self.queued_at = queued_at
        self.realm = realm
        self.lane = lane
        self.principal = principal
        self.priority = priority
        self.deadline = deadline
        self.outputs_from: int = len(tokens) - 1 if outputs_from is None else outputs_from
        """Position of the next token whose logits are still wanted."""
        self.draft: list[int] = []
        """Guessed to come next; computed behind the tokens, and kept as far as the model agrees."""
        self.order = 0
        self.hold: Hold | None = None
        self.leader: Sequence | None = None
        """Computes the prefix that this one waits for."""
        self.leader_at = 0
        """How much of it."""
        self.long = False
        self.scheduled_at: float | None = None
        self.borrowed: int | None = None
        """Prompt tokens that were not computed for it; None until it was first scheduled."""

    @property
    def computed(self) -> int:
        """Tokens that have cells."""
        return 0 if self.hold is None else self.hold.computed

    @property
    def rest(self) -> int:
        """Tokens that are still to be computed."""
        return len(self.tokens) - self.computed

    @property
    def generated(self) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - self.prompt_tokens

    @property
    def decoding(self) -> bool:
        """Whether the only thing to compute is the token generated last."""
        return self.generated > 0 and self.rest == 1


class Chunk(msgspec.Struct, frozen=True):
    """Consecutive tokens of one sequence in a batch."""

    sequence: Sequence
    start: int
    count: int
    outputs: int
    """How many of them, the last ones, give logits."""

    @property
    def tokens(self) -> list[int]:
        """The tokens themselves, those of a draft included."""
        sequence, end = self.sequence, self.start + self.count
        return sequence.tokens[self.start : end] + sequence.draft[: max(0, end - len(sequence.tokens))]


class Plan(msgspec.Struct, frozen=True):
    """One iteration."""

    effects: list[Effect]
    """On the cache, before the batch, in order."""
    chunks: list[Chunk]
    """The batch: decoding sequences first."""
    expired: list[Sequence]
    """Past their deadline; they are out of the scheduler already."""
    streams: int = 0
    short: int = 0
    """Tokens of short prompts."""
    long: int = 0
    lane: Hashable = None
    drafted: int = 0
    """Rows of sequences that decode with a draft; their chunks stand behind those of the other streams."""

    @property
    def rows(self) -> int:
        """Tokens in the batch."""
        return self.streams + self.drafted + self.short + self.long
