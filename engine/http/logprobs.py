"""Log-probabilities in OpenAI's two shapes: parallel lists for completions, one object per token for chat.

Invariant: every number is finite, since JSON has no infinity; a forbidden token's is `IMPOSSIBLE`.
"""

from __future__ import annotations

import msgspec
from lathe.engine.generation import TokenLogprob

IMPOSSIBLE = -9999.0
"""What OpenAI's API gives for a token with no probability."""


class CompletionLogprobs(msgspec.Struct):
    """The legacy shape; every list has one entry per token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]
    """Where each token begins in the choice's text, in characters."""


class TopLogprob(msgspec.Struct):
    """One alternative."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatLogprob(msgspec.Struct):
    """One token of the answer."""

    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct):
    """The chat shape."""

    content: list[ChatLogprob]
    refusal: None = None


def completion_logprobs(tokens: tuple[TokenLogprob, ...], offset: int) -> tuple[CompletionLogprobs, int]:
    """Return the legacy shape, and the offset at which the next token begins."""
    shape = CompletionLogprobs([], [], [], [])
    for token in tokens:
        shape.tokens.append(token.text)
        shape.token_logprobs.append(None if token.logprob is None else _finite(token.logprob))
        shape.top_logprobs.append(_top(token))
        shape.text_offset.append(offset)
        offset += len(token.text)
    return shape, offset


def _top(token: TokenLogprob) -> dict[str, float] | None:
    if token.logprob is None:
        return None
    # Two tokens may decode to the same text (parts of one character): the more probable one stands for both.
    best: dict[str, float] = {}
    for _, text, logprob in token.top:
        best.setdefault(text, _finite(logprob))
    best.setdefault(token.text, _finite(token.logprob))
    return best


def _finite(logprob: float) -> float:
    return max(logprob, IMPOSSIBLE)


def chat_logprobs(tokens: tuple[TokenLogprob, ...]) -> list[ChatLogprob]:
    """Return the chat shape."""
    return [
        ChatLogprob(
            token=token.text,
            logprob=IMPOSSIBLE if token.logprob is None else _finite(token.logprob),
            bytes=list(token.raw or token.text.encode()),
            top_logprobs=[TopLogprob(text, _finite(logprob), list(text.encode())) for _, text, logprob in token.top],
        )
        for token in tokens
    ]


def extend(left: CompletionLogprobs | None, right: CompletionLogprobs) -> CompletionLogprobs:
    """Join two runs of tokens."""
    if left is None:
        return right
    return CompletionLogprobs(
        left.tokens + right.tokens,
        left.token_logprobs + right.token_logprobs,
        left.top_logprobs + right.top_logprobs,
        left.text_offset + right.text_offset,
    )
