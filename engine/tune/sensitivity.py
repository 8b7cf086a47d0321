"""What each tensor costs in each type: a few measurements per tensor, the rest by its output error.

The divergence that one quantized tensor causes is proportional to the expected squared error of its output, with a
factor of the tensor's own, plus what the rounding of activations adds, which depends on the kernels (one kind for k-
and i-quants, another for the older types). Two or three anchors per tensor settle that; every other type follows from
its error. On the embedded model the rule holds within 7 % from 2.5 to 5.5 bits. Invariant: costs are never negative.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence

import msgspec
from lathe.engine.tune.knapsack import Option
from lathe.engine.tune.yardstick import Yardstick
from lathe.quantize.errors import InputMissing, UnsupportedError
from lathe.quantize.types import NEED_IMATRIX, tensor_type
from lathe.quantize.variants import Variants

KINDS = ("IQ2_XXS", "IQ2_XS", "IQ2_S", "Q2_K", "IQ3_XXS", "IQ3_S", "Q3_K", "IQ4_XS", "IQ4_NL", "Q4_K", "Q5_0", "Q5_K",
         "Q5_1", "Q6_K", "Q8_0")  # fmt: skip
"""Types worth trying, smallest first."""

_OLDER = frozenset({"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL"})
"""Types whose activations are rounded in blocks of 32."""
_STEEP, _FINE, _OLDER_FINE = ("Q4_K", "Q4_0"), ("Q6_K",), ("Q8_0",)
"""Anchors: where the error dominates, and where the rounding of activations does; the first that fits is taken."""
_LAYER = re.compile(r"blk\.(\d+)\.(.+)")

Progress = Callable[[int, int], None]


class Anchor(msgspec.Struct, frozen=True):
    """A measured group of tensors, all in one type."""

    names: tuple[str, ...]
    kind: str
    kld: float


class Measurements(msgspec.Struct):
    """What has been measured; saved as it grows, so that a stopped search goes on."""

    groups: list[tuple[str, ...]] = []
    """How the tensors are measured together; single ones where time allows."""
    anchors: list[Anchor] = []
    errors: dict[str, dict[str, float]] = {}
    """Tensor -> type -> expected squared error of its output."""


def tensors_of(variants: Variants) -> list[str]:
    """The tensors whose type is chosen: matrices of weights that every k-quant recipe quantizes."""
    return [
        name
        for name, tensor in variants.tensors.items()
        if len(tensor.shape) >= 2
        and name.endswith("weight")
        and "_norm" not in name
        and "ffn_gate_inp" not in name
        and not tensor.type.quantized
    ]


def kinds_for(variants: Variants, name: str, kinds: Sequence[str]) -> list[str]:
    """The types a tensor can have: its rows fit the blocks, and importances are there where they are needed."""
    tensor = variants.tensors[name]
    return [
        kind
        for kind in kinds
        if tensor.shape[0] % tensor_type(kind).block == 0
        and (kind not in NEED_IMATRIX or variants.has_importances(name))
    ]


def groups(names: Sequence[str], most: int) -> list[tuple[str, ...]]:
    """At most about `most` groups of similar tensors: same role, neighbouring layers; single ones where they fit."""
    if len(names) <= most:
        return [(name,) for name in names]
    roles: dict[str, list[str]] = {}
    for name in names:
        found = _LAYER.fullmatch(name)
        roles.setdefault(found[2] if found else name, []).append(name)
    parts = max(1, most // len(roles))
    result = []
    for members in roles.values():
        size = -(-len(members) // parts)
        result += [tuple(members[at : at + size]) for at in range(0, len(members), size)]
    return result


def measure(
    yardstick: Yardstick,
    variants: Variants,
    kinds: Sequence[str],
    done: Measurements,
    *,
    until: float,
    errors_until: float,
    save: Callable[[Measurements], None],
    progress: Progress,
) -> None:
    """Fill `done`: anchors for every group, then errors for every tensor and type.

    Args:
        until: monotonic time after which no finer anchors are begun; the steep ones are always measured.
        errors_until: after this only the anchors' types get errors, and mixes choose among those.
    """
    names = tensors_of(variants)
    done.groups = done.groups or groups(names, _affordable(yardstick, until))
    plan = [(group, choices) for choices in (_STEEP, _FINE, _OLDER_FINE) for group in done.groups]
    for number, (group, choices) in enumerate(plan):
        progress(number, len(plan))
        kind = next(
            (kind for kind in choices if all(kind in kinds_for(variants, name, [kind]) for name in group)), None
        )
        if kind is None or any(anchor.names == group and anchor.kind == kind for anchor in done.anchors):
            continue
        if choices is not _STEEP and time.monotonic() > until:
            continue
        reading = yardstick.read(variants.paths(dict.fromkeys(group, kind)))
        done.anchors.append(Anchor(group, kind, max(0.0, reading.kld)))
        save(done)
    progress(len(plan), len(plan))
    anchors = (*_STEEP, *_FINE, *_OLDER_FINE)
    for name in names:
        known = done.errors.setdefault(name, {})
        for kind in dict.fromkeys((*anchors, *kinds_for(variants, name, kinds))):
            if kind not in anchors and time.monotonic() > errors_until:
                break
            if kind not in known and kind in kinds_for(variants, name, [kind]):
                try:
                    known[kind] = variants.error(name, kind)
                except (InputMissing, UnsupportedError):
                    continue
        save(done)


def _affordable(yardstick: Yardstick, until: float) -> int:
    """How many groups can have all their anchors in time."""
    return max(8, int((until - time.monotonic()) / (3 * max(0.05, yardstick.seconds))))


def costs(done: Measurements) -> dict[str, dict[str, float]]:
    """Tensor -> type -> predicted divergence."""
    result: dict[str, dict[str, float]] = {}
    by_group: dict[tuple[str, ...], dict[str, float]] = {}
    for anchor in done.anchors:
        by_group.setdefault(anchor.names, {})[anchor.kind] = anchor.kld
    for group, measured in by_group.items():
        factor, floors = _rule(measured, {kind: _sum(done, group, kind) for kind in measured})
        total = sum(_share(done, name) for name in group) or 1.0
        for name in group:
            share = _share(done, name) / total
            result[name] = {
                kind: factor * error + share * floors["older" if kind in _OLDER else "newer"]
                for kind, error in done.errors[name].items()
            }
            if len(group) == 1:
                result[name] |= measured
    return result


def _share(done: Measurements, name: str) -> float:
    """A tensor's part of what its group costs, by the error of its steep anchor."""
    errors = done.errors[name]
    return next((errors[kind] for kind in _STEEP if kind in errors), max(errors.values(), default=0.0))


def _sum(done: Measurements, group: tuple[str, ...], kind: str) -> float:
    return sum(done.errors[name].get(kind, 0.0) for name in group)


def _rule(measured: Mapping[str, float], errors: Mapping[str, float]) -> tuple[float, dict[str, float]]:
    """Divergence per error, and what the rounding of activations adds for newer and older types."""
    steep = next((kind for kind in _STEEP if kind in measured), None)
    if steep is None or errors[steep] <= 0:
        return 0.0, {"newer": 0.0, "older": 0.0}
    factor = measured[steep] / errors[steep]
    fine = next((kind for kind in _FINE if kind in measured), None)
    if fine is not None and errors[steep] > errors[fine]:
        factor = max(0.0, (measured[steep] - measured[fine]) / (errors[steep] - errors[fine]))
    newer = max(0.0, measured[fine] - factor * errors[fine]) if fine is not None else 0.0
    coarse = next((kind for kind in _OLDER_FINE if kind in measured), None)
    older = max(0.0, measured[coarse] - factor * errors[coarse]) if coarse is not None else newer
    return factor, {"newer": newer, "older": older}


def options(
    variants: Variants, table: Mapping[str, Mapping[str, float]], kinds: Sequence[str]
) -> dict[str, list[Option]]:
    """What the knapsack chooses from."""
    return {
        name: [
            Option(kind, tensor_type(kind).size(variants.tensors[name].shape), max(0.0, table[name][kind]))
            for kind in kinds_for(variants, name, kinds)
            if kind in table[name]
        ]
        for name in table
    }
