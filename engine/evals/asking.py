"""Asking a model one item through the workbench, and the key under which its answer may be used again.

Invariant: the key covers everything that determines the answer: the model's bytes, its chat template where one is
applied, the question with its parameters, how the model was loaded, and the release.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

import msgspec
import numpy as np
from lathe.engine.errors import DataError, UsageError
from lathe.engine.evals.values import Item, Passage, Response, sha256_of
from lathe.engine.generation import EmbedRequest, GenerationRequest, Message, Score, ScoreRequest
from lathe.engine.rag.requests import Answered, AskRequest, Checked, Retrieved, SearchRequest
from lathe.engine.release import RELEASE
from lathe.engine.transcript import Answer, collect
from lathe.engine.workbench import Workbench
from lathe.engine.worker.messages import LoadOptions, WorkerInfo
from lathe.store.rag.values import StoredPassage

Window = tuple[tuple[int, ...], tuple[int, ...]]
"""Tokens before, and tokens to score."""


def windows(tokens: Sequence[int], longest: int) -> list[Window]:
    """Cut a text so that each token is scored once; no window has more than `longest` tokens besides one before them.

    As lm-evaluation-harness rolls: whole windows see the token before them, the last, shorter one as much as fits. The
    first window's context is left to the worker, which puts the token there that begins a text.
    """
    found: list[Window] = []
    for start in range(0, len(tokens), longest):
        end = min(start + longest, len(tokens))
        found.append((tuple(tokens[max(0, end - longest - 1) : start]), tuple(tokens[start:end])))
    return found


class Asker:
    """Asks one loaded model."""

    def __init__(
        self, workbench: Workbench, model: str, identity: str, options: LoadOptions | None, info: WorkerInfo | None,
        client: str,
    ) -> None:  # fmt: skip
        self._workbench = workbench
        self._model = model
        self._client = client
        self._context = info.context if info else 2048
        self._where = [RELEASE, identity, options, info.backend if info else ""]
        self._template = ""
        self._template_lock = asyncio.Lock()

    async def key(self, item: Item) -> str:
        """Where the answer to an item is kept."""
        template = await self._template_hash() if item.messages else ""
        return sha256_of([self._where, template, item.sha256(), self._targets_asked(item)])

    async def ask(self, item: Item) -> Response:
        """Get the model's answer."""
        started = time.monotonic()
        if item.kind == "choice":
            response = await self._choose(item)
        elif item.kind == "perplexity":
            response = await self._read(item)
        elif item.kind == "similarity":
            response = await self._compare(item)
        elif item.kind == "retrieval":
            response = await self._retrieve(item)
        elif item.kind == "rag":
            return await self._ask_store(item)
        else:
            return await self._generate(item)
        return msgspec.structs.replace(response, total_s=time.monotonic() - started)

    async def _choose(self, item: Item) -> Response:
        if item.messages:
            prompt = await self._workbench.render(self._model, list(item.messages))
            request = ScoreRequest(
                model=self._model, context=prompt.tokens, continuations=item.continuations, client=self._client
            )
        else:
            request = ScoreRequest(
                model=self._model, context=item.context, continuations=item.continuations, client=self._client
            )
        return Response(scores=tuple(map(_sound, await self._workbench.score(request))))

    async def _read(self, item: Item) -> Response:
        tokens = await self._workbench.tokenize(self._model, item.context)
        if not tokens:
            raise UsageError("the text has no tokens")
        scores: list[Score] = []
        for before, part in windows(tokens, self._context - 1):
            request = ScoreRequest(model=self._model, context=before, continuations=(part,), client=self._client)
            scores += await self._workbench.score(request)
        return Response(scores=tuple(map(_sound, scores)), prompt_tokens=len(tokens))

    async def _compare(self, item: Item) -> Response:
        request = EmbedRequest(model=self._model, texts=(item.context, *item.targets), client=self._client)
        embedded = await self._workbench.embed(request)
        rows = np.frombuffer(embedded.vectors, dtype="<f4").reshape(embedded.rows, embedded.dimensions)
        cosines = rows[1:].astype(np.float64) @ rows[0].astype(np.float64)
        if not np.isfinite(cosines).all():
            raise DataError("the model gave vectors that are not finite")
        return Response(vector=tuple(float(value) for value in cosines), prompt_tokens=embedded.prompt_tokens)

    async def _retrieve(self, item: Item) -> Response:
        request = SearchRequest(store=item.store, query=item.context, k=item.k, mode=item.mode)
        found = await self._workbench.search_store(request)
        return Response(passages=tuple(_passage(hit.passage) for hit in found.hits))

    async def _ask_store(self, item: Item) -> Response:
        """The whole of it: search, answer, and what each sentence rests on."""
        request = AskRequest(
            store=item.store, question=item.context, model=self._model, k=item.k, mode=item.mode,
            max_tokens=item.max_tokens, sampling=item.sampling,
        )  # fmt: skip
        response = Response()
        async with aclosing(self._workbench.ask_store(request)) as events:
            async for event in events:
                if isinstance(event, Retrieved):
                    given = tuple(_passage(citation.passage) for citation in event.given)
                    response = msgspec.structs.replace(response, passages=given)
                elif isinstance(event, Answered):
                    response = msgspec.structs.replace(response, text=event.text, finish="stop", **_cost(event))
                elif isinstance(event, Checked):
                    if event.problem:
                        raise DataError(f"what the answer rests on could not be measured: {event.problem}")
                    response = msgspec.structs.replace(response, support=event.sentences)
        return response

    async def _generate(self, item: Item) -> Response:
        request = GenerationRequest(
            model=self._model, messages=item.messages, prompt=None if item.messages else item.context,
            max_tokens=item.max_tokens, stop=item.stop, sampling=item.sampling, client=self._client,
            overflow=item.overflow,
        )  # fmt: skip
        answer = await collect(self._workbench.generate(request))
        return Response(text=answer.text, finish=answer.finish or "", **_cost(answer))

    async def _template_hash(self) -> str:
        async with self._template_lock:
            if not self._template:
                rendered = await self._workbench.render(self._model, [Message("user", "-")])
                self._template = rendered.template_sha256
        return self._template

    @staticmethod
    def _targets_asked(item: Item) -> tuple[str, ...]:
        """Targets are part of the question only where the model sees them."""
        return item.targets if item.kind == "similarity" else ()


def _passage(stored: StoredPassage) -> Passage:
    return Passage(stored.path, stored.start, stored.text)


def _cost(answer: Answered | Answer) -> dict[str, Any]:
    """Tokens and times of an answer."""
    timing, usage = answer.timing, answer.usage
    return {
        "prompt_tokens": usage.prompt_tokens if usage else 0,
        "completion_tokens": usage.completion_tokens if usage else 0,
        "ttft_s": timing.first_token_s if timing else None, "total_s": timing.finished_s if timing else None,
        "tokens_per_s": timing.decode_tokens_per_s(usage.completion_tokens) if timing and usage else None,
    }  # fmt: skip


def _sound(score: Score) -> Score:
    if score.logprob != score.logprob or score.logprob > 1e-6:
        raise DataError(f"the model gave a log-probability of {score.logprob}")
    return score
