"""The remote backend: an OpenAI-compatible server behind the protocol that local models have.

Requests run side by side on an event loop in a thread of its own; the engine thread only hands them over. What the
server does not tell (ids of tokens, prompt times) stays unknown. Invariants: each request ends with one `Done` or
`Failed`; a cancelled one closes its connection at once.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import Future
from contextlib import aclosing
from typing import Any, TypeVar
from urllib.parse import urldefrag

import msgspec
from lathe.engine.errors import Cancelled, LatheError, MissingError, TimeoutExpired, UsageError, describe
from lathe.engine.generation import (
    Delta,
    Embeddings,
    FinishReason,
    GenerationRequest,
    RenderedPrompt,
    Score,
    ScoreRequest,
    Usage,
    check,
)
from lathe.engine.worker.backends.protocol import Ask, Emit, Lookup, Progress
from lathe.engine.worker.backends.remote import wire
from lathe.engine.worker.backends.remote.connection import Connection
from lathe.engine.worker.backends.remote.request import Asked, Reading
from lathe.engine.worker.messages import (
    Detokenize,
    Done,
    Embed,
    Failed,
    FromWorker,
    Generate,
    LoadOptions,
    Piece,
    Prompt,
    Render,
    Scores,
    ScoreTexts,
    Text,
    Tokenize,
    Tokens,
    Vectors,
    WorkerInfo,
    WorkerStats,
)

_AT_ONCE = 64
"""Requests on their way; more wait here."""
_LOOKUP_S = 60.0
_MAX_ROWS = 256
_ALTERNATIVES = 5

Answer = TypeVar("Answer")


class RemoteBackend:
    """A `Backend` over HTTP."""

    def __init__(self, emit: Emit, secret: str | None = None) -> None:
        self._emit = emit
        self._secret = secret
        self._asked: dict[int, Asked] = {}
        self._prompt_tokens = self._cached_tokens = self._generated_tokens = 0
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="remote", daemon=True).start()
        self._connection: Connection
        self._model = ""
        self._places: asyncio.Semaphore

    # -- Backend -------------------------------------------------------------------------------------------------
    def load(self, path: str, name: str, options: LoadOptions, progress: Progress) -> WorkerInfo:
        begun = time.monotonic()
        if options.adapters or options.draft:
            raise UsageError("adapters and draft models of a remote model are its server's business")
        url, self._model = urldefrag(path)
        context = self._wait(self._open(url, name))
        progress(1.0)
        return WorkerInfo(
            backend="remote",
            pid=os.getpid(),
            context=context or options.context or 0,
            kv_tokens=0,
            slots=_AT_ONCE,
            vocabulary=0,
            load_s=time.monotonic() - begun,
            capabilities=("generate", "chat", "score", "embed", "rank"),
            system=f"{self._model} at {url}",
        )

    async def _open(self, url: str, name: str) -> int | None:
        """Look at the server; returns the context of the model where it is told.

        Raises:
            LatheError: it is not there, refuses the key, or does not have the model.
        """
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._connection = Connection(url, self._secret, name)
        try:
            known = wire.models(await self._connection.get("models"))
        except MissingError:
            known = {}  # servers without a list of models are used as they are
        if not self._model and len(known) == 1:
            (self._model,) = known
        if not self._model or (known and self._model not in known):
            named = ", ".join(sorted(known)[:5]) or "it lists none"
            raise MissingError(
                f"{self._connection.server} has no model {self._model!r}" if self._model else
                f"{self._connection.server} has several models or names none", hint=f"name one with --model: {named}",
                code="E_REMOTE_MISSING",
            )  # fmt: skip
        return known.get(self._model)

    def answer(self, lookup: Lookup) -> Tokens | Text | Prompt:
        match lookup:
            case Tokenize(request, text, special, bos):
                return Tokens(request, self._wait(self._tokenized(text, special, bos)))
            case Detokenize(request, tokens):
                answer = self._wait(self._post("/detokenize", {"tokens": list(tokens)}))
                return Text(request, str(answer.get("content", answer.get("prompt", ""))))
            case Render(request, messages, _, _, _):
                said = [{"role": message.role, "content": message.content} for message in messages]
                text = str(self._wait(self._post("/apply-template", {"messages": said})).get("prompt", ""))
                return Prompt(request, RenderedPrompt(text, self._wait(self._tokenized(text, True, False)), ""))

    def admit(self, ask: Ask) -> object:
        match ask:
            case Generate(_, request):
                check(request)
                wire.chat_or_completion(request, self._model, stream=True)
            case Embed(_, request) if request.pooling not in ("model", "rank"):
                raise UsageError("a remote model pools by itself", hint="ask for pooling `model`", code="E_CAPABILITY")
        return Asked(ask)

    def begin(self, work: object) -> None:
        assert isinstance(work, Asked)
        self._asked[work.id] = work
        self._loop.call_soon_threadsafe(self._start, work)

    def cancel(self, request: int) -> None:
        self._loop.call_soon_threadsafe(self._cancel, request)

    def interrupt(self, request: int) -> None:
        """Nothing native runs here."""

    def step(self) -> float | None:
        return None

    def stats(self) -> WorkerStats:
        now, asked = time.monotonic(), list(self._asked.values())
        running = [one for one in asked if one.sent_at is not None]
        return WorkerStats(
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            generated_tokens=self._generated_tokens,
            running=len(running),
            waiting=len(asked) - len(running),
            requests=tuple(one.state(now) for one in asked[:_MAX_ROWS]),
        )

    def close(self) -> None:
        """Nothing outlives the process: its connections end with it."""

    # -- the loop's thread ---------------------------------------------------------------------------------------
    def _wait(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        future: Future[Answer] = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(_LOOKUP_S)
        except TimeoutError as error:
            future.cancel()
            raise TimeoutExpired(f"the remote server did not answer in {_LOOKUP_S:.0f} s") from error

    def _start(self, asked: Asked) -> None:
        asked.task = self._loop.create_task(self._serve(asked))
        if asked.unwanted:
            asked.task.cancel()

    def _cancel(self, request: int) -> None:
        asked = self._asked.get(request)
        if asked is not None:
            asked.unwanted = True
            if asked.task is not None:
                asked.task.cancel()

    async def _serve(self, asked: Asked) -> None:
        answers: tuple[FromWorker, ...]
        try:
            async with self._places:
                asked.sent_at = time.monotonic()
                match asked.ask:
                    case Generate(_, request):
                        answers = await self._generated(asked, request)
                    case ScoreTexts(number, scoring):
                        answers = (Scores(number, await self._scored(scoring)), Done(number))
                    case Embed(number, _):
                        answers = (Vectors(number, await self._embedded(asked.ask)), Done(number))
        except asyncio.CancelledError:
            answers = self._ended(asked, "cancelled")
        except Exception as error:  # noqa: BLE001 - one request fails, the others go on
            answers = (Failed(asked.id, describe(error)),)
        self._asked.pop(asked.id, None)
        self._emit(answers)

    def _ended(self, asked: Asked, reason: FinishReason) -> tuple[FromWorker, ...]:
        """The end of a request that did not run to its own."""
        if not isinstance(asked.ask, Generate):
            return (Failed(asked.id, describe(Cancelled("the request was cancelled"))),)
        last = asked.ask.request.n - 1
        usage = Usage(asked.prompt_tokens, asked.generated)
        deltas = [Delta(index=index, finish=reason) for index in range(last)]
        deltas.append(Delta(index=last, finish=reason, usage=usage, timing=asked.timing()))
        return (Piece(asked.id, tuple(deltas), time.monotonic()), Done(asked.id))

    async def _generated(self, asked: Asked, request: GenerationRequest) -> tuple[FromWorker, ...]:
        if request.echo:
            return await self._echoed(asked, request)
        route, body = wire.chat_or_completion(request, self._model, stream=True)
        reading = Reading(request.n)
        try:
            stream = self._connection.events(route, body, reading.whole)
            async with asyncio.timeout(request.deadline_s), aclosing(stream) as events:
                async for event in events:
                    self._take(asked, reading.deltas(event))
                    reading.spent = wire.spent(event) or reading.spent
        except TimeoutError:
            return self._ended(asked, "deadline")
        return self._finished(asked, reading)

    def _take(self, asked: Asked, deltas: list[Delta]) -> None:
        if not deltas:
            return
        asked.first_at = asked.first_at or time.monotonic()
        asked.generated += len(deltas)
        self._emit((Piece(asked.id, tuple(deltas), time.monotonic()),))

    def _finished(self, asked: Asked, reading: Reading) -> tuple[FromWorker, ...]:
        spent = reading.spent or wire.Spent(0, asked.generated)
        self._prompt_tokens += spent.prompt - spent.cached
        self._cached_tokens += spent.cached
        self._generated_tokens += spent.completion
        *others, last = reading.ends()
        usage = Usage(spent.prompt, spent.completion, spent.cached)
        last = msgspec.structs.replace(last, usage=usage, timing=asked.timing())
        return (Piece(asked.id, (*others, last), time.monotonic()), Done(asked.id))

    async def _echoed(self, asked: Asked, request: GenerationRequest) -> tuple[FromWorker, ...]:
        """A prompt that is given back comes in one piece: where it ends is told by the count of its tokens."""
        route, body = wire.chat_or_completion(request, self._model, stream=False)
        answer = await self._connection.post(route, body)
        reading = Reading(request.n)
        reading.spent = spent = wire.spent(answer) or wire.Spent(0, 0)
        deltas = []
        for piece in wire.pieces(answer):
            reading.finish[piece.index] = piece.finish or "stop"
            before, after = piece.logprobs[: spent.prompt], piece.logprobs[spent.prompt :]
            deltas.append(Delta(index=piece.index, text=piece.text, prompt_logprobs=before, logprobs=after))
        self._take(asked, deltas)
        return self._finished(asked, reading)

    async def _scored(self, request: ScoreRequest) -> tuple[Score, ...]:
        return tuple(
            await asyncio.gather(*(self._score(request.context, one) for one in request.continuations))
        )  # fmt: skip

    async def _score(self, context: str | tuple[int, ...], continuation: str | tuple[int, ...]) -> Score:
        """Log-likelihood of one continuation, from the echoed prompt."""
        if isinstance(context, str) != isinstance(continuation, str):
            raise UsageError("score: give context and continuation both as text or both as tokens", code="E_CAPABILITY")
        whole = context + continuation if isinstance(context, str) else [*context, *continuation]  # type: ignore[operator]
        body = {"model": self._model, "prompt": whole, "max_tokens": 0, "echo": True, "logprobs": _ALTERNATIVES,
                "temperature": 0}  # fmt: skip
        try:
            answer = await self._connection.post("completions", body)
        except UsageError:
            answer = await self._connection.post("completions", body | {"max_tokens": 1})
        spent = wire.spent(answer)
        entries = next((piece.logprobs for piece in wire.pieces(answer)), ())
        if spent is not None and len(entries) > spent.prompt > 0:
            entries = entries[: spent.prompt]  # without what was generated on top
        if not entries:
            raise UsageError(
                f"{self._connection.server} gives no log-probabilities of prompts",
                hint="scoring needs a server that takes echo with logprobs: Lathe, vLLM", code="E_CAPABILITY",
            )  # fmt: skip
        start = _boundary(context, wire.offsets(answer), len(entries), len(continuation))
        chosen = entries[start:]
        if not chosen or any(entry.logprob is None for entry in chosen):
            raise UsageError("score: a continuation has no tokens of its own, or nothing stands before it")
        greedy = all(not entry.top or (entry.logprob or 0) >= entry.top[0][2] - 1e-6 for entry in chosen)
        numbers = tuple(entry.logprob or 0.0 for entry in chosen)
        return Score(sum(numbers), len(numbers), greedy, numbers)

    async def _embedded(self, ask: Embed) -> Embeddings:
        import numpy as np

        request = ask.request
        if request.pooling == "rank":
            body = {"model": self._model, "query": request.query or "", "documents": list(request.texts)}
            answer = await self._connection.post("rerank", body)
            matrix = np.asarray(wire.relevances(answer, len(request.texts)), "<f4")[:, None]
        else:
            answer = await self._connection.post("embeddings", {"model": self._model, "input": list(request.texts)})
            matrix = np.asarray(wire.vectors(answer, len(request.texts)), "<f4")
            if request.normalize:
                norms = np.linalg.norm(matrix, axis=1, keepdims=True)
                matrix = np.divide(matrix, norms, out=np.zeros_like(matrix), where=norms > 0)
        spent = wire.spent(answer)
        return Embeddings(matrix.astype("<f4").tobytes(), len(matrix), matrix.shape[1], spent.prompt if spent else 0)

    async def _tokenized(self, text: str, special: bool, bos: bool) -> tuple[int, ...]:
        body = {"content": text, "add_special": bos, "parse_special": special}
        try:
            answer = await self._post("/tokenize", body)
        except LatheError as error:
            if error.code != "E_REMOTE_REFUSED":
                raise
            answer = await self._post("/tokenize", {"prompt": text, "add_special_tokens": bos})
        tokens = answer.get("tokens")
        return tuple(one for one in tokens if isinstance(one, int)) if isinstance(tokens, list) else ()

    async def _post(self, route: str, body: dict[str, Any]) -> dict[str, Any]:
        """Ask one of the routes about text, which most servers have and OpenAI's has not."""
        try:
            return await self._connection.post(route, {"model": self._model, **body})
        except MissingError as error:
            message = f"{self._connection.server} does not answer {route}"
            raise UsageError(message, hint="only its own model can say", code="E_CAPABILITY") from error


def _boundary(context: str | tuple[int, ...], offsets: list[int], entries: int, continuation: int) -> int:
    """The first entry that belongs to the continuation; spaces at the end of the context count to it."""
    if not isinstance(context, str):
        return max(0, entries - continuation)
    if len(offsets) < entries:
        raise UsageError("score: the remote server does not say where tokens begin", code="E_CAPABILITY")
    kept = len(context.rstrip())
    return next((place for place in range(entries) if offsets[place] >= kept and place > 0), entries)


def make(emit: Emit, secret: str | None = None) -> RemoteBackend:
    """Build the backend."""
    return RemoteBackend(emit, secret)
