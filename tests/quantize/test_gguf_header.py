"""The GGUF preflight reads what others write, and nothing else: values, arrays, tensors, kinds of files."""

from __future__ import annotations

import os
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lathe.quantize.errors import GgufError, InputMissing
from lathe.quantize.gguf.header import read_header
from lathe.quantize.gguf.types import LAYOUTS, TENSOR_TYPE_BY_ID, ValueType
from lathe.quantize.gguf.values import GgufArray
from support.gguf_writer import (
    Raw,
    RawTensor,
    array,
    float_tensor,
    packed,
    raw_of,
    scalar,
    text,
    tiny_adapter,
    tiny_imatrix,
    tiny_model,
    u32,
)

LLAMA_CPP = os.environ.get("LATHE_LLAMA_CPP")
"""llama.cpp's source, where it is at hand (see benchmarks/README.md); read here because tests run without LATHE_*."""
SCRATCH = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def written(folder: Path, raw: Raw) -> Path:
    path = folder / "a.gguf"
    path.write_bytes(raw.build())
    return path


def test_reads_what_the_field_writes(tmp_path: Path) -> None:
    """gguf-py is the oracle: one key of each type, tensors of several types."""
    path = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    values = {
        "add_uint8": 200, "add_int8": -3, "add_uint16": 60_000, "add_int16": -300, "add_uint32": 1 << 31,
        "add_int32": -(1 << 31), "add_uint64": 1 << 63, "add_int64": -(1 << 63), "add_float32": 0.5,
        "add_float64": 0.1, "add_bool": True, "add_string": "naïve ▁ 日本",
    }  # fmt: skip
    for method, value in values.items():
        getattr(writer, method)(f"x.{method}", value)
    writer.add_array("x.words", ["a", "", "▁b"])
    writer.add_array("x.numbers", [1, -2, 3])
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_tensor("a", np.arange(64, dtype=np.float32).reshape(2, 32))
    writer.add_tensor("b", np.zeros((3, 5), np.float16))
    writer.add_tensor("c", np.zeros((2, 34), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    header = read_header(path)
    assert header.version == 3
    assert header.alignment == 32
    assert {f"x.{method}": value for method, value in values.items()}.items() <= header.metadata.items()
    words, numbers = header.array("x.words"), header.array("x.numbers")
    assert words is not None and numbers is not None
    assert (words.tolist(), words.items, len(words)) == (["a", "", "▁b"], ValueType.STRING, 3)
    assert list(numbers) == [1, -2, 3]
    assert [(tensor.name, tensor.type.name, tensor.shape, tensor.nbytes) for tensor in header.tensors] == [
        ("a", "F32", (32, 2), 256),
        ("b", "F16", (5, 3), 30),
        ("c", "Q8_0", (32, 2), 68),
    ]
    start = header.position(header.tensors[0])
    assert np.frombuffer(path.read_bytes(), np.float32, 64, start).tolist() == list(range(64))


def test_sizes_of_tensor_types_are_ggmls() -> None:
    known = {kind.value: sizes for kind, sizes in gguf.GGML_QUANT_SIZES.items() if kind.name not in ("Q8_1", "Q8_K")}
    ours = {number: (kind.block, kind.bytes) for number, kind in TENSOR_TYPE_BY_ID.items() if number in known}
    assert ours == known
    names = {kind.value: kind.name for kind in gguf.GGMLQuantizationType}
    assert all(names.get(number, kind.name) == kind.name for number, kind in TENSOR_TYPE_BY_ID.items())


@pytest.mark.parametrize(
    ("make", "kind"), [(tiny_model, "model"), (tiny_adapter, "adapter"), (tiny_imatrix, "imatrix")]
)
def test_round_trip_of_valid_files(tmp_path: Path, make: type[Raw], kind: str) -> None:
    raw = make()
    header = read_header(written(tmp_path, raw))
    assert header.kind == kind
    assert raw_of(header).header() == raw.header()


def test_kinds_of_files(tmp_path: Path) -> None:
    vocabulary = tiny_model()
    vocabulary.tensors = []
    projector = Raw().put("general.architecture", text("clip")).put("clip.vision.block_count", u32(4))
    vector = Raw().put("general.architecture", text("controlvector"))
    vector.tensors = [float_tensor("direction.1", 32)]
    for raw, kind in ((vocabulary, "vocabulary"), (projector, "projector"), (vector, "control-vector")):
        assert read_header(written(tmp_path, raw)).kind == kind


def test_tensor_without_dimensions_is_one_number(tmp_path: Path) -> None:
    raw = tiny_model()
    raw.tensors.append(RawTensor(b"scale", (), data=packed(ValueType.FLOAT32, 2.0)))
    tensor = read_header(written(tmp_path, raw)).tensors[-1]
    assert (tensor.shape, tensor.elements, tensor.nbytes) == ((1,), 1, 4)


def test_larger_alignment(tmp_path: Path) -> None:
    raw = tiny_model().put("general.alignment", u32(4096))
    raw.alignment = 4096
    header = read_header(written(tmp_path, raw))
    assert header.alignment == 4096
    assert all(header.position(tensor) % 4096 == 0 for tensor in header.tensors)


def test_strings_larger_than_the_window(tmp_path: Path) -> None:
    """Items from 0 bytes to the limit, across the borders of the reading window."""
    items = [b"x" * size for size in (0, 1, (1 << 18) - 8, 1 << 18, 300_000, 0, 1 << 20, 7)]
    raw = tiny_model().put("x.big", array(ValueType.STRING, items)).put("x.after", u32(7))
    header = read_header(written(tmp_path, raw))
    big = header.array("x.big")
    assert big is not None
    assert [item for batch in big.batches() for item in batch] == items
    assert header.number("x.after") == 7


def test_tokens_that_are_not_utf8_are_kept_as_bytes(tmp_path: Path) -> None:
    raw = Raw().put("general.architecture", text("llama"))
    raw.put("tokenizer.ggml.tokens", array(ValueType.STRING, [b"a", b"\xff"]))
    tokens = read_header(written(tmp_path, raw)).array("tokenizer.ggml.tokens")
    assert tokens is not None
    assert list(tokens.batches()) == [[b"a", b"\xff"]]
    assert tokens.tolist() == ["a", "\ufffd"]


def test_special_ids_out_of_range_are_llama_cpps_to_ignore(tmp_path: Path) -> None:
    raw = tiny_model().put("tokenizer.ggml.padding_token_id", u32(0xFFFFFFFF))
    assert read_header(written(tmp_path, raw)).number("tokenizer.ggml.padding_token_id") == 0xFFFFFFFF


def test_dense_models_with_one_expert(tmp_path: Path) -> None:
    raw = tiny_model("hunyuan-dense").put("hunyuan-dense.expert_count", u32(1))
    assert read_header(written(tmp_path, raw)).kind == "model"


def test_file_that_changes_after_it_was_read(tmp_path: Path) -> None:
    path = written(tmp_path, tiny_model())
    tokens = read_header(path).array("tokenizer.ggml.tokens")
    assert tokens is not None
    os.truncate(path, tokens.position + 10)
    with pytest.raises(GgufError, match=r"truncated in key 'tokenizer\.ggml\.tokens'"):
        tokens.tolist()


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(InputMissing):
        read_header(tmp_path / "missing.gguf")
    os.mkfifo(tmp_path / "pipe.gguf")
    for path in (tmp_path, tmp_path / "pipe.gguf", Path("/dev/zero")):
        with pytest.raises(GgufError, match="not a regular file"):
            read_header(path)


_SCALARS = {
    ValueType.UINT8: st.integers(0, 255),
    ValueType.INT8: st.integers(-128, 127),
    ValueType.UINT16: st.integers(0, (1 << 16) - 1),
    ValueType.INT16: st.integers(-(1 << 15), (1 << 15) - 1),
    ValueType.UINT32: st.integers(0, (1 << 32) - 1),
    ValueType.INT32: st.integers(-(1 << 31), (1 << 31) - 1),
    ValueType.FLOAT32: st.floats(width=32),
    ValueType.BOOL: st.booleans(),
    ValueType.STRING: st.text(),
    ValueType.UINT64: st.integers(0, (1 << 64) - 1),
    ValueType.INT64: st.integers(-(1 << 63), (1 << 63) - 1),
    ValueType.FLOAT64: st.floats(),
}
_TYPED = st.sampled_from(list(_SCALARS)).flatmap(lambda kind: st.tuples(st.just(kind), _SCALARS[kind]))
_TYPED_LIST = st.sampled_from(list(_SCALARS)).flatmap(
    lambda kind: st.tuples(st.just(kind), st.lists(_SCALARS[kind], max_size=20))
)
_KEYS = st.text(st.characters(categories=("L", "N", "P")), min_size=1, max_size=30).map(lambda name: f"x.{name}")


@SCRATCH
@given(
    scalars=st.dictionaries(_KEYS, _TYPED, max_size=20),
    arrays=st.dictionaries(_KEYS.map(lambda name: f"y.{name}"), _TYPED_LIST, max_size=5),
    shapes=st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4), max_size=6),
)
def test_any_metadata_survives_a_round_trip(
    tmp_path: Path,
    scalars: dict[str, tuple[ValueType, object]],
    arrays: dict[str, tuple[ValueType, list[object]]],
    shapes: list[list[int]],
) -> None:
    raw = Raw().put("general.type", text("mmproj"))
    for key, (kind, value) in scalars.items():
        raw.put(key, scalar(kind, value))
    for key, (kind, values) in arrays.items():
        raw.put(key, array(kind, values))
    raw.tensors = [float_tensor(f"t{index}", *shape) for index, shape in enumerate(shapes)]
    header = read_header(written(tmp_path, raw))
    assert raw_of(header).header() == raw.header()
    assert [list(tensor.shape) for tensor in header.tensors] == shapes


def test_arrays_are_views_of_the_file(tmp_path: Path) -> None:
    for kind, layout in LAYOUTS.items():
        raw = tiny_model().put("x.values", array(kind, [0, 1, 1]))
        values = read_header(written(tmp_path, raw)).array("x.values")
        assert isinstance(values, GgufArray)
        assert values.numpy().dtype == np.dtype(layout)
        assert values.tolist() == [0, 1, 1]


@pytest.mark.skipif(LLAMA_CPP is None, reason="LATHE_LLAMA_CPP does not name llama.cpp's source")
def test_llama_cpps_own_vocabularies() -> None:
    """Real vocabularies of every kind: SentencePiece, byte-level, WordPiece, unigram; one of them is GGUF version 2."""
    paths = sorted(Path(LLAMA_CPP or "").glob("models/ggml-vocab-*.gguf"))
    assert len(paths) > 15
    headers = [read_header(path) for path in paths]
    assert {header.kind for header in headers} == {"vocabulary"}
    assert {header.version for header in headers} == {2, 3}
    tokenizers = {header.text("tokenizer.ggml.model") for header in headers}
    assert tokenizers >= {"llama", "gpt2", "bert", "t5"}
