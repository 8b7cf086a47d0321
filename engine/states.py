"""State of the engine as values: what `snapshot()` returns and what panels draw."""

from __future__ import annotations

from typing import Literal

import msgspec
from lathe.engine.errors import Failure
from lathe.engine.jobs.values import Job
from lathe.engine.telemetry.sample import Sample
from lathe.engine.worker.messages import LoadOptions, WorkerInfo, WorkerStats

WorkerPhase = Literal["stopped", "starting", "ready", "draining", "stopping", "failed", "quarantined"]


class Footprint(msgspec.Struct, frozen=True, kw_only=True):
    """Predicted memory of a loaded model, in bytes."""

    weights: int
    kv_cache: int
    compute: int
    overhead: int
    devices: dict[str, int] = {}
    """Device (`cpu`, `nvidia0`) -> bytes; sums to `total`."""
    gpu_layers: int = 0
    mapped: int = 0
    """Of the weights: bytes that stay on the CPU, mapped from the file. The system counts them as available memory."""

    @property
    def total(self) -> int:
        """Bytes over all devices."""
        return self.weights + self.kv_cache + self.compute + self.overhead


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a model fits right now."""

    footprint: Footprint
    options: LoadOptions
    """The options with every choice of the engine filled in."""
    verdict: Literal["fits", "tight", "partial", "no", "unknown"]
    """`partial`: some layers stay on the CPU; `tight`: under 10 % would stay free."""
    short: int = 0
    """Bytes missing where the verdict is `no`."""
    available: dict[str, int] = {}
    reason: str = ""
    """One line: `does not fit: short by 1.2 GiB of RAM`."""


class Forecast(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a conversion or quantization would make, before it starts."""

    output: str
    """Path of the file."""
    taken: Literal["", "same", "other"] = ""
    """Whether something lies there: nothing, a file of this very recipe (it is kept), or another one."""
    source_bytes: int = 0
    bytes: int | None = None
    exact: bool = True
    """False: `bytes` is an estimate."""
    bits_per_weight: float | None = None
    tensors: int = 0
    mix: dict[str, int] = {}
    """Tensor type -> bytes, largest first."""
    free: int | None = None
    """Bytes free where the file goes."""
    warnings: tuple[str, ...] = ()
    problem: Failure | None = None
    """Why it would be refused."""
    fit: Fit | None = None
    """Whether the result fits here, with the engine's choice of context."""


class WorkerState(msgspec.Struct, frozen=True, kw_only=True):
    """One loaded (or loading, or failed) model."""

    name: str
    model_id: str
    path: str
    phase: WorkerPhase
    options: LoadOptions
    info: WorkerInfo | None = None
    stats: WorkerStats = WorkerStats()
    progress: float | None = None
    """Of loading, 0..1."""
    leases: int = 0
    restarts: int = 0
    failure: Failure | None = None
    pid: int | None = None
    since: float = 0.0
    """Unix seconds of the last change of phase."""
    predicted: Footprint | None = None
    last_used_at: float | None = None
    notice: str = ""
    """What a user should know of a worker that runs: `8 of 32 layers on the GPU`, `runs on the CPU: ...`."""


class ServerOptions(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where and for whom the HTTP API listens."""

    host: str = "127.0.0.1"
    port: int = 8321
    """0 picks a free one."""
    unix_socket: str | None = None
    models: tuple[str, ...] = ()
    """Loaded at start; empty: every registered model is offered and loaded on demand."""
    options: LoadOptions = LoadOptions()
    allow_remote: bool = False
    """Needed to bind anything but loopback."""
    cors_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    require_token: bool = True
    """False is honoured on loopback and Unix sockets only."""
    tls_certificate: str | None = None
    tls_key: str | None = None


class KeyUse(msgspec.Struct, frozen=True, kw_only=True):
    """What came over one key since the server started."""

    name: str
    requests: int = 0
    """Requests for work: tables, health and metrics are not counted."""
    tokens: int = 0
    """Of prompts and answers."""
    active: int = 0
    last_at: float | None = None
    """Unix seconds of the end of the newest one."""


class ServerState(msgspec.Struct, frozen=True, kw_only=True):
    """The HTTP API as it runs."""

    running: bool
    url: str | None = None
    options: ServerOptions = ServerOptions()
    started_at: float | None = None
    requests_total: int = 0
    requests_active: int = 0
    rejected_total: int = 0
    errors_total: int = 0
    keys: tuple[KeyUse, ...] = ()
    """Of keys that were used, by name."""
    failure: Failure | None = None


class Percentiles(msgspec.Struct, frozen=True):
    """Exact quantiles of a window, in seconds; None without samples."""

    count: int = 0
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None


class RequestRow(msgspec.Struct, frozen=True, kw_only=True):
    """One request in the dashboard's table: live or recently finished. Never holds prompt text."""

    id: str
    model: str
    stage: str
    """waiting, prefill, decode, then the finish reason."""
    client: str
    prompt_tokens: int = 0
    generated: int = 0
    ttft_s: float | None = None
    tokens_per_s: float | None = None
    age_s: float = 0.0
    finished: bool = False


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """Generation over the last window, from every front."""

    window_s: float
    ttft: Percentiles = Percentiles()
    itl: Percentiles = Percentiles()
    """Inter-token latency."""
    e2e: Percentiles = Percentiles()
    queue: Percentiles = Percentiles()
    decode_tps: float = 0.0
    """Tokens generated in the last second, all requests together."""
    prefill_tps: float = 0.0
    running: int = 0
    waiting: int = 0
    rejected: int = 0
    errors: int = 0
    requests_total: int = 0
    prompt_tokens_total: int = 0
    generated_tokens_total: int = 0
    kv_used: int = 0
    kv_tokens: int = 0
    cached_tokens_total: int = 0
    decode_history: tuple[float, ...] = ()
    """Tokens/s, one per second, oldest first."""
    prefill_history: tuple[float, ...] = ()
    queue_history: tuple[float, ...] = ()
    requests: tuple[RequestRow, ...] = ()


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The engine process itself."""

    pid: int
    version: str
    home: str
    started_at: float
    fronts: int = 0
    offline: bool = True
    carrier: Literal["in-process", "socket"] = "in-process"
    hostname: str = ""
    read_only: str = ""
    """Why the workspace is read-only; empty when it is not."""


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a front draws, at one moment."""

    engine: EngineInfo
    workers: tuple[WorkerState, ...] = ()
    server: ServerState = ServerState(running=False)
    jobs: tuple[Job, ...] = ()
    """Active ones and the last hundred."""
    traffic: Traffic = Traffic(window_s=300)
    sample: Sample | None = None
