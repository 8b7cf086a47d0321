"""llama-server's own `/completion` and `/infill`, in its own shape, for clients that were written for it.

Streams end with the event whose `stop` is true, not with [DONE]. One prompt per request.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from lathe.engine.generation import MAX_LOGPROBS, Delta, TokenLogprob, Usage
from lathe.engine.http import figures
from lathe.engine.http.asking import ask_sampled
from lathe.engine.http.call import Call, Reply, Streamed, Whole
from lathe.engine.http.completions import event, fill_gap, limit, prompts_of
from lathe.engine.http.figures import Timings
from lathe.engine.http.logprobs import ChatLogprob, chat_logprobs
from lathe.engine.http.problems import Problem, envelope
from lathe.engine.http.wire import ModelName, Sampled, TokenId, Tokens
from lathe.store.models import ModelEntry
from msgspec import Meta


class NativeBody(Sampled, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What both routes take beside the prompt."""

    model: ModelName | None = None
    n_predict: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    """-1 or none: until a stop, bounded by the context."""
    max_tokens: Tokens | None = None
    n_probs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    stream: bool | None = None
    return_tokens: bool | None = None
    samplers: list[str] | None = None
    """This and the following are without effect: the samplers' order is fixed, slots are not the client's to choose."""
    id_slot: int | None = None
    n_keep: int | None = None
    n_indent: int | None = None
    min_keep: int | None = None
    t_max_prompt_ms: float | None = None
    t_max_predict_ms: float | None = None
    timings_per_token: bool | None = None
    return_progress: bool | None = None
    post_sampling_probs: bool | None = None
    response_fields: list[str] | None = None


class NativeCompletionBody(NativeBody, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What `/completion` takes."""

    prompt: str | list[str | TokenId | list[TokenId]]


class ExtraFile(msgspec.Struct):
    """Another file of the repository, as context for a gap."""

    text: str
    filename: str = ""


class InfillBody(NativeBody, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What `/infill` takes."""

    input_prefix: str = ""
    input_suffix: str = ""
    input_extra: Annotated[list[ExtraFile], Meta(max_length=1024)] | None = None
    prompt: str = ""
    """How the middle begins."""


class NativeCompletion(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The whole answer, or an event of the stream; the figures stand in the last one."""

    index: int
    content: str
    tokens: list[int]
    stop: bool
    id_slot: int
    model: str | None = None
    stop_type: Literal["eos", "limit", "word"] | None = None
    stopping_word: str | None = None
    tokens_predicted: int | None = None
    tokens_evaluated: int | None = None
    tokens_cached: int | None = None
    truncated: bool | None = None
    timings: Timings | None = None
    completion_probabilities: list[Probability] | None = None


class Probability(ChatLogprob, kw_only=True):
    """A token with its id."""

    id: int


async def complete(call: Call) -> Reply:
    """POST /completion."""
    body: NativeCompletionBody = call.body
    entry = await call.find(body.model)
    prompts = prompts_of(body.prompt)
    if len(prompts) != 1:
        raise Problem(400, "one prompt per request: /v1/completions takes several", param="prompt")
    return await _reply(call, entry, body, prompts[0])


async def infill(call: Call) -> Reply:
    """POST /infill."""
    body: InfillBody = call.body
    entry = await call.find(body.model)
    extra = [(item.filename, item.text) for item in body.input_extra or ()]
    tokens = await fill_gap(call, entry, body.input_prefix, body.input_suffix, extra, body.prompt)
    return await _reply(call, entry, body, tokens)


async def _reply(call: Call, entry: ModelEntry, body: NativeBody, prompt: str | tuple[int, ...]) -> Reply:
    if (body.n or 1) != 1:
        raise Problem(400, "one answer per request: /v1/completions gives several", param="n")
    request = await ask_sampled(
        call,
        entry,
        body,
        prompt=prompt if isinstance(prompt, str) else None,
        tokens=None if isinstance(prompt, str) else prompt,
        max_tokens=limit(body.max_tokens, body.n_predict),
        logprobs=body.n_probs,
    )
    folder = NativeFolder(entry.name, with_tokens=bool(body.return_tokens))
    return Streamed((request,), NativeWriter(folder)) if body.stream else Whole((request,), folder)


class NativeFolder:
    """The whole answer."""

    def __init__(self, model: str, *, with_tokens: bool) -> None:
        self._model = model
        self._with_tokens = with_tokens
        self._texts: list[str] = []
        self._tokens: list[int] = []
        self._probabilities: list[Probability] = []
        self._last: Delta | None = None
        self._usage: Usage | None = None

    def feed(self, delta: Delta) -> None:
        """Take a delta."""
        self._texts.append(delta.text)
        self._tokens += delta.tokens
        self._probabilities += probabilities(delta.logprobs)
        if delta.finish is not None:
            self._last = delta

    def result(self) -> NativeCompletion:
        """Return the answer."""
        tokens = self._tokens if self._with_tokens else []
        return self.final("".join(self._texts), tokens, self._probabilities)

    def final(self, text: str, tokens: list[int], probable: list[Probability]) -> NativeCompletion:
        """Return an answer with the figures of the last delta."""
        last = self._last or Delta()
        usage = last.usage or Usage(0, len(self._tokens))
        ended: Literal["eos", "limit", "word"] = "eos" if last.finish == "stop" else "limit"
        return NativeCompletion(
            index=0, content=text, tokens=tokens, stop=True, id_slot=-1, model=self._model,
            stop_type="word" if last.stop_text is not None else ended, stopping_word=last.stop_text or "",
            tokens_predicted=usage.completion_tokens, tokens_evaluated=usage.prompt_tokens,
            tokens_cached=usage.cached_tokens, truncated=usage.truncated_tokens > 0,
            timings=figures.timings(usage, last.timing) if last.timing is not None else None,
            completion_probabilities=probable or None,
        )  # fmt: skip


class NativeWriter:
    """The stream of an answer."""

    media_type = "text/event-stream"
    ping = b": ping\n\n"

    def __init__(self, folder: NativeFolder) -> None:
        self._folder = folder

    def open(self) -> bytes:
        """Return nothing: the first event is the first piece."""
        return b""

    def feed(self, delta: Delta) -> bytes:
        """Return the event of a delta; the last one carries the figures."""
        self._folder.feed(delta)
        tokens, probable = list(delta.tokens), probabilities(delta.logprobs)
        if delta.finish is not None:
            return event(self._folder.final(delta.text, tokens, probable))
        if not delta.text and not tokens:
            return b""
        return event(
            NativeCompletion(
                index=0, content=delta.text, tokens=tokens, stop=False, id_slot=-1,
                completion_probabilities=probable or None,
            )
        )  # fmt: skip

    def close(self) -> bytes:
        """Return nothing: the event with `stop` has gone out."""
        return b""

    def fail(self, problem: Problem) -> bytes:
        """Return the failure as an event."""
        return event(envelope(problem, "openai"))


def probabilities(tokens: tuple[TokenLogprob, ...]) -> list[Probability]:
    """Return log-probabilities with token ids."""
    return [
        Probability(id=token.id, token=plain.token, logprob=plain.logprob, bytes=plain.bytes,
                    top_logprobs=plain.top_logprobs)
        for token, plain in zip(tokens, chat_logprobs(tokens), strict=True)
    ]  # fmt: skip
