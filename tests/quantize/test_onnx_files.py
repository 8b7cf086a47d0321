"""ONNX files are read without the onnx package, and external data never leads out of the model's folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lathe.quantize.errors import FormatError, InputMissing, QuantizeError, UnsafeError
from lathe.quantize.onnx_files import OnnxFile, read_onnx
from support.onnx_writer import (
    FLOAT16,
    INT64,
    UINT8,
    entry,
    external_tensor,
    graph,
    int_attribute,
    integer,
    model,
    node,
    packed_floats,
    span,
    tensor,
    varint,
)


def read(folder: Path, data: bytes) -> OnnxFile:
    path = folder / "model.onnx"
    path.write_bytes(data)
    return read_onnx(path)


def test_facts_of_a_model(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "w.data").write_bytes(bytes(64 + 400))
    inner = graph([node("Identity", ["w"], ["i"])], [tensor("inner", [2], FLOAT16)])
    facts = read(
        tmp_path,
        model(
            graph(
                [
                    node("MatMul", ["x", "w"], ["a"]),
                    node("MatMul", ["a", "w"], ["b"]),
                    node("If", ["c"], ["d"], span(1, "then_branch") + span(6, inner) + integer(20, 5)),
                    node("Constant", [], ["k"], span(1, "value") + span(5, tensor("k", [3])) + integer(20, 4)),
                ],
                [
                    tensor("shape", [4], INT64),
                    tensor("typed", [2])[:-10] + span(4, packed_floats([1, 2])),
                    external_tensor("w", [10, 10], location="sub/w.data", offset="64", length="400"),
                ],
            )
        ),
    )
    assert facts.producer == "tests"
    assert facts.opsets == {"": 21}
    assert facts.operators == {"MatMul": 2, "If": 1, "Constant": 1, "Identity": 1}
    assert {item.name: (item.type, item.shape, item.nbytes, item.location) for item in facts.tensors} == {
        "inner": ("FLOAT16", (2,), 4, None),
        "k": ("FLOAT", (3,), 12, None),
        "shape": ("INT64", (4,), 32, None),
        "typed": ("FLOAT", (2,), 8, None),
        "w": ("FLOAT", (10, 10), 400, "sub/w.data"),
    }
    assert facts.external == (tmp_path / "sub" / "w.data",)
    assert facts.parameters == 2 + 3 + 2 + 100


def test_block_quantized_weights_count_as_what_they_stand_for(tmp_path: Path) -> None:
    """MatMulNBits: 4 bits each, 32 to a block, [N, K / 32, 16] bytes; scales are no parameters."""
    quantized = node(
        "MatMulNBits", ["x", "w", "s"], ["y"], int_attribute("K", 64), int_attribute("N", 8), int_attribute("bits", 4)
    )
    facts = read(tmp_path, model(graph([quantized], [tensor("w", [8, 2, 16], UINT8), tensor("s", [16])])))
    assert facts.parameters == 64 * 8


def plain(folder: Path) -> None:
    (folder / "w.data").write_bytes(bytes(16))


def symbolic(folder: Path) -> None:
    (folder / "secret").write_bytes(bytes(16))
    (folder / "w.data").symlink_to(folder / "secret")


def hard(folder: Path) -> None:
    (folder / "secret").write_bytes(bytes(16))
    os.link(folder / "secret", folder / "w.data")


def linked_folder(folder: Path) -> None:
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "w.data").write_bytes(bytes(16))
    (folder / "sub").symlink_to(folder / "elsewhere")


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "w.data")


ESCAPES: dict[str, tuple[Callable[[Path], None], dict[str, str]]] = {
    "parent": (plain, {"location": "../w.data"}),
    "parent in the middle": (plain, {"location": "a/../../w.data"}),
    "itself": (plain, {"location": "./w.data"}),
    "absolute": (plain, {"location": "/etc/passwd"}),
    "drive": (plain, {"location": "C:w.data"}),
    "backslash": (plain, {"location": "..\\w.data"}),
    "NUL": (plain, {"location": "w.data\0.txt"}),
    "empty": (plain, {"location": ""}),
    "memory address": (plain, {"location": "*/_ORT_MEM_ADDR_/*"}),
    "no location": (plain, {}),
    "unknown key": (plain, {"location": "w.data", "basepath": "/etc"}),
    "symbolic link": (symbolic, {"location": "w.data"}),
    "hard link": (hard, {"location": "w.data"}),
    "linked folder": (linked_folder, {"location": "sub/w.data"}),
    "pipe": (pipe, {"location": "w.data"}),
    "negative offset": (plain, {"location": "w.data", "offset": "-8"}),
    "offset in other digits": (plain, {"location": "w.data", "offset": "\u0668"}),
}


@pytest.mark.parametrize("name", ESCAPES)
def test_external_data_that_escapes(tmp_path: Path, name: str) -> None:
    prepare, entries = ESCAPES[name]
    prepare(tmp_path)
    data = external_tensor("w", [4], **entries)
    for body in (
        graph([], [data]),
        graph([node("Constant", [], ["k"], span(1, "value") + span(5, data))]),
        graph([node("Constant", [], ["k"], span(1, "values") + span(10, data))]),
        graph([node("If", ["c"], ["d"], span(1, "b") + span(6, graph([], [data])))]),
        graph([node("If", ["c"], ["d"], span(1, "b") + span(11, graph([], [data])))]),
        graph([node("Constant", [], ["k"], span(1, "sparse_value") + span(22, span(1, data)))]),
        graph() + span(15, span(2, data)),
    ):
        with pytest.raises(UnsafeError) as caught:
            read(tmp_path, model(body))
        assert caught.value.code == "E_ONNX_EXTERNAL"
    function = span(25, span(1, "f") + span(7, node("Constant", [], ["k"], span(1, "value") + span(5, data))))
    training = span(20, span(1, graph([], [data])))
    for extra in (function, training):
        with pytest.raises(UnsafeError):
            read(tmp_path, model(graph(), extra))


def test_location_given_twice_or_without_the_flag(tmp_path: Path) -> None:
    """Parsers differ in which of two entries wins, so neither is taken."""
    plain(tmp_path)
    twice = external_tensor("w", [4], location="w.data") + entry("location", "../x")
    unflagged = integer(1, 4) + integer(2, 1) + span(8, "w") + entry("location", "../x")
    for data in (twice, unflagged):
        with pytest.raises(UnsafeError):
            read(tmp_path, model(graph([], [data])))


def test_halves_that_a_parser_would_merge(tmp_path: Path) -> None:
    plain(tmp_path)
    half = span(5, span(8, "w"))
    for body in (
        graph([node("Constant", [], ["k"], span(1, "value") + half + half)]),
        graph([node("Constant", [], ["k"], span(1, "v") + span(22, span(1, tensor("v", [1])) * 2))]),
    ):
        with pytest.raises(FormatError):
            read(tmp_path, model(body))
    with pytest.raises(FormatError, match="two graphs"):
        read(tmp_path, model(graph(), span(7, graph())))


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        ({"location": "w.data", "offset": "8"}, "ends at byte 24 of w.data, which has 16"),
        ({"location": "w.data", "length": "8"}, "needs 16 external bytes, not 8"),
        ({"location": "missing.data"}, "cannot be read"),
    ],
)
def test_external_data_that_is_not_there(tmp_path: Path, entries: dict[str, str], match: str) -> None:
    plain(tmp_path)
    with pytest.raises(FormatError, match=match):
        read(tmp_path, model(graph([], [external_tensor("w", [4], **entries)])))


def test_links_of_the_hugging_face_cache_are_followed(tmp_path: Path) -> None:
    repository = tmp_path / "models--a--b"
    snapshot = repository / "snapshots" / "0123"
    (repository / "blobs").mkdir(parents=True)
    (snapshot / "onnx").mkdir(parents=True)
    (repository / "blobs" / "feed").write_bytes(bytes(16))
    (repository / "blobs" / "cafe").write_bytes(
        model(graph([], [external_tensor("w", [4], location="model.onnx_data")]))
    )
    (snapshot / "onnx" / "model.onnx").symlink_to("../../../blobs/cafe")
    data = snapshot / "onnx" / "model.onnx_data"
    data.symlink_to("../../../blobs/feed")
    assert read_onnx(snapshot / "onnx" / "model.onnx").external == (data,)
    data.unlink()
    data.symlink_to("../../../../outside")
    with pytest.raises(UnsafeError):
        read_onnx(snapshot / "onnx" / "model.onnx")


def nested(depth: int) -> bytes:
    body = graph()
    for _ in range(depth):
        body = graph([node("If", [], [], span(1, "b") + span(6, body))])
    return body


MALFORMED = {
    "empty": b"",
    "text": b"hello world",
    "no graph": integer(1, 10),
    "graph is a number": integer(7, 1),
    "span past the end": span(7, graph()) + varint(7 << 3 | 2) + varint(1 << 40),
    "group": span(7, graph()) + varint(9 << 3 | 3),
    "endless number": span(7, graph()) + b"\x08" + b"\xff" * 10,
    "cut in a fixed number": span(7, graph()) + varint(9 << 3 | 1) + b"\0\0",
    "nested too deeply": model(nested(17)),
    "unknown type": model(graph([], [integer(1, 1) + integer(2, 99) + span(9, bytes(4))])),
    "negative dimension": model(graph([], [integer(1, -1) + integer(2, 1) + span(9, bytes(4))])),
    "huge dimensions": model(graph([], [tensor("w", [], data=b"") + integer(1, 1 << 40) + integer(1, 1 << 40)])),
    "promises without data": model(graph([], [tensor("w", [1 << 20], data=bytes(16))])),
    "too many dimensions": model(graph([], [tensor("w", [1] * 33)])),
    "too many packed dimensions": model(graph([], [span(1, b"\1" * 33) + integer(2, 1)])),
    "name too long": model(graph([], [tensor("w" * 5000, [1])])),
    "cycle": model(graph([node("Add", ["b"], ["a"]), node("Add", ["a"], ["b"])])),
    "node of itself": model(graph([node("Add", ["a"], ["a"])])),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_files(tmp_path: Path, name: str) -> None:
    with pytest.raises(FormatError) as caught:
        read(tmp_path, MALFORMED[name])
    assert caught.value.code == "E_ONNX"


def test_nesting_that_is_allowed(tmp_path: Path) -> None:
    assert read(tmp_path, model(nested(16))).operators == {"If": 16}


def test_no_regular_file(tmp_path: Path) -> None:
    with pytest.raises(InputMissing):
        read_onnx(tmp_path / "missing.onnx")
    os.mkfifo(tmp_path / "pipe.onnx")
    with pytest.raises(FormatError, match="regular"):
        read_onnx(tmp_path / "pipe.onnx")


VALID = model(
    graph(
        [node("MatMul", ["x", "w"], ["a"]), node("If", ["c"], ["d"], span(1, "b") + span(6, graph()))],
        [tensor("w", [4, 4]), external_tensor("e", [4], location="w.data")],
    )
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
@given(
    flips=st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), max_size=8),
    size=st.integers(0, len(VALID)),
)
def test_damage_never_raises_anything_else(tmp_path: Path, flips: list[tuple[int, int]], size: int) -> None:
    plain(tmp_path)
    data = bytearray(VALID)
    for position, value in flips:
        data[position] = value
    try:
        read(tmp_path, bytes(data[:size]))
    except QuantizeError as error:
        assert error.code.startswith("E_ONNX")
