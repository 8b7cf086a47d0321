"""The estimate beside what llama.cpp itself reports for the same model and options."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
from lathe.engine import footprint
from lathe.engine.worker.messages import LoadOptions
from support import random_gguf

BUFFERS = Path(__file__).resolve().parents[2] / "support" / "llama_buffers.py"
SHAPES = {
    "grouped heads, own output": {},
    "tied, wide vocabulary": {"tied": True, "vocabulary": 30_000, "heads": 4, "kv_heads": 4},
    "wide feed-forward": {"hidden": 4096, "vocabulary": 500},
    "experts": {"experts": 8, "experts_used": 4, "vocabulary": 500, "kv_heads": 8},
}
WISHES = [
    {"tokens": tokens, "batch": batch, "slots": slots, "flash": flash, "kv": kv}
    for tokens, batch, slots, flash, kv in itertools.product((1000, 8192), (128, 512), (1, 8), (True, False), ("f16",))
] + [{"tokens": 2048, "batch": 512, "slots": 4, "flash": True, "kv": "q8_0"}]


@pytest.mark.native
@pytest.mark.parametrize("shape", SHAPES)
def test_the_estimate_is_close_and_not_low(tmp_path: Path, shape: str) -> None:
    path = tmp_path / "model.gguf"
    card = random_gguf.write(path, **SHAPES[shape])
    known = footprint.shape_of(card)
    assert known is not None
    asked = [  # as a worker asks
        wish
        | {
            "sequences": footprint.sequences(known.vocabulary, wish["slots"]),
            "outputs": footprint.outputs(known.vocabulary, wish["slots"]),
        }
        for wish in WISHES
    ]
    done = subprocess.run(
        [sys.executable, str(BUFFERS), str(path), json.dumps(asked)], capture_output=True, text=True, check=True
    )
    for wish, (kv, compute) in zip(WISHES, json.loads(done.stdout), strict=True):
        options = LoadOptions(
            slots=wish["slots"], batch_tokens=wish["batch"], flash_attention=wish["flash"], kv_type=wish["kv"]
        )
        assert footprint.kv_cache(known, wish["tokens"], wish["kv"], wish["slots"]) == pytest.approx(kv, rel=0.01), wish
        guess = footprint.compute(known, wish["tokens"], options)
        assert 0.96 * compute - 2**20 <= guess <= 1.30 * compute + 2**20, (wish, guess / compute)
