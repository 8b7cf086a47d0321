"""Folding a stream of deltas into the whole answers that callers without a screen want."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec
from lathe.engine.generation import Delta, FinishReason, Timing, TokenLogprob, Usage


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One finished choice."""

    text: str = ""
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: FinishReason | None = None
    usage: Usage | None = None
    timing: Timing | None = None


async def collect(stream: AsyncGenerator[Delta, None]) -> Answer:
    """Read a stream of one choice to its end."""
    return (await collect_all(stream, 1))[0]


async def collect_all(stream: AsyncGenerator[Delta, None], n: int) -> list[Answer]:
    """Read a stream of `n` choices to its end; usage and timing belong to the request and stand in each."""
    texts: list[list[str]] = [[] for _ in range(n)]
    tokens: list[list[int]] = [[] for _ in range(n)]
    logprobs: list[list[TokenLogprob]] = [[] for _ in range(n)]
    finish: list[FinishReason | None] = [None] * n
    usage: Usage | None = None
    timing: Timing | None = None
    async with aclosing(stream):
        async for delta in stream:
            texts[delta.index].append(delta.text)
            tokens[delta.index].extend(delta.tokens)
            logprobs[delta.index].extend(delta.logprobs)
            finish[delta.index] = delta.finish or finish[delta.index]
            usage, timing = delta.usage or usage, delta.timing or timing
    return [
        Answer(
            text="".join(texts[i]), tokens=tuple(tokens[i]), logprobs=tuple(logprobs[i]), finish=finish[i], usage=usage,
            timing=timing,
        )
        for i in range(n)
    ]  # fmt: skip
