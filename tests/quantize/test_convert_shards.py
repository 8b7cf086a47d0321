"""Output over several files: the same model, file by file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lathe.quantize.convert import convert as driver
from lathe.quantize.convert import convert_checkpoint
from lathe.quantize.convert.conformance.conform import Conformance
from lathe.quantize.convert.shards import split
from lathe.quantize.convert.writer import Encoding, TensorEntry
from lathe.quantize.errors import OutputError
from lathe.quantize.gguf.header import read_sharded
from support.families import RECIPES
from support.gguf_digest import digest
from support.llama_values import computed_values


@pytest.fixture(autouse=True)
def unsettled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the tokenizers alone."""
    monkeypatch.setattr(driver, "settle", lambda draft, metadata: (draft.vocabulary, Conformance()))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 400))
def test_runs_hold_every_tensor_once_and_keep_the_limit(rows: list[int], limit: int) -> None:
    entries = [TensorEntry(f"t{index}", (count,), Encoding.F32) for index, count in enumerate(rows)]
    runs = split(entries, limit)
    assert [index for run in runs for index in run] == list(range(len(entries)))
    for run in runs:
        size = sum(entries[index].nbytes for index in run)
        assert size <= limit or len(run) == 1


def test_without_a_limit_there_is_one_file(tmp_path: Path) -> None:
    source = RECIPES["smollm"].write(tmp_path / "source")
    report = convert_checkpoint(source, tmp_path / "out.gguf", split_max_bytes=1 << 30)
    assert (report.output, report.shards) == (tmp_path / "out.gguf", 1)


@pytest.mark.native
def test_shards_hold_the_same_model(tmp_path: Path) -> None:
    source = RECIPES["smollm"].write(tmp_path / "source")
    whole = convert_checkpoint(source, tmp_path / "whole.gguf")
    report = convert_checkpoint(source, tmp_path / "parts.gguf", split_max_bytes=50_000)
    assert report.shards > 2
    assert report.output.name == f"parts-00001-of-{report.shards:05d}.gguf"
    headers = read_sharded(report.output)
    assert sum(header.file_bytes for header in headers) == report.bytes
    tensors: dict[str, Any] = {}
    for header in headers:
        tensors |= digest(header.path)["tensors"]
    expected = digest(whole.output)
    assert tensors == expected["tensors"]
    first = digest(report.output)["metadata"]
    assert {key: value for key, value in first.items() if not key.startswith("split.")} == expected["metadata"]
    assert computed_values(report.output, [7, 44]) == pytest.approx(computed_values(whole.output, [7, 44]))


def test_too_many_shards_are_refused_and_none_is_left(tmp_path: Path) -> None:
    entries = [TensorEntry(f"t{index}", (32,), Encoding.F32) for index in range(2000)]
    with pytest.raises(OutputError, match="too many"):
        split(entries, 1)
    source = RECIPES["smollm"].write(tmp_path / "source")

    def interrupt(label: str, done: float, total: float | None, unit: str) -> None:
        if done > 100_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_checkpoint(source, tmp_path / "out.gguf", split_max_bytes=50_000, report=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
