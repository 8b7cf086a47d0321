"""Work on model files for the nursery: converts and quantizes over and over until it is killed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lathe.engine.embedded import CHECKPOINT
from lathe.quantize.convert.convert import convert_checkpoint
from lathe.quantize.quantizer import QuantizeOptions, quantize_gguf


def convert(report: Callable[[str], None], output: str) -> None:
    """Convert the embedded checkpoint again and again; reports each finished file."""
    while True:
        report("begin")
        convert_checkpoint(CHECKPOINT, Path(output), outtype="f16", force=True)
        report("done")


def quantize(report: Callable[[str], None], source: str, output: str) -> None:
    """Quantize a GGUF again and again; reports each finished file."""
    while True:
        report("begin")
        quantize_gguf(Path(source), Path(output), QuantizeOptions(type="Q4_K_M", threads=1), force=True)
        report("done")
