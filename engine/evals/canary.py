"""A question with a known answer, asked before every suite that rests on log-likelihoods.

Runtimes that silently score wrong give harness runs at exact chance with no error. So, before anything is measured, the
model's own next token is compared along two paths: what `generate` says of its alternatives must be what `score` says
of the same tokens, in value and in order, and the chain rule must hold. Invariant: a model that fails this measures
nothing.
"""

from __future__ import annotations

from contextlib import aclosing

from lathe.engine.errors import InternalError
from lathe.engine.generation import GenerationRequest, Sampling, ScoreRequest
from lathe.engine.workbench import Workbench

TOLERANCE = 0.05
"""Nats; batches of another shape round differently, wrong scores differ by whole nats."""
_TEXT = "The quick brown fox jumps over the lazy dog. The quick brown"
_ALTERNATIVES = 5


class CanaryDied(InternalError):
    """The model's log-likelihoods contradict each other."""

    code = "E_EVAL_CANARY"


async def check(workbench: Workbench, model: str, client: str) -> float:
    """Compare both paths; returns the largest deviation in nats.

    Raises:
        CanaryDied: they contradict each other.
    """
    tokens = tuple(await workbench.tokenize(model, _TEXT))
    top = await _alternatives(workbench, model, tokens, client)
    one_by_one = tuple((token,) for token, _ in top)
    pair = (tokens[-1], top[0][0])
    request = ScoreRequest(model=model, context=tokens, continuations=one_by_one, client=client)
    scores = await workbench.score(request)
    chain = await workbench.score(
        ScoreRequest(model=model, context=tokens[:-1], continuations=(pair, pair[:1]), client=client)
    )
    deviations = [abs(score.logprob - logprob) for score, (_, logprob) in zip(scores, top, strict=True)]
    deviations.append(abs(chain[0].logprob - chain[1].logprob - scores[0].logprob))
    worst = max(deviations)
    if not worst <= TOLERANCE:
        raise CanaryDied(
            f"{model}: the same token has log-probabilities {worst:.3g} apart, so no likelihood can be trusted",
            hint="nothing was measured; try another backend or load options, and report the model",
        )
    if not scores[0].greedy or any(score.greedy for score in scores[1:]):
        raise CanaryDied(f"{model}: the most likely token is not the one that is scored as such")
    return worst


async def _alternatives(
    workbench: Workbench, model: str, tokens: tuple[int, ...], client: str
) -> list[tuple[int, float]]:
    """The best next tokens with their log-probabilities, as `generate` sees them."""
    request = GenerationRequest(
        model=model, tokens=tokens, max_tokens=1, logprobs=_ALTERNATIVES, client=client,
        sampling=Sampling(temperature=0, ignore_eos=True),
    )  # fmt: skip
    async with aclosing(workbench.generate(request)) as deltas:
        async for delta in deltas:
            for entry in delta.logprobs:
                if entry.top:
                    return [(token, logprob) for token, _, logprob in entry.top]
    raise CanaryDied(f"{model} generated nothing to compare likelihoods with")
