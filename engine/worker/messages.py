"""What the engine and a model worker say to each other; framed by `lathe.engine.wire`, msgpack, versioned.

The parent sends `ToWorker`, the child answers `FromWorker`. Every request carries an `id` chosen by the parent; the
child answers with messages of the same id and ends each exchange with exactly one `Done` or `Failed`.
Invariant: the child sends nothing after the end of an id, and a `Beat` at least once a second.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from lathe.engine.errors import Failure
from lathe.engine.generation import (
    Delta,
    Embeddings,
    EmbedRequest,
    GenerationRequest,
    Message,
    RenderedPrompt,
    Score,
    ScoreRequest,
)

PROTOCOL = 1

LOOKUP = "lookup"
"""In place of a draft model: what followed the newest tokens earlier in the same text."""

KvType = Literal["f16", "f32", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl"]


class LoadOptions(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a model is brought into memory; `None` lets the engine choose."""

    context: int | None = None
    """Tokens of KV cache per sequence slot; None: the model's own, capped by memory."""
    slots: int = 4
    """Sequences that may run at once over the unified KV cache."""
    kv_tokens: int | None = None
    """Size of the whole KV cache in tokens; None: context * slots, capped by memory."""
    gpu_layers: int | None = None
    """Layers offloaded; None: as many as fit, -1: all, 0: none."""
    kv_type: KvType = "f16"
    flash_attention: bool | None = None
    threads: int | None = None
    """Decode threads; None: the physical cores."""
    batch_tokens: int = 512
    """Token budget of one scheduler iteration."""
    backend: Literal["auto", "llama_cpp", "onnx", "ctransformers", "sentence_transformers", "remote", "scripted"] = (
        "auto"
    )
    embedding: bool = False
    rope_scaling: Literal["none", "linear", "yarn"] | None = None
    rope_scale: float | None = None
    adapters: tuple[str, ...] = ()
    """Paths of LoRA adapters (GGUF) to load beside the model."""
    draft: str | None = None
    """Path of a draft model for speculation; `lookup` for prompt lookup."""
    prefix_cache: bool = True
    spill_bytes: int | None = None
    """Main memory for prefixes that left the KV cache; None: four KV caches, at most an eighth of what is free."""
    ttl_s: float | None = None
    """Unload after this long without a request; None: never."""


class Load(msgspec.Struct, frozen=True, tag=True):
    """The first message to a worker."""

    path: str
    name: str
    options: LoadOptions
    protocol: int = PROTOCOL
    secret: str | None = None
    """The key of a remote server; it travels here alone, never in options or states that others see."""


class Generate(msgspec.Struct, frozen=True, tag=True):
    id: int
    request: GenerationRequest


class ScoreTexts(msgspec.Struct, frozen=True, tag=True):
    id: int
    request: ScoreRequest


class Embed(msgspec.Struct, frozen=True, tag=True):
    id: int
    request: EmbedRequest


class Tokenize(msgspec.Struct, frozen=True, tag=True):
    id: int
    text: str
    special: bool = False
    bos: bool = False


class Detokenize(msgspec.Struct, frozen=True, tag=True):
    id: int
    tokens: tuple[int, ...]


class Render(msgspec.Struct, frozen=True, tag=True):
    """Apply the chat template."""

    id: int
    messages: tuple[Message, ...]
    tools: str | None = None
    template_args: dict[str, str | bool | int | float] = {}
    add_generation_prompt: bool = True


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """Stop request `id` within one iteration; it ends with finish `cancelled`."""

    id: int


class Drain(msgspec.Struct, frozen=True, tag=True):
    """Refuse new requests, finish the running ones, then exit 0."""


ToWorker = Load | Generate | ScoreTexts | Embed | Tokenize | Detokenize | Render | Cancel | Drain


class WorkerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What was loaded, as measured by the child."""

    backend: str
    pid: int
    context: int
    kv_tokens: int
    slots: int
    vocabulary: int
    layers: int | None = None
    gpu_layers: int = 0
    threads: int = 1
    load_s: float = 0.0
    weights_bytes: int | None = None
    kv_bytes: int | None = None
    compute_bytes: int | None = None
    device_bytes: dict[str, int] = {}
    """Device name (`cpu`, `CUDA0`) -> bytes of weights + KV + compute buffers there."""
    chat_template: str | None = None
    bos_token: str | None = None
    """The text of the token that begins a prompt; None where there is none."""
    eos_token: str | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    capabilities: tuple[str, ...] = ()
    """Of: generate, chat, score, embed, rank, infill, grammar, adapters."""
    system: str = ""
    """llama.cpp's system info line."""


class Loading(msgspec.Struct, frozen=True, tag=True):
    progress: float


class Ready(msgspec.Struct, frozen=True, tag=True):
    info: WorkerInfo


class Piece(msgspec.Struct, frozen=True, tag=True):
    """Deltas of a generation; several may travel together."""

    id: int
    deltas: tuple[Delta, ...]
    at: float | None = None
    """When they were made, on the machine's monotonic clock, which all processes share."""


class Scores(msgspec.Struct, frozen=True, tag=True):
    id: int
    scores: tuple[Score, ...]


class Vectors(msgspec.Struct, frozen=True, tag=True):
    id: int
    embeddings: Embeddings


class Tokens(msgspec.Struct, frozen=True, tag=True):
    id: int
    tokens: tuple[int, ...]


class Text(msgspec.Struct, frozen=True, tag=True):
    id: int
    text: str


class Prompt(msgspec.Struct, frozen=True, tag=True):
    id: int
    rendered: RenderedPrompt


class Done(msgspec.Struct, frozen=True, tag=True):
    """The exchange `id` ended well."""

    id: int


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The exchange `id` ended with an error; id 0: the worker itself (load failed)."""

    id: int
    failure: Failure


class RequestState(msgspec.Struct, frozen=True):
    """One live request, for panels."""

    id: int
    stage: Literal["waiting", "prefill", "decode"]
    client: str
    principal: str
    prompt_tokens: int
    prefilled: int
    generated: int
    age_s: float
    first_token_s: float | None = None


class WorkerStats(msgspec.Struct, frozen=True, kw_only=True):
    """Counters since the worker started and gauges of this moment."""

    iterations: int = 0
    busy_s: float = 0.0
    """Seconds since the running native call began; 0 when idle. The watchdog reads it."""
    prompt_tokens: int = 0
    """Prefilled by compute, without cached ones."""
    cached_tokens: int = 0
    generated_tokens: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    running: int = 0
    waiting: int = 0
    kv_used: int = 0
    kv_tokens: int = 0
    cache_nodes: int = 0
    cache_tokens: int = 0
    preemptions: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    requests: tuple[RequestState, ...] = ()


class Beat(msgspec.Struct, frozen=True, tag=True):
    """Heartbeat, at least once a second."""

    stats: WorkerStats


FromWorker = Loading | Ready | Piece | Scores | Vectors | Tokens | Text | Prompt | Done | Failed | Beat
