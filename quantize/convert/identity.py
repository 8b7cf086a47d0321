"""`general.*`: the model's name, authors, licence, lineage and advised sampling, from what its folder says."""

from __future__ import annotations

import logging
from typing import Any

import yaml
from lathe.quantize.checkpoint import Checkpoint
from lathe.quantize.convert.writer import Metadata, Value, array, f32, text, u32
from lathe.quantize.gguf.types import ValueType

MAX_CARD_BYTES = 4 << 20
_SAMPLING: dict[str, tuple[Any, tuple[str, ...]]] = {
    "sequence": (text, ("sequence",)),
    "top_k": (lambda value: Value(ValueType.INT32, value), ("top_k",)),
    "top_p": (f32, ("top_p",)),
    "min_p": (f32, ("min_p",)),
    "xtc_probability": (f32, ("xtc_probability",)),
    "xtc_threshold": (f32, ("xtc_threshold",)),
    "temp": (f32, ("temperature",)),
    "penalty_last_n": (lambda value: Value(ValueType.INT32, value), ("penalty_last_n",)),
    "penalty_repeat": (f32, ("penalty_repeat", "repetition_penalty")),
    "mirostat": (lambda value: Value(ValueType.INT32, value), ("mirostat",)),
    "mirostat_tau": (f32, ("mirostat_tau",)),
    "mirostat_eta": (f32, ("mirostat_eta",)),
}
"""Key below `general.sampling.` -> how it is stored, and its names in generation_config.json."""
_PLAIN = {
    "author": "author",
    "version": "version",
    "organization": "organization",
    "finetune": "finetune",
    "basename": "basename",
    "description": "description",
    "quantized_by": "quantized_by",
    "size_label": "size_label",
    "license": "license",
    "license_name": "license.name",
    "license_link": "license.link",
    "url": "url",
    "doi": "doi",
    "uuid": "uuid",
    "repo_url": "repo_url",
    "source_url": "source.url",
    "source_doi": "source.doi",
    "source_uuid": "source.uuid",
    "source_repo_url": "source.repo_url",
}
"""Attribute of the `gguf` package's Metadata -> key below `general.`."""
_RELATED = ("name", "author", "version", "organization", "description", "url", "doi", "uuid", "repo_url")


def describe(checkpoint: Checkpoint, parameters: int, *, adapter: bool = False) -> Metadata:
    """Make the `general.*` metadata; `parameters` is the number of values in the GGUF, negative for an adapter."""
    from gguf import size_label
    from gguf.metadata import Metadata as Heuristics

    logging.getLogger("metadata").setLevel(logging.CRITICAL)  # it guesses aloud
    path = checkpoint.config.get("_name_or_path")
    known = {"_name_or_path": path} if isinstance(path, str) else {}
    found = Heuristics.apply_metadata_heuristic(
        Heuristics(), _model_card(checkpoint), known, checkpoint.folder.resolve(), parameters
    )
    found.name = found.name or checkpoint.folder.resolve().name
    found.size_label = found.size_label or size_label(parameters, parameters, 0, 0)
    facts: Metadata = {"type": text("adapter" if adapter else "model")} | _sampling(checkpoint.generation)
    facts["name"] = text(_string(found.name))
    for attribute, key in _PLAIN.items():
        if value := getattr(found, attribute, None):
            facts[key] = text(_string(value))
    for word, entries in (("base_model", found.base_models), ("dataset", found.datasets)):
        if entries is None:
            continue
        facts[f"{word}.count"] = u32(len(entries))
        for index, entry in enumerate(entries):
            given = {field: entry.get(field) for field in _RELATED if isinstance(entry, dict) and entry.get(field)}
            facts |= {f"{word}.{index}.{field}": text(_string(value)) for field, value in given.items()}
    for key, words in (("tags", found.tags), ("languages", found.languages)):
        if words:
            facts[key] = array(ValueType.STRING, [_string(word) for word in words])
    return {f"general.{key}": value for key, value in facts.items()}


def _sampling(generation: dict[str, Any]) -> Metadata:
    """Keep the sampling that the model's makers advise."""
    facts: Metadata = {}
    for key, (make, names) in _SAMPLING.items():
        value = next((generation[name] for name in names if generation.get(name) is not None), None)
        if make is text and isinstance(value, str):
            facts[f"sampling.{key}"] = text(value)
        elif make is not text and isinstance(value, int | float) and not isinstance(value, bool):
            facts[f"sampling.{key}"] = make(value if make is f32 else int(value))
    return facts


def _model_card(checkpoint: Checkpoint) -> dict[str, Any]:
    """Read the YAML front matter of README.md; a card that cannot be read tells nothing."""
    path = checkpoint.file("README.md")
    if path is None or path.stat().st_size > MAX_CARD_BYTES:
        return {}
    lines = path.read_text("utf-8", errors="replace").splitlines()
    if not lines or lines[0] != "---" or "---" not in lines[1:]:
        return {}
    front = "\n".join(lines[1 : lines.index("---", 1)]).replace("\t", "  ").replace("- no\n", '- "no"\n')
    try:
        card = yaml.safe_load(front)
    except (yaml.YAMLError, RecursionError):
        return {}
    if not isinstance(card, dict):
        return {}
    return {key: value for key, value in card.items() if isinstance(value, str) or _all_text(value)}


def _all_text(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _string(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
