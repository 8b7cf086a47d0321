"""Rotary position embeddings: the base, and how each published scaling stretches it.

Linear and YaRN are numbers in the metadata; Llama 3 and LongRoPE are one factor per frequency, stored as tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from lathe.quantize.convert.encode import Floats
from lathe.quantize.convert.hparams import Hparams
from lathe.quantize.convert.writer import Metadata, f32, text, u32
from lathe.quantize.errors import CheckpointError, UnsupportedError

YARN = {
    "yarn_ext_factor": ("extrapolation_factor",),
    "yarn_attn_factor": ("attention_factor", "attn_factor"),
    "yarn_beta_fast": ("beta_fast",),
    "yarn_beta_slow": ("beta_slow",),
}
"""What llama.cpp's converter writes; its graphs of these families read none of it."""
_YARN_FIXED = {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": True}
"""What they compute whatever the metadata says."""


def rope_parameters(hparams: Hparams, layers: str = "full_attention") -> Hparams:
    """Gather the scaling's parameters for a kind of `layers`.

    Newer checkpoints nest the base with them and tell kinds of layers apart, older ones keep it outside.
    """
    nested = hparams.get("rope_parameters", "rope_scaling") or {}
    if not isinstance(nested, Mapping):
        raise CheckpointError(f"config.json gives rope_scaling as {nested!r:.60}, which is no object")
    nested = nested.get(layers, nested)
    local = ("rope_local_base_freq",) if layers == "sliding_attention" else ()
    outer = {
        "rope_theta": hparams.get(*local, "rope_theta", "rotary_emb_base"),
        "partial_rotary_factor": hparams.get("partial_rotary_factor"),
        "original_max_position_embeddings": hparams.get("original_max_position_embeddings"),
        "rope_type": nested.get("type"),
    }
    return Hparams(nested, outer)


def rope_facts(hparams: Hparams) -> Metadata:
    """Make the `rope.*` metadata; refuse a scaling that nothing here knows."""
    rope = rope_parameters(hparams)
    facts: Metadata = {}
    kind = rope.get("rope_type")
    factor = rope.number("factor")
    match kind:
        case "linear" | "yarn" if factor is not None:
            facts |= {"rope.scaling.type": text(kind), "rope.scaling.factor": f32(factor)}
            if kind == "yarn":
                original = rope.need("original_max_position_embeddings")
                facts["rope.scaling.original_context_length"] = u32(original)
                given = {key: rope.number(*names) for key, names in YARN.items()}
                facts |= {f"rope.scaling.{key}": f32(value) for key, value in given.items() if value is not None}
                facts |= _yarn_attention(rope, factor)
        case "longrope" | "su":
            facts["rope.scaling.type"] = text("longrope")
        case None | "default" | "llama3":
            pass  # llama3 is a tensor: see `llama3_factors`
        case _:
            raise UnsupportedError(f"config.json asks for the rope scaling {kind!r:.40}, which is not known here")
    if (theta := rope.number("rope_theta")) is not None:
        facts["rope.freq_base"] = f32(theta)
    return facts


def yarn_magnitude(factor: float, weight: float = 1.0) -> float:
    """How much attention is scaled for a context that is `factor` times as long (YaRN, arXiv 2309.00071)."""
    return 1 + 0.1 * weight * math.log(factor) if factor > 1 else 1.0


def _yarn_attention(rope: Hparams, factor: float) -> Metadata:
    """Scale attention as the checkpoint wants: llama.cpp multiplies its own 0.1 ln(factor) + 1 by what is written here.

    Raises:
        UnsupportedError: the ramp between the frequencies is another than llama.cpp's.
    """
    for name, fixed in _YARN_FIXED.items():
        if (given := rope.get(name)) is not None and given != fixed:
            raise UnsupportedError(
                f"config.json gives YaRN's {name} as {given!r:.40}; llama.cpp computes {fixed!r} only"
            )
    own = yarn_magnitude(factor)
    wanted = rope.number("attention_factor", "attn_factor")
    scales = [rope.number(name) for name in ("mscale", "mscale_all_dim")]
    if wanted is None and all(scales):
        one, other = (yarn_magnitude(factor, scale or 0) for scale in scales)
        wanted = one / other
    return {} if wanted is None or math.isclose(wanted, own) else {"rope.scaling.attn_factor": f32(wanted / own)}


def llama3_factors(hparams: Hparams) -> Floats | None:
    """Compute Llama 3.1's divisor for each frequency; None when the checkpoint asks for another scaling.

    High frequencies stay, low ones are divided by `factor`, and those between are interpolated by wavelength.
    """
    rope = rope_parameters(hparams)
    if rope.get("rope_type") != "llama3":
        return None

    def setting(name: str, default: float) -> float:
        value = rope.number(name)
        return default if value is None else value

    width = hparams.head_width
    base, factor = setting("rope_theta", 10_000.0), setting("factor", 8.0)
    low, high = setting("low_freq_factor", 1.0), setting("high_freq_factor", 4.0)
    context = setting("original_max_position_embeddings", 8192)
    if not (base > 0 and factor > 0 and 0 < low < high and context > 0):
        raise CheckpointError("config.json has a llama3 rope scaling with impossible factors")
    one, single = np.float32(1), np.float32
    # In this order, with reciprocals instead of quotients, the rounding is that of the checkpoints' own code.
    exponents = np.arange(0, width, 2, dtype=np.float32) / single(width)
    frequencies = one / (np.float64(base) ** exponents.astype(np.float64)).astype(np.float32)
    wavelengths = one / frequencies * single(2 * math.pi)
    smooth = (one / wavelengths * single(context) - single(low)) / single(high - low)
    between = one / ((one - smooth) / single(factor) + smooth)
    factors = np.where(wavelengths > context / low, single(factor), between)
    return np.where(wavelengths < context / high, one, factors).astype(np.float32)
