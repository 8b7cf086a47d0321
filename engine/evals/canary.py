"""A question with a known answer, asked before everything that rests on log-likelihoods.

Runtimes that silently score wrong (tokens shifted by one, a lost or doubled BOS, another prompt than the chat template
makes) give runs at exact chance with no error. The answer that is known is the model's own: it says a few tokens, one
at a time, and every way of asking for likelihoods must give those tokens the log-probabilities that it said them with:

    whole      all of them behind the text, as choices are asked
    split      the second part behind the text and the first part: the chain rule
    single     the best alternatives of the first token, one continuation each
    rolled     the text itself and then all of them behind nothing, as perplexity is asked
    chat       the first token of an answer to a rendered conversation

How well must they agree? As well as the model agrees with itself. Strong quantization makes logits depend on how a
text is cut into batches, so the same tokens are said again from other batches, and what that moves is the measure.
Invariant: a model that fails this measures nothing, and one that is merely coarse does not fail it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import aclosing

from lathe.engine.errors import InternalError, LatheError
from lathe.engine.generation import (
    GenerationRequest,
    Message,
    RenderedPrompt,
    Sampling,
    Score,
    ScoreRequest,
    TokenLogprob,
)
from lathe.engine.workbench import Workbench
from lathe.engine.worker.messages import WorkerInfo

TOLERANCE = 0.05
"""Nats (root mean square) that are always allowed: batches of another shape round differently."""
COARSENESS = 4.0
"""Times what the model moves by itself."""
UNUSABLE = 0.5
"""Nats by which a model may move: beyond, no damage could be told from its noise."""
_TEXT = "The quick brown fox jumps over the lazy dog. The quick brown"
_QUESTION = (Message("user", "What does the fox do?"),)
_TOKENS, _ALTERNATIVES = 12, 5
_AGAIN = (0, 4, 8)
"""After so many of its tokens the model is asked anew."""

Context = str | tuple[int, ...]


class CanaryDied(InternalError):
    """The model's log-likelihoods contradict each other."""

    code = "E_EVAL_CANARY"


async def check(workbench: Workbench, model: str, client: str, info: WorkerInfo | None = None) -> float:
    """Compare all paths; returns the largest deviation of one, in nats (root mean square).

    Raises:
        CanaryDied: one contradicts what the model itself says.
    """
    canary = _Canary(workbench, model, client)
    said = await canary.say(prompt=_TEXT, count=_TOKENS)
    if all(entry.id < 0 for entry in said):
        return canary.judge({"whole": await canary.nameless(said)}, await canary.noise(said, None))
    before = tuple(await workbench.tokenize(model, _TEXT, bos=True))
    paths = await canary.paths(said, before)
    if info is not None and info.chat_template and (rendered := await canary.rendered()) is not None:
        canary.check_start(rendered, info)
        paths["chat"] = await canary.singles((await canary.say(messages=_QUESTION, count=1))[0], rendered.tokens)
    return canary.judge(paths, await canary.noise(said, before))


class _Canary:
    """The questions, and what is made of the answers."""

    def __init__(self, workbench: Workbench, model: str, client: str) -> None:
        self._workbench = workbench
        self._model = model
        self._client = client

    async def say(
        self, *, count: int, prompt: str | None = None, tokens: tuple[int, ...] | None = None,
        messages: tuple[Message, ...] = (),
    ) -> list[TokenLogprob]:  # fmt: skip
        """What the model says next, one token at a time, with the best alternatives of each."""
        request = GenerationRequest(
            model=self._model, prompt=prompt, tokens=tokens, messages=messages, max_tokens=count,
            logprobs=_ALTERNATIVES, client=self._client, cache_prompt=False,
            sampling=Sampling(temperature=0, ignore_eos=True),
        )  # fmt: skip
        said: list[TokenLogprob] = []
        async with aclosing(self._workbench.generate(request)) as deltas:
            async for delta in deltas:
                said += delta.logprobs
        if not said or any(entry.logprob is None or not entry.top for entry in said):
            raise CanaryDied(f"{self._model} said nothing that likelihoods can be compared with")
        return said

    async def paths(self, said: Sequence[TokenLogprob], before: tuple[int, ...]) -> dict[str, list[float]]:
        """Deviations by path, for a model whose token ids are known."""
        tokens = tuple(entry.id for entry in said)
        text, cut = "".join(entry.text for entry in said), len(said) // 2
        faithful = tuple(await self._workbench.tokenize(self._model, _TEXT + text, bos=True)) == before + tokens
        found = {
            "whole": await self.whole(said, _TEXT, text if faithful else tokens),
            "split": await self.whole(said[cut:], before + tokens[:cut], tokens[cut:]),
            "single": await self.singles(said[0], before),
        }
        bare = tuple(await self._workbench.tokenize(self._model, _TEXT))
        if len(before) == len(bare) + 1:
            # The model begins texts with a token of its own, and so must a text that nothing stands before.
            found["rolled"] = await self.whole(said, (), bare + tokens)
        return found

    async def nameless(self, said: Sequence[TokenLogprob]) -> list[float]:
        """Deviations of tokens without ids: as many as the server makes the same tokens of, when it reads them."""
        for count in (len(said), len(said) // 2, 1):
            text = "".join(entry.text for entry in said[:count])
            (score,) = await self._score(_TEXT, text)
            if score.tokens == count:
                return await self.whole(said[:count], _TEXT, text)
        raise self._died("it reads its own first token as something else")

    async def whole(self, said: Sequence[TokenLogprob], context: Context, continuation: Context) -> list[float]:
        """How far tokens are from what they were said with; a longer continuation ends with them."""
        (score,) = await self._score(context, continuation)
        numbers = score.token_logprobs
        if len(numbers) < len(said) or (context and len(numbers) != len(said)) or len(numbers) != score.tokens:
            raise self._died(f"{len(said)} tokens got {len(numbers)} log-probabilities")
        if not abs(math.fsum(numbers) - score.logprob) <= TOLERANCE:
            raise self._died("a continuation's log-probability is not the sum of its tokens'")
        return [
            number - (entry.logprob or 0.0)
            for number, entry in zip(numbers[len(numbers) - len(said) :], said, strict=True)
        ]

    async def singles(self, first: TokenLogprob, context: tuple[int, ...]) -> list[float]:
        """How far the alternatives to one token are from what they had when it was said."""
        scores = await self._score(context, *((token,) for token, _, _ in first.top))
        best, second = (first.top[0][2], first.top[1][2]) if len(first.top) > 1 else (0.0, -math.inf)
        clear = best - second > UNUSABLE
        if clear and (not scores[0].greedy or any(score.greedy for score in scores[1:])):
            raise self._died("the most likely token is not the one that is scored as such")
        return [score.logprob - logprob for score, (_, _, logprob) in zip(scores, first.top, strict=True)]

    async def noise(self, said: Sequence[TokenLogprob], before: tuple[int, ...] | None) -> list[float]:
        """How far the model moves from its own words when the text before them is cut into other batches."""
        moved: list[float] = []
        for count in _AGAIN:
            if count >= len(said):
                break
            if before is None:
                again = await self.say(prompt=_TEXT + "".join(entry.text for entry in said[:count]), count=1)
            else:
                again = await self.say(tokens=before + tuple(entry.id for entry in said[:count]), count=1)
            moved += _moved(said[count], again[0])
        return moved

    async def rendered(self) -> RenderedPrompt | None:
        """A conversation as the template makes it; None where it takes none so short."""
        try:
            return await self._workbench.render(self._model, list(_QUESTION))
        except LatheError:
            return None

    def check_start(self, rendered: RenderedPrompt, info: WorkerInfo) -> None:
        """A text begins once."""
        if info.bos_token_id is not None and rendered.tokens[:2] == (info.bos_token_id,) * 2:
            raise self._died("its chat template begins the text twice")

    def judge(self, paths: dict[str, list[float]], noise: list[float]) -> float:
        """The largest deviation of a path, if all are within what the model's own noise explains."""
        moved = _rms(noise)
        if not moved <= UNUSABLE:
            raise self._died(f"its own log-probabilities move by {moved:.3g} nats from one computation to the next")
        allowed = max(TOLERANCE, COARSENESS * moved)
        for name, deviations in paths.items():
            if not _rms(deviations) <= allowed:
                raise self._died(
                    f"scored {name}, tokens are {_rms(deviations):.3g} nats from what it says them with "
                    f"(allowed: {allowed:.2g})"
                )
        return max(map(_rms, paths.values()))

    async def _score(self, context: Context, *continuations: Context) -> list[Score]:
        return await self._workbench.score(
            ScoreRequest(model=self._model, context=context, continuations=continuations, client=self._client)
        )

    def _died(self, what: str) -> CanaryDied:
        return CanaryDied(
            f"{self._model}: {what}, so no likelihood can be trusted",
            hint="nothing was measured; try another backend or load options, and report the model",
        )


def _moved(entry: TokenLogprob, again: TokenLogprob) -> Iterator[float]:
    """Differences of the alternatives that both name; of tokens without ids by their text."""
    known = {(token, text): logprob for token, text, logprob in entry.top}
    same = [(known[token, text], logprob) for token, text, logprob in again.top if (token, text) in known]
    return (left - right for left, right in same) if same else iter([math.inf])


def _rms(values: Sequence[float]) -> float:
    return math.sqrt(sum(value * value for value in values) / len(values)) if values else 0.0
