"""Where models usually lie: the workspace, the Hugging Face cache, Ollama's and LM Studio's stores, ourselves.

Follows each program's own environment variables and settings files. Invariant: only places that exist are named, and
no file longer than 1 MiB is read to find them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
from lathe.engine.catalogue.walk import Place
from lathe.engine.embedded import CHECKPOINT

_SETTINGS_LIMIT = 1 << 20


def standard_places(workspace_models: Path, environment: Mapping[str, str] = os.environ) -> list[Place]:
    """Every standard place of this machine that exists, the workspace's own first."""
    home = Path(environment.get("HOME") or Path.home())
    places = [
        Place(CHECKPOINT, "embedded"),
        Place(workspace_models),
        *(Place(path, "hf-cache") for path in _hugging_face(home, environment)),
        *(Place(path, "ollama") for path in _ollama(home, environment)),
        *(Place(path, "lm-studio") for path in _lm_studio(home)),
    ]
    return [place for place in dict.fromkeys(places) if _is_folder(place.path)]


def _hugging_face(home: Path, environment: Mapping[str, str]) -> Iterator[Path]:
    if chosen := environment.get("HF_HUB_CACHE") or environment.get("HUGGINGFACE_HUB_CACHE"):
        yield Path(chosen).expanduser()
    elif chosen := environment.get("HF_HOME"):
        yield Path(chosen).expanduser() / "hub"
    else:
        cache = Path(environment.get("XDG_CACHE_HOME") or home / ".cache")
        yield cache / "huggingface" / "hub"


def _ollama(home: Path, environment: Mapping[str, str]) -> Iterator[Path]:
    if chosen := environment.get("OLLAMA_MODELS"):
        yield Path(chosen).expanduser()
    yield home / ".ollama" / "models"
    yield Path("/usr/share/ollama/.ollama/models")  # the system service on Linux
    yield Path("/var/lib/ollama")


def _lm_studio(home: Path) -> Iterator[Path]:
    folders = [home / ".lmstudio", home / ".cache" / "lm-studio"]
    if pointer := _read(home / ".lmstudio-home-pointer").strip():
        folders.insert(0, Path(pointer))
    for folder in folders:
        try:
            settings = msgspec.json.decode(_read(folder / "settings.json"), type=dict[str, object])
            downloads = settings.get("downloadsFolder")
        except (msgspec.MsgspecError, RecursionError):
            downloads = None
        if isinstance(downloads, str) and downloads:
            yield Path(downloads)
        yield folder / "models"


def _read(path: Path) -> str:
    try:
        if not path.is_file():
            return ""
        with path.open(encoding="utf-8") as file:
            return file.read(_SETTINGS_LIMIT)
    except (OSError, ValueError):
        return ""


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False
