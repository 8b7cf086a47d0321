"""Names for models: short, printable, typable, told from the path or the header.

Invariant: a name is never empty, is no option and no path, holds no control, formatting or bidirectional character,
and is at most `LONGEST` characters, whatever the file was called.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

from lathe.engine.catalogue import huggingface
from lathe.engine.catalogue.recognise import Candidate

LONGEST = 80
_FALLBACK = "model"
_SHARD_TAIL = re.compile(r"-[0-9]{5}-of-[0-9]{5}$")
_TELLS_NOTHING = re.compile(
    r"(ggml-)?(model|weights|pytorch_model|onnx|snapshot|unnamed)([-_.].*)?|[0-9a-f]{32,}|sha256-.*"
)
_UNWANTED = re.compile(r"[^\w.:+@/-]+")
_EDGES = "-./:+@_"


def name_of(candidate: Candidate, header_name: str | None) -> str:
    """The best name for a model: its store's, else its file's, else its header's or its folder's."""
    if candidate.name:
        return clean(candidate.name)
    path = candidate.path
    if candidate.format in ("safetensors", "onnx"):
        cached = huggingface.repository_name(path)
        own = path.parent.name if path.name == "onnx" else path.name
        return clean(cached or (header_name if header_name and _says_nothing(own) else own))
    stem = _SHARD_TAIL.sub("", path.stem)
    if not _says_nothing(stem):
        return clean(stem)
    cached = huggingface.repository_name(path)
    return clean(header_name or cached or (path.parent.name if _says_something(path.parent) else stem))


def clean(text: str) -> str:
    """Foreign text as a name."""
    text = unicodedata.normalize("NFKC", text)
    text = "".join(character if character.isprintable() else " " for character in text)
    name = _UNWANTED.sub("-", text)
    while name != (name := re.sub(r"\.\.+|//+|--+", lambda match: match[0][0], name.strip(_EDGES))[:LONGEST]):
        pass
    return name or _FALLBACK


def _says_nothing(name: str) -> bool:
    return _TELLS_NOTHING.fullmatch(name.lower()) is not None


def _says_something(path: Path) -> bool:
    return bool(path.name) and not _says_nothing(path.name)
