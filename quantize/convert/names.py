"""Tensor names of a family, in both directions: checkpoint to GGUF, and back."""

from __future__ import annotations

import re

from lathe.quantize.convert.family import Family, Rule
from lathe.quantize.errors import CheckpointError

_SUFFIXES = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}
"""The second pair is what TensorFlow called the first."""
_NEVER_USED = re.compile(r".*\.rotary_emb\.inv_freq|.*\.attn\.(masked_)?bias|.*\.attention\.(masked_)?bias")
"""Buffers that old transformers versions saved beside the weights."""
_LAYER = re.compile(r"(?<=\.)\d+(?=\.)")


class Names:
    """Looks names up in a family's table."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._unused = [re.compile(pattern) for pattern in family.unused]
        rules = {pattern: rule if isinstance(rule, Rule) else Rule(rule) for pattern, rule in family.tensors.items()}
        self._rules = rules
        self._sources = {rule.to: (pattern, rule) for pattern, rule in rules.items()}

    def find(self, name: str) -> tuple[str, Rule] | None:
        """Return the GGUF name and rule of a checkpoint tensor; None when inference does not need it.

        Raises `CheckpointError` for a name that the family does not have.
        """
        short = self._strip(name)
        if _NEVER_USED.fullmatch(name) or any(pattern.fullmatch(short) for pattern in self._unused):
            return None
        stem, _, suffix = short.rpartition(".")
        pattern, layer = _generalised(stem)
        rule, suffix = self._rules.get(pattern), _SUFFIXES.get(suffix, "")
        if rule is None or not suffix:
            raise CheckpointError(
                f"tensor {name!r} has no place in the architecture {self._family.arch}",
                hint="the checkpoint is a variant that this converter does not know",
            )
        return f"{rule.to.replace('{n}', layer)}.{suffix}", rule

    def source(self, name: str) -> tuple[str, Rule] | None:
        """Return the checkpoint name (without a prefix) and the rule of a GGUF tensor; None for a computed one."""
        stem, _, suffix = name.rpartition(".")
        pattern, layer = _generalised(stem)
        if (found := self._sources.get(pattern)) is None:
            return None
        return f"{found[0].replace('{n}', layer)}.{suffix}", found[1]

    def _strip(self, name: str) -> str:
        while prefix := next((prefix for prefix in self._family.prefixes if name.startswith(prefix)), None):
            name = name[len(prefix) :]
        return name


def _generalised(stem: str) -> tuple[str, str]:
    """Replace the layer's number by `{n}`; return the pattern and the number."""
    match = _LAYER.search(f"{stem}.")
    if match is None:
        return stem, ""
    return f"{stem[: match.start()]}{{n}}{stem[match.end() :]}", match[0]
