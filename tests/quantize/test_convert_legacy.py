"""Pre-GGUF Llama files: written here from a converted model, they come back as that model."""

from __future__ import annotations

from pathlib import Path

import pytest
from lathe.quantize.convert import convert_checkpoint, convert_legacy
from lathe.quantize.errors import CheckpointError, FormatError, OutputError, QuantizeError, UnsupportedError
from support.families import RECIPES
from support.gguf_digest import digest
from support.legacy_files import as_legacy
from support.llama_values import computed_values

pytestmark = pytest.mark.native


@pytest.fixture(scope="module")
def modern(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same model in two types."""
    folder = tmp_path_factory.mktemp("modern")
    source = RECIPES["llama2"].write(folder / "source")
    made = {}
    for outtype in ("f16", "q8_0"):
        made[outtype] = convert_checkpoint(source, folder / f"{outtype}.gguf", outtype=outtype).output  # type: ignore[arg-type]
    return made


@pytest.mark.parametrize(
    ("outtype", "container", "version"),
    [("f16", "ggml", 1), ("f16", "ggmf", 1), ("f16", "ggjt", 1), ("f16", "ggjt", 3), ("q8_0", "ggjt", 3)],
)
def test_the_model_comes_back(
    tmp_path: Path, modern: dict[str, Path], outtype: str, container: str, version: int
) -> None:
    old = as_legacy(modern[outtype], tmp_path / "old.bin", container=container, version=version)
    report = convert_legacy(old, tmp_path / "new.gguf", context_length=256, rms_epsilon=1e-5)
    assert report.file_type == outtype.upper()
    found, expected = digest(tmp_path / "new.gguf"), digest(modern[outtype])
    assert found["tensors"] == expected["tensors"]
    for key in ("llama.attention.head_count_kv", "llama.feed_forward_length", "tokenizer.ggml.model"):
        assert found["metadata"][key] == expected["metadata"][key]
    if container != "ggml":  # which has no scores
        assert found["metadata"]["tokenizer.ggml.scores"][1] == expected["metadata"]["tokenizer.ggml.scores"][1]
    values = computed_values(tmp_path / "new.gguf", [7, 44, 81])
    assert values == pytest.approx(computed_values(modern[outtype], [7, 44, 81]))
    assert any("assumed" in warning for warning in report.warnings)


@pytest.mark.parametrize(("container", "version"), [("ggjt", 2), ("ggjt", 1), ("ggmf", 1)])
def test_types_that_changed_since_are_refused(
    tmp_path: Path, modern: dict[str, Path], container: str, version: int
) -> None:
    old = as_legacy(modern["q8_0"], tmp_path / "old.bin", container=container, version=version)
    with pytest.raises((UnsupportedError, FormatError)):
        convert_legacy(old, tmp_path / "new.gguf")
    assert not (tmp_path / "new.gguf").exists()


@pytest.mark.parametrize(
    ("drop", "error", "match"),
    [
        ("layers.1.attention.wk", CheckpointError, r"layer 1 lacks attn_k\.weight"),
        ("layers.1", CheckpointError, "promises 2 layers"),
        ("attention.wk", QuantizeError, "attn_|aborted|shape"),
    ],
)
def test_missing_tensors_are_named(
    tmp_path: Path, modern: dict[str, Path], drop: str, error: type[QuantizeError], match: str
) -> None:
    old = as_legacy(modern["f16"], tmp_path / "old.bin", drop=drop)
    with pytest.raises(error, match=match):
        convert_legacy(old, tmp_path / "new.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["old.bin"]


def test_the_old_file_is_never_overwritten(tmp_path: Path, modern: dict[str, Path]) -> None:
    old = as_legacy(modern["f16"], tmp_path / "old.bin")
    with pytest.raises(OutputError, match="is the input"):
        convert_legacy(old, old, force=True)
