"""Importance matrices: both file formats, adding up, and files that are none."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from lathe.quantize.errors import FormatError, InputMissing
from lathe.quantize.gguf.header import read_header
from lathe.quantize.imatrix import Entry, Imatrix, ImatrixError, merge, read_imatrix, write_imatrix


def entry(values: list[list[float]], counts: list[int]) -> Entry:
    return Entry(np.array(values, np.float32), np.array(counts, np.int64))


DENSE = Imatrix(entries={"blk.0.ffn_up.weight": entry([[8.0, 2.0]], [4])}, datasets=("a",), chunks=2, chunk_size=2)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    experts = entry([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]], [5, 0])
    matrix = Imatrix(
        entries={"blk.1.ffn_up_exps.weight": experts, **DENSE.entries}, datasets=("a", "b é"), chunks=3, chunk_size=256
    )
    path = tmp_path / "m.gguf"
    write_imatrix(path, matrix)
    again = read_imatrix(path)
    assert (again.datasets, again.chunks, again.chunk_size) == (("a", "b é"), 3, 256)
    assert again.entries.keys() == matrix.entries.keys()
    for name, one in matrix.entries.items():
        np.testing.assert_array_equal(again.entries[name].sums, one.sums)
        np.testing.assert_array_equal(again.entries[name].counts, one.counts)
    assert read_header(path).kind == "imatrix"


def test_importances_are_means_with_ones_for_experts_that_saw_nothing() -> None:
    matrix = Imatrix(entries={"x": entry([[8.0, 2.0], [0.0, 0.0]], [4, 0])})
    values = matrix.importances()["x"]
    assert values.tolist() == [2.0, 0.5, 1.0, 1.0]
    assert values.dtype == np.float32
    assert values.flags.c_contiguous


def test_adding_up_is_as_if_the_texts_were_one() -> None:
    other = Imatrix(
        entries={"blk.0.ffn_up.weight": entry([[2.0, 2.0]], [2]), "new": entry([[1.0]], [2])},
        datasets=("b",),
        chunk_size=2,
    )
    both = merge([DENSE, other])
    assert both.entries["blk.0.ffn_up.weight"].sums.tolist() == [[10.0, 4.0]]
    assert both.entries["blk.0.ffn_up.weight"].counts.tolist() == [6]
    assert both.entries.keys() == {"blk.0.ffn_up.weight", "new"}
    assert (both.datasets, both.chunks) == (("a", "b"), 3)


def test_matrices_of_different_models_do_not_add_up() -> None:
    with pytest.raises(ImatrixError, match="2 channels in one matrix and 3"):
        merge([DENSE, Imatrix(entries={"blk.0.ffn_up.weight": entry([[1.0, 1.0, 1.0]], [1])})])


def legacy(entries: list[tuple[str, int, list[float]]], tail: bytes = b"") -> bytes:
    data = struct.pack("<i", len(entries))
    for name, calls, values in entries:
        data += struct.pack("<i", len(name)) + name.encode()
        data += struct.pack("<ii", calls, len(values)) + struct.pack(f"<{len(values)}f", *values)
    return data + tail


def test_the_older_format_gives_the_same_importances(tmp_path: Path) -> None:
    path = tmp_path / "m.dat"
    path.write_bytes(legacy([("blk.0.ffn_up.weight", 3, [6.0, 1.5])], struct.pack("<ii", 3, 4) + b"wiki"))
    matrix = read_imatrix(path)
    assert matrix.importances()["blk.0.ffn_up.weight"].tolist() == [2.0, 0.5]
    assert (matrix.chunks, matrix.datasets) == (3, ("wiki",))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        struct.pack("<i", 0),
        struct.pack("<i", 2**31 - 1),
        struct.pack("<ii", 1, -1),
        struct.pack("<ii", 1, 2**30) + b"x",
        legacy([("x", 1, [1.0])])[:-1],
        struct.pack("<ii", 1, 1) + b"x" + struct.pack("<ii", 1, 2**31 - 1),
        legacy([("x", 1, [float("nan")])]),
        legacy([("x", 1, [-1.0])]),
        b"just some text that somebody passed",
    ],
    ids=["empty", "one byte", "no entries", "many entries", "negative name", "long name", "cut", "many values", "nan",
         "negative", "text"],
)  # fmt: skip
def test_what_is_no_matrix_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "m.dat"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=r"m\.dat"):
        read_imatrix(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputMissing, match="nowhere"):
        read_imatrix(tmp_path / "nowhere.gguf")
