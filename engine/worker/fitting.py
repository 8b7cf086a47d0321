"""Whether a prompt fits its context, and what the named policies cut. Pure.

Invariant: nothing is cut without being counted, and by default nothing is cut at all.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from lathe.engine.errors import UsageError

Overflow = Literal["refuse", "truncate_left", "truncate_middle"]


class Fitted(msgspec.Struct, frozen=True):
    """A prompt that fits."""

    tokens: list[int]
    max_tokens: int
    """How many tokens may follow; what was asked, or all that the context has room for."""
    truncated: int = 0


def fit(tokens: list[int], max_tokens: int | None, context: int, policy: Overflow, *, keep_first: int = 0) -> Fitted:
    """Fit a prompt and its answer into `context` tokens.

    Args:
        keep_first: tokens at the start that `truncate_left` must keep, such as BOS.

    Raises:
        UsageError: the prompt is empty, or it does not fit and the policy is to refuse.
    """
    if not tokens:
        raise UsageError("the prompt is empty: it has no tokens", hint="give at least one token of text")
    room = context - len(tokens)
    if max_tokens is None and room >= 1:
        return Fitted(tokens, room)
    if max_tokens is not None and max_tokens <= room:
        return Fitted(tokens, max_tokens)
    answer = 1 if max_tokens is None else max_tokens
    kept = context - answer
    if policy == "refuse" or kept < max(1, keep_first + 1):
        raise overflow(len(tokens), max_tokens, context)
    cut = len(tokens) - kept
    head = keep_first if policy == "truncate_left" else max(keep_first, kept // 2)
    return Fitted(tokens[:head] + tokens[head + cut :], answer, cut)


def overflow(tokens: int, max_tokens: int | None, context: int, *, at_least: bool = False) -> UsageError:
    """The refusal, with the counts."""
    count = f"at least {tokens}" if at_least else f"{tokens}"
    answer = "" if max_tokens is None else f" and an answer of {max_tokens}"
    return UsageError(
        f"a prompt of {count} tokens{answer} does not fit the context of {context}",
        hint="shorten the prompt, lower max_tokens, load the model with a larger context, or name an overflow policy",
        code="E_CONTEXT_OVERFLOW",
    )
