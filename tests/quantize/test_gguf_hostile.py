"""Malformed GGUF files end in a typed error, at once and in little memory, whatever is wrong with them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from lathe.quantize.errors import GgufError
from lathe.quantize.gguf.header import read_header
from support.gguf_writer import MALFORMED, array, float_tensor, raw_of, tiny_model

VALID = tiny_model().build()
SCRATCH = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)


@pytest.mark.parametrize("name", MALFORMED)
def test_each_kind_is_refused_with_its_code(tmp_path: Path, name: str) -> None:
    code, make = MALFORMED[name]
    path = tmp_path / "a.gguf"
    path.write_bytes(make())
    with pytest.raises(GgufError) as caught:
        read_header(path)
    assert caught.value.code == code
    assert caught.value.message.startswith(f"{path}: ")
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < len(str(path)) + 250


def test_base_of_all_kinds_is_valid(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(VALID)
    assert read_header(path).kind == "model"


CHILD = """
import json, resource, sys
from pathlib import Path
from lathe.quantize.errors import GgufError
from lathe.quantize.gguf.header import read_header
read_header(Path(sys.argv[1]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
codes = {}
for path in sorted(Path(sys.argv[2]).iterdir()):
    try:
        read_header(path)
    except GgufError as error:
        codes[path.name] = error.code
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"codes": codes, "growth_kib": after - before}))
"""


def test_all_kinds_in_one_process_take_little_memory(tmp_path: Path) -> None:
    valid = tmp_path / "valid.gguf"
    valid.write_bytes(VALID)
    folder = tmp_path / "malformed"
    folder.mkdir()
    expected = {}
    for index, (code, make) in enumerate(MALFORMED.values()):
        (folder / f"{index}.gguf").write_bytes(make())
        expected[f"{index}.gguf"] = code
    many_arrays(folder / "sparse.gguf")
    expected["sparse.gguf"] = "E_GGUF_LIMIT"
    result = subprocess.run(
        [sys.executable, "-c", CHILD, str(valid), str(folder)], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["codes"] == expected
    assert answer["growth_kib"] < 64 << 10


def many_arrays(path: Path) -> None:
    """Write a file whose header claims 160 MB of legal arrays, as holes."""
    raw = tiny_model()
    entries = [(b"x.%d" % index, array(0, [], 2_000_000)) for index in range(80)]
    raw.key_count = len(raw.keys) + len(entries)
    raw.tensor_count = len(raw.tensors)
    tensors, raw.tensors = raw.tensors, []
    with path.open("wb") as file:
        file.write(raw.header())
        for name, value in entries:
            file.write(len(name).to_bytes(8, "little") + name + value)
            file.seek(2_000_000, 1)
        for tensor in tensors:
            file.write(tensor.packed(0))


@SCRATCH
@given(size=st.integers(0, len(VALID) - 1))
@example(size=len(VALID) - 1)
def test_truncation_anywhere_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(VALID[:size])
    with pytest.raises(GgufError):
        read_header(path)


HEADER_BYTES = len(tiny_model().header())


@SCRATCH
@given(
    flips=st.lists(
        st.tuples(st.integers(0, HEADER_BYTES - 1), st.sampled_from((0, 1, 0x7F, 0x80, 0xFF)) | st.integers(0, 255)),
        min_size=1,
        max_size=64,
    ),
    size=st.integers(0, len(VALID)) | st.just(len(VALID)),
)
def test_flipped_bytes_never_raise_anything_else(tmp_path: Path, flips: list[tuple[int, int]], size: int) -> None:
    data = bytearray(VALID)
    for position, value in flips:
        data[position] = value
    path = tmp_path / "a.gguf"
    path.write_bytes(data[:size])
    try:
        header = read_header(path)
    except GgufError as error:
        assert error.code.startswith("E_GGUF_")
        assert error.message.isprintable()
    else:
        rebuilt = raw_of(header).header()
        assert rebuilt == bytes(data[: len(rebuilt)])


def test_counts_that_are_just_legal(tmp_path: Path) -> None:
    """The limits are inclusive: 4,096 keys and thousands of tensors are read."""
    raw = tiny_model()
    while len(raw.keys) < 4096:
        raw.put(f"x.{len(raw.keys)}", array(0, []))
    raw.tensors += [float_tensor(f"extra.{index}", 1) for index in range(3000)]
    path = tmp_path / "a.gguf"
    path.write_bytes(raw.build())
    header = read_header(path)
    assert len(header.metadata) == 4096
    assert len(header.tensors) == len(raw.tensors)
