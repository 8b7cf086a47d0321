"""Log-probabilities of continuations over a shared context.

A continuation is computed as a sequence of its own; what sequences share is computed only once, in a pack or by the
scheduler. Before that, sequences are merged here: those that are beginnings of others, and continuations of one token,
cost nothing of their own, since the logits after the context tell about each of them. Invariant: each token of each
continuation is judged by the logits of exactly the tokens before it.
"""

from __future__ import annotations

import math
from collections.abc import Hashable

from lathe.engine.errors import UsageError
from lathe.engine.generation import Score, ScoreRequest
from lathe.engine.scheduler.radix import common_prefix
from lathe.engine.scheduler.sequence import Sequence
from lathe.engine.worker.backends.llama.probabilities import Judged, Rows
from lathe.engine.worker.fitting import overflow
from lathe.engine.worker.messages import RequestState
from lathe.engine.worker.vocabulary import Vocabulary

MAX_CONTINUATIONS = 1024


class _Continuation:
    """What is asked about one text: its tokens, the context included, and what came so far."""

    def __init__(self, tokens: list[int], start: int) -> None:
        self.tokens = tokens
        self.start = start
        self.logprobs: list[float] = []
        self.greedy = True

    def take(self, position: int, judged: Judged) -> None:
        """Take the logits of tokens `position`, `position + 1`, ... of a sequence that begins with our tokens."""
        first = max(position, self.start - 1)
        last = min(position + len(judged), len(self.tokens) - 1)
        if first >= last:
            return
        logprobs, greedy = judged[first - position : last - position].of(self.tokens[first + 1 : last + 1])
        self.logprobs += logprobs.tolist()
        self.greedy = self.greedy and greedy

    def restart(self) -> None:
        """Forget what came."""
        self.logprobs, self.greedy = [], True

    def score(self) -> Score:
        return Score(math.fsum(self.logprobs), len(self.logprobs), self.greedy, tuple(self.logprobs))


class Branch:
    """A sequence to compute, and the continuations that it tells about."""

    def __init__(self, scoring: Scoring, sequence: Sequence) -> None:
        self.scoring = scoring
        self.sequence = sequence
        self.continuations: list[_Continuation] = []

    def take(self, position: int, rows: Rows | Judged) -> None:
        """Pass logits on."""
        judged = rows if isinstance(rows, Judged) else Judged(rows)
        for continuation in self.continuations:
            continuation.take(position, judged)


class Scoring:
    """A score request at work."""

    def __init__(
        self,
        request_id: int,
        request: ScoreRequest,
        lexicon: Vocabulary,
        context: int,
        realm: Hashable,
        queued_at: float,
    ) -> None:
        """Tokenise and lay out the branches.

        Raises:
            UsageError: nothing to score, too much of it, or it does not fit the context.
        """
        if not 0 < len(request.continuations) <= MAX_CONTINUATIONS:
            count = len(request.continuations)
            raise UsageError(f"score: {count} continuations given, 1 to {MAX_CONTINUATIONS} are allowed")
        self.id = request_id
        self.request = request
        self.queued_at = queued_at
        self._all = _continuations(request, lexicon)
        longest = max(len(one.tokens) for one in self._all)
        if longest > context:
            raise overflow(longest, None, context)
        self.branches = self._merged(realm)
        self.open = len(self.branches)
        """Branches that are not computed yet."""

    def _merged(self, realm: Hashable) -> list[Branch]:
        branches: list[Branch] = []
        shared = max(0, min(common_prefix(self._all[0].tokens, one.tokens) for one in self._all) - 1)
        # In this order a text stands right behind those that begin with it.
        for one in sorted(self._all, key=lambda one: one.tokens[shared:-1], reverse=True):
            needed = one.tokens[:-1]
            if not branches or branches[-1].sequence.tokens[: len(needed)] != needed:
                sequence = Sequence(
                    self.id, needed, 0, queued_at=self.queued_at, realm=realm, lane=(),
                    principal=self.request.principal,
                )  # fmt: skip
                branches.append(Branch(self, sequence))
            branch = branches[-1]
            branch.sequence.outputs_from = min(branch.sequence.outputs_from, one.start - 1)
            branch.continuations.append(one)
        return branches

    def restart(self) -> None:
        """Forget what came, after a batch that was given up midway."""
        for one in self._all:
            one.restart()

    def scores(self) -> tuple[Score, ...]:
        """The answers, in the order of the question."""
        return tuple(one.score() for one in self._all)

    def state(self, now: float) -> RequestState:
        """The row of a panel."""
        sequences = [branch.sequence for branch in self.branches]
        started = any(one.scheduled_at is not None for one in sequences)
        return RequestState(
            id=self.id,
            stage="prefill" if started else "waiting",
            client=self.request.client,
            principal=self.request.principal,
            prompt_tokens=sum(len(one.tokens) for one in sequences),
            prefilled=sum(one.computed for one in sequences),
            generated=0,
            age_s=now - self.queued_at,
        )


def _continuations(request: ScoreRequest, lexicon: Vocabulary) -> list[_Continuation]:
    """Split texts into tokens of the context and of the continuation.

    Two strings are tokenised as one and divided where the context alone would end, with spaces at the end of the
    context counted to the continuation: the convention of lm-evaluation-harness, so that its tasks score alike.
    """
    context = request.context
    before: list[int] | None = None
    divided: int | None = None
    found = []
    for text in request.continuations:
        if isinstance(context, str) and isinstance(text, str):
            divided = len(lexicon.encode(context.rstrip(), ends=True)) if divided is None else divided
            tokens, start = lexicon.encode(context + text, ends=True), divided
        else:
            before = _ids(context, lexicon, ends=True) if before is None else before
            tokens, start = before + _ids(text, lexicon, ends=False), len(before)
        if start == 0:
            tokens, start = [beginning(lexicon), *tokens], 1
        if len(tokens) <= start:
            raise UsageError("score: a continuation has no tokens of its own")
        found.append(_Continuation(tokens, start))
    return found


def _ids(part: str | tuple[int, ...], lexicon: Vocabulary, *, ends: bool) -> list[int]:
    return lexicon.encode(part, ends=ends) if isinstance(part, str) else lexicon.checked(part)


def beginning(lexicon: Vocabulary) -> int:
    """What stands before a continuation without context."""
    for token in (lexicon.bos, lexicon.eos):
        if token >= 0:
            return token
    raise UsageError("score: without context the model needs a token that begins a text, and it has none")
