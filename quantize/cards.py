"""Read what a model file says about itself: one `ModelCard` for GGUF, checkpoints, ONNX and pre-GGUF files.

Headers only; no weight is read and nothing is executed. Invariant: a card is made from checked headers, and what a
file does not say is None.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from lathe.quantize.card import ModelCard
from lathe.quantize.checkpoint import PICKLES, read_checkpoint
from lathe.quantize.errors import InputMissing, UnsupportedError
from lathe.quantize.folder_cards import (
    checkpoint_card,
    is_adapter_folder,
    onnx_card,
    onnx_files,
    safetensors_card,
    shortened,
)
from lathe.quantize.gguf.header import GgufHeader, read_sharded
from lathe.quantize.gguf.semantics import per_layer
from lathe.quantize.gguf.types import FILE_TYPE_NAMES, MAGIC
from lathe.quantize.legacy_ggml import is_legacy, read_legacy

Format = Literal["gguf", "safetensors", "onnx", "ggml"]

_POOLING = ("none", "mean", "cls", "last", "rank")
_BYTE_TOKENS = 256
_KINDS = {
    "vocabulary": "a vocabulary without weights",
    "imatrix": "an importance matrix, not a model",
    "projector": "a projector for images or sound, not a model by itself",
    "control-vector": "a control vector, not a model",
}


def detect_format(path: Path) -> Format | None:
    """Tell the format of a file by its first bytes, of a folder by its files; None where it is no model we know."""
    if path.is_dir():
        described = (path / "config.json").is_file() or is_adapter_folder(path)
        if described and any(path.glob("*.safetensors")):
            return "safetensors"
        return "onnx" if onnx_files(path) else None
    if not path.is_file():
        return None
    with path.open("rb") as file:
        head = file.read(9)
    if head.startswith(MAGIC):
        return "gguf"
    if is_legacy(head[:4]):
        return "ggml"
    if path.suffix == ".onnx":
        return "onnx"
    return "safetensors" if path.suffix == ".safetensors" or head[8:] == b"{" else None


def read_card(path: Path) -> ModelCard:
    """Read the card of a model: a file, any shard of a GGUF, or a folder.

    Raises `InputMissing`, `UnsupportedError` for what is no model, `UnsafeError` for pickles and escaping paths, and
    the `FormatError` of its format.
    """
    match detect_format(path):
        case "gguf":
            return _gguf_card(read_sharded(path))
        case "ggml":
            return _legacy_card(path)
        case "onnx":
            return onnx_card(path)
        case "safetensors":
            return checkpoint_card(path) if path.is_dir() else safetensors_card(path)
        case None:
            if not path.exists():
                raise InputMissing(f"there is no model at {path}", hint="check the path")
            if path.suffix in PICKLES or (path / "config.json").is_file():
                read_checkpoint(path)  # says why: pickled weights, or none at all
            raise UnsupportedError(
                f"{path} is no model that Lathe knows", hint="GGUF, safetensors, ONNX and pre-GGUF GGML are read"
            )


def _gguf_card(headers: tuple[GgufHeader, ...]) -> ModelCard:
    first = headers[0]
    tensors = [tensor for header in headers for tensor in header.tensors]
    types: Counter[str] = Counter()
    for tensor in tensors:
        types[tensor.type.name] += tensor.nbytes
    elements = sum(tensor.elements for tensor in tensors)
    template = first.text("tokenizer.chat_template")
    tokens = first.array("tokenizer.ggml.tokens")
    heads = _largest(first, "attention.head_count")
    embedding = _largest(first, "embedding_length")
    head_size = embedding // heads if embedding and heads else None
    pooling = _largest(first, "pooling_type")
    file_type = first.number("general.file_type")
    return ModelCard(
        format="gguf",
        kind=first.kind,
        architecture=first.architecture,
        name=shortened(first.text("general.name")),
        parameters=elements or None,
        bytes=sum(header.file_bytes for header in headers),
        tensors=len(tensors),
        tensor_types=dict(types.most_common()),
        file_type=FILE_TYPE_NAMES.get(file_type) if file_type is not None else next(iter(types), None),
        bits_per_weight=8 * types.total() / elements if elements else None,
        context_length=_largest(first, "context_length"),
        embedding_length=embedding,
        feed_forward_length=_largest(first, "feed_forward_length"),
        layers=_largest(first, "block_count"),
        heads=heads,
        kv_heads=_largest(first, "attention.head_count_kv") or heads,
        key_length=_largest(first, "attention.key_length") or head_size,
        value_length=_largest(first, "attention.value_length") or head_size,
        sliding_window=_largest(first, "attention.sliding_window") or None,
        experts=_largest(first, "expert_count") or None,
        experts_used=_largest(first, "expert_used_count") or None,
        vocabulary=len(tokens) if tokens is not None else _largest(first, "vocab_size"),
        tokenizer=shortened(first.text("tokenizer.ggml.model")),
        pre_tokenizer=shortened(first.text("tokenizer.ggml.pre")),
        chat_template=template,
        template_sha256=hashlib.sha256(template.encode()).hexdigest() if template else None,
        licence=shortened(first.text("general.license")),
        pooling=_POOLING[pooling] if pooling is not None else None,
        shards=len(headers),
        adapter=first.kind == "adapter",
        warnings=tuple(_oddities(first)),
    )


def _largest(header: GgufHeader, name: str) -> int | None:
    """Return a hyper-parameter; where layers differ, the largest."""
    return max((int(number) for number in per_layer(header, name)), default=None)


def _oddities(header: GgufHeader) -> Iterable[str]:
    if header.kind in _KINDS:
        yield _KINDS[header.kind]
    file_type = header.number("general.file_type")
    if file_type is not None and file_type not in FILE_TYPE_NAMES:
        yield f"the file type {file_type} is unknown"
    tokens = header.array("tokenizer.ggml.tokens")
    if tokens is None:
        return
    for key, value in header.metadata.items():
        if key.startswith("tokenizer.ggml.") and key.endswith("_token_id") and value not in range(len(tokens)):
            yield f"{key} is {value}, outside of the vocabulary"
    if header.text("tokenizer.ggml.model") == "llama":
        found = sum(len(item) == 6 and item.startswith(b"<0x") for batch in tokens.batches() for item in batch)
        if found < _BYTE_TOKENS:
            yield f"only {found} of {_BYTE_TOKENS} byte tokens: llama.cpp aborts on text outside of the vocabulary"
    if header.text("tokenizer.ggml.model") == "gpt2" and not header.text("tokenizer.ggml.pre"):
        yield "no pre-tokenizer is named: text may be split differently than in training"
    if header.kind == "model" and not header.text("general.license"):
        yield "no licence is named"


def _legacy_card(path: Path) -> ModelCard:
    facts = read_legacy(path)
    warnings = ["a format from before GGUF: convert it, or use the legacy extra"]
    if facts.architecture is None:
        warnings.append("its layout is unknown: the program that wrote it would have to be named")
    return ModelCard(
        format="ggml",
        kind="adapter" if facts.container == "ggla" else "model",
        adapter=facts.container == "ggla",
        architecture=facts.architecture,
        name=shortened(path.stem),
        parameters=facts.parameters,
        bytes=facts.file_bytes,
        tensors=facts.tensors,
        tensor_types=facts.tensor_types,
        file_type=facts.file_type,
        bits_per_weight=8 * sum(facts.tensor_types.values()) / facts.parameters if facts.parameters else None,
        context_length=facts.context,
        embedding_length=facts.embedding,
        layers=facts.layers,
        heads=facts.heads,
        vocabulary=facts.vocabulary,
        warnings=tuple(warnings),
    )
