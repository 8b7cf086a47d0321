"""Whole conversions of real checkpoints: the embedded one, TinyStories, and a large one in little memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from lathe.engine.embedded import CHECKPOINT
from lathe.quantize.convert import convert_checkpoint
from support.checkpoints import safetensors_bytes
from support.families import RECIPES
from support.gguf_digest import digest

GOLDEN = Path(__file__).parent.parent / "golden" / "convert"


@pytest.mark.native
def test_the_embedded_model_equals_the_official_conversion(tmp_path: Path) -> None:
    report = convert_checkpoint(CHECKPOINT, tmp_path / "out.gguf", outtype="f16")
    expected, found = json.loads((GOLDEN / "stdlib-4m.json").read_text()), digest(tmp_path / "out.gguf")
    assert found["metadata"].pop("general.file_type") == ["UINT32", 1]
    assert found["metadata"] == expected["metadata"]
    assert found["tensors"] == expected["f16"]
    assert report.warnings == ()
    assert (report.pre_tokenizer, report.parameters) == ("gpt-2", 4_196_608)


@pytest.mark.native
def test_auto_keeps_the_checkpoints_precision(tmp_path: Path) -> None:
    heard: list[tuple[float, float | None, str]] = []
    report = convert_checkpoint(
        CHECKPOINT, tmp_path / "out.gguf", report=lambda label, done, total, unit: heard.append((done, total, unit))
    )
    assert report.file_type == "BF16"
    assert heard == sorted(heard)
    assert heard[-1][0] == heard[-1][1]
    assert {unit for _, _, unit in heard} == {"B"}


@pytest.mark.native
@pytest.mark.shared
def test_tinystories_reads_text_as_its_original_does(tmp_path: Path, shared_data: Path) -> None:
    """Its one matrix is saved as the head and no token is a byte; officially it becomes a file that does not load."""
    report = convert_checkpoint(shared_data / "models" / "TinyStories-656K", tmp_path / "out.gguf", outtype="f16")
    tensors = digest(tmp_path / "out.gguf")["tensors"]
    assert tensors["token_embd.weight"][:2] == ["F16", [128, 2048]]
    assert "output.weight" not in tensors
    assert report.conformance.agrees
    assert report.conformance.crashes
    assert any("abort" in warning for warning in report.warnings)


PEAK_OF_A_CONVERSION = """
import re, sys
from pathlib import Path
from lathe.quantize.convert import convert_checkpoint
convert_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]), outtype=sys.argv[3])
print(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.native
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read from /proc")
@pytest.mark.parametrize("outtype", ["bf16", "f16"])
def test_memory_does_not_grow_with_the_model(tmp_path: Path, outtype: str) -> None:
    """A checkpoint of 230 MB, of which one tensor is 184 MB, in much less than that."""
    recipe, rows = RECIPES["smollm"], 60_000
    source = recipe.write(tmp_path / "source")
    width = 1536
    config = dict(recipe.config) | {"vocab_size": rows, "hidden_size": width, "num_hidden_layers": 1}
    config |= {"num_attention_heads": 24, "num_key_value_heads": 24, "intermediate_size": 3072}
    (source / "config.json").write_text(json.dumps(config))
    square, wide = np.full((width, width), 0x3C00, np.uint16), np.full((3072, width), 0x3C00, np.uint16)
    base = "model.layers.0"
    tensors = {"model.embed_tokens.weight": np.full((rows, width), 0x3C00, np.uint16)}
    tensors |= {f"{base}.self_attn.{part}_proj.weight": square for part in "qkvo"}
    tensors |= {f"{base}.mlp.gate_proj.weight": wide, f"{base}.mlp.up_proj.weight": wide}
    tensors |= {f"{base}.mlp.down_proj.weight": wide.T.copy()}
    norms = ("model.norm.weight", f"{base}.input_layernorm.weight", f"{base}.post_attention_layernorm.weight")
    tensors |= {name: np.full(width, 0x3F80, np.uint16) for name in norms}
    (source / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    command = [sys.executable, "-c", PEAK_OF_A_CONVERSION, str(source), str(tmp_path / "out.gguf"), outtype]
    done = subprocess.run(command, capture_output=True, check=True)
    assert int(done.stdout) < 140 << 10
