"""What counts as free beside models that are loaded, loading, or imagined gone."""

from __future__ import annotations

from pathlib import Path

import pytest
from lathe.engine import planner as planning
from lathe.engine.planner import MemoryPlanner
from lathe.engine.states import Fit, Footprint, WorkerState
from lathe.engine.telemetry.devices import Devices
from lathe.engine.telemetry.memory import HostMemory
from lathe.engine.telemetry.nvidia import NvidiaReader
from lathe.engine.worker.messages import LoadOptions
from lathe.quantize.card import ModelCard
from lathe.store.models import ModelEntry
from support.fake_nvml import FakeNvml, h100
from support.workers import GIB


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MemoryPlanner:
    """A machine with 10 GiB free of 16, a GPU with 79 GiB free, and nothing kept back."""
    monkeypatch.setattr(planning, "read_memory", lambda: HostMemory(16 * GIB, 10 * GIB))
    monkeypatch.setattr(planning, "offload_backends", lambda: frozenset({"cuda"}))
    card = ModelCard(format="gguf", bytes=GIB, layers=4, embedding_length=256, vocabulary=1000, context_length=512)
    monkeypatch.setattr(planning, "read_card", lambda path: card)
    return MemoryPlanner(Devices(nvidia=NvidiaReader(lambda: FakeNvml(h100())), root=tmp_path), 0)


def worker(phase: str, cpu: int, mapped: int, gpu: int = 0) -> WorkerState:
    predicted = Footprint(
        weights=0, kv_cache=0, compute=0, overhead=0, devices={"cpu": cpu, "nvidia0": gpu}, mapped=mapped
    )
    return WorkerState(
        name="other",
        model_id="o",
        path="p",
        phase=phase,
        options=LoadOptions(),
        predicted=predicted,  # type: ignore[arg-type]
    )


def available(plan: MemoryPlanner, held: tuple[WorkerState, ...] = (), gone: tuple[WorkerState, ...] = ()) -> dict:
    entry = ModelEntry(id="x", name="toy", path="toy.gguf", format="gguf", bytes=1)
    fit: Fit = plan(entry, LoadOptions(), held, gone)
    return {device: round(size / GIB) for device, size in fit.available.items()}


def test_alone(plan: MemoryPlanner) -> None:
    assert available(plan) == {"cpu": 10, "nvidia0": 79}


def test_mapped_weights_of_a_loaded_model_are_not_free(plan: MemoryPlanner) -> None:
    """The kernel counts their pages as available; reading another model over them would thrash both."""
    assert available(plan, held=(worker("ready", cpu=5 * GIB, mapped=4 * GIB, gpu=9 * GIB),)) == {
        "cpu": 6,
        "nvidia0": 79,  # what it holds there, the driver shows already
    }


def test_a_model_that_is_loading_has_its_memory_promised(plan: MemoryPlanner) -> None:
    state = worker("starting", cpu=5 * GIB, mapped=4 * GIB, gpu=9 * GIB)
    assert available(plan, held=(state,)) == {"cpu": 5, "nvidia0": 70}


def test_a_model_imagined_gone_gives_back_what_it_holds(plan: MemoryPlanner) -> None:
    state = worker("ready", cpu=5 * GIB, mapped=4 * GIB, gpu=1 * GIB)
    assert available(plan, gone=(state,)) == {"cpu": 11, "nvidia0": 80}


def test_a_gpu_that_lies_idle_is_never_kept_quiet(plan: MemoryPlanner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "offload_backends", frozenset)
    entry = ModelEntry(id="x", name="toy", path="toy.gguf", format="gguf", bytes=1)
    fit = plan(entry, LoadOptions(), (), ())
    assert set(fit.available) == {"cpu"} and "cannot use the GPU" in fit.reason
    assert plan(entry, LoadOptions(gpu_layers=0), (), ()).reason == ""  # it was asked for


def test_drafts_and_adapters_take_their_part(plan: MemoryPlanner, tmp_path: Path) -> None:
    entry = ModelEntry(id="x", name="toy", path="toy.gguf", format="gguf", bytes=1)
    for name in ("draft.gguf", "tone.gguf"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(2 * GIB)  # sparse: only its length counts
    options = LoadOptions(draft=str(tmp_path / "draft.gguf"), adapters=(str(tmp_path / "tone.gguf"),))
    assert round(plan(entry, options, (), ()).available["nvidia0"] / GIB) == 75
    assert round(plan(entry, LoadOptions(draft="lookup"), (), ()).available["nvidia0"] / GIB) == 79
