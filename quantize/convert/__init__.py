"""Checkpoints to GGUF without torch: streaming, one table per model family."""

from lathe.quantize.convert.adapter import convert_adapter
from lathe.quantize.convert.convert import ConversionReport, OutType, convert_checkpoint
from lathe.quantize.convert.legacy import convert_legacy
from lathe.quantize.convert.restore.restore import RestorationReport, restore_checkpoint

__all__ = [
    "ConversionReport",
    "OutType",
    "RestorationReport",
    "convert_adapter",
    "convert_checkpoint",
    "convert_legacy",
    "restore_checkpoint",
]
