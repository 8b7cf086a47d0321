"""What the preflight accepts must not kill llama.cpp: valid files load, absurd ones end in its own errors."""

from __future__ import annotations

from pathlib import Path

import pytest
from lathe.quantize.errors import GgufError
from lathe.quantize.gguf.header import read_header
from support.gguf_mutants import mutants
from support.gguf_writer import MALFORMED, tiny_model, tiny_shards
from support.native_gguf import outcomes

pytestmark = pytest.mark.native


def accepted(paths: list[Path]) -> list[Path]:
    found = []
    for path in paths:
        try:
            read_header(path)
        except GgufError:
            continue
        found.append(path)
    return found


def test_valid_files_load_and_run(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(tiny_model().build())
    paths = [path, tiny_shards(tmp_path)[0]]
    assert outcomes(paths) == dict.fromkeys(paths, "ok")
    assert outcomes(paths, "run") == dict.fromkeys(paths, "ok")


def test_absurd_scalars_of_a_real_model_kill_nothing(tmp_path: Path, embedded_gguf: Path) -> None:
    """300 mutants of the embedded model: what is accepted loads or fails politely, with and without its tensors."""
    paths = accepted(list(mutants(embedded_gguf, tmp_path, 300, seed=20)))
    assert len(paths) > 150  # the preflight does not get there by refusing everything
    results = outcomes(paths)
    assert not [path for path, outcome in results.items() if outcome.startswith("signal")]
    assert list(results.values()).count("ok") > 100


def test_absurd_scalars_of_a_tiny_model_kill_nothing_when_run(tmp_path: Path) -> None:
    """300 mutants of a one-layer model, loaded for real, and one token decoded with each."""
    base = tmp_path / "base.gguf"
    base.write_bytes(tiny_model().build())
    results = outcomes(accepted(list(mutants(base, tmp_path, 300, seed=21))), "run")
    assert not [path for path, outcome in results.items() if outcome.startswith("signal")]


def test_the_preflight_is_needed(tmp_path: Path) -> None:
    """Some of what it refuses does kill llama.cpp; should this fail one day, checks can go."""
    deadly = ("block_count 0", "alignment 16", "duplicate tokens", "rope scaling unknown", "type 9")
    paths = []
    for name in deadly:
        paths.append(tmp_path / f"{name}.gguf")
        paths[-1].write_bytes(MALFORMED[name][1]())
    assert all(outcome.startswith("signal") for outcome in outcomes(paths, "run").values())
