"""The convert job's other ways: adapters, shards, the way back, and architectures that our converter does not know."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from lathe.engine.embedded import CHECKPOINT
from lathe.engine.errors import UnavailableError, UsageError
from lathe.engine.jobs import convert
from lathe.engine.paths import Home
from lathe.engine.steps import ConvertStep
from lathe.engine.toolchain import official, store
from lathe.engine.toolchain.store import Toolchain
from lathe.quantize.artefact import file_sha256
from lathe.quantize.checkpoint import read_checkpoint
from lathe.quantize.convert import convert_checkpoint
from lathe.quantize.errors import OutputError, UnsupportedError
from lathe.quantize.gguf.header import read_header, read_sharded
from support.checkpoints import safetensors_bytes
from support.families import RECIPES
from support.job_context import RecordingContext, entry
from support.legacy_files import as_legacy

pytestmark = pytest.mark.native
EMBEDDED = entry(CHECKPOINT, name="embedded", format="safetensors", sha256="0" * 64)
HEAVY = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


def test_an_adapter_becomes_a_gguf_adapter(home: Path, tmp_path: Path) -> None:
    base = entry(RECIPES["llama2"].write(tmp_path / "base"), name="base", format="safetensors")
    folder = tmp_path / "adapter"
    folder.mkdir()
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    rows, columns = RECIPES["llama2"].shapes["model.layers.0.self_attn.q_proj.weight"]
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    halves = {f"{name}.lora_A.weight": np.ones((2, columns), np.float32),
              f"{name}.lora_B.weight": np.ones((rows, 2), np.float32)}  # fmt: skip
    (folder / "adapter_model.safetensors").write_bytes(safetensors_bytes(halves))
    adapter = entry(folder, format="safetensors", sha256="1" * 64)
    step = ConvertStep(model=adapter.name, base="base")
    outcome = convert.run(step, RecordingContext(step, home, adapter, base))
    header = read_header(Path(outcome.artefacts[0].path))
    assert header.kind == "adapter"
    assert sorted(tensor.name for tensor in header.tensors) == [
        "blk.0.attn_q.weight.lora_a",
        "blk.0.attn_q.weight.lora_b",
    ]


def test_a_large_model_is_split(home: Path) -> None:
    step = ConvertStep(model="embedded", outtype="f16", split_max_bytes=4_000_000, parity=False)
    outcome = convert.run(step, RecordingContext(step, home, EMBEDDED))
    assert outcome.figures["shards"] == 3
    first = Path(outcome.artefacts[0].path)
    assert first.name == "embedded-F16-00001-of-00003.gguf"
    assert sum(header.file_bytes for header in read_sharded(first)) == outcome.artefacts[0].bytes


def test_outputs_are_compared_or_it_is_said_why_not(home: Path) -> None:
    step = ConvertStep(model="embedded", outtype="f16")
    outcome = convert.run(step, RecordingContext(step, home, EMBEDDED))
    if HEAVY:
        assert outcome.figures["parity"] == "ok"
        assert float(outcome.figures["output_kld"] or 0) < 1e-5
    else:
        assert str(outcome.figures["parity"]).startswith("skipped: torch")
    quiet = ConvertStep(model="embedded", outtype="f16", parity=False, force=True)
    assert "parity" not in convert.run(quiet, RecordingContext(quiet, home, EMBEDDED)).figures


def test_a_file_from_before_gguf_becomes_one(home: Path, tmp_path: Path) -> None:
    source = RECIPES["llama2"].write(tmp_path / "source")
    modern = convert_checkpoint(source, tmp_path / "modern-f16.gguf", outtype="f16").output
    old = entry(as_legacy(modern, tmp_path / "old.ggml"), format="ggml", sha256="4" * 64)
    step = ConvertStep(model=old.name, legacy_context=128, legacy_epsilon=1e-5)
    outcome = convert.run(step, RecordingContext(step, home, old))
    header = read_header(Path(outcome.artefacts[0].path))
    assert header.hyper("context_length") == 128
    assert outcome.figures["tensors"] == len(read_header(modern).tensors)


def test_a_gguf_goes_back_to_a_checkpoint(home: Path, embedded_gguf: Path) -> None:
    model = entry(embedded_gguf, sha256="2" * 64)
    step = ConvertStep(model=model.name, to="safetensors")
    outcome = convert.run(step, RecordingContext(step, home, model))
    made = outcome.artefacts[0]
    assert (made.format, Path(made.path).name) == ("safetensors", "stdlib-4m-HF")
    assert read_checkpoint(Path(made.path)).architecture == "LlamaForCausalLM"
    with pytest.raises(OutputError, match="exists"):
        convert.run(step, RecordingContext(step, home, model))
    wrong = ConvertStep(model=model.name, to="safetensors", outtype="q8_0")
    with pytest.raises(UsageError, match="f32, f16 or bf16"):
        convert.run(wrong, RecordingContext(wrong, home, model))


@pytest.fixture
def unknown(tmp_path: Path) -> Path:
    """A checkpoint of an architecture that our converter does not know."""
    folder = tmp_path / "unknown"
    shutil.copytree(CHECKPOINT, folder, ignore=shutil.ignore_patterns("*.jsonl", "*.txt"))
    config = json.loads((folder / "config.json").read_text()) | {"architectures": ["Olmo2ForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_an_unknown_architecture_is_given_to_llama_cpps_converter_where_it_is_installed(
    home: Path, unknown: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = entry(unknown, format="safetensors", sha256="3" * 64)
    step = ConvertStep(model=model.name, outtype="f16")
    with pytest.raises(UnsupportedError, match="Olmo2ForCausalLM") as caught:
        convert.run(step, RecordingContext(step, home, model))
    assert "lathe toolchain install" in caught.value.hint
    folder = Home(home).toolchain / store.installed_version()
    folder.mkdir(parents=True)
    (folder / store.SCRIPT).write_text("raise SystemExit(66)")
    toolchain = Toolchain(
        version=folder.name, source_sha256="0" * 64, files={store.SCRIPT: file_sha256(folder / store.SCRIPT)}
    )
    (folder / "config.json").write_bytes(msgspec.json.encode(toolchain))
    monkeypatch.setattr(official.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match="needs torch, transformers"):
        convert.run(step, RecordingContext(step, home, model))
    assert not (home / "models" / "unknown-F16.gguf").exists()
