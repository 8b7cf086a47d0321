"""What llama.cpp's graphs take for granted: a checkpoint that means something else is refused, not computed otherwise.

A file with the right tensors of a model with another activation loads and talks nonsense, which nobody notices where
transformers is not installed to compare. Invariant: a conversion without a word of warning computes what the original
does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lathe.quantize.convert.family import Family
from lathe.quantize.convert.hparams import Hparams
from lathe.quantize.errors import CheckpointError, UnsupportedError

GELU = ("gelu", "gelu_new", "gelu_fast", "gelu_python", "gelu_pytorch_tanh", "gelu_pytorch_tanh_python")
"""They differ by less than half precision does; llama.cpp has one."""
SILU = ("silu", "swish")


def require_computable(family: Family, hparams: Hparams) -> None:
    """Raise `UnsupportedError` where the checkpoint asks for what llama.cpp's graph of the family does not do."""
    for name, allowed in family.fixed.items():
        given = hparams.get(name)
        if given is not None and given not in allowed:
            wanted = " or ".join(repr(value) for value in allowed if value is not None) or "without it"
            raise UnsupportedError(f"config.json gives {name} as {given!r:.40}; llama.cpp computes {wanted} only")


def cautions(family: Family, hparams: Hparams) -> Iterator[str]:
    """Say where the converted model will differ from the original."""
    window, context = family.ignored_window(hparams), hparams.count("max_position_embeddings")
    if window and context and window < context:
        yield (f"the original looks back {window:,} tokens, llama.cpp at everything: longer texts are read differently")


def all_but_each(period: int, layers: int) -> list[bool]:
    """True for each layer but every `period`-th, as llama.cpp counts them."""
    return [(layer + 1) % period != 0 for layer in range(layers)]


def sliding_layers(hparams: Hparams, period: int) -> list[bool]:
    """Which layers look at a window only; every `period`-th sees all where config.json does not say.

    Raises:
        CheckpointError: `layer_types` does not name a kind for each layer.
    """
    kinds = hparams.get("layer_types")
    if kinds is None:
        period = hparams.count("sliding_window_pattern", "_sliding_window_pattern") or period
        return all_but_each(period, hparams.layers)
    known = ("sliding_attention", "full_attention")
    if not isinstance(kinds, Sequence) or len(kinds) != hparams.layers or not all(kind in known for kind in kinds):
        raise CheckpointError(f"config.json gives layer_types as {kinds!r:.60}, which is no kind for each layer")
    return [kind == "sliding_attention" for kind in kinds]
