"""Names of quantization types: what users write <-> llama.cpp's enums, sizes, one line of advice.

A *tensor type* is how one tensor is stored; a *file type* is a recipe that gives each tensor its type and names the
file (`Q4_K_M`). Pure tables. Invariant: every type that llama.cpp can write is here, and nothing it cannot.
"""

from __future__ import annotations

import difflib
from typing import Literal

import msgspec
from lathe.quantize.errors import UnsupportedError

Importance = Literal["needed", "advised", "optional", "unused"]
"""What an importance matrix is to a type: refused without, clearly better with, slightly better with, ignored."""


class TensorType(msgspec.Struct, frozen=True):
    """How the values of a tensor are stored."""

    name: str
    id: int
    """`enum ggml_type`."""
    block: int
    """Values per block; a row must be a multiple of it."""
    bytes: int
    """Per block."""

    @property
    def bits(self) -> float:
        """Bits per weight."""
        return 8 * self.bytes / self.block

    @property
    def quantized(self) -> bool:
        """Whether values share scales in blocks."""
        return self.block > 1

    def size(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor; `shape` starts with the row length, as in GGUF."""
        row, *others = shape
        if row % self.block:
            raise UnsupportedError(f"rows of {row} values cannot be stored as {self.name}: blocks hold {self.block}")
        total = row // self.block * self.bytes
        for count in others:
            total *= count
        return total


class FileType(msgspec.Struct, frozen=True):
    """A recipe of llama.cpp: `lathe quantize --type`."""

    name: str
    id: int
    """`enum llama_ftype`, as in general.file_type."""
    base: str
    """The tensor type of most tensors."""
    bits: float
    """Bits per weight of a whole 8 B model."""
    importance: Importance
    advice: str


TENSOR_TYPES = {
    kind.name: kind
    for kind in (
        TensorType("F32", 0, 1, 4),
        TensorType("F16", 1, 1, 2),
        TensorType("BF16", 30, 1, 2),
        TensorType("Q8_0", 8, 32, 34),
        TensorType("Q6_K", 14, 256, 210),
        TensorType("Q5_K", 13, 256, 176),
        TensorType("Q5_1", 7, 32, 24),
        TensorType("Q5_0", 6, 32, 22),
        TensorType("Q4_K", 12, 256, 144),
        TensorType("Q4_1", 3, 32, 20),
        TensorType("Q4_0", 2, 32, 18),
        TensorType("IQ4_NL", 20, 32, 18),
        TensorType("IQ4_XS", 23, 256, 136),
        TensorType("NVFP4", 40, 64, 36),
        TensorType("MXFP4", 39, 32, 17),
        TensorType("Q3_K", 11, 256, 110),
        TensorType("IQ3_S", 21, 256, 110),
        TensorType("IQ3_XXS", 18, 256, 98),
        TensorType("Q2_K", 10, 256, 84),
        TensorType("IQ2_S", 22, 256, 82),
        TensorType("IQ2_XS", 17, 256, 74),
        TensorType("Q2_0", 42, 64, 18),
        TensorType("IQ2_XXS", 16, 256, 66),
        TensorType("TQ2_0", 35, 256, 66),
        TensorType("IQ1_M", 29, 256, 56),
        TensorType("TQ1_0", 34, 256, 54),
        TensorType("IQ1_S", 19, 256, 50),
        TensorType("Q1_0", 41, 128, 18),
    )
}
"""Types that a tensor can be quantized to, widest first."""

FILE_TYPES = {
    kind.name: kind
    for kind in (
        FileType("F32", 0, "F32", 32.0, "unused", "exact, four times the size of a good quant's quality"),
        FileType("F16", 1, "F16", 16.0, "unused", "the usual full-precision file"),
        FileType("BF16", 32, "BF16", 16.0, "unused", "full precision of models trained in bfloat16"),
        FileType("Q8_0", 7, "Q8_0", 8.5, "unused", "indistinguishable from F16; half the bytes"),
        FileType("Q6_K", 18, "Q6_K", 6.56, "optional", "very close to F16"),
        FileType("Q5_K_M", 17, "Q5_K", 5.7, "optional", "small loss; where memory allows"),
        FileType("Q5_K_S", 16, "Q5_K", 5.57, "optional", "small loss, without the mix"),
        FileType("Q5_1", 9, "Q5_1", 6.0, "optional", "older kind; Q5_K_M is better"),
        FileType("Q5_0", 8, "Q5_0", 5.57, "optional", "older kind; for rows that are no multiple of 256"),
        FileType("Q4_K_M", 15, "Q4_K", 4.89, "advised", "the usual choice"),
        FileType("Q4_K_S", 14, "Q4_K", 4.67, "advised", "slightly smaller than the usual choice"),
        FileType("IQ4_NL", 25, "IQ4_NL", 4.68, "advised", "non-linear 4 bit in blocks of 32"),
        FileType("IQ4_XS", 30, "IQ4_XS", 4.46, "advised", "as good as Q4_K_S in fewer bytes; slower on old CPUs"),
        FileType("Q4_1", 3, "Q4_1", 5.0, "advised", "older kind; Q4_K_M is better"),
        FileType("Q4_0", 2, "Q4_0", 4.66, "advised", "fastest prompts on many CPUs"),
        FileType("MXFP4_MOE", 38, "MXFP4", 4.25, "unused", "4 bit floats for experts, Q8_0 for the rest"),
        FileType("Q3_K_L", 13, "Q3_K", 4.3, "advised", "3 bit with generous exceptions"),
        FileType("Q3_K_M", 12, "Q3_K", 4.0, "advised", "visible loss; for tight memory"),
        FileType("Q3_K_S", 11, "Q3_K", 3.64, "advised", "large loss"),
        FileType("IQ3_M", 27, "IQ3_S", 3.76, "advised", "3 bit i-quant mix; better than Q3_K_S"),
        FileType("IQ3_S", 26, "IQ3_S", 3.66, "advised", "3 bit i-quant"),
        FileType("IQ3_XS", 22, "IQ3_S", 3.5, "needed", "between IQ3_XXS and IQ3_S"),
        FileType("IQ3_XXS", 23, "IQ3_XXS", 3.25, "needed", "the smallest that stays useful for many models"),
        FileType("Q2_K", 10, "Q2_K", 3.16, "advised", "heavy loss; an i-quant of this size is better"),
        FileType("Q2_K_S", 21, "Q2_K", 2.97, "needed", "heavy loss"),
        FileType("IQ2_M", 29, "IQ2_S", 2.93, "needed", "the best of the 2 bit kinds"),
        FileType("IQ2_S", 28, "IQ2_XS", 2.74, "needed", "heavy loss"),
        FileType("IQ2_XS", 20, "IQ2_XS", 2.59, "needed", "heavy loss"),
        FileType("IQ2_XXS", 19, "IQ2_XXS", 2.38, "needed", "for very large models only"),
        FileType("Q2_0", 41, "Q2_0", 2.25, "unused", "for models trained at 2 bits"),
        FileType("IQ1_M", 31, "IQ1_M", 2.15, "needed", "for very large models only"),
        FileType("IQ1_S", 24, "IQ1_S", 2.0, "needed", "for very large models only"),
        FileType("TQ2_0", 37, "TQ2_0", 2.06, "unused", "for ternary models (BitNet, TriLM)"),
        FileType("TQ1_0", 36, "TQ1_0", 1.69, "unused", "for ternary models, smaller and slower"),
        FileType("Q1_0", 40, "Q1_0", 1.13, "unused", "for models trained at 1 bit"),
    )
}
"""Recipes, roughly from best to smallest."""

_ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M", "MXFP4": "MXFP4_MOE"}

NEED_IMATRIX = frozenset({"IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S"})
"""Tensor types that llama.cpp does not write without importances, except for embeddings and output."""
CRASH_WITHOUT_IMATRIX = frozenset({"IQ2_XXS", "IQ2_XS", "IQ1_S"})
"""Tensor types whose code aborts the process without importances, whatever the tensor."""


def file_type(name: str) -> FileType:
    """Look up a recipe, any case and with llama-quantize's aliases; a miss names the nearest."""
    key = name.upper().replace("-", "_")
    key = _ALIASES.get(key, key)
    if key in FILE_TYPES:
        return FILE_TYPES[key]
    raise UnsupportedError(f"no quantization type is called {name!r}", hint=_nearest(key, [*FILE_TYPES, *_ALIASES]))


def tensor_type(name: str) -> TensorType:
    """Look up a tensor type, any case; a miss names the nearest."""
    key = name.upper().replace("-", "_")
    if key in TENSOR_TYPES:
        return TENSOR_TYPES[key]
    if key in FILE_TYPES:
        base = FILE_TYPES[key].base
        raise UnsupportedError(f"{name!r} is a recipe for files, not a tensor type", hint=f"for one tensor use {base}")
    raise UnsupportedError(f"no tensor type is called {name!r}", hint=_nearest(key, list(TENSOR_TYPES)))


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
