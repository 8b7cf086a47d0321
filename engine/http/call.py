"""One HTTP request on its way to a handler, and the kinds of answer a handler gives.

A handler is `async (Call) -> Reply`. It validates, maps the wire struct to engine values and returns; running the
generation, streaming, counting and disconnects belong to `pump`. Invariant: a handler holds no model stream open
itself, so leaving a request is always noticed in one place.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Protocol

import msgspec
from lathe.engine.generation import Delta, GenerationRequest
from lathe.engine.http.access import Principal
from lathe.engine.http.catalogue import Catalogue
from lathe.engine.http.fim import FimTokens
from lathe.engine.http.metrics import Metrics
from lathe.engine.http.problems import Problem
from lathe.engine.states import ServerOptions, ServerState
from lathe.engine.workbench import Workbench
from lathe.store.models import ModelEntry
from lathe.store.rag.values import StoreStats

_LOOK_S = 1.0


class Service:
    """What all requests of one running server share."""

    def __init__(self, workbench: Workbench, catalogue: Catalogue, metrics: Metrics, options: ServerOptions) -> None:
        self.workbench = workbench
        self.catalogue = catalogue
        self.metrics = metrics
        self.options = options
        self.adapter_scales: dict[str, dict[str, float]] = {}
        """Model id -> LoRA adapter -> scale where a request names none; set over `/lora-adapters`."""
        self.fim: dict[str, FimTokens | None] = {}
        """Model id -> its fill-in-the-middle tokens, looked up once; None: it has none."""
        self.stores: tuple[float, list[StoreStats]] = (-math.inf, [])
        """The RAG stores with when they were looked at; `lathe.engine.http.stores` keeps it."""
        self.server_state: Callable[[], ServerState] = lambda: ServerState(running=True, options=options)
        self._looked_at = -math.inf
        self._degraded = False

    async def degraded(self) -> bool:
        """Whether a model runs other than it was meant to, on the CPU above all; looked up once a second at most."""
        now = time.monotonic()
        if now - self._looked_at >= _LOOK_S:
            self._looked_at = now  # before waiting: those who ask meanwhile get the last answer
            workers = (await self.workbench.snapshot()).workers
            self._degraded = any(worker.notice for worker in workers)
        return self._degraded


class Call:
    """One request."""

    __slots__ = (
        "argument",
        "body",
        "client",
        "created",
        "id",
        "model",
        "principal",
        "prompt_tokens",
        "query",
        "service",
    )

    def __init__(self, *, serial: str, principal: Principal, client: str, created: int, service: Service) -> None:
        self.id = serial
        """32 hex digits; ids of answers are built from it."""
        self.principal = principal
        self.client = client
        """Address without port, `unix` for a socket."""
        self.created = created
        """Unix seconds."""
        self.service = service
        self.body: Any = None
        self.argument = ""
        """What follows the route's prefix, for the routes that have one."""
        self.query: dict[str, str] = {}
        self.prompt_tokens = 0
        """Tokens read by answers that are no generation; charged to the key's quota."""
        self.model: ModelEntry | None = None
        """The model it is about, once known; for the log and the metrics."""

    async def find(self, reference: str | None) -> ModelEntry:
        """Resolve the model a request names, within what this key may use, and note it."""
        self.model = await self.service.catalogue.find(reference, self.principal.models)
        return self.model


class Json(msgspec.Struct, frozen=True):
    """A complete answer."""

    value: object
    headers: tuple[tuple[str, str], ...] = ()


class Text(msgspec.Struct, frozen=True):
    """A complete answer that is not JSON."""

    body: bytes
    media_type: str


class Writer(Protocol):
    """Turns deltas into the bytes of a stream; synchronous, one per request."""

    media_type: str
    ping: bytes

    def open(self) -> bytes:
        """Return what precedes the first delta."""

    def feed(self, delta: Delta) -> bytes:
        """Return what a delta adds; may be empty."""

    def close(self) -> bytes:
        """Return what follows the last delta."""

    def fail(self, problem: Problem) -> bytes:
        """Return how a stream that has begun tells its failure."""


class Folder(Protocol):
    """Collects deltas into one answer."""

    def feed(self, delta: Delta) -> None:
        """Take a delta."""

    def result(self) -> object:
        """Return the answer."""


class Streamed(msgspec.Struct, frozen=True):
    """Run these requests and stream what comes; delta indices of the i-th are shifted by i * n."""

    requests: tuple[GenerationRequest, ...]
    writer: Writer
    source: Callable[[], AsyncGenerator[Delta, None]] | None = None
    """Where the deltas come from instead of the model itself."""


class Whole(msgspec.Struct, frozen=True):
    """Run these requests and answer when all are done."""

    requests: tuple[GenerationRequest, ...]
    folder: Folder
    source: Callable[[], AsyncGenerator[Delta, None]] | None = None
    """Where the deltas come from instead of the model itself."""


Reply = Json | Text | Streamed | Whole
Handler = Callable[[Call], Awaitable[Reply]]
