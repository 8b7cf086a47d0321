"""NVML readings: complete, partial, sliced, lost, and back again (FAULTS F29, R12)."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from lathe.engine.telemetry.nvidia import RETRY_S, TTL_S, NvidiaReader
from lathe.engine.telemetry.sample import DeviceSample
from support.fake_nvml import FakeNvml, h100


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_device_is_read_in_full(clock: Clock) -> None:
    reader = NvidiaReader(lambda: FakeNvml(h100()), clock)
    assert reader.read() == (
        DeviceSample(
            id="nvidia0",
            name="NVIDIA H100 80GB HBM3",
            memory_used=1_073_741_824,
            memory_total=85_520_809_984,
            utilization=0.42,
            temperature_c=51,
            power_w=123.456,
            power_limit_w=700,
            clock_mhz=1980,
            memory_clock_mhz=2619,
            processes={11: 500_000_000},
        ),
    )
    assert reader.driver == "580.95.05" and reader.problem == ""


def test_what_a_device_does_not_tell_is_none(clock: Clock) -> None:
    (row,) = NvidiaReader(lambda: FakeNvml({"Name": "Orin", "temperature": 40}), clock).read()
    assert row == DeviceSample(id="nvidia0", name="Orin", temperature_c=40)  # the older call answered


def test_memory_of_processes_that_the_driver_hides_is_left_out(clock: Clock) -> None:
    processes = [
        SimpleNamespace(pid=1, usedGpuMemory=None),
        SimpleNamespace(pid=2, usedGpuMemory=(1 << 64) - 1),
        SimpleNamespace(pid=3, usedGpuMemory=7),
    ]
    fake = FakeNvml(h100(ComputeRunningProcesses=processes, GraphicsRunningProcesses=processes))
    (row,) = NvidiaReader(lambda: fake, clock).read()
    assert row.processes == {3: 7}


def test_mig_slices_have_rows_of_their_own(clock: Clock) -> None:
    piece = {
        "Name": "NVIDIA H100 MIG 1g.10gb",
        "MemoryInfo": SimpleNamespace(total=10 * 1024**3, used=1024, free=0),
        "ComputeRunningProcesses": [SimpleNamespace(pid=5, usedGpuMemory=1024)],
    }
    rows = NvidiaReader(lambda: FakeNvml(h100(slices=[piece, piece])), clock).read()
    assert [row.id for row in rows] == ["nvidia0", "nvidia0:0", "nvidia0:1"]
    assert rows[1].memory_total == 10 * 1024**3 and rows[1].utilization is None and rows[1].processes == {5: 1024}


def test_readings_are_shared_for_a_moment(clock: Clock) -> None:
    fake = FakeNvml(h100())
    reader = NvidiaReader(lambda: fake, clock)
    reader.read()
    calls = fake.calls
    reader.read()
    assert fake.calls == calls
    clock.now += TTL_S
    reader.read()
    assert fake.calls > calls


def test_no_library_is_no_problem(clock: Clock) -> None:
    class NVMLError_LibraryNotFound(Exception):
        pass

    def load() -> FakeNvml:
        raise NVMLError_LibraryNotFound

    reader = NvidiaReader(load, clock)
    assert reader.read() == () and reader.problem == ""


def test_a_driver_mismatch_is_named(clock: Clock) -> None:
    fake = FakeNvml(h100())
    fake.fault = FakeNvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH
    reader = NvidiaReader(lambda: fake, clock)
    assert reader.read() == () and "18" in reader.problem


@pytest.mark.parametrize("fault", [1, 9, 18])
def test_a_driver_that_goes_is_looked_for_again(clock: Clock, fault: int) -> None:
    fake = FakeNvml(h100())
    reader = NvidiaReader(lambda: fake, clock)
    assert len(reader.read()) == 1
    clock.now += 1
    fake.fault = fault
    assert reader.read() == () and reader.problem
    assert fake.shutdowns == 1
    inits = fake.inits
    clock.now += 1
    assert reader.read() == () and fake.inits == inits  # not every second
    fake.fault = None
    clock.now += RETRY_S
    assert len(reader.read()) == 1 and reader.problem == ""


def test_one_lost_device_does_not_hide_the_others(clock: Clock) -> None:
    lost, well = h100(), h100()
    reader = NvidiaReader(lambda: FakeNvml(lost, well), clock)
    reader.read()
    lost["lost"] = True
    clock.now += 1
    first, second = reader.read()
    assert first == DeviceSample(id="nvidia0", name="NVIDIA H100 80GB HBM3")
    assert second.memory_used is not None
    assert reader.problem.startswith("nvidia0:")


def test_a_device_that_was_lost_before_the_start_is_named(clock: Clock) -> None:
    reader = NvidiaReader(lambda: FakeNvml(h100(lost=True), h100()), clock)
    assert [row.id for row in reader.read()] == ["nvidia1"]
    assert reader.problem.startswith("nvidia0:")
