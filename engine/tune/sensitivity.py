"""What each tensor costs in each type: a few measurements per tensor, the rest by its output error.

The divergence that one quantized tensor causes is proportional to the expected squared error of its output, with a
factor of the tensor's own, plus what the rounding of activations adds, which depends on the kernels (one kind for k-
and i-quants, another for the older types). Two or three anchors per tensor settle that; every other type follows from
its error. On the embedded model the rule holds within 7 % from 2.5 to 5.5 bits. Invariant: costs are never negative.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import msgspec
from lathe.engine.tune.clock import Clock
from lathe.engine.tune.knapsack import Option
from lathe.engine.tune.yardstick import Yardstick
from lathe.quantize.errors import InputMissing, UnsupportedError
from lathe.quantize.plan import QuantizeOptions
from lathe.quantize.quantizer import plan_quantization
from lathe.quantize.types import NEED_IMATRIX, tensor_type
from lathe.quantize.variants import Variants

KINDS = ("IQ2_XXS", "IQ2_XS", "IQ2_S", "Q2_K", "IQ3_XXS", "IQ3_S", "Q3_K", "IQ4_XS", "IQ4_NL", "Q4_K", "Q5_0", "Q5_K",
         "Q5_1", "Q6_K", "Q8_0")  # fmt: skip
"""Types worth trying, smallest first."""

_OLDER = frozenset({"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL"})
"""Types whose activations are rounded in blocks of 32."""
_STEEP, _FINE, _OLDER_FINE = ("Q4_K", "Q4_0"), ("Q6_K",), ("Q8_0",)
"""Anchors: where the error dominates, and where the rounding of activations does; the first that fits is taken."""
_FEWEST = 8
"""Groups below which fewer anchors each are better."""
_LAYER = re.compile(r"blk\.(\d+)\.(.+)")

Progress = Callable[[int, int], None]


class Anchor(msgspec.Struct, frozen=True):
    """A measured group of tensors, all in one type."""

    names: tuple[str, ...]
    kind: str
    divergence: float


class Measurements(msgspec.Struct):
    """What has been measured; saved as it grows, so that a stopped search goes on."""

    groups: list[tuple[str, ...]] = []
    """How the tensors are measured together; single ones where time allows."""
    depth: int = 3
    """Anchors of each group."""
    chunks: int = 0
    """Of the text, per reading; 0: not decided yet."""
    anchors: list[Anchor] = []
    errors: dict[str, dict[str, float]] = {}
    """Tensor -> type -> expected squared error of its output."""


def tensors_of(variants: Variants) -> list[str]:
    """The tensors whose type is chosen: those that llama.cpp itself quantizes, and that are not quantized yet."""
    plan = plan_quantization(variants.source, QuantizeOptions(type="Q8_0", allow_requantize=True))
    return [
        tensor.name
        for tensor in plan.tensors
        if tensor_type(tensor.target).quantized and not variants.tensors[tensor.name].type.quantized
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
    names: Sequence[str],
    kinds: Sequence[str],
    done: Measurements,
    clock: Clock,
    *,
    save: Callable[[Measurements], None],
    progress: Progress,
) -> None:
    """Fill `done`: anchors for groups of `names`, then errors for every one and type, as far as the clock allows.

    Groups shrink in number before anchors are left out, and the finer anchors before the steep ones; without time one
    group is measured, and the rest follows from the errors.
    """
    with clock.part("sensitivity"):
        _anchors(yardstick, variants, names, done, clock, save, progress)
    with clock.part("errors"):
        _errors(variants, kinds, names, done, clock)
    save(done)


def _anchors(
    yardstick: Yardstick, variants: Variants, names: Sequence[str], done: Measurements, clock: Clock,
    save: Callable[[Measurements], None], progress: Progress,
) -> None:  # fmt: skip
    if not done.groups:
        each, depth = _affordable(yardstick, variants, names, clock)
        done.groups = groups(names, each)
        done.depth = depth
        save(done)
    if any(len(group) > 1 for group in done.groups):
        clock.leave_out(f"tensors measured one by one: {len(done.groups)} groups for {len(names)} tensors")
    anchors = (_STEEP, _FINE, _OLDER_FINE)
    plan = [(group, choices) for choices in anchors[: done.depth] for group in done.groups]
    known = {(anchor.names, anchor.kind) for anchor in done.anchors}
    missing = 0
    for number, (group, choices) in enumerate(plan):
        progress(number, len(plan))
        kind = next(
            (kind for kind in choices if all(kind in kinds_for(variants, name, [kind]) for name in group)), None
        )
        if kind is None or (group, kind) in known:
            continue
        if done.anchors and not clock.fits("anchor"):
            missing += 1
            continue
        with clock.cost("anchor"):
            reading = yardstick.read(variants.paths(dict.fromkeys(group, kind)))
        done.anchors.append(Anchor(group, kind, max(0.0, reading.divergence)))
        save(done)
    progress(len(plan), len(plan))
    missing += (len(anchors) - done.depth) * len(done.groups)
    if missing:
        clock.leave_out(f"{missing} of {len(anchors) * len(done.groups)} readings of single tensors")


def _errors(
    variants: Variants, kinds: Sequence[str], names: Sequence[str], done: Measurements, clock: Clock
) -> None:  # fmt: skip
    """Errors of the anchors' types for every tensor, then of the rest while there is time."""
    needed = dict.fromkeys(anchor.kind for anchor in done.anchors)
    usual = (*_STEEP, *_FINE, *_OLDER_FINE)
    for wanted, must in ((list(needed), True), ([*usual, *kinds], False)):
        for name in names:
            known = done.errors.setdefault(name, {})
            for kind in dict.fromkeys(wanted):
                if kind in known or kind not in kinds_for(variants, name, [kind]):
                    continue
                if not must and not clock.fits("error"):
                    clock.leave_out("errors of some types, which are estimated")
                    return
                with clock.cost("error"):
                    try:
                        known[kind] = variants.error(name, kind)
                    except (InputMissing, UnsupportedError):
                        continue


def _affordable(yardstick: Yardstick, variants: Variants, names: Sequence[str], clock: Clock) -> tuple[int, int]:
    """How many groups can have how many anchors in time, judged by a reading and by one tensor that is quantized."""
    name = sorted(names, key=lambda name: variants.tensors[name].elements)[len(names) // 2]
    kind = next((kind for kind in _STEEP if kind in kinds_for(variants, name, [kind])), None)
    variants.paths({})  # every tensor as it is, which each reading needs
    began = time.monotonic()
    if kind is not None:
        variants.paths({name: kind})
    elements = sum(variants.tensors[one].elements for one in names)
    quantizing = (time.monotonic() - began) * elements / max(1, variants.tensors[name].elements)
    reading = max(0.01, yardstick.seconds)
    for depth in (3, 2, 1):
        count = int((clock.left - depth * quantizing) / (depth * reading))
        if count >= _FEWEST:
            return count, depth
    return max(1, int((clock.left - quantizing) / reading)), 1


def costs(done: Measurements, kinds: Sequence[str] = ()) -> dict[str, dict[str, float]]:
    """Tensor -> type -> predicted divergence; `kinds` all get one, from other tensors where there is no error."""
    done = msgspec.structs.replace(done, errors=_completed(done.errors, kinds))
    result: dict[str, dict[str, float]] = {}
    by_group: dict[tuple[str, ...], dict[str, float]] = {}
    for anchor in done.anchors:
        by_group.setdefault(anchor.names, {})[anchor.kind] = anchor.divergence
    factors: list[float] = []
    for group, measured in by_group.items():
        factor, floors = _rule(measured, {kind: _sum(done, group, kind) for kind in measured})
        factors.append(factor)
        total = sum(_share(done, name) for name in group) or 1.0
        for name in group:
            share = _share(done, name) / total
            result[name] = {
                kind: factor * error + share * floors["older" if kind in _OLDER else "newer"]
                for kind, error in done.errors[name].items()
            }
            if len(group) == 1:
                result[name] |= measured
    # What was not measured itself is taken to be like the others: importances and errors alone rank it.
    usual = statistics.median(factors) if factors else 0.0
    for name, errors in done.errors.items():
        if name not in result:
            result[name] = {kind: usual * error for kind, error in errors.items()}
    return result


def _completed(errors: Mapping[str, Mapping[str, float]], kinds: Sequence[str]) -> dict[str, dict[str, float]]:
    """Errors of every kind: those missing by the usual ratio to a kind that is known, else by two powers a bit."""
    ratios: dict[tuple[str, str], float] = {}
    result: dict[str, dict[str, float]] = {}
    for name, known in errors.items():
        result[name] = dict(known)
        reference = next((kind for kind in _STEEP if kind in known), next(iter(known), None))
        if reference is None:
            continue
        for kind in kinds:
            if kind not in known:
                if (kind, reference) not in ratios:
                    ratios[kind, reference] = _ratio(errors, kind, reference)
                result[name][kind] = known[reference] * ratios[kind, reference]
    return result


def _ratio(errors: Mapping[str, Mapping[str, float]], kind: str, reference: str) -> float:
    both = [known[kind] / known[reference] for known in errors.values() if kind in known and known.get(reference)]
    return statistics.median(both) if both else 4.0 ** (_bits(reference) - _bits(kind))


def _bits(kind: str) -> float:
    found = tensor_type(kind)
    return 8 * found.size((found.block,)) / found.block


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
