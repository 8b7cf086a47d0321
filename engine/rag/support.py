"""Which passage caused which sentence: log-probabilities with each passage left out in turn.

For each sentence s of an answer and each passage p: how much less likely, per token, are the sentence's very words when
the prompt lacks p? Nothing is generated; prompts share their beginnings, so the prefix cache makes it cheap. It is the
leave-one-out context attribution of Cohen-Wang et al. 2024 (ContextCite), exact instead of sampled. Invariant: figures
are differences of natural-log probabilities per token of one and the same answer, comparable within it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from lathe.engine.generation import ScoreRequest
from lathe.engine.rag.fencing import sentences
from lathe.engine.rag.requests import SentenceSupport
from lathe.engine.workbench import Workbench

SUPPORTED = 0.1
"""Nats per token that all passages together must add for a sentence to count as supported: 10 % per token."""


class Prompt(Protocol):
    """How a prompt is made of some of the passages."""

    async def __call__(self, kept: Sequence[int]) -> tuple[int, ...]:
        """Token ids of the prompt with only these passages, numbered from 0."""


async def support(workbench: Workbench, model: str, prompt: Prompt, count: int, answer: str) -> list[SentenceSupport]:
    """Measure every sentence of an answer against each of `count` passages."""
    spans = sentences(answer)
    if not spans or not count:
        return []
    tokens = tuple(await workbench.tokenize(model, answer))
    edges = [len(await workbench.tokenize(model, answer[:end])) for _, end in spans]
    edges = [min(edge, len(tokens)) for edge in edges[:-1]] + [len(tokens)]

    async def scored(kept: Sequence[int]) -> list[float]:
        request = ScoreRequest(model=model, context=await prompt(kept), continuations=(tokens,), client="rag support")
        [score] = await workbench.score(request)
        sums, first = [], 0
        for edge in edges:
            part = score.token_logprobs[first:edge]
            sums.append(sum(part) / len(part) if part else 0.0)
            first = edge
        return sums

    every = range(count)
    whole, nothing = await scored(every), await scored(())
    lacking = [[other for other in every if other != left] for left in every]
    without = [await scored(kept) if kept else nothing for kept in lacking]
    return [
        SentenceSupport(
            text=answer[start:end].strip(), start=start, end=end, gain=whole[i] - nothing[i],
            passages=tuple(whole[i] - left[i] for left in without),
            supported=whole[i] - nothing[i] >= SUPPORTED,
        )
        for i, (start, end) in enumerate(spans)
    ]  # fmt: skip
