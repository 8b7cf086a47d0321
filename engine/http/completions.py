"""`/v1/completions`: text in, text out, with the prompt's own log-probabilities on request.

`echo` with `logprobs` scores the prompt in one pass, which is what log-likelihood evaluations need; with `max_tokens`
0 nothing is generated. Several prompts in one request are answered by one stream or one list, choice i * n + j being
the j-th of the i-th prompt.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from lathe.engine.generation import MAX_LOGPROBS, Delta, GenerationRequest, Usage
from lathe.engine.http import figures, fim
from lathe.engine.http.asking import ask_sampled
from lathe.engine.http.call import Call, Reply, Streamed, Whole
from lathe.engine.http.figures import Timings, UsageBody
from lathe.engine.http.logprobs import CompletionLogprobs, completion_logprobs, extend
from lathe.engine.http.problems import Problem, envelope
from lathe.engine.http.wire import ModelName, Sampled, StreamOptions, TokenId, Tokens
from lathe.store.models import ModelEntry
from msgspec import Meta

MAX_PROMPTS = 256
OBJECT: Literal["text_completion"] = "text_completion"


class CompletionBody(Sampled, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What `/v1/completions` takes."""

    prompt: str | list[str | TokenId | list[TokenId]]
    """A text, a list of texts, token ids, or a list of lists of token ids."""
    model: ModelName | None = None
    max_tokens: Tokens | None = None
    """None: until a stop, bounded by the context."""
    n_predict: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    """llama-server's name; -1: no limit."""
    logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    echo: bool | None = None
    suffix: str | None = None
    """Text after the gap; needs a model that fills gaps."""
    best_of: Annotated[int, Meta(ge=1, le=16)] | None = None
    """Only equal to `n`: choices are not ranked and dropped."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None


class Choice(msgspec.Struct):
    """One completion, or what a stream adds to it."""

    text: str
    index: int
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None


class Completion(msgspec.Struct, omit_defaults=True):
    """The answer, or one event of the stream."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: UsageBody | None = None
    timings: Timings | None = None


async def complete(call: Call) -> Reply:
    """POST /v1/completions."""
    body: CompletionBody = call.body
    entry = await call.find(body.model)
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise Problem(400, "best_of must equal n: choices are not ranked and dropped", param="best_of")
    prompts = prompts_of(body.prompt)
    if body.suffix is not None:
        prompts = [await fill_gap(call, entry, prompt, body.suffix, []) for prompt in prompts]
    requests = tuple(
        [
            await ask_sampled(
                call,
                entry,
                body,
                prompt=prompt if isinstance(prompt, str) else None,
                tokens=None if isinstance(prompt, str) else prompt,
                max_tokens=limit(body.max_tokens, body.n_predict),
                logprobs=body.logprobs,
                echo=bool(body.echo),
            )
            for prompt in prompts
        ]
    )
    return _reply(call, entry, requests, stream=bool(body.stream), options=body.stream_options)


def _reply(
    call: Call,
    entry: ModelEntry,
    requests: tuple[GenerationRequest, ...],
    *,
    stream: bool,
    options: StreamOptions | None,
) -> Reply:
    echo, n = requests[0].echo, requests[0].n
    if stream:
        usage = options is not None and options.include_usage
        return Streamed(requests, CompletionWriter(call, entry.name, Choices(echo=echo, n=n), include_usage=usage))
    return Whole(requests, CompletionFolder(call, entry.name, Choices(echo=echo, n=n)))


class Choices:
    """Turns deltas into pieces of choices: offsets of tokens, and the echoed prompt for each of n choices."""

    def __init__(self, *, echo: bool, n: int) -> None:
        self._echo = echo
        self._n = n
        self._offsets: dict[int, int] = {}
        self._prompts: dict[int, Choice] = {}

    def feed(self, delta: Delta) -> list[Choice]:
        """Return what a delta adds, in order."""
        pieces: list[Choice] = []
        if self._echo and delta.index not in self._offsets:
            prompt = self._echoed(delta)
            pieces.append(Choice(prompt.text, delta.index, prompt.logprobs))
            self._offsets[delta.index] = len(prompt.text)
            delta = msgspec.structs.replace(delta, text=delta.text.removeprefix(prompt.text), prompt_logprobs=())
        if delta.text or delta.logprobs or delta.finish:
            start = self._offsets.get(delta.index, 0)
            logprobs, end = completion_logprobs(delta.logprobs, start)
            self._offsets[delta.index] = end if delta.logprobs else start + len(delta.text)
            pieces.append(Choice(delta.text, delta.index, logprobs if delta.logprobs else None, _reason(delta)))
        return pieces

    def _echoed(self, delta: Delta) -> Choice:
        """Return the prompt that a choice begins with.

        The first delta of a request is its prompt, scored where that was asked. Backends may give the text again for
        the other choices, and a slow reader may get it in one delta with what follows.
        """
        group = delta.index // self._n
        if group not in self._prompts:
            scored = completion_logprobs(delta.prompt_logprobs, 0)[0] if delta.prompt_logprobs else None
            self._prompts[group] = Choice("" if delta.tokens else delta.text, delta.index, scored)
        return self._prompts[group]


class CompletionWriter:
    """Server-sent events of a completion."""

    media_type = "text/event-stream"
    ping = b": ping\n\n"

    def __init__(self, call: Call, model: str, choices: Choices, *, include_usage: bool) -> None:
        self._id, self._created, self._model = f"cmpl-{call.id}", call.created, model
        self._choices = choices
        self._include_usage = include_usage
        self._usage: Usage | None = None

    def open(self) -> bytes:
        """Return nothing: completions have no opening event."""
        return b""

    def feed(self, delta: Delta) -> bytes:
        """Return the events of a delta."""
        ended = None
        if delta.usage is not None:
            self._usage = figures.add(self._usage, delta.usage)
            ended = figures.timings(delta.usage, delta.timing) if delta.timing is not None else None
        return b"".join(
            self._event([piece], timings=ended if piece.finish_reason else None) for piece in self._choices.feed(delta)
        )

    def close(self) -> bytes:
        """Return the usage, where it was asked for, and the end."""
        last = b""
        if self._include_usage and self._usage is not None:
            last = self._event([], usage=figures.usage_body(self._usage))
        return last + b"data: [DONE]\n\n"

    def fail(self, problem: Problem) -> bytes:
        """Return the failure as an event; no [DONE] follows."""
        return event(envelope(problem, "openai"))

    def _event(self, choices: list[Choice], usage: UsageBody | None = None, timings: Timings | None = None) -> bytes:
        chunk = Completion(self._id, OBJECT, self._created, self._model, choices, usage=usage, timings=timings)
        return event(chunk)


class CompletionFolder:
    """The whole answer of a completion."""

    def __init__(self, call: Call, model: str, choices: Choices) -> None:
        self._id, self._created, self._model = f"cmpl-{call.id}", call.created, model
        self._choices = choices
        self._texts: dict[int, list[str]] = {}
        self._logprobs: dict[int, CompletionLogprobs] = {}
        self._reasons: dict[int, str | None] = {}
        self._usage: Usage | None = None
        self._timings: Timings | None = None

    def feed(self, delta: Delta) -> None:
        """Take a delta."""
        for piece in self._choices.feed(delta):
            self._texts.setdefault(piece.index, []).append(piece.text)
            if piece.logprobs is not None:
                self._logprobs[piece.index] = extend(self._logprobs.get(piece.index), piece.logprobs)
            if piece.finish_reason is not None:
                self._reasons[piece.index] = piece.finish_reason
        if delta.usage is not None:
            self._usage = figures.add(self._usage, delta.usage)
            self._timings = figures.timings(delta.usage, delta.timing) if delta.timing is not None else None

    def result(self) -> Completion:
        """Return the answer."""
        choices = [
            Choice("".join(texts), index, self._logprobs.get(index), self._reasons.get(index))
            for index, texts in sorted(self._texts.items())
        ]
        usage = figures.usage_body(self._usage) if self._usage is not None else None
        return Completion(self._id, OBJECT, self._created, self._model, choices, usage=usage, timings=self._timings)


def event(value: object) -> bytes:
    """Return one server-sent event."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def _reason(delta: Delta) -> str | None:
    return "length" if delta.finish == "deadline" else delta.finish


def limit(max_tokens: int | None, n_predict: int | None) -> int | None:
    """Return the most tokens to generate; n_predict is llama-server's name, with -1 for no limit."""
    if max_tokens is None:
        return None if n_predict == -1 else n_predict
    return max_tokens


def prompts_of(given: str | list[str | int | list[int]]) -> list[str | tuple[int, ...]]:
    """Return the prompts of a request, each a text or token ids."""
    if isinstance(given, str):
        return [given]
    if given and all(isinstance(item, int) for item in given):
        return [tuple(item for item in given if isinstance(item, int))]
    prompts: list[str | tuple[int, ...]] = []
    for item in given:
        if isinstance(item, int):
            raise Problem(400, "prompt mixes token ids and texts", param="prompt", code="invalid_value")
        prompts.append(item if isinstance(item, str) else tuple(item))
    if not 0 < len(prompts) <= MAX_PROMPTS:
        raise Problem(400, f"prompt: 1 to {MAX_PROMPTS} prompts are allowed", param="prompt", code="invalid_value")
    return prompts


async def fill_gap(
    call: Call,
    entry: ModelEntry,
    prefix: str | tuple[int, ...],
    suffix: str,
    extra: list[tuple[str, str]],
    prompt: str = "",
) -> tuple[int, ...]:
    """Return the prompt that asks for what stands between prefix and suffix.

    Raises:
        Problem: 400 where the model has no tokens for that.
    """
    if not isinstance(prefix, str):
        raise Problem(400, "suffix needs a prompt given as text", param="suffix", code="invalid_value")
    workbench, known = call.service.workbench, call.service.fim

    async def tokenize(text: str, special: bool) -> list[int]:
        return await workbench.tokenize(entry.name, text, special=special)

    if entry.id not in known:
        known[entry.id] = await fim.find(tokenize)
    marks = known[entry.id]
    if marks is None:
        raise Problem(400, f"model '{entry.name}' was not trained to fill gaps", code="not_supported")
    return await fim.build(tokenize, marks, prefix, suffix, extra, prompt)
