"""Errors per tensor: against the arithmetic on files made here, and what cannot be told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lathe.quantize.gguf.header import read_header
from lathe.quantize.plan import QuantizeOptions
from lathe.quantize.quantizer import quantize_gguf
from lathe.quantize.tensor_errors import TensorError, tensor_errors


def errors(source: Path, made: Path, **importances: np.ndarray) -> dict[str, TensorError]:
    found = tensor_errors([read_header(source)], [read_header(made)], {}, importances or None)
    return {one.name: one for one in found}


@pytest.mark.native
def test_coarser_types_lose_more(embedded_gguf: Path, tmp_path: Path) -> None:
    relative = []
    for kind in ("Q8_0", "Q5_K_M", "Q3_K_M"):
        made = tmp_path / f"{kind}.gguf"
        quantize_gguf(embedded_gguf, made, QuantizeOptions(type=kind, threads=1))
        found = errors(embedded_gguf, made)
        assert "output_norm.weight" not in found, "tensors that kept their type have no error"
        error = found["blk.1.ffn_up.weight"].relative
        assert error is not None
        relative.append(error)
    assert relative[0] < 0.01 < relative[1] < 0.05 < relative[2] < 0.3
    assert errors(embedded_gguf, embedded_gguf) == {}


@pytest.mark.native
def test_the_figures_are_those_of_the_weights(embedded_gguf: Path, tmp_path: Path) -> None:
    from gguf import GGUFReader
    from gguf.quants import dequantize

    made = tmp_path / "made.gguf"
    quantize_gguf(embedded_gguf, made, QuantizeOptions(type="Q4_0", pure=True, threads=1))
    name = "blk.0.attn_q.weight"  # 256 rows: the sample is all of them
    before, after = (
        dequantize(tensor.data, tensor.tensor_type)
        for path in (embedded_gguf, made)
        for tensor in GGUFReader(path).tensors
        if tensor.name == name
    )
    scale = np.sqrt(np.square(before).mean())
    first = np.zeros(256, np.float32)
    first[0] = 1
    found = errors(embedded_gguf, made, **{name: first})[name]
    assert found.kind == "Q4_0"
    assert found.relative == pytest.approx(np.sqrt(np.square(before - after).mean()) / scale, rel=1e-4)
    assert found.maximum == pytest.approx(np.abs(before - after).max() / scale, rel=1e-4)
    column = np.square(before - after)[:, 0].sum() / np.square(before)[:, 0].sum()
    assert found.weighted == pytest.approx(np.sqrt(column), rel=1e-4)
