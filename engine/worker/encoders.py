"""Telling a folder of weights that embeds from one that writes, by its configuration alone."""

from __future__ import annotations

from pathlib import Path

_ENCODERS = frozenset(
    f"{family}Model"
    for family in ("Bert", "Roberta", "XLMRoberta", "MPNet", "DistilBert", "ModernBert", "NomicBert", "DebertaV2")
)
"""Architectures without a head: their hidden states are what an embedder pools."""


def is_encoder(folder: Path) -> bool:
    """Whether a folder of weights is an embedder or a cross-encoder by its files, rather than a language model."""
    from lathe.quantize.checkpoint import read_json  # it brings numpy, which a worker's child loads with its model

    if (folder / "modules.json").is_file():
        return True
    if not (folder / "config.json").is_file():
        return False
    names = read_json(folder / "config.json").get("architectures")
    first = str(names[0]) if isinstance(names, list) and names else ""
    return first.endswith("ForSequenceClassification") or first in _ENCODERS
