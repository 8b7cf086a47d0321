"""Small model files in the layouts that users have, written without any converter."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from support.checkpoints import weights, write_checkpoint
from support.gguf_writer import text, tiny_model


def gguf(path: Path, name: str = "tiny") -> Path:
    """A valid GGUF whose bytes depend on `name`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tiny_model().put("general.name", text(name)).build())
    return path


def checkpoint(folder: Path) -> Path:
    """A checkpoint folder with one tensor and a tokenizer file."""
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 8, "num_hidden_layers": 1}
    tensors = {"model.embed_tokens.weight": weights("embed", (4, 8))}
    return write_checkpoint(folder, config, tensors, {"README.md": "# hello", "tokenizer.json": {"version": "1.0"}})


def hub_repository(hub: Path, name: str, files: dict[str, bytes], revision: str = "abc1234def") -> Path:
    """One repository of a Hugging Face cache; returns its snapshot."""
    repository = hub / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / revision
    for folder in (repository / "refs", repository / "blobs", snapshot):
        folder.mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text(revision)
    for file, content in files.items():
        blob = repository / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / file).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / file).symlink_to(os.path.relpath(blob, (snapshot / file).parent))
    return snapshot


def ollama_model(root: Path, name: str, content: bytes) -> Path:
    """One model of an Ollama store; returns its blob."""
    digest = hashlib.sha256(content).hexdigest()
    blob = root / "blobs" / f"sha256-{digest}"
    manifest = root / "manifests" / name
    for folder in (blob.parent, manifest.parent):
        folder.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(content)
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}", "size": len(content)}
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": [layer]}))
    return blob
