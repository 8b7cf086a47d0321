"""Where a model runs is never silently another place than was meant: fallback, lost devices, driver mismatch."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import msgspec
import pytest
from lathe.engine.states import Fit, WorkerState
from lathe.engine.worker.messages import LoadOptions, WorkerInfo
from lathe.engine.worker.supervisor import _placement
from lathe.store.models import ModelEntry
from support.waiting import until
from support.workers import Machine, answer, pool_of, scripted

INFO = WorkerInfo(backend="llama_cpp", pid=1, context=1, kv_tokens=1, slots=1, vocabulary=1, layers=32)


@pytest.mark.parametrize(
    ("wanted", "got", "notice"),
    [
        (32, 32, ""),
        (None, 0, ""),
        (0, 0, ""),
        (32, 0, "32 layers were meant for the GPU, 0 are there"),
        (-1, 12, "32 layers were meant for the GPU, 12 are there"),
    ],
)
def test_R11_a_fall_to_the_cpu_is_said(wanted: int | None, got: int, notice: str) -> None:
    """A driver that does not match its library loads, too, and puts every layer on the CPU."""
    said = _placement(LoadOptions(gpu_layers=wanted), msgspec.structs.replace(INFO, gpu_layers=got))
    assert said.startswith(notice) if notice else not said


class LosesItsGpu(Machine):
    """A machine whose accelerator is there for the first plan only."""

    def __call__(
        self, entry: ModelEntry, options: LoadOptions, held: tuple[WorkerState, ...], gone: tuple[WorkerState, ...]
    ) -> Fit:
        fit = super().__call__(entry, options, held, gone)
        if self.calls == 1:
            return msgspec.structs.replace(fit, options=msgspec.structs.replace(options, gpu_layers=0, threads=1))
        chosen = msgspec.structs.replace(options, gpu_layers=0, threads=2)
        return msgspec.structs.replace(fit, options=chosen, verdict="partial", reason="runs on the CPU: no GPU is left")


async def test_R12_F29_after_a_crash_the_machine_is_looked_at_again(tmp_path: Path) -> None:
    """The worker died with its driver: the restart is planned for the devices that are left, and says so."""
    machine = LosesItsGpu()
    toy = scripted("toy")
    async with pool_of(tmp_path, machine) as (pool, _):
        first = await pool.load(toy)
        assert (first.options.threads, first.notice) == (1, "")
        os.kill(first.pid or 0, signal.SIGBUS)
        await until(lambda: pool.states()[0].restarts == 1 and pool.states()[0].phase == "ready")
        again = pool.states()[0]
        assert (again.options.threads, again.notice) == (2, "runs on the CPU: no GPU is left")
        assert machine.calls == 2
        assert await answer(pool, toy) == "hello world"
