"""llama.cpp's quantizer through our door: exact plans, honoured options, typed refusals, nothing left behind."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from lathe.quantize.artefact import file_sha256
from lathe.quantize.convert import convert_checkpoint
from lathe.quantize.errors import (
    GgufError,
    InputMissing,
    OutputError,
    QuantizeError,
    UnsafeError,
    UnsupportedError,
)
from lathe.quantize.gguf.header import read_header, read_sharded
from lathe.quantize.imatrix import Entry, Imatrix, write_imatrix
from lathe.quantize.plan import QuantizeOptions
from lathe.quantize.quantizer import plan_quantization, quantize_gguf
from support.families import RECIPES

pytestmark = pytest.mark.native


def types(path: Path) -> dict[str, str]:
    return {tensor.name: tensor.type.name for tensor in read_header(path).tensors}


def options(**fields: Any) -> QuantizeOptions:
    return QuantizeOptions(**({"threads": 1} | fields))


@pytest.fixture(scope="module")
def small(embedded_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two of the four layers: everything below is twice as fast."""
    path = tmp_path_factory.mktemp("small") / "small-f16.gguf"
    quantize_gguf(embedded_gguf, path, options(type="COPY", prune_layers=(1, 2)))
    return path


@pytest.fixture(scope="module")
def matrix(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Importances for every weight of `small`, made up."""
    path = tmp_path_factory.mktemp("imatrix") / "importances.gguf"
    random = np.random.default_rng(7)
    entries = {
        tensor.name: Entry(random.gamma(1.0, size=(1, tensor.shape[0])).astype(np.float32), np.array([64]))
        for tensor in read_header(small).tensors
        if tensor.name.endswith("weight") and len(tensor.shape) == 2
    }
    write_imatrix(path, Imatrix(entries=entries, datasets=("made up",), chunks=3))
    return path


@pytest.mark.parametrize("kind", ["Q4_K_M", "Q8_0", "Q3_K_M", "Q4_0", "TQ1_0", "BF16", "F32", "COPY"])
def test_the_plan_is_the_file(small: Path, tmp_path: Path, kind: str) -> None:
    planned = plan_quantization(small, options(type=kind))
    report = quantize_gguf(small, tmp_path / "out.gguf", options(type=kind))
    assert report.plan == planned
    assert planned.bytes == (tmp_path / "out.gguf").stat().st_size
    assert types(tmp_path / "out.gguf") == {tensor.name: tensor.target for tensor in planned.tensors}
    assert report.sha256 == (file_sha256(tmp_path / "out.gguf"),)
    assert sum(planned.mix.values()) == sum(tensor.bytes for tensor in planned.tensors)


def test_the_same_request_gives_the_same_bytes(small: Path, tmp_path: Path) -> None:
    one = quantize_gguf(small, tmp_path / "one.gguf", options(type="Q4_K_M", threads=1))
    two = quantize_gguf(small, tmp_path / "two.gguf", options(type="Q4_K_M", threads=2, buffer_bytes=4096))
    assert one.sha256 == two.sha256


def test_tensors_get_the_types_asked_for(small: Path, tmp_path: Path) -> None:
    wanted = options(
        type="Q4_K_S",
        tensor_types={r"blk\.0\.ffn_.*": "q6_k", "attn_v": "Q8_0", "attn": "Q5_K"},
        token_embedding_type="iq4_nl",
    )
    quantize_gguf(small, tmp_path / "out.gguf", wanted)
    found = types(tmp_path / "out.gguf")
    assert found["blk.0.ffn_down.weight"] == "Q6_K"
    assert found["blk.1.ffn_down.weight"] == "Q4_K"
    assert found["blk.1.attn_v.weight"] == "Q8_0"
    assert found["blk.1.attn_k.weight"] == "Q5_K"
    assert found["token_embd.weight"] == "IQ4_NL"


def test_pure_means_one_type(small: Path, tmp_path: Path) -> None:
    quantize_gguf(small, tmp_path / "out.gguf", options(type="Q4_K_M", pure=True))
    assert set(types(tmp_path / "out.gguf").values()) == {"Q4_K", "F32"}


def test_pruned_layers_close_the_gap(embedded_gguf: Path, small: Path) -> None:
    assert read_header(small).hyper("block_count") == 2
    before, after = GGUFReader(embedded_gguf), GGUFReader(small)
    source = {tensor.name: tensor.data for tensor in before.tensors}
    copied = {tensor.name: tensor.data for tensor in after.tensors}
    np.testing.assert_array_equal(copied["blk.1.ffn_up.weight"], source["blk.3.ffn_up.weight"])
    np.testing.assert_array_equal(copied["blk.0.ffn_up.weight"], source["blk.0.ffn_up.weight"])


def test_metadata_is_written_and_counted(small: Path, tmp_path: Path) -> None:
    notes: dict[str, str | int | float | bool] = {
        "lathe.source": "é" * 50, "lathe.layers": 2, "lathe.share": 0.5, "lathe.ok": True, "general.name": "another",
    }  # fmt: skip
    report = quantize_gguf(small, tmp_path / "out.gguf", options(type="Q8_0", metadata=notes))
    header = read_header(tmp_path / "out.gguf")
    assert {key: header.metadata[key] for key in notes} == notes
    assert report.plan.bytes == header.file_bytes


def test_importances_change_the_bytes_and_are_noted(small: Path, matrix: Path, tmp_path: Path) -> None:
    plain = quantize_gguf(small, tmp_path / "plain.gguf", options(type="IQ4_XS"))
    report = quantize_gguf(small, tmp_path / "out.gguf", options(type="IQ4_XS", imatrix=matrix))
    assert report.plan.bytes == (tmp_path / "out.gguf").stat().st_size
    header = read_header(tmp_path / "out.gguf")
    assert header.text("quantize.imatrix.file") == "importances.gguf"
    assert header.text("quantize.imatrix.dataset") == "made up"
    assert header.number("quantize.imatrix.chunks_count") == 3
    assert report.sha256 != plain.sha256
    weights = {tensor.name: tensor.data for tensor in GGUFReader(tmp_path / "out.gguf").tensors}
    before = {tensor.name: tensor.data for tensor in GGUFReader(tmp_path / "plain.gguf").tensors}
    assert not np.array_equal(weights["blk.0.ffn_up.weight"], before["blk.0.ffn_up.weight"])


def test_a_type_that_needs_importances_works_with_them(small: Path, matrix: Path, tmp_path: Path) -> None:
    quantize_gguf(small, tmp_path / "out.gguf", options(type="IQ2_XXS", imatrix=matrix))
    assert types(tmp_path / "out.gguf")["blk.0.ffn_up.weight"] == "IQ2_XXS"


def test_importances_can_be_left_out_by_name(small: Path, matrix: Path) -> None:
    without = options(type="IQ2_XXS", imatrix=matrix, imatrix_except=("ffn_up",))
    with pytest.raises(InputMissing, match=r"ffn_up.* has none for it"):
        plan_quantization(small, without)
    alone = options(type="IQ2_XXS", imatrix=matrix, imatrix_only=("ffn_up",))
    with pytest.raises(InputMissing, match="attn"):
        plan_quantization(small, alone)


@pytest.fixture(scope="module")
def shards(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`small` in several files; returns the first."""
    folder = tmp_path_factory.mktemp("shards")
    reader = GGUFReader(small)
    writer = GGUFWriter(folder / "model.gguf", "llama", split_max_tensors=8)
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        kind = field.types[0]
        sub = field.types[-1] if kind == GGUFValueType.ARRAY else None
        writer.add_key_value(key, field.contents(), kind, sub_type=sub)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return next(folder.glob("model-00001-of-*.gguf"))


def test_shards_are_joined(shards: Path, small: Path, tmp_path: Path) -> None:
    report = quantize_gguf(shards, tmp_path / "out.gguf", options(type="Q8_0"))
    assert report.plan.files == ((tmp_path / "out.gguf").stat().st_size,)
    assert types(tmp_path / "out.gguf").keys() == types(small).keys()


def test_shards_stay_shards_when_asked(shards: Path, small: Path, tmp_path: Path) -> None:
    report = quantize_gguf(shards, tmp_path / "out.gguf", options(type="Q8_0", keep_split=True))
    count = len(read_sharded(shards))
    assert [file.name for file in report.files] == [f"out-{n + 1:05d}-of-{count:05d}.gguf" for n in range(count)]
    assert [file.stat().st_size for file in report.files] == list(report.plan.files)
    headers = read_sharded(report.files[0])
    assert {tensor.name for header in headers for tensor in header.tensors} == types(small).keys()
    assert sorted(tmp_path.iterdir()) == sorted(report.files)


def test_a_pattern_without_a_tensor_is_reported(small: Path) -> None:
    planned = plan_quantization(small, options(type="Q8_0", tensor_types={"ffn_upp": "q4_k", "ffn_up": "q4_k"}))
    assert planned.warnings == ("the pattern 'ffn_upp' matches no tensor",)


def test_rows_that_do_not_fit_a_block_fall_back_and_say_so(tmp_path: Path, small: Path) -> None:
    planned = plan_quantization(small, options(type="Q8_0", tensor_types={"attn_k": "q4_k"}))
    assert planned.warnings == ()
    narrow = tmp_path / "narrow.gguf"
    reader = GGUFReader(small)
    writer = GGUFWriter(narrow, "llama")
    for name in ("block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count"):
        writer.add_uint32(f"llama.{name}", 64 if name == "embedding_length" else 1)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    row = next(tensor for tensor in reader.tensors if tensor.name == "blk.0.attn_k.weight")
    writer.add_tensor("blk.0.attn_k.weight", np.array(row.data)[:, :64])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    planned = plan_quantization(narrow, options(type="Q4_K_S"))
    assert planned.tensors[0].target == "Q5_0"
    assert planned.warnings == ("1 of 1 tensor(s) required fallback quantization",)


REFUSALS: dict[str, tuple[dict[str, Any], type[QuantizeError], str]] = {
    "unknown type": ({"type": "Q4KM"}, UnsupportedError, "Q4KM"),
    "needs importances": ({"type": "IQ2_XS"}, InputMissing, "needs importances"),
    "would abort": ({"type": "Q4_K_M", "token_embedding_type": "IQ2_XXS"}, InputMissing, "token_embd"),
    "bad tensor type": ({"tensor_types": {"ffn": "Q4_K_M"}}, UnsupportedError, "recipe for files"),
    "bad pattern": ({"tensor_types": {"(": "q8_0"}}, QuantizeError, "no regular expression"),
    "pattern of another dialect": ({"tensor_types": {"(?<=k).": "q8_0"}}, QuantizeError, "regular expression"),
    "types that would be ignored": ({"type": "F16", "tensor_types": {"ffn": "q8_0"}}, UnsupportedError, "ignored"),
    "types for a copy": ({"type": "COPY", "tensor_types": {"ffn": "q8_0"}}, UnsupportedError, "COPY keeps"),
    "type of a copy's output": ({"type": "COPY", "output_tensor_type": "q8_0"}, UnsupportedError, "COPY keeps"),
    "output kept and changed": ({"keep_output": True, "output_tensor_type": "q6_k"}, UnsupportedError, "not both"),
    "layer that is not there": ({"prune_layers": (2,)}, QuantizeError, "no layer 2"),
    "metadata too long": ({"metadata": {"lathe.note": "x" * 128}}, QuantizeError, "127 bytes"),
    "imatrix that is none": ({"imatrix": Path(__file__)}, QuantizeError, "no importance matrix"),
}


@pytest.mark.parametrize("case", REFUSALS.values(), ids=REFUSALS)
def test_unusable_requests_are_refused_before_a_byte_is_written(
    small: Path, tmp_path: Path, case: tuple[dict[str, Any], type[QuantizeError], str]
) -> None:
    fields, kind, words = case
    with pytest.raises(kind, match=words) as caught:
        quantize_gguf(small, tmp_path / "out.gguf", options(**fields))
    assert "\n" not in caught.value.message
    assert list(tmp_path.iterdir()) == []


def test_quantizing_twice_needs_a_word(small: Path, tmp_path: Path) -> None:
    once = tmp_path / "once.gguf"
    quantize_gguf(small, once, options(type="Q8_0"))
    with pytest.raises(UnsafeError, match="is Q8_0 already") as caught:
        quantize_gguf(once, tmp_path / "twice.gguf", options(type="Q4_0"))
    assert "--allow-requantize" in caught.value.hint
    quantize_gguf(once, tmp_path / "twice.gguf", options(type="Q4_0", allow_requantize=True))


def test_the_input_is_never_the_output(small: Path, matrix: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.gguf"
    link.hardlink_to(small)
    before = file_sha256(small)
    for output, fields in ((link, {}), (matrix, {"imatrix": matrix})):
        with pytest.raises(OutputError, match="is the input"):
            quantize_gguf(small, output, options(type="Q8_0", **fields), force=True)
    assert file_sha256(small) == before


def test_a_reranker_with_one_label_is_quantized(tmp_path: Path) -> None:
    """Its head has one row, and ggml writes a last size of 1 to no file."""
    source = tmp_path / "reranker.gguf"
    convert_checkpoint(RECIPES["reranker"].write(tmp_path / "reranker"), source, outtype="f16")
    quantize_gguf(source, tmp_path / "out.gguf", options(type="Q8_0"))
    assert types(tmp_path / "out.gguf")["blk.0.ffn_up.weight"] == "Q8_0"


def test_an_existing_output_stays_unless_forced(small: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.gguf"
    output.write_bytes(b"precious")
    with pytest.raises(OutputError, match="exists"):
        quantize_gguf(small, output, options(type="Q8_0"))
    assert output.read_bytes() == b"precious"
    quantize_gguf(small, output, options(type="Q8_0"), force=True)
    assert types(output)["token_embd.weight"] == "Q8_0"


def test_an_architecture_that_llama_cpp_lacks_is_named(small: Path, tmp_path: Path) -> None:
    odd = tmp_path / "odd.gguf"
    odd.write_bytes(small.read_bytes().replace(b"llama", b"llamx"))
    with pytest.raises(QuantizeError, match="llamx"):
        quantize_gguf(odd, tmp_path / "out.gguf", options(type="Q8_0"))
    assert not (tmp_path / "out.gguf").exists()


def test_weights_that_are_no_numbers_are_refused(small: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    shutil.copy(small, broken)
    header = read_header(broken)
    tensor = next(tensor for tensor in header.tensors if tensor.name == "blk.1.ffn_up.weight")
    with broken.open("r+b") as file:
        file.seek(header.position(tensor))
        file.write(np.array([np.nan], np.float16).tobytes())
    with pytest.raises(GgufError, match="no numbers"):
        quantize_gguf(broken, tmp_path / "out.gguf", options(type="Q8_0"))
    assert list(tmp_path.iterdir()) == [broken]


def test_progress_counts_tensors_and_an_exception_in_it_leaves_nothing(small: Path, tmp_path: Path) -> None:
    heard: list[tuple[str, float, float | None, str]] = []
    report = quantize_gguf(small, tmp_path / "out.gguf", options(type="Q8_0"), lambda *said: heard.append(said))
    counts = [done for _, done, _, unit in heard if unit == "tensor"]
    assert counts == sorted(counts)
    assert counts[-1] == len(report.plan.tensors) == 20
    (tmp_path / "out.gguf").unlink()

    def stop(_label: str, done: float, _total: float | None, _unit: str) -> None:
        if done > 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_gguf(small, tmp_path / "out.gguf", options(type="Q8_0"), stop)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_and_leaves_nothing(small: Path, tmp_path: Path) -> None:
    code = """
        import resource, sys
        from pathlib import Path
        from lathe.quantize.errors import OutputError
        from lathe.quantize.plan import QuantizeOptions
        from lathe.quantize.quantizer import quantize_gguf
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, -1))
        try:
            quantize_gguf(Path(sys.argv[1]), Path(sys.argv[2]), QuantizeOptions(type="Q8_0"))
        except OutputError as error:
            print(error.code)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), small, tmp_path / "out.gguf"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "E_DISK_FULL"
    assert list(tmp_path.iterdir()) == []
    assert done.stderr == ""
