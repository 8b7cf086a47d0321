"""Pre-GGUF files: every layout is told apart by following it to the end, and nothing else is believed."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lathe.quantize.errors import FormatError, InputMissing
from lathe.quantize.legacy_ggml import LegacyGgml, is_legacy, read_legacy

WORDS = [b"a", b"bc", b"\xff\x00", b""]
F32, F16, Q4_0, Q4_K = 0, 1, 2, 12


def tensor(name: bytes, shape: Sequence[int], kind: int, nbytes: int, position: int, align: bool) -> bytes:
    row = struct.pack("<3I", len(shape), len(name), kind) + struct.pack(f"<{len(shape)}I", *shape) + name
    padding = -(position + len(row)) % 32 if align else 0
    return row + bytes(padding + nbytes)


def legacy(
    prefix: bytes, header: bytes, *, scores: bool = False, repeat: bool = False, block_bytes: int = 18, kind: int = Q4_0
) -> bytes:
    """A file of two tensors: 64 x 4 of `kind`, in blocks of 32 (256 for K), and 8 of F32."""
    out = prefix + header
    if repeat:
        out += struct.pack("<I", len(WORDS))
    for word in WORDS:
        out += struct.pack("<I", len(word)) + word + (struct.pack("<f", 0.5) if scores else b"")
    align = prefix.startswith(b"tjgg")
    row = 256 if kind == Q4_K else 64
    blocks = row // (256 if kind == Q4_K else 32)
    out += tensor(b"layers.0.attention.wq.weight", (row, 4), kind, blocks * 4 * block_bytes, len(out), align)
    return out + tensor(b"norm.weight", (8,), F32, 32, len(out), align)


def llama(file_type: int = 2) -> bytes:
    return struct.pack("<7I", len(WORDS), 64, 256, 8, 2, 8, file_type)


def read(folder: Path, data: bytes) -> LegacyGgml:
    path = folder / "model.bin"
    path.write_bytes(data)
    return read_legacy(path)


@pytest.mark.parametrize(
    ("prefix", "scores", "block_bytes", "container", "version"),
    [
        (b"lmgg", False, 20, "ggml", 1),
        (b"fmgg" + struct.pack("<I", 1), True, 20, "ggmf", 1),
        (b"tjgg" + struct.pack("<I", 1), True, 20, "ggjt", 1),
        (b"tjgg" + struct.pack("<I", 2), True, 20, "ggjt", 2),
        (b"tjgg" + struct.pack("<I", 3), True, 18, "ggjt", 3),
    ],
)
def test_llama_in_every_container(
    tmp_path: Path, prefix: bytes, scores: bool, block_bytes: int, container: str, version: int
) -> None:
    facts = read(tmp_path, legacy(prefix, llama(), scores=scores, block_bytes=block_bytes))
    assert (facts.container, facts.version, facts.architecture, facts.file_type) == (
        container,
        version,
        "llama",
        "Q4_0",
    )
    assert (facts.vocabulary, facts.embedding, facts.heads, facts.layers, facts.context) == (4, 64, 8, 2, None)
    assert facts.parameters == 64 * 4 + 8
    assert facts.tensor_types == {"Q4_0": 8 * block_bytes, "F32": 32}


@pytest.mark.parametrize(
    ("architecture", "header", "repeat"),
    [
        ("gpt2", struct.pack("<6I", 4, 1024, 64, 8, 2, 2002), True),
        ("gptj", struct.pack("<7I", 4, 2048, 64, 8, 2, 8, 2002), True),
        ("gptneox", struct.pack("<8I", 4, 2048, 64, 8, 2, 8, 1, 2002), True),
        ("mpt", struct.pack("<5I2fI", 64, 2048, 8, 2, 4, 8.0, 6.0, 2002), False),
    ],
    ids=["gpt2", "gptj", "gptneox", "mpt"],
)
def test_layouts_without_a_name(tmp_path: Path, architecture: str, header: bytes, repeat: bool) -> None:
    facts = read(tmp_path, legacy(b"lmgg", header, repeat=repeat))
    assert (facts.architecture, facts.file_type, facts.layers, facts.heads) == (architecture, "Q4_0", 2, 8)
    assert facts.context in (1024, 2048)


def test_k_quants(tmp_path: Path) -> None:
    data = legacy(b"tjgg" + struct.pack("<I", 3), llama(15), scores=True, kind=Q4_K, block_bytes=144)
    facts = read(tmp_path, data)
    assert (facts.file_type, facts.tensor_types) == ("Q4_K_M", {"Q4_K": 576, "F32": 32})


def test_unknown_layout_and_adapters_have_no_facts_but_their_size(tmp_path: Path) -> None:
    unknown = read(tmp_path, b"lmgg" + bytes(range(200)))
    assert (unknown.architecture, unknown.parameters, unknown.file_bytes) == (None, None, 204)
    adapter = read(tmp_path, b"algg" + struct.pack("<3I", 1, 8, 16))
    assert (adapter.container, adapter.architecture) == ("ggla", None)


def test_a_layout_must_end_where_the_file_ends(tmp_path: Path) -> None:
    data = legacy(b"tjgg" + struct.pack("<I", 3), llama(), scores=True)
    assert read(tmp_path, data).architecture == "llama"
    for changed in (data[:-1], data + b"\0", data[:100]):
        assert read(tmp_path, changed).architecture is None


@pytest.mark.parametrize(
    "data", [b"", b"lm", b"GGUF\3\0\0\0", b"tjgg", b"tjgg\4\0\0\0", b"fmgg\2\0\0\0", b"tjgg\0\0\0\0"]
)
def test_what_is_no_legacy_file(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(FormatError) as caught:
        read(tmp_path, data)
    assert caught.value.code == "E_GGML"


def test_counts_are_not_believed(tmp_path: Path) -> None:
    absurd = struct.pack("<7I", 2_000_000, 64, 256, 8, 2, 8, 2)
    assert read(tmp_path, b"tjgg" + struct.pack("<I", 3) + absurd + bytes(100)).architecture is None


def test_no_regular_file(tmp_path: Path) -> None:
    with pytest.raises(InputMissing):
        read_legacy(tmp_path / "missing.bin")
    os.mkfifo(tmp_path / "pipe.bin")
    with pytest.raises(FormatError, match="regular"):
        read_legacy(tmp_path / "pipe.bin")


def test_magic() -> None:
    assert all(map(is_legacy, (b"lmgg", b"fmgg", b"tjgg", b"algg")))
    assert not is_legacy(b"GGUF")


VALID = legacy(b"tjgg" + struct.pack("<I", 3), llama(), scores=True)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    flips=st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), max_size=6),
    size=st.integers(0, len(VALID)),
)
def test_damage_never_raises_anything_else(tmp_path: Path, flips: list[tuple[int, int]], size: int) -> None:
    data = bytearray(VALID)
    for position, value in flips:
        data[position] = value
    try:
        read(tmp_path, bytes(data[:size]))
    except FormatError as error:
        assert error.code == "E_GGML"
