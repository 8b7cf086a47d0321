"""How many prompt tokens an iteration may carry beside running streams.

Prompt tokens in a batch delay the next token of every stream in it. Three rules:

1. with no stream running, a whole batch;
2. prompts that fit one batch are short and taken whole: one late token per stream buys a quick first token;
3. of longer prompts so much that the iteration takes at most `TARGET` times what a pure decode iteration took before
   they came; the amount follows the measured times, and what the prompt's cells cost the streams counts. One iteration
   in `ALLOWANCE` may carry a whole batch: more than nineteen of twenty inter-token times stay within the target, which
   is what a 95th percentile sees, and the prompt is done sooner.

Where so little is left for a long prompt that its few tokens cost more than they bring (deep in a prompt, attention for
one more row takes longer than the streams' whole iteration), it gets none but in those whole batches.

Invariant: a long prompt gets a whole batch at least every `ALLOWANCE` iterations, so that it never stands still.
"""

from __future__ import annotations

TARGET = 1.7
"""Times a pure decode iteration; below the promised factor 2, to leave room for noise."""
FEW = 4
"""Tokens of a long prompt below which an iteration takes none."""
ALLOWANCE = 28
_REMEASURE = 32
"""Paced iterations after which one goes without long prompts, to learn the pure decode time again."""
_SMOOTH = 0.2
_GROWTH = 1.12
"""Per iteration: where rows turn from free to costly the time jumps, and must not jump past the target."""


class _Episode:
    """The time in which long prompts and streams run side by side."""

    def __init__(self, amount: float, calm_s: dict[int, float]) -> None:
        self.amount = amount
        """Tokens of long prompts per iteration."""
        self.calm_s = calm_s
        """Rows of a pure decode iteration -> seconds, before the prompts came."""
        self.since_whole = 0
        self.since_alone = 0


class Pacer:
    """Learns what prompt tokens cost and doles them out."""

    def __init__(self, batch_tokens: int) -> None:
        self._batch = batch_tokens
        self._decode_s: dict[int, float] = {}
        """Rows of a pure decode iteration -> smoothed seconds."""
        self._token_s: float | None = None
        """Smoothed seconds that a prompt token adds to an iteration."""
        self._episode: _Episode | None = None

    def allow(self, streams: int, short: int, long: int) -> tuple[int, int]:
        """Prompt tokens for the next iteration, of short and of long prompts.

        Args:
            streams: sequences that decode; each takes one row of the batch.
            short: tokens still to be computed of prompts that fit one batch.
            long: the same of longer ones.
        """
        room = max(1, self._batch - streams)
        if not long:
            self._episode = None
            return min(short, room), 0
        if not streams:
            kept = min(long, max(room - short, room // 4))
            return min(short, room - kept), kept
        episode = self._episode = self._episode or _Episode(self._first_amount(streams), dict(self._decode_s))
        if episode.since_whole >= ALLOWANCE:
            allowance = room
        elif episode.since_alone >= _REMEASURE:
            allowance = 0
        else:
            allowance = int(episode.amount) if episode.amount >= FEW else 0
        taken = min(long, room, max(allowance - short, min(allowance, 1)))
        return min(short, room - taken), taken

    def observe(self, streams: int, short: int, long: int, seconds: float) -> None:
        """Learn from a finished iteration."""
        alone = _nearest(self._decode_s, streams) if streams else 0.0
        if short + long and alone is not None:
            cost = max(0.0, seconds - alone) / (short + long)
            self._token_s = cost if self._token_s is None else self._token_s + _SMOOTH * (cost - self._token_s)
        elif streams and not short + long:
            known = self._decode_s.get(streams, seconds)
            # One iteration that lost its processor must not raise what the others are measured by.
            smooth = _SMOOTH if seconds < known else _SMOOTH / 8
            self._decode_s[streams] = known + smooth * (seconds - known)
        if self._episode is not None and streams:
            self._adapt(self._episode, streams, alone, short, long, seconds)

    def _adapt(
        self, episode: _Episode, streams: int, alone: float | None, short: int, long: int, seconds: float
    ) -> None:
        episode.since_whole += 1
        if not long:
            episode.since_alone = 0
            return
        episode.since_alone += 1
        if alone is None:
            episode.since_alone = _REMEASURE  # nothing to compare with yet
        elif long > 2 * episode.amount:
            episode.since_whole = 0
        elif not short:
            calm = min(alone, _nearest(episode.calm_s, streams) or alone)
            wanted = (TARGET * calm - alone) / max(seconds - alone, alone / 100)
            episode.amount = self._bounded(episode.amount * min(_GROWTH, max(0.5, wanted)))

    def _first_amount(self, streams: int) -> float:
        alone = _nearest(self._decode_s, streams)
        if alone is None or not self._token_s:
            return self._bounded(self._batch / 16)
        return self._bounded((TARGET - 1) * alone / self._token_s)

    def _bounded(self, amount: float) -> float:
        return min(float(self._batch), max(1.0, amount))


def _nearest(decode_s: dict[int, float], streams: int) -> float | None:
    """Seconds of a pure decode iteration of so many streams, from the nearest count that was measured."""
    return decode_s[min(decode_s, key=lambda rows: abs(rows - streams))] if decode_s else None
