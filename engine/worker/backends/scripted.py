"""A model without weights: deterministic text, chosen speed, and faults on demand. For tests of everything above.

The model's path is its script: `scripted:SAY?key=value&...`. SAY is what it answers:

    echo    the prompt again (of a chat: the last message)
    words   pseudo-words that follow from the prompt, the seed and the index of the choice
    say     the text given as `text=`

Keys, all optional; times in milliseconds unless the name ends in `_s`, counts are generated tokens of one request:

    tokens=32        length of the answer of `words`          prefill_ms=0   pause before the first token
    text=...         the answer of `say`                      delay_ms=0     pause before each later token
    context=4096     tokens per sequence                      dimensions=16  of embeddings
    slow_load_s=0    time that loading takes                  fail_load=...  refuse to load, with this message
    crash_load=1     die of SIGABRT while loading             crash_after=N  die of SIGABRT after N tokens
    exit_after=N     exit with code 3                         hang_after=N   never return from the "native" call
    freeze_after=N   stop the whole process (SIGSTOP)         junk_after=N   write bytes that are no frame
    fail_after=N     fail this request alone                  flood_stderr=N write N bytes to stderr after loading
    ignore_term=1    ignore SIGTERM

Tokens are runs of up to three UTF-8 bytes, so that characters are split over tokens, as real tokenizers do.
Invariant: the same script and request give the same answer, whatever else runs.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from urllib.parse import parse_qsl

import msgspec
from lathe.engine.errors import DataError, InternalError, UsageError
from lathe.engine.generation import (
    Delta,
    Embeddings,
    EmbedRequest,
    FinishReason,
    GenerationRequest,
    Message,
    RenderedPrompt,
    Score,
    ScoreRequest,
    TokenLogprob,
    Usage,
)
from lathe.engine.worker.backends.protocol import Emit, Pause, Progress, Ticket
from lathe.engine.worker.backends.turns import Turns
from lathe.engine.worker.fitting import fit
from lathe.engine.worker.messages import LoadOptions, WorkerInfo
from lathe.engine.worker.stops import TextStream

_RUN = 3
_OFFSETS = (0, 0, 256, 256 + 65_536)
_END = 256 + 65_536 + 16_777_216
VOCABULARY = _END + 1
_TEMPLATE = "{role}: {content}\n"


class Script(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A parsed path."""

    say: str = "echo"
    text: str = "ok"
    tokens: int = 32
    context: int = 4096
    dimensions: int = 16
    prefill_ms: float = 0
    delay_ms: float = 0
    slow_load_s: float = 0
    fail_load: str | None = None
    crash_load: bool = False
    crash_after: int | None = None
    exit_after: int | None = None
    hang_after: int | None = None
    freeze_after: int | None = None
    junk_after: int | None = None
    fail_after: int | None = None
    flood_stderr: int = 0
    ignore_term: bool = False


def parse(path: str) -> Script:
    """Read a script from its path.

    Raises:
        UsageError: an unknown answer or key, or a value of the wrong kind.
    """
    say, _, query = path.removeprefix("scripted:").partition("?")
    say = say or "echo"
    if say not in ("echo", "words", "say"):
        raise UsageError(f"scripted: {say!r} is no answer; known: echo, words, say")
    try:
        return msgspec.convert({"say": say, **dict(parse_qsl(query, strict_parsing=bool(query)))}, Script, strict=False)
    except (msgspec.ValidationError, ValueError) as error:
        raise UsageError(f"scripted: {error}") from error


def make(emit: Emit) -> Turns:
    """Build the backend."""
    return Turns(Scripted(), emit)


def encode(text: str) -> tuple[int, ...]:
    """Text to tokens of up to three bytes."""
    data = text.encode("utf-8", "surrogatepass")
    runs = (data[start : start + _RUN] for start in range(0, len(data), _RUN))
    return tuple(_OFFSETS[len(run)] + int.from_bytes(run, "big") for run in runs)


def piece(token: int) -> bytes:
    """The bytes of a token; the end token has none."""
    for length in (3, 2, 1):
        if token >= _OFFSETS[length] and token < _END:
            return (token - _OFFSETS[length]).to_bytes(length, "big")
    if token == _END:
        return b""
    raise DataError(f"token {token} is outside the vocabulary of {VOCABULARY}")


class Scripted:
    """A `Plain` model that follows its script."""

    def __init__(self) -> None:
        self._script = Script()

    def load(self, path: str, name: str, options: LoadOptions, progress: Progress) -> WorkerInfo:
        self._script = script = parse(path)
        if script.ignore_term:
            # Through libc: Python changes handlers from its main thread only.
            ctypes.CDLL(None).signal(int(signal.SIGTERM), ctypes.c_void_p(1))
        begun = time.monotonic()
        for tenth in range(10):
            progress(tenth / 10)
            if script.crash_load and tenth == 5:
                os.abort()
            time.sleep(script.slow_load_s / 10)
        if script.fail_load is not None:
            raise DataError(script.fail_load, code="E_GGUF_MODEL")
        progress(1.0)
        for _ in range(script.flood_stderr // 1024):
            os.write(sys.stderr.fileno(), b"x" * 1023 + b"\n")
        context = options.context or script.context
        return WorkerInfo(
            backend="scripted",
            pid=os.getpid(),
            context=context,
            kv_tokens=options.kv_tokens or context * options.slots,
            slots=options.slots,
            vocabulary=VOCABULARY,
            load_s=time.monotonic() - begun,
            chat_template=_TEMPLATE,
            capabilities=("generate", "chat", "score", "embed", "rank"),
        )

    def generate(self, request: GenerationRequest, ticket: Ticket) -> Iterator[tuple[Delta, ...] | Pause]:
        script = self._script
        seed = request.sampling.seed or 0
        prompt, text = self._prompt(request)
        fitted = fit(list(prompt), request.max_tokens, script.context, request.overflow)
        ticket.prompt_tokens = len(fitted.tokens)
        yield Pause(script.prefill_ms / 1000)
        generated = 0
        if request.echo:
            echoed = (
                tuple(self._logprob(token, request) for token in fitted.tokens) if request.logprobs is not None else ()
            )
            yield (Delta(text=self.detokenize(tuple(fitted.tokens)), prompt_logprobs=echoed),)
        for index in range(request.n):
            answer = encode(self._answer(text, seed, index))
            stream = TextStream(request.stop)
            finish: FinishReason | None = "length" if fitted.max_tokens == 0 else None
            position = 0
            while finish is None:
                finish = ticket.stop or ("stop" if position == len(answer) else None)
                if finish is not None:
                    break
                token = answer[position]
                shown = stream.feed(piece(token))
                position += 1
                generated += 1
                if stream.stopped_by is not None:
                    finish = "stop"
                elif position == fitted.max_tokens:
                    finish = "length"
                logprobs = (self._logprob(token, request),) if request.logprobs is not None else ()
                yield (Delta(index=index, text=shown, tokens=(token,), logprobs=logprobs),)
                self._misbehave(generated)
                if finish is None and script.delay_ms:
                    yield Pause(script.delay_ms / 1000)
            last = index == request.n - 1
            usage = Usage(len(fitted.tokens), generated, truncated_tokens=fitted.truncated) if last else None
            yield (
                Delta(
                    index=index,
                    text=stream.finish(),
                    finish=finish,
                    stop_text=stream.stopped_by,
                    usage=usage,
                    timing=ticket.timing(seed) if last else None,
                ),
            )

    def score(self, request: ScoreRequest) -> tuple[Score, ...]:
        scores: list[Score] = []
        for continuation in request.continuations:
            tokens = encode(continuation) if isinstance(continuation, str) else continuation
            each = tuple(_pseudo_logprob(token) for token in tokens)
            scores.append(Score(math.fsum(each), len(tokens), not scores, each))
        return tuple(scores)

    def embed(self, request: EmbedRequest) -> Embeddings:
        size = 1 if request.pooling == "rank" else self._script.dimensions
        rows = [
            _vector(f"{request.query or ''}\0{text}", size, request.normalize and size > 1) for text in request.texts
        ]
        tokens = sum(len(encode(text)) for text in request.texts)
        data = b"".join((ctypes.c_float * size)(*row) for row in rows)
        return Embeddings(data, len(rows), size, tokens)

    def tokenize(self, text: str, special: bool, bos: bool) -> tuple[int, ...]:
        return encode(text)

    def detokenize(self, tokens: tuple[int, ...]) -> str:
        return b"".join(map(piece, tokens)).decode("utf-8", "replace")

    def render(
        self,
        messages: tuple[Message, ...],
        tools: str | None,
        template_args: dict[str, str | bool | int | float],
        add_generation_prompt: bool,
    ) -> RenderedPrompt:
        text = "".join(_TEMPLATE.format(role=message.role, content=message.content) for message in messages)
        if add_generation_prompt:
            text += "assistant: "
        return RenderedPrompt(text, encode(text), hashlib.sha256(_TEMPLATE.encode()).hexdigest())

    def close(self) -> None:
        """Nothing outlives the process."""

    def _prompt(self, request: GenerationRequest) -> tuple[tuple[int, ...], str]:
        """The prompt's tokens, and the text that the answer follows from."""
        if request.messages:
            rendered = self.render(request.messages, request.tools, request.template_args, True)
            return rendered.tokens, request.messages[-1].content
        if request.tokens is not None:
            return request.tokens, self.detokenize(request.tokens)
        text = request.prompt or ""
        return encode(text), text

    def _answer(self, text: str, seed: int, index: int) -> str:
        match self._script.say:
            case "echo":
                return text
            case "say":
                return self._script.text
        rng = random.Random(f"{seed}\0{index}\0{text}")
        answer = ""
        while len(answer) < self._script.tokens * _RUN:
            answer += (
                "".join(rng.choice("bcdfghklmnprstvz") + rng.choice("aeiou") for _ in range(rng.randint(1, 3))) + " "
            )
        return answer[: self._script.tokens * _RUN]

    def _logprob(self, token: int, request: GenerationRequest) -> TokenLogprob:
        raw = piece(token)
        text = raw.decode("utf-8", "replace")
        count = request.logprobs or 0
        alternatives = [(token, text, _pseudo_logprob(token))]
        alternatives += [(_END, "", _pseudo_logprob(token) - rank) for rank in range(1, count)]
        return TokenLogprob(token, text, _pseudo_logprob(token), raw, tuple(alternatives[:count]))

    def _misbehave(self, generated: int) -> None:
        script = self._script
        if generated == script.crash_after:
            os.abort()
        if generated == script.exit_after:
            os._exit(3)
        if generated == script.freeze_after:
            os.kill(os.getpid(), signal.SIGSTOP)
        if generated == script.junk_after:
            os.write(int(sys.argv[1]), b"\xff" * 64)
        if generated == script.fail_after:
            raise InternalError(f"scripted: told to fail after {generated} tokens")
        while script.hang_after is not None and generated >= script.hang_after:
            time.sleep(3600)


def _pseudo_logprob(token: int) -> float:
    """Between -0.1 and -4, fixed per token."""
    return -0.1 - (token * 2_654_435_761 % 4096) / 1050


def _vector(text: str, size: int, normalize: bool) -> list[float]:
    """Words that texts share point the same way, so that similar texts have similar vectors."""
    row = [0.0] * size
    for word in text.lower().split() or [text]:
        rng = random.Random(word)
        row = [value + rng.uniform(-1, 1) for value in row]
    norm = math.sqrt(math.fsum(value * value for value in row)) if normalize else 1.0
    return [value / (norm or 1.0) for value in row]
