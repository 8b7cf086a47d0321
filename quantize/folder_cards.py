"""Cards of checkpoint folders and ONNX folders: facts from their JSON files and from the weights' headers.

Invariant: numbers and texts come from foreign JSON, so each is taken only when it has the expected type and range.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lathe.quantize.card import ModelCard
from lathe.quantize.checkpoint import Checkpoint, plain_name, read_checkpoint, read_json
from lathe.quantize.errors import CheckpointError, FormatError, InputMissing
from lathe.quantize.onnx_files import OnnxFile, read_onnx
from lathe.quantize.safetensors import SafetensorsFile, TensorInfo

_ONNX_MAIN = ("model.onnx", "decoder_model_merged.onnx", "decoder_model.onnx", "model_quantized.onnx")
"""The file that runs, where a folder holds several and no genai_config.json names it."""
_ONNX_NAMES = {"FLOAT": "F32", "FLOAT16": "F16", "BFLOAT16": "BF16", "DOUBLE": "F64"}
_NAME_LENGTH = 200
_README_BYTES = 64 << 10
_TEMPLATE_BYTES = 256 << 10


def shortened(text: str | None) -> str | None:
    """Cut a foreign text to a name's length and make it encodable: JSON and file names may hold lone surrogates."""
    return None if text is None else _encodable(text[:_NAME_LENGTH])


def is_adapter_folder(folder: Path) -> bool:
    """Tell whether a folder holds a PEFT adapter."""
    return (folder / "adapter_config.json").is_file() and (folder / "adapter_model.safetensors").is_file()


def checkpoint_card(folder: Path) -> ModelCard:
    """Read the card of a safetensors folder in the Hugging Face layout, or of a PEFT adapter."""
    if is_adapter_folder(folder) and not (folder / "config.json").is_file():
        return _adapter_card(folder)
    checkpoint = read_checkpoint(folder)
    card = _weights_facts(checkpoint.tensors.values())
    template = _chosen_template(checkpoint.chat_template)
    quantized = checkpoint.config.get("quantization_config")
    method = quantized.get("quant_method") if isinstance(quantized, dict) else None
    if isinstance(method, str):
        card["file_type"] = shortened(method.upper())
    return ModelCard(
        format="safetensors",
        name=shortened(folder.name),
        bytes=sum(shard.stat().st_size for shard in checkpoint.shards),
        tokenizer=_tokenizer(folder),
        chat_template=template,
        template_sha256=_sha256(template),
        licence=_licence(folder),
        pooling=_pooling(checkpoint),
        shards=len(checkpoint.shards),
        warnings=tuple(f"needs code of its own, which is never run: {reason}" for reason in checkpoint.remote_code),
        **card,
        **config_facts(checkpoint.config),
    )


def safetensors_card(path: Path) -> ModelCard:
    """Read the card of one safetensors file without its folder's config."""
    with SafetensorsFile(path) as file:
        adapter = all(".lora_" in name for name in file.tensors) and bool(file.tensors)
        return ModelCard(
            format="safetensors",
            kind="adapter" if adapter else "model",
            adapter=adapter,
            name=shortened(path.stem),
            bytes=file.size,
            warnings=("a file of weights alone: its folder has the configuration",),
            **_weights_facts(file.tensors.values()),
        )


def onnx_files(folder: Path) -> list[Path]:
    """List the ONNX files of a folder, or of its `onnx` sub-folder; sorted."""
    return sorted(folder.glob("*.onnx")) or sorted((folder / "onnx").glob("*.onnx"))


def onnx_graphs(path: Path) -> list[Path]:
    """List the graphs that run, of an ONNX file or folder: the main one first, an encoder that belongs to it after."""
    if not path.is_dir():
        return [path]
    files = onnx_files(path)
    if not files:
        raise InputMissing(f"{path} holds no ONNX file", hint="export a model into it")
    return _onnx_main(files, _genai(path))


def onnx_card(path: Path) -> ModelCard:
    """Read the card of an ONNX file or folder; external data is checked before it is counted."""
    folder, files = (path, onnx_files(path)) if path.is_dir() else (path.parent, [path])
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    genai = _genai(folder)
    main = _onnx_main(files, genai)
    parts = [read_onnx(file) for file in main]
    types: Counter[str] = Counter()
    for part in parts:
        for tensor in part.tensors:
            types[_ONNX_NAMES.get(tensor.type, tensor.type)] += tensor.nbytes
    parameters = sum(part.parameters for part in parts)
    external = {file for part in parts for file in part.external}
    template = _folder_template(folder)
    facts = config_facts(config)
    facts.update({key: value for key, value in _genai_facts(genai).items() if value is not None})
    return ModelCard(
        format="onnx",
        name=shortened(path.name if path.is_dir() else path.stem),
        parameters=parameters or None,
        bytes=sum(part.file_bytes for part in parts) + sum(file.stat().st_size for file in external),
        tensors=sum(len(part.tensors) for part in parts),
        tensor_types=dict(types.most_common()),
        file_type=_onnx_file_type(parts, types),
        bits_per_weight=8 * types.total() / parameters if parameters else None,
        tokenizer=_tokenizer(folder),
        chat_template=template,
        template_sha256=_sha256(template),
        licence=_licence(folder),
        shards=len(main),
        warnings=tuple(f"not counted: {file.name}" for file in files if file not in main),
        **facts,
    )


def config_facts(config: dict[str, Any]) -> dict[str, Any]:
    """Translate a config.json into fields of a card."""
    hidden = _count(config, "hidden_size", "n_embd", "d_model", "dim")
    heads = _count(config, "num_attention_heads", "n_head", "num_heads", "n_heads")
    head_size = _count(config, "head_dim") or (hidden // heads if hidden and heads else None)
    sliding = None if config.get("use_sliding_window") is False else _count(config, "sliding_window")
    kind = config.get("model_type")
    return {
        "architecture": shortened(kind) if isinstance(kind, str) else None,
        "context_length": _count(config, "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"),
        "embedding_length": hidden,
        "feed_forward_length": _count(config, "intermediate_size", "n_inner", "ffn_dim", "d_ff", "hidden_dim"),
        "layers": _count(config, "num_hidden_layers", "n_layer", "num_layers", "n_layers"),
        "heads": heads,
        "kv_heads": _count(config, "num_key_value_heads", "num_kv_heads", "n_head_kv") or heads,
        "key_length": head_size,
        "value_length": head_size,
        "sliding_window": sliding,
        "experts": _count(config, "num_local_experts", "num_experts", "n_routed_experts"),
        "experts_used": _count(config, "num_experts_per_tok", "num_experts_per_token"),
        "vocabulary": _count(config, "vocab_size"),
    }


def _genai_facts(document: dict[str, Any]) -> dict[str, Any]:
    """Translate onnxruntime-genai's configuration into fields of a card."""
    model = document.get("model")
    decoder = model.get("decoder") if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(decoder, dict):
        return {}
    kind = model.get("type")
    return {
        "architecture": shortened(kind) if isinstance(kind, str) else None,
        "context_length": _count(model, "context_length"),
        "vocabulary": _count(model, "vocab_size"),
        "embedding_length": _count(decoder, "hidden_size"),
        "layers": _count(decoder, "num_hidden_layers"),
        "heads": _count(decoder, "num_attention_heads"),
        "kv_heads": _count(decoder, "num_key_value_heads"),
        "key_length": _count(decoder, "head_size"),
        "value_length": _count(decoder, "head_size"),
    }


def _genai(folder: Path) -> dict[str, Any]:
    """Read onnxruntime-genai's configuration; empty where there is none."""
    path = folder / "genai_config.json"
    return read_json(path) if path.is_file() else {}


def _onnx_main(files: list[Path], genai: dict[str, Any]) -> list[Path]:
    """Choose the files that make up the model: the named one, encoder and decoder, or the usual one."""
    by_name = {file.name: file for file in files}
    model = genai.get("model")
    decoder = model.get("decoder") if isinstance(model, dict) else None
    named = decoder.get("filename") if isinstance(decoder, dict) else None
    if isinstance(named, str) and plain_name(named, files[0].parent / "genai_config.json") in by_name:
        return [by_name[named]]
    main = next((by_name[name] for name in _ONNX_MAIN if name in by_name), None)
    encoder = by_name.get("encoder_model.onnx")
    if main is None:
        return [encoder or max(files, key=lambda file: file.stat().st_size)]
    return [main, encoder] if encoder and main.name.startswith("decoder") else [main]


def _onnx_file_type(parts: list[OnnxFile], types: Counter[str]) -> str | None:
    if any("MatMulNBits" in part.operators for part in parts):
        return "INT4"
    return types.most_common(1)[0][0] if types else None


def _adapter_card(folder: Path) -> ModelCard:
    config = read_json(folder / "adapter_config.json")
    base = config.get("base_model_name_or_path")
    with SafetensorsFile(folder / "adapter_model.safetensors") as file:
        return ModelCard(
            format="safetensors",
            kind="adapter",
            adapter=True,
            name=shortened(folder.name),
            bytes=file.size,
            licence=_licence(folder),
            warnings=(f"an adapter for {shortened(base)}",) if isinstance(base, str) and base else (),
            **_weights_facts(file.tensors.values()),
        )


def _weights_facts(tensors: Iterable[TensorInfo]) -> dict[str, Any]:
    types: Counter[str] = Counter()
    count = elements = 0
    for tensor in tensors:
        types[tensor.dtype] += tensor.nbytes
        elements += math.prod(tensor.shape)
        count += 1
    return {
        "parameters": elements or None,
        "tensors": count,
        "tensor_types": dict(types.most_common()),
        "file_type": types.most_common(1)[0][0] if types else None,
        "bits_per_weight": 8 * types.total() / elements if elements else None,
    }


def _count(config: dict[str, Any], *names: str) -> int | None:
    """Return the first of these that is a sensible positive integer."""
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 48:
            return value
    return None


def _tokenizer(folder: Path) -> str | None:
    """Name the kind of tokenizer, in llama.cpp's words, by the files that such tokenizers have."""
    for name, kind in (("tokenizer.model", "llama"), ("merges.txt", "gpt2"), ("vocab.txt", "bert")):
        if (folder / name).is_file():
            return kind
    return None


def _chosen_template(template: str | list[dict[str, str]] | None) -> str | None:
    """Choose the default of several named templates."""
    if isinstance(template, list):
        named = {entry.get("name", ""): entry.get("template") for entry in template}
        template = named.get("default") or next(iter(named.values()), None)
    return _encodable(template) if isinstance(template, str) else None


def _folder_template(folder: Path) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        with path.open("rb") as file:
            data = file.read(_TEMPLATE_BYTES + 1)
        if len(data) > _TEMPLATE_BYTES:
            raise CheckpointError(f"{path} is larger than {_TEMPLATE_BYTES:,} bytes, the limit for a chat template")
        return data.decode("utf-8", "replace")
    path = folder / "tokenizer_config.json"
    template = read_json(path).get("chat_template") if path.is_file() else None
    return _encodable(template) if isinstance(template, str) and len(template) <= _TEMPLATE_BYTES else None


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _sha256(text: str | None) -> str | None:
    return hashlib.sha256(text.encode()).hexdigest() if text else None


def _licence(folder: Path) -> str | None:
    """Find `license:` in the front matter of the README, where model hubs put it."""
    readme = folder / "README.md"
    if not readme.is_file():
        return None
    with readme.open("rb") as file:
        lines = file.read(_README_BYTES).decode("utf-8", "replace").splitlines()
    if not lines or lines[0].strip() != "---":
        return None
    for line in lines[1:]:
        if line.strip() == "---":
            break
        key, _, value = line.partition(":")
        if key == "license":
            return shortened(value.strip().strip("'\"")) or None
    return None


def _pooling(checkpoint: Checkpoint) -> str | None:
    """Read how a sentence-transformers folder pools its tokens."""
    for module in checkpoint.modules:
        kind, where = module.get("type"), module.get("path")
        if not isinstance(kind, str) or not kind.endswith(".Pooling") or not isinstance(where, str):
            continue
        path = checkpoint.folder / plain_name(where, checkpoint.folder / "modules.json") / "config.json"
        try:
            config = read_json(path)
        except (InputMissing, FormatError):
            return None
        for field, name in (
            ("pooling_mode_cls_token", "cls"),
            ("pooling_mode_mean_tokens", "mean"),
            ("pooling_mode_lasttoken", "last"),
        ):
            if config.get(field) is True:
                return name
    return None
