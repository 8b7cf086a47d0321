"""What the worker child asks of a backend; two levels.

`Backend` is what the child drives: it owns its own batching. `Plain` is the smaller contract of a backend that can
only answer one request at a time; `lathe.engine.worker.backends.turns` turns it into a `Backend`. Invariant: `load`,
`begin`, `cancel`, `step` and `close` are called from one thread, the engine thread; what is marked *any thread* must
not touch the state that those change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import msgspec
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
    Timing,
)
from lathe.engine.worker.messages import (
    Detokenize,
    Embed,
    FromWorker,
    Generate,
    LoadOptions,
    Prompt,
    Render,
    ScoreTexts,
    Text,
    Tokenize,
    Tokens,
    WorkerInfo,
    WorkerStats,
)

Lookup = Tokenize | Detokenize | Render
"""Questions about text that need no turn on the model."""
Ask = Generate | ScoreTexts | Embed
"""Requests that need the model."""
Emit = Callable[[Sequence[FromWorker]], None]
"""Sends answers, from any thread; a request whose answer cannot travel fails there, and the backend goes on."""
Progress = Callable[[float], None]


class Backend(Protocol):
    """A loaded model that many requests share."""

    def load(self, path: str, name: str, options: LoadOptions, progress: Progress) -> WorkerInfo:
        """Bring the model into memory; `progress` is told 0..1."""

    def answer(self, lookup: Lookup) -> Tokens | Text | Prompt:
        """Answer a question about text. Any thread."""

    def admit(self, ask: Ask) -> object:
        """Check, render and tokenise a request; what it returns goes to `begin`. Any thread.

        Raises:
            LatheError: the request is refused.
        """

    def begin(self, work: object) -> None:
        """Queue an admitted request; its answers go to `emit`, ended by one `Done` or `Failed`."""

    def cancel(self, request: int) -> None:
        """End a request at the next opportunity; unknown ids are ignored."""

    def interrupt(self, request: int) -> None:
        """Stop the native call that is running if this request is the main reason for it. Any thread."""

    def step(self) -> float | None:
        """Do one bounded piece of work.

        Returns:
            Seconds until it has more to do: 0 at once, None when idle.
        """

    def stats(self) -> WorkerStats:
        """Counters and gauges of this moment. Any thread."""

    def close(self) -> None:
        """Let go of what outlives the process, such as helpers."""


class Pause(msgspec.Struct, frozen=True):
    """Yielded by a `Plain` generation that wants to be resumed later."""

    seconds: float


class Ticket(Protocol):
    """What a `Plain` generation knows about its own request."""

    prompt_tokens: int
    """Set by the generation once it has counted them; panels show it."""

    @property
    def stop(self) -> FinishReason | None:
        """Why it should end now (`cancelled`, `deadline`); to be looked at after each yield."""

    def timing(self, seed: int = 0) -> Timing:
        """The request's times up to now."""


class Plain(Protocol):
    """A model that answers one request at a time. All methods but the lookups run on the engine thread."""

    def load(self, path: str, name: str, options: LoadOptions, progress: Progress) -> WorkerInfo:
        """Bring the model into memory."""

    def generate(self, request: GenerationRequest, ticket: Ticket) -> Iterator[tuple[Delta, ...] | Pause]:
        """Yield deltas; the last carries finish, usage and timing. When `ticket.stop` is set it comes at once."""

    def score(self, request: ScoreRequest) -> tuple[Score, ...]:
        """Log-probabilities of continuations."""

    def embed(self, request: EmbedRequest) -> Embeddings:
        """Vectors of texts."""

    def tokenize(self, text: str, special: bool, bos: bool) -> tuple[int, ...]:
        """Text to ids. Any thread."""

    def detokenize(self, tokens: tuple[int, ...]) -> str:
        """Ids to text. Any thread."""

    def render(
        self,
        messages: tuple[Message, ...],
        tools: str | None,
        template_args: dict[str, str | bool | int | float],
        add_generation_prompt: bool,
    ) -> RenderedPrompt:
        """Apply the chat template. Any thread."""

    def close(self) -> None:
        """Let go of what outlives the process."""
