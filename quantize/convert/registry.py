"""Which family converts which architecture, and what to say when none does."""

from __future__ import annotations

import difflib
import importlib

from lathe.quantize.checkpoint import Checkpoint, refuse_remote_code
from lathe.quantize.convert.family import Family
from lathe.quantize.errors import CheckpointError, UnsupportedError

ARCHITECTURES: dict[str, str] = {
    "LlamaForCausalLM": "llama:LLAMA",
}
"""Class name in config.json -> `module:NAME` below `families`."""


def family_of(checkpoint: Checkpoint) -> Family:
    """Find the family of a checkpoint; name the nearest ones when there is none."""
    architecture = checkpoint.architecture
    if architecture is None:
        raise CheckpointError(f"{checkpoint.folder / 'config.json'} names no architecture")
    home = ARCHITECTURES.get(architecture)
    if home is None:
        refuse_remote_code(checkpoint)
        near = difflib.get_close_matches(architecture, ARCHITECTURES, 3, 0.5)
        raise UnsupportedError(
            f"no converter here knows the architecture {architecture}",
            hint=f"the nearest that are known: {', '.join(near)}" if near else "see `lathe toolchain`",
        )
    module, _, name = home.partition(":")
    family = getattr(importlib.import_module(f"lathe.quantize.convert.families.{module}"), name)
    assert isinstance(family, Family)
    return family
