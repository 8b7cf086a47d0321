"""`usage` and `timings` as clients expect them, from one request's figures.

`timings` has llama-server's names and units; `usage` OpenAI's, with cached tokens, which belong to the asking key
alone because the prefix cache is kept per key. Unknown durations are left out rather than invented.
"""

from __future__ import annotations

import msgspec
from lathe.engine.generation import Timing, Usage


class PromptDetails(msgspec.Struct, frozen=True):
    """Where prompt tokens came from."""

    cached_tokens: int


class UsageBody(msgspec.Struct, frozen=True, omit_defaults=True):
    """OpenAI's token counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    truncated_tokens: int = 0
    """Prompt tokens that the overflow policy cut; absent when nothing was cut."""


class Timings(msgspec.Struct, frozen=True, omit_defaults=True):
    """llama-server's figures of one request."""

    cache_n: int
    prompt_n: int
    prompt_ms: float
    prompt_per_token_ms: float | None
    prompt_per_second: float | None
    predicted_n: int
    predicted_ms: float
    predicted_per_token_ms: float | None
    predicted_per_second: float | None
    queue_ms: float = 0.0
    seed: int | None = None
    draft_n: int = 0
    draft_n_accepted: int = 0


def usage_body(usage: Usage) -> UsageBody:
    """Return OpenAI's form."""
    return UsageBody(
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.prompt_tokens + usage.completion_tokens,
        PromptDetails(usage.cached_tokens),
        usage.truncated_tokens,
    )


def timings(usage: Usage, timing: Timing) -> Timings:
    """Return llama-server's form."""
    computed = usage.prompt_tokens - usage.cached_tokens
    prompt_ms, decode_ms = timing.prefill_s * 1000, timing.decode_s * 1000
    speed = timing.decode_tokens_per_s(usage.completion_tokens)
    return Timings(
        cache_n=usage.cached_tokens,
        prompt_n=computed,
        prompt_ms=prompt_ms,
        prompt_per_token_ms=prompt_ms / computed if computed else None,
        prompt_per_second=computed * 1000 / prompt_ms if prompt_ms > 0 else None,
        predicted_n=usage.completion_tokens,
        predicted_ms=decode_ms,
        predicted_per_token_ms=1000 / speed if speed else None,
        predicted_per_second=speed,
        queue_ms=timing.queue_s * 1000,
        seed=timing.seed,
        draft_n=usage.draft_tokens,
        draft_n_accepted=usage.accepted_tokens,
    )


def add(left: Usage | None, right: Usage) -> Usage:
    """Sum the counts of several prompts of one request."""
    if left is None:
        return right
    return Usage(*(getattr(left, name) + getattr(right, name) for name in Usage.__struct_fields__))
