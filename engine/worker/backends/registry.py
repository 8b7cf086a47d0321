"""Which backend runs which model: names to classes, resolved on first use.

Invariant: looking a backend up imports nothing of the others.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

from lathe.engine.errors import UnavailableError
from lathe.engine.worker.backends.protocol import Backend, Emit
from lathe.engine.worker.encoders import is_encoder
from lathe.engine.worker.messages import LoadOptions
from lathe.quantize.legacy_ggml import is_legacy

BACKENDS = {
    "llama_cpp": "lathe.engine.worker.backends.llama.backend:make",
    "ctransformers": "lathe.engine.worker.backends.legacy:make",
    "onnx": "lathe.engine.worker.backends.onnx.backend:make",
    "remote": "lathe.engine.worker.backends.remote.backend:make",
    "sentence_transformers": "lathe.engine.worker.backends.sentences:make",
    "scripted": "lathe.engine.worker.backends.scripted:make",
}
"""Name -> `module:callable`, called with `emit`; `remote` is given the key of its server as well."""


def backend_for(path: str, options: LoadOptions) -> str:
    """Name the backend of a model: the one asked for, else what its path says."""
    if options.backend != "auto":
        return options.backend
    if path.startswith("scripted:"):
        return "scripted"
    if path.startswith(("http://", "https://")):
        return "remote"
    if path.endswith(".onnx") or (Path(path).is_dir() and any(Path(path).rglob("*.onnx"))):
        return "onnx"
    if Path(path).is_dir() and is_encoder(Path(path)):
        return "sentence_transformers"
    if is_legacy(_magic(path)):
        return "ctransformers"
    return "llama_cpp"


def _magic(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            return file.read(4)
    except OSError:
        return b""  # the backend says what is wrong with it


def create(name: str, emit: Emit, secret: str | None = None) -> Backend:
    """Import and make a backend.

    Args:
        secret: the key of a remote server.

    Raises:
        UnavailableError: there is none of this name, or its extra is not installed.
    """
    target = BACKENDS.get(name)
    if target is None:
        raise UnavailableError(f"no backend is called {name}", hint=f"known: {', '.join(sorted(BACKENDS))}")
    module, _, attribute = target.partition(":")
    try:
        make: Callable[..., Backend] = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise UnavailableError(f"backend {name} needs {error.name}, which is not installed") from error
    return make(emit) if secret is None else make(emit, secret)
