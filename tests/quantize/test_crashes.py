"""kill -9 over convert and quantize: the old file or the new one, never half of one, and no litter that stays."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

import pytest
from lathe.quantize.artefact import collect_parts, file_sha256
from lathe.quantize.gguf.header import read_header
from support.nursery import Child, Nursery

CYCLES = 70
"""With as many of a scan (engine/catalogue/test_crashes.py) more than two hundred."""


def _longest(child: Child) -> float:
    """Seconds that one whole piece of work takes here."""
    assert child.read() == "begin"
    began = time.monotonic()
    assert child.read() == "done"
    took = time.monotonic() - began
    child.kill()
    return took


@pytest.mark.native
@pytest.mark.parametrize("work", ["convert", "quantize"])
def test_kill_9_at_any_instant_leaves_a_whole_file_or_none(
    work: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, embedded_gguf: Path
) -> None:
    chance = random.Random(work)
    output = tmp_path / "out.gguf"
    arguments = [str(output)] if work == "convert" else [str(embedded_gguf), str(output)]
    source_hash = file_sha256(embedded_gguf)
    interrupted = parts_seen = 0
    with Nursery(f"support.file_work:{work}") as nursery:
        took = _longest(nursery.spawn(*arguments))
        good = file_sha256(output)
        kept = shutil.copyfile(output, tmp_path_factory.mktemp("kept") / "good.gguf")
        for cycle in range(CYCLES):
            if cycle % 3 == 0:
                output.unlink()
            child = nursery.spawn(*arguments)
            if cycle % 3 == 1:  # in the midst of writing, which takes a hundredth of a conversion
                while not list(tmp_path.glob("*.part")):
                    time.sleep(0.0002)
                heard = child.kill_after(chance.uniform(0, 0.005))
            else:
                heard = child.kill_after(chance.uniform(0, took * 1.1))
            interrupted += heard[-1] == "begin"
            if output.exists():
                assert file_sha256(output) == good
                read_header(output)
            else:
                assert "done" not in heard
            parts = collect_parts(tmp_path)
            parts_seen += len(parts)
            for part in parts:
                part.unlink()
            assert {path.name for path in tmp_path.iterdir()} <= {output.name}
            if not output.exists():
                shutil.copyfile(kept, output)
    assert file_sha256(embedded_gguf) == source_hash
    assert interrupted >= CYCLES / 3, "too few kills hit the work, so this test proved less than it says"
    assert parts_seen, "no kill fell into the writing itself, so this test proved less than it says"
