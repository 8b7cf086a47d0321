"""Checkpoints to GGUF without torch: streaming, one table per model family."""

from lathe.quantize.convert.adapter import convert_adapter
from lathe.quantize.convert.convert import (
    ConversionPlan,
    ConversionReport,
    OutType,
    convert_checkpoint,
    plan_conversion,
)
from lathe.quantize.convert.legacy import convert_legacy
from lathe.quantize.convert.restore.restore import RestorationReport, restore_checkpoint

__all__ = [
    "ConversionPlan",
    "ConversionReport",
    "OutType",
    "RestorationReport",
    "convert_adapter",
    "convert_checkpoint",
    "convert_legacy",
    "plan_conversion",
    "restore_checkpoint",
]
