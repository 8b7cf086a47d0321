"""The values of one generation: what is asked, what streams back, what it cost.

Fronts (Playground, HTTP, batch, evals) build a `GenerationRequest`; the model worker answers with `Delta`s; the last
one carries `Usage` and `Timing`. Pure values: ranges are checked by `check`, nothing here does I/O.
Invariant: the concatenated `Delta.text` of one index equals the non-streamed text, and every delta is well-formed
Unicode.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec
from lathe.engine.errors import UsageError

FinishReason = Literal["stop", "length", "cancelled", "tool_calls", "deadline", "error"]


class Sampling(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the next token is chosen; names and defaults follow llama.cpp."""

    temperature: float = 0.8
    """0 is greedy."""
    top_k: int = 40
    """0 keeps the whole vocabulary."""
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    mirostat: Literal[0, 1, 2] = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None
    """None draws one; the drawn seed is reported in `Timing.seed`."""
    logit_bias: dict[int, float] = {}
    """Token id -> added to its logit; -100 and below forbids."""
    ignore_eos: bool = False
    grammar: str | None = None
    """GBNF; checked and capped before native code sees it."""
    json_schema: str | None = None
    """JSON text of a schema, compiled to GBNF by the worker."""


class ToolCall(msgspec.Struct, frozen=True):
    """A function call that a model asked for."""

    id: str
    name: str
    arguments: str
    """JSON text, as the model wrote it."""


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """One turn of a conversation."""

    role: str
    content: str = ""
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


class GenerationRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request for text: a chat (`messages`), a text (`prompt`) or token ids (`tokens`)."""

    model: str
    """Registered name, alias, id prefix or path."""
    messages: tuple[Message, ...] = ()
    prompt: str | None = None
    tokens: tuple[int, ...] | None = None
    tools: str | None = None
    """JSON text of the tool list, given to the chat template."""
    template_args: dict[str, str | bool | int | float] = {}
    """Extra variables of the chat template, such as `enable_thinking`."""
    max_tokens: int | None = None
    """None: until a stop, bounded by the context."""
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    n: int = 1
    logprobs: int | None = None
    """Number of alternatives per generated token; 0 reports the chosen one alone."""
    echo: bool = False
    """Return the prompt too; with `logprobs`, score it."""
    special: bool = False
    """Parse special tokens in `prompt`; text of users is never parsed so."""
    cache_prompt: bool = True
    principal: str = "local"
    """Whose request: prefix cache and fair share are keyed by it."""
    client: str = ""
    """Shown in panels: `playground A`, `http 127.0.0.1`, `eval gold-qa`."""
    priority: int = 0
    """Larger goes first among waiting requests."""
    deadline_s: float | None = None
    """Seconds from submission after which the request is given up."""
    overflow: Literal["refuse", "truncate_left", "truncate_middle"] = "refuse"
    """What to do when prompt + max_tokens exceed the context."""
    adapters: dict[str, float] = {}
    """LoRA adapter, by its file's name without extension -> scale for this request."""


class TokenLogprob(msgspec.Struct, frozen=True):
    """A token with its natural-log probability and the best alternatives."""

    id: int
    text: str
    """The token's bytes decoded with replacement; exact bytes are in `raw`."""
    logprob: float | None
    """None for the first token of a prompt, which has no context."""
    raw: bytes = b""
    top: tuple[tuple[int, str, float], ...] = ()
    """(id, text, logprob), most probable first."""


class Usage(msgspec.Struct, frozen=True):
    """Token counts of a finished request."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    """Prompt tokens served from the prefix cache."""
    truncated_tokens: int = 0
    """Prompt tokens cut by the overflow policy."""
    draft_tokens: int = 0
    accepted_tokens: int = 0


class Timing(msgspec.Struct, frozen=True):
    """Moments of one request on the worker's monotonic clock, in seconds since it was queued."""

    scheduled_s: float
    first_token_s: float | None
    finished_s: float
    prefill_s: float
    """Wall time from scheduled to first token."""
    decode_s: float
    """Wall time from first to last token."""
    seed: int = 0

    @property
    def queue_s(self) -> float:
        """Seconds spent waiting."""
        return self.scheduled_s

    def decode_tokens_per_s(self, completion_tokens: int) -> float | None:
        """Decode speed; None for fewer than two tokens, where there is no interval."""
        if completion_tokens < 2 or self.decode_s <= 0:
            return None
        return (completion_tokens - 1) / self.decode_s


class Delta(msgspec.Struct, frozen=True, omit_defaults=True):
    """A piece of an answer; deltas of one index arrive in order."""

    index: int = 0
    """Which of the `n` choices."""
    text: str = ""
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    """Only on the first delta, with `echo` and `logprobs`."""
    finish: FinishReason | None = None
    stop_text: str | None = None
    """Which stop string ended it."""
    usage: Usage | None = None
    """On the last delta of the request only."""
    timing: Timing | None = None


class ScoreRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Log-probabilities of given continuations: the primitive behind multiple choice and perplexity."""

    model: str
    context: str | tuple[int, ...]
    continuations: tuple[str | tuple[int, ...], ...]
    principal: str = "local"
    client: str = ""


class Score(msgspec.Struct, frozen=True):
    """Log-likelihood of one continuation."""

    logprob: float
    """Sum of natural-log probabilities of the continuation's tokens."""
    tokens: int
    greedy: bool
    """Whether greedy decoding would have produced exactly this continuation."""
    token_logprobs: tuple[float, ...] = ()


class EmbedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Texts to turn into vectors."""

    model: str
    texts: tuple[str, ...]
    pooling: Literal["mean", "cls", "last", "rank", "model"] = "model"
    """`model`: what the file says. `rank`: one relevance score per (query, text) pair."""
    query: str | None = None
    """With pooling `rank`: the query every text is scored against."""
    normalize: bool = True
    principal: str = "local"
    client: str = ""


class Embeddings(msgspec.Struct, frozen=True):
    """Vectors, row-major little-endian float32."""

    vectors: bytes
    rows: int
    dimensions: int
    prompt_tokens: int


class RenderedPrompt(msgspec.Struct, frozen=True):
    """What the chat template made of a conversation: the template view."""

    text: str
    tokens: tuple[int, ...]
    template_sha256: str
    stop: tuple[str, ...] = ()


MAX_STOPS, MAX_STOP_CHARS, MAX_LOGPROBS, MAX_CHOICES = 16, 256, 20, 16
_RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0, 100), "top_k": (0, 1_000_000), "top_p": (0, 1), "min_p": (0, 1), "typical_p": (0, 1),
    "xtc_probability": (0, 1), "xtc_threshold": (0, 1), "dry_multiplier": (0, 100), "dry_base": (1, 100),
    "dry_allowed_length": (0, 10_000), "dry_penalty_last_n": (-1, 1_000_000), "mirostat_tau": (0, 100),
    "mirostat_eta": (0, 10), "repeat_penalty": (0.01, 100), "repeat_last_n": (-1, 1_000_000),
    "frequency_penalty": (-100, 100), "presence_penalty": (-100, 100),
}  # fmt: skip


def check(request: GenerationRequest) -> None:
    """Refuse parameters outside the documented closed ranges.

    Raises:
        UsageError: naming the parameter, its value and its range.
    """
    sampling = request.sampling
    for name, (low, high) in _RANGES.items():
        _in_range(name, getattr(sampling, name), low, high)
    if sampling.seed is not None:
        _in_range("seed", sampling.seed, 0, 2**32 - 1)
    _in_range("n", request.n, 1, MAX_CHOICES)
    _in_range("priority", request.priority, -100, 100)
    if request.max_tokens is not None:
        _in_range("max_tokens", request.max_tokens, 0, 2**31 - 1)
    if request.logprobs is not None:
        _in_range("logprobs", request.logprobs, 0, MAX_LOGPROBS)
    if request.deadline_s is not None:
        _in_range("deadline_s", request.deadline_s, 0.001, 86_400)
    if len(request.stop) > MAX_STOPS:
        raise UsageError(f"stop: {len(request.stop)} strings given, at most {MAX_STOPS} are allowed")
    for text in request.stop:
        if not 0 < len(text) <= MAX_STOP_CHARS:
            raise UsageError(f"stop: each string must have 1 to {MAX_STOP_CHARS} characters, got {len(text)}")
    if len(sampling.logit_bias) > 1024:
        raise UsageError(f"logit_bias: {len(sampling.logit_bias)} entries given, at most 1024 are allowed")
    for token, bias in sampling.logit_bias.items():
        _in_range("logit_bias token", token, 0, 2**31 - 1)
        _in_range("logit_bias", bias, -1e9, 1e9)
    given = sum((bool(request.messages), request.prompt is not None, request.tokens is not None))
    if given != 1:
        raise UsageError("give exactly one of messages, prompt and tokens")
    if sampling.grammar is not None and sampling.json_schema is not None:
        raise UsageError("give grammar or json_schema, not both")


def _in_range(name: str, value: float, low: float, high: float) -> None:
    if isinstance(value, bool) or not math.isfinite(value) or not low <= value <= high:
        raise UsageError(f"{name}: {value!r} is outside {low:g} to {high:g}")
