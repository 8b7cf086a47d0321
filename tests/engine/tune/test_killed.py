"""kill -9 of the long measurements: importances and tuning go on where they were, and come to the same end.

The job runs in a child that kills itself at a given report of progress; the same job then runs to its end in this
process, over the same folders. FAULTS F25.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from lathe.engine.embedded import HELD_OUT_TEXT
from lathe.engine.jobs import imatrix, tune
from lathe.engine.steps import ImatrixStep, Step, TuneStep
from lathe.quantize.artefact import collect_parts
from lathe.quantize.imatrix import read_imatrix
from lathe.quantize.plan import QuantizeOptions
from lathe.quantize.quantizer import quantize_gguf
from support.job_context import RecordingContext, entry

pytestmark = pytest.mark.native

CHILD = """
import os, sys
from pathlib import Path
import msgspec
from lathe.engine.jobs import imatrix, tune
from lathe.engine.steps import Step
from lathe.store.models import ModelEntry
from support.job_context import RecordingContext
kind, step, home, model, deadly = sys.argv[1:]
step = msgspec.json.decode(step, type=Step)
imatrix._SAVE_INTERVAL_S = 0.0
class Dying(RecordingContext):
    def progress(self, label, done, total=None, unit="", **more):
        super().progress(label, done, total, unit, **more)
        if len(self.reports) == int(deadly):
            os.kill(os.getpid(), 9)
context = Dying(step, Path(home), msgspec.json.decode(model, type=ModelEntry))
{"imatrix": imatrix.run, "tune": tune.run}[kind](step, context)
"""


def killed(kind: str, step: Step, home: Path, model: object, deadly: int) -> None:
    """Run a job that dies at its `deadly`-th report."""
    arguments = [kind, msgspec.json.encode(step).decode(), str(home), msgspec.json.encode(model).decode(), str(deadly)]
    tests = Path(__file__).resolve().parents[2]
    code = f"import sys; sys.path.insert(0, {str(tests)!r})\n" + CHILD
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]


@pytest.fixture(scope="module")
def small(embedded_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("killed") / "one-layer.gguf"
    quantize_gguf(embedded_gguf, path, QuantizeOptions(type="COPY", prune_layers=(1, 2, 3)))
    return path


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_bytes(HELD_OUT_TEXT.read_bytes()[:24_000])
    return path


@pytest.mark.parametrize("deadly", [2, 3])
def test_importances_go_on_after_a_kill(home: Path, small: Path, text: Path, tmp_path: Path, deadly: int) -> None:
    model = entry(small, sha256="a" * 64)
    step = ImatrixStep(
        model=model.name, text=str(text), context=256, chunks=24, threads=1, output=str(tmp_path / "m.gguf")
    )
    whole = tmp_path / "whole.gguf"
    untouched = msgspec.structs.replace(step, output=str(whole))
    imatrix.run(untouched, RecordingContext(untouched, tmp_path / "other", model))
    killed("imatrix", step, home, model, deadly)
    assert not (tmp_path / "m.gguf").exists()
    context = RecordingContext(step, home, model)
    imatrix.run(step, context)
    assert context.reports[0][1] > 8, "it did not begin anew"
    resumed, expected = read_imatrix(tmp_path / "m.gguf"), read_imatrix(whole)
    assert resumed.chunks == expected.chunks
    for name, one in expected.entries.items():
        np.testing.assert_allclose(resumed.entries[name].sums, one.sums, rtol=1e-4)
        assert (resumed.entries[name].counts == one.counts).all()
    assert list((home / "jobs" / "j-1").glob("imatrix-*.gguf")) == [], "the checkpoint is gone"


@pytest.mark.parametrize(("deadly", "feedback"), [(5, True), (15, False)])
def test_tuning_goes_on_after_a_kill(
    home: Path, small: Path, text: Path, tmp_path: Path, deadly: int, feedback: bool
) -> None:
    model = entry(small, sha256="b" * 64)
    step = TuneStep(
        model=model.name, text=str(text), max_size="q4_k_m", compare=("Q4_K_M",), kinds=("Q4_K", "Q6_K"),
        feedback=feedback, context=64, chunks=2, threads=1, speed=False, output=str(tmp_path / "mix.gguf"),
    )  # fmt: skip
    killed("tune", step, home, model, deadly)
    assert not (tmp_path / "mix.gguf").exists()
    (folder,) = (home / "tune").iterdir()
    state = folder / "measured.json"
    before = len(json.loads(state.read_bytes())["anchors"]) if state.exists() else 0
    outcome = tune.run(step, RecordingContext(step, home, model))
    assert (tmp_path / "mix.gguf").stat().st_size == outcome.artefacts[0].bytes
    other = msgspec.structs.replace(step, output=str(tmp_path / "whole.gguf"))
    expected = tune.run(other, RecordingContext(other, tmp_path / "home", model))
    assert outcome.artefacts[0].sha256 == expected.artefacts[0].sha256, "the same file as without the kill"
    after = json.loads(state.read_bytes())["anchors"]
    assert len({(tuple(anchor["names"]), anchor["kind"]) for anchor in after}) == len(after) > before
    for place in (folder, folder / "moments", home / "models", tmp_path):
        assert collect_parts(place) == []
