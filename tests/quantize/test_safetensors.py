"""The strict safetensors reader: what is legal reads back, everything else is a typed error."""

from __future__ import annotations

import json
import os
import resource
import struct
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lathe.quantize.errors import InputMissing, SafetensorsError
from lathe.quantize.safetensors import MAX_HEADER_BYTES, MAX_TENSORS, SafetensorsFile, parse_header
from support.checkpoints import safetensors_bytes

ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def raw(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A file with this header, valid or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def parse(content: bytes) -> dict[str, Any]:
    return parse_header(content, len(content), Path("x.safetensors"))[0]


def test_tensors_read_back_as_they_were_written(tmp_path: Path) -> None:
    tensors = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a": np.array([1.5, -2], np.float16),
        "bits": np.array([0x3F80], np.uint16),
        "scalar": np.array(7, np.int64),
        "empty": np.zeros((0, 4), np.float32),
    }
    path = tmp_path / "t.safetensors"
    path.write_bytes(safetensors_bytes(tensors, {"format": "pt"}))
    with SafetensorsFile(path) as file:
        assert file.metadata == {"format": "pt"}
        assert file.tensors["bits"].dtype == "BF16"
        for name, expected in tensors.items():
            np.testing.assert_array_equal(file.read(name), expected)
            assert file.read(name).shape == expected.shape
        file.release("b")
        np.testing.assert_array_equal(file.read("b"), tensors["b"])


def test_views_survive_the_file(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    path.write_bytes(safetensors_bytes({"a": np.ones(4, np.float32)}))
    with SafetensorsFile(path) as file:
        view = file.read("a")
    assert view.sum() == 4


MALFORMED: dict[str, bytes] = {
    "empty file": b"",
    "seven bytes": b"\0" * 7,
    "length beyond the file": raw({}, length=1000),
    "length of 2^63": raw({}, length=1 << 63),
    "length over the limit": raw({}, length=MAX_HEADER_BYTES + 1),
    "not JSON": raw(b"{nope"),
    "not an object": raw(b"[1]"),
    "leading space": raw(b" {}"),
    "invalid UTF-8": raw(b'{"\xff": 1}'),
    "text after the object": raw(b"{}{}"),
    "NaN": raw(b'{"a": NaN}'),
    "a number of 5,000 digits": raw(b'{"a": ' + b"9" * 5000 + b"}"),
    "deep nesting": raw(b'{"a":' * 100_000),
    "deep lists": raw(b'{"a":' + b"[" * 100_000),
    "a million empty lists": raw(b'{"a":[' + b"[]," * 1_000_000 + b"[]]}"),
    "duplicate tensor": raw(b'{"a":%(e)s,"a":%(e)s}' % {b"e": json.dumps(ONE).encode()}, bytes(8)),
    "duplicate field": raw(b'{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(8)),
    "metadata is no object": raw({"__metadata__": [], "a": ONE}, bytes(8)),
    "metadata value is no text": raw({"__metadata__": {"a": 1}, "a": ONE}, bytes(8)),
    "entry is no object": raw({"a": [1]}),
    "field missing": raw({"a": {"dtype": "F32", "shape": [2]}}, bytes(8)),
    "field too many": raw({"a": ONE | {"x": 1}}, bytes(8)),
    "unknown type": raw({"a": ONE | {"dtype": "F33"}}, bytes(8)),
    "type is no text": raw({"a": ONE | {"dtype": ["F32"]}}, bytes(8)),
    "shape is no list": raw({"a": ONE | {"shape": 2}}, bytes(8)),
    "negative size": raw({"a": ONE | {"shape": [-2]}}, bytes(8)),
    "fractional size": raw({"a": ONE | {"shape": [2.0]}}, bytes(8)),
    "boolean size": raw({"a": {"dtype": "U8", "shape": [True], "data_offsets": [0, 1]}}, bytes(1)),
    "nine dimensions": raw({"a": ONE | {"shape": [1] * 8 + [2]}}, bytes(8)),
    "product wraps 64 bits": raw({"a": ONE | {"shape": [1 << 62, 4]}}, bytes(8)),
    "size of 2^64": raw({"a": ONE | {"shape": [1 << 64, 0], "data_offsets": [0, 0]}}),
    "shape needs more than the offsets give": raw({"a": ONE | {"shape": [3]}}, bytes(8)),
    "offsets swapped": raw({"a": ONE | {"data_offsets": [8, 0]}}, bytes(8)),
    "offset negative": raw({"a": ONE | {"data_offsets": [-8, 0]}}, bytes(8)),
    "three offsets": raw({"a": ONE | {"data_offsets": [0, 8, 8]}}, bytes(8)),
    "past the end": raw({"a": ONE}, bytes(7)),
    "bytes left over": raw({"a": ONE}, bytes(9)),
    "hole at the start": raw({"a": ONE | {"data_offsets": [4, 12]}}, bytes(12)),
    "hole between": raw({"a": ONE, "b": ONE | {"data_offsets": [12, 20]}}, bytes(20)),
    "overlap": raw({"a": ONE, "b": ONE | {"data_offsets": [4, 12]}}, bytes(12)),
    "same bytes twice": raw({"a": ONE, "b": ONE}, bytes(8)),
    "empty name": raw({"": ONE}, bytes(8)),
    "name with NUL": raw({"a\0b": ONE}, bytes(8)),
    "name of 5,000 characters": raw({"a" * 5000: ONE}, bytes(8)),
}


@pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_files_are_refused_with_a_reason(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(SafetensorsError) as caught, SafetensorsFile(path):
        pass
    assert caught.value.code.startswith("E_SAFETENSORS_")
    assert "bad.safetensors" in caught.value.message
    assert caught.value.hint


def test_too_many_tensors_are_refused_quickly_and_in_little_memory(tmp_path: Path) -> None:
    entry = '":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    header = "{" + ",".join(f'"{number:x}{entry}' for number in range(300_000)) + "}"
    path = tmp_path / "many.safetensors"
    path.write_bytes(raw(header.encode()))
    before, began = _peak_rss(), time.process_time()
    with pytest.raises(SafetensorsError, match=r"limit|too many"), SafetensorsFile(path):
        pass
    assert _peak_rss() - before < 200 << 20
    assert time.process_time() - began < 20  # a hang, not a speed


def _peak_rss() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def test_the_limit_itself_is_allowed() -> None:
    entry = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    assert len(parse(raw({f"{number:x}": entry for number in range(MAX_TENSORS)}))) == MAX_TENSORS


def test_what_is_no_file_is_missing(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.safetensors"
    os.mkfifo(pipe)
    for path in (tmp_path / "nothing", tmp_path, pipe):
        with pytest.raises(InputMissing), SafetensorsFile(path):
            pass


@given(st.binary(max_size=200))
def test_no_bytes_make_the_parser_fail_otherwise(content: bytes) -> None:
    for candidate in (content, raw(b"{" + content)):
        try:
            parse(candidate)
        except SafetensorsError:
            continue


@given(st.data())
def test_a_changed_byte_in_the_header_never_leads_out_of_the_file(data: st.DataObject) -> None:
    content = bytearray(safetensors_bytes({"a": np.ones(3, np.float32), "b": np.ones((2, 2), np.float16)}))
    header = int.from_bytes(content[:8], "little")
    content[data.draw(st.integers(0, 7 + header))] = data.draw(st.integers(0, 255))
    try:
        tensors = parse(bytes(content))
    except SafetensorsError:
        return
    for info in tensors.values():
        assert 8 <= info.start <= info.end <= len(content)
