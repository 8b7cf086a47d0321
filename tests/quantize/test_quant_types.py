"""The tables of types against the library itself, and the words of a miss."""

from __future__ import annotations

import ctypes

import pytest
from lathe.quantize import libllama
from lathe.quantize.errors import UnsupportedError
from lathe.quantize.types import (
    CRASH_WITHOUT_IMATRIX,
    FILE_TYPES,
    TENSOR_TYPES,
    TensorType,
    file_type,
    tensor_type,
)


@pytest.mark.native
@pytest.mark.parametrize("kind", TENSOR_TYPES.values(), ids=TENSOR_TYPES)
def test_tensor_types_are_those_of_the_library(kind: TensorType) -> None:
    ggml = libllama.ggml()
    ggml.ggml_type_name.restype = ctypes.c_char_p
    ggml.ggml_blck_size.restype = ctypes.c_int64
    ggml.ggml_type_size.restype = ctypes.c_size_t
    assert ggml.ggml_type_name(kind.id).decode().upper() == kind.name
    assert (ggml.ggml_blck_size(kind.id), ggml.ggml_type_size(kind.id)) == (kind.block, kind.bytes)
    assert ggml.ggml_quantize_requires_imatrix(kind.id) == (kind.name in CRASH_WITHOUT_IMATRIX)


@pytest.mark.native
def test_every_file_type_of_the_library_is_known_by_its_number() -> None:
    lib = libllama.bindings()
    theirs = {
        name.removeprefix("LLAMA_FTYPE_").removeprefix("MOSTLY_").removeprefix("ALL_"): getattr(lib, name)
        for name in dir(lib)
        if name.startswith("LLAMA_FTYPE_")
    }
    not_written = {"GUESSED", "NVFP4"}
    assert {kind.name: kind.id for kind in FILE_TYPES.values()} == {
        name: number for name, number in theirs.items() if name not in not_written
    }


def test_every_base_is_a_tensor_type() -> None:
    assert {kind.base for kind in FILE_TYPES.values()} <= TENSOR_TYPES.keys()


@pytest.mark.parametrize(
    ("written", "meant"), [("q4_k_m", "Q4_K_M"), ("Q4_K", "Q4_K_M"), ("iq4-xs", "IQ4_XS"), ("mxfp4", "MXFP4_MOE")]
)
def test_file_types_are_found_as_people_write_them(written: str, meant: str) -> None:
    assert file_type(written).name == meant


def test_a_miss_names_the_nearest() -> None:
    with pytest.raises(UnsupportedError, match="'Q4KM'") as caught:
        file_type("Q4KM")
    assert "Q4_K_M" in caught.value.hint
    with pytest.raises(UnsupportedError, match="recipe for files") as caught:
        tensor_type("Q4_K_M")
    assert "Q4_K" in caught.value.hint


def test_a_tensor_has_the_bytes_of_its_blocks() -> None:
    assert tensor_type("Q6_K").size((512, 10, 3)) == 2 * 210 * 30
    assert tensor_type("F32").size((7,)) == 28
    with pytest.raises(UnsupportedError, match="blocks hold 256"):
        tensor_type("Q4_K").size((320, 4))
