"""From a GGUF file and `LoadOptions` to a model and a context, with what they really took.

Invariant: the strict header check runs before llama.cpp sees the file, and what is chosen here (context, KV cache,
sequences) is reported in `WorkerInfo` as it is, not as it was asked for.
"""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path

import msgspec
from lathe.engine.errors import DataError, MissingError
from lathe.engine.footprint import choose_attention, outputs, sequences
from lathe.engine.native.llama import (
    KV_TYPES,
    ContextOptions,
    LlamaContext,
    LlamaModel,
    bindings,
    log_to,
    logged,
    physical_cores,
)
from lathe.engine.native.vectors import ranks
from lathe.engine.worker.backends.protocol import Progress
from lathe.engine.worker.messages import LoadOptions, WorkerInfo
from lathe.quantize.gguf.header import read_sharded
from lathe.quantize.libllama import Level

_KV_SHARE = 0.6
"""Part of the free memory that a KV cache of unstated size may take."""
_SPILL_CACHES, _SPILL_SHARE = 4, 0.125
"""Main memory for evicted prefixes, in KV caches and as part of what is free; the smaller counts."""
_PAD = 256
"""llama.cpp rounds the KV cache up to a multiple of this."""
_ELEMENT_BYTES = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "q5_1": 24 / 32, "q5_0": 22 / 32,
                  "q4_1": 20 / 32, "q4_0": 18 / 32, "iq4_nl": 18 / 32}  # fmt: skip
_ROPE = {None: -1, "none": 0, "linear": 1, "yarn": 2}
_BUFFER = re.compile(r"(\S+)\s+(model|KV|compute|output|RS)\s+buffer size\s*=\s*([\d.]+) MiB")


class Loaded(msgspec.Struct, frozen=True):
    """A model ready to serve."""

    model: LlamaModel
    context: LlamaContext
    info: WorkerInfo
    sequences: int
    """Native sequences."""
    max_outputs: int
    recurrent: bool
    """Its memory is a state that cannot be cut, so prefixes cannot be shared."""
    spill_tokens: int
    """Tokens of evicted prefixes that main memory may hold."""


class _Buffers:
    """Reads the sizes of buffers from llama.cpp's log, the only place where it tells them."""

    def __init__(self) -> None:
        self.bytes: dict[str, dict[str, int]] = {}

    def __call__(self, _level: Level, line: str) -> None:
        if found := _BUFFER.search(line):
            device, kind, size = found.groups()
            device = "cpu" if device.upper().startswith("CPU") or device == "AMX" else device
            kinds = self.bytes.setdefault(device.removesuffix("_Host"), {})
            kinds[kind] = kinds.get(kind, 0) + int(float(size) * 2**20)

    def of(self, *kinds: str) -> int:
        return sum(sizes.get(kind, 0) for sizes in self.bytes.values() for kind in kinds)


def load(path: str, options: LoadOptions, progress: Progress) -> Loaded:
    """Load a model and allocate its context.

    Raises:
        DataError: the file is no sound GGUF, or llama.cpp refuses it.
        MissingError: there is no such file.
    """
    begun = time.monotonic()
    file = Path(path)
    if not file.is_file():
        raise MissingError(f"no file {file}")
    for header in read_sharded(file):
        if header.metadata.get("general.type") == "adapter":
            raise DataError(
                f"{file.name} is a LoRA adapter, not a model", hint="load its base model with it as adapter"
            )

    def report(part: float) -> bool:
        progress(part)
        return True

    log_to(_to_stderr)
    buffers = _Buffers()
    with logged(buffers):
        model = LlamaModel(file, gpu_layers=_gpu_layers(options), progress=report)
        context = _context(model, options)
    info = WorkerInfo(
        backend="llama_cpp",
        pid=os.getpid(),
        context=min(_context_tokens(model, options), context.n_ctx),
        kv_tokens=context.n_ctx,
        slots=options.slots,
        vocabulary=model.n_vocab,
        layers=model.n_layer,
        gpu_layers=_offloaded(model, options),
        threads=options.threads or physical_cores(),
        load_s=time.monotonic() - begun,
        weights_bytes=model.size,
        kv_bytes=buffers.of("KV", "RS"),
        compute_bytes=buffers.of("compute", "output"),
        device_bytes={device: sum(sizes.values()) for device, sizes in buffers.bytes.items()},
        chat_template=model.chat_template,
        bos_token=_name(model, model.bos),
        eos_token=_name(model, model.eos),
        bos_token_id=model.bos if model.bos >= 0 else None,
        eos_token_id=model.eos if model.eos >= 0 else None,
        capabilities=_capabilities(model, options),
        system=bindings().llama_print_system_info().decode("utf-8", "replace"),
    )
    spill_tokens = _spill_tokens(options, info) if options.prefix_cache else 0
    return Loaded(
        model, context, info, context.options.n_seq_max, context.options.n_outputs_max, model.is_recurrent, spill_tokens
    )


def _context(model: LlamaModel, options: LoadOptions) -> LlamaContext:
    tokens = _context_tokens(model, options)
    cells = options.kv_tokens or min(tokens * options.slots, max(tokens, _affordable(model, options)))
    cells = max(_PAD, -(-cells // _PAD) * _PAD)
    parallel = sequences(model.n_vocab, options.slots, recurrent=model.is_recurrent)
    rows = outputs(model.n_vocab, options.slots, recurrent=model.is_recurrent)
    batch = max(options.batch_tokens, options.slots)
    heads = _number(model, "attention.head_count", max(1, model.n_embd // 64))
    flash, micro = choose_attention(options, heads, cells, on_cpu=not _offloaded(model, options))
    scale = 1 / options.rope_scale if options.rope_scale else 0.0
    return LlamaContext(
        model,
        ContextOptions(
            n_ctx=cells, n_batch=batch, n_ubatch=micro, n_seq_max=parallel, n_outputs_max=rows,
            n_threads=options.threads or 0, kv_type_k=options.kv_type, kv_type_v=options.kv_type,
            flash_attention=flash, kv_unified=True,
            rope_scaling=_ROPE[options.rope_scaling], rope_freq_scale=scale,  # type: ignore[arg-type]
        ),
    )  # fmt: skip


def _context_tokens(model: LlamaModel, options: LoadOptions) -> int:
    """Tokens that one sequence may have."""
    if options.context is not None:
        return options.context
    return min(model.n_ctx_train, max(_PAD, _affordable(model, options) // max(1, options.slots)))


def _affordable(model: LlamaModel, options: LoadOptions) -> int:
    """Cells that fit the free memory of the host."""
    import psutil

    heads = max(1, _number(model, "attention.head_count", 1))
    kv_heads = _number(model, "attention.head_count_kv", heads)
    width = model.n_embd // heads
    row = kv_heads * (_number(model, "attention.key_length", width) + _number(model, "attention.value_length", width))
    assert options.kv_type in KV_TYPES
    cell_bytes = model.n_layer * row * _ELEMENT_BYTES[options.kv_type]
    return int(psutil.virtual_memory().available * _KV_SHARE / max(1.0, cell_bytes))


def _number(model: LlamaModel, key: str, default: int) -> int:
    """A number of the model's architecture."""
    text = model.metadata(f"{model.metadata('general.architecture')}.{key}")
    return int(text) if text and text.isdigit() else default


def _spill_tokens(options: LoadOptions, info: WorkerInfo) -> int:
    """What the bytes for spilled prefixes come to in tokens."""
    import psutil

    cache_bytes = info.kv_bytes or 0
    allowed = options.spill_bytes
    if allowed is None:
        allowed = min(_SPILL_CACHES * cache_bytes, int(psutil.virtual_memory().available * _SPILL_SHARE))
    return int(allowed / cache_bytes * info.kv_tokens) if cache_bytes else 0


def _gpu_layers(options: LoadOptions) -> int:
    if options.gpu_layers is not None:
        return options.gpu_layers
    return -1 if bindings().llama_supports_gpu_offload() else 0


def _offloaded(model: LlamaModel, options: LoadOptions) -> int:
    if not bindings().llama_supports_gpu_offload():
        return 0
    asked = _gpu_layers(options)
    return model.n_layer + 1 if asked < 0 else min(asked, model.n_layer + 1)


def _capabilities(model: LlamaModel, options: LoadOptions) -> tuple[str, ...]:
    found = ["embed"]
    if model.generates and not options.embedding:
        found += ["generate", "score", "grammar"]
        if model.chat_template:
            found.append("chat")
        if bindings().llama_vocab_fim_pre(model.vocab) >= 0:
            found.append("infill")
    if options.adapters:
        found.append("adapters")
    if ranks(model):
        found.append("rank")
    return tuple(found)


def _name(model: LlamaModel, token: int) -> str | None:
    return None if token < 0 else model.piece(token).decode("utf-8", "replace")


def _to_stderr(level: Level, line: str) -> None:
    if level != "debug":
        sys.stderr.write(f"llama.cpp {level}: {line}\n")
