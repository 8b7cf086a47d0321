"""Steps: what a job does, as values. The screens build them, `--batch` plans contain them, jobs run them.

One dataclass per kind of work, tagged by `run` in plan files. Pure; `lathe.engine.jobs.kinds` maps each to its code.
Invariant: a step plus the hashes of its inputs determines its result, so equal keys mean reusable results.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from lathe.engine.generation import Message, Sampling
from lathe.engine.worker.messages import LoadOptions
from msgspec import Meta

Positive = Annotated[int, Meta(ge=1)]
Count = Annotated[int, Meta(ge=0)]


class _Step(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="run"):
    pass


class ScanStep(_Step, frozen=True, kw_only=True, tag="scan"):
    """Find models in folders and in the standard places; link them in place."""

    roots: tuple[str, ...] = ()
    """Folders; none: the standard places (HF cache, Ollama, LM Studio, the workspace)."""
    hashes: bool = True
    """Compute sha256 of what was found, in the background."""


class VerifyStep(_Step, frozen=True, kw_only=True, tag="verify"):
    """Hash a model again and compare with what was recorded."""

    model: str


class ConvertStep(_Step, frozen=True, kw_only=True, tag="convert"):
    """Turn a checkpoint into GGUF or ONNX."""

    model: str
    to: Literal["gguf", "onnx"] = "gguf"
    outtype: Literal["auto", "f32", "f16", "bf16", "q8_0"] = "auto"
    output: str | None = None
    """Path; None: in the workspace, named after the source."""
    name: str | None = None
    """Registered name of the result."""
    force: bool = False


class QuantizeStep(_Step, frozen=True, kw_only=True, tag="quantize"):
    """Quantize a GGUF model."""

    model: str
    type: str = "Q4_K_M"
    imatrix: str | None = None
    tensor_types: dict[str, str] = {}
    """Regular expression over tensor names -> type."""
    output_tensor_type: str | None = None
    token_embedding_type: str | None = None
    keep_output: bool = False
    """Leave output.weight as it is."""
    pure: bool = False
    allow_requantize: bool = False
    imatrix_only: tuple[str, ...] = ()
    """Use importances only for tensors with one of these in their name."""
    imatrix_except: tuple[str, ...] = ()
    """Use no importances for tensors with one of these in their name."""
    prune_layers: tuple[Count, ...] = ()
    keep_split: bool = False
    """As many shards as the source has."""
    metadata: dict[str, str | int | float | bool] = {}
    """Written into the file."""
    threads: Count = 0
    output: str | None = None
    name: str | None = None
    force: bool = False


class PerplexityStep(_Step, frozen=True, kw_only=True, tag="perplexity"):
    """Perplexity over a text, as llama-perplexity computes it."""

    model: str
    text: str | None = None
    """Path; None: the held-out docstrings shipped with the embedded model."""
    context: Positive = 512
    chunks: Annotated[int, Meta(ge=-1)] = -1
    threads: Count = 0
    gpu_layers: int | None = None


class KldStep(_Step, frozen=True, kw_only=True, tag="kld"):
    """Divergence of a model's predictions from a base model's, with llama-perplexity's statistics."""

    model: str
    base: str | None = None
    """The reference, usually the same model at full precision; both step through the text together."""
    base_file: str | None = None
    """In place of `base`: log-probabilities written by llama-perplexity or by `save_base`."""
    save_base: str | None = None
    """Path: also write the base's log-probabilities for later, in llama-perplexity's format."""
    text: str | None = None
    """Path; None: the held-out docstrings shipped with the embedded model."""
    context: Positive = 512
    chunks: Annotated[int, Meta(ge=-1)] = -1
    threads: Count = 0
    gpu_layers: int | None = None
    force: bool = False
    """Replace an existing `save_base`."""


class ImatrixStep(_Step, frozen=True, kw_only=True, tag="imatrix"):
    """Importance matrix of a model on a text, as llama-imatrix collects it."""

    model: str
    text: str
    """Path of the calibration text."""
    context: Positive = 512
    chunks: Annotated[int, Meta(ge=-1)] = -1
    process_output: bool = False
    """Collect for the output matrix, too."""
    merge: tuple[str, ...] = ()
    """Matrices of the same model to add."""
    threads: Count = 0
    gpu_layers: int | None = None
    output: str | None = None
    name: str | None = None
    force: bool = False


class BenchStep(_Step, frozen=True, kw_only=True, tag="bench"):
    """Prompt and generation speed with llama-bench's rows."""

    model: str
    prompt_tokens: tuple[Count, ...] = (512,)
    generate_tokens: tuple[Count, ...] = (128,)
    pairs: tuple[tuple[Positive, Positive], ...] = ()
    """`-pg`: prompt then generation in one timing."""
    depths: tuple[Count, ...] = (0,)
    batch: Positive = 2048
    micro_batch: Positive = 512
    kv_types: tuple[str, ...] = ("f16",)
    threads: tuple[Count, ...] = (0,)
    repetitions: Positive = 5
    gpu_layers: int | None = None


class ServeStep(_Step, frozen=True, kw_only=True, tag="serve"):
    """Serve a model over HTTP, probe it with real requests, report, and stop (or keep serving)."""

    model: str
    options: LoadOptions = LoadOptions()
    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 0
    prompts: tuple[str, ...] = ("Hello",)
    max_tokens: Positive = 64
    keep: bool = False


class GenerateStep(_Step, frozen=True, kw_only=True, tag="generate"):
    """Generate text for each prompt with one model."""

    model: str
    prompts: tuple[str, ...] = ()
    file: str | None = None
    """JSON lines with `prompt` or `messages`, or one prompt per line."""
    system: str | None = None
    chat: bool = True
    messages: tuple[Message, ...] = ()
    max_tokens: Positive = 256
    sampling: Sampling = Sampling()
    options: LoadOptions = LoadOptions()
    output: str | None = None
    """Path of the JSON lines written; None: only in the job's result."""


Step = (
    ScanStep | VerifyStep | ConvertStep | QuantizeStep | PerplexityStep | KldStep | ImatrixStep | BenchStep | ServeStep
    | GenerateStep
)  # fmt: skip
