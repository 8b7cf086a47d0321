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

BACKENDS = {
    "llama_cpp": "lathe.engine.worker.backends.llama.backend:make",
    "sentence_transformers": "lathe.engine.worker.backends.sentences:make",
    "scripted": "lathe.engine.worker.backends.scripted:make",
}
"""Name -> `module:callable`, called with `emit`."""


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
    return "llama_cpp"


def create(name: str, emit: Emit) -> Backend:
    """Import and make a backend.

    Raises:
        UnavailableError: there is none of this name, or its extra is not installed.
    """
    target = BACKENDS.get(name)
    if target is None:
        raise UnavailableError(f"no backend is called {name}", hint=f"known: {', '.join(sorted(BACKENDS))}")
    module, _, attribute = target.partition(":")
    try:
        make: Callable[[Emit], Backend] = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise UnavailableError(f"backend {name} needs {error.name}, which is not installed") from error
    return make(emit)
