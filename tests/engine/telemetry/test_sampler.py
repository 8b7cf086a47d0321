"""The sampler's thread: deadlines, failures, history, the end; and the real machine below it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from lathe.engine.telemetry.devices import Devices
from lathe.engine.telemetry.host import HostReader
from lathe.engine.telemetry.nvidia import NvidiaReader
from lathe.engine.telemetry.sample import Sample
from lathe.engine.telemetry.sampler import Sampler
from support.fake_nvml import FakeNvml, h100


class Heard:
    """Collects samples and tells when there are enough."""

    def __init__(self, wanted: int) -> None:
        self.samples: list[Sample] = []
        self._wanted = wanted
        self.enough = threading.Event()

    def __call__(self, sample: Sample) -> None:
        self.samples.append(sample)
        if len(self.samples) >= self._wanted:
            self.enough.set()


def sampler(tmp_path: Path, heard: Heard, **changes: object) -> Sampler:
    devices = Devices(nvidia=NvidiaReader(lambda: FakeNvml(h100())), root=tmp_path)
    settings = {"roles": lambda: {os.getpid(): "engine"}, "publish": heard, "period_s": 0.02} | changes
    return Sampler(HostReader(tmp_path), devices, **settings)


def test_samples_of_this_very_machine(tmp_path: Path) -> None:
    heard = Heard(3)
    taking = sampler(tmp_path, heard)
    taking.start()
    assert heard.enough.wait(10)
    taking.stop()
    first, *_, last = heard.samples
    assert first.cpu is None and last.t > first.t  # a share needs two readings
    assert last.memory_total and last.memory_available and last.memory_available <= last.memory_total
    assert last.disk_total and last.cores
    (process,) = last.processes
    assert process.role == "engine" and process.rss and process.rss > 1_000_000 and process.cpu is not None
    assert [device.id for device in last.devices] == ["nvidia0"]
    assert taking.latest == last and taking.history(60) == heard.samples and taking.history(0) == []


def test_a_process_that_ends_disappears(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    sample = HostReader(tmp_path).read({gone.pid: "job j-1", os.getpid(): "engine"})
    assert [process.role for process in sample.processes] == ["engine"]


def test_a_failing_reading_is_said_once_and_does_not_end_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    heard, calls = Heard(2), 0

    def roles() -> dict[int, str]:
        nonlocal calls
        calls += 1
        if calls <= 3:
            raise RuntimeError("no roles today")
        return {}

    taking = sampler(tmp_path, heard, roles=roles)
    taking.start()
    assert heard.enough.wait(10)
    taking.stop()
    assert [record.message for record in caplog.records] == ["telemetry: RuntimeError: no roles today"]


def test_a_slow_publisher_delays_but_does_not_pile_up(tmp_path: Path) -> None:
    release = threading.Event()
    heard = Heard(3)

    def publish(sample: Sample) -> None:
        heard(sample)
        if len(heard.samples) == 1:
            release.wait(10)

    taking = sampler(tmp_path, heard, publish=publish)
    taking.start()
    release.wait(0.3)  # fifteen periods pass
    release.set()
    assert heard.enough.wait(10)
    taking.stop()
    assert heard.samples[2].t - heard.samples[1].t > 0.005  # the missed ones were dropped, not caught up with


def test_stop_ends_the_thread_and_lets_go_of_the_driver(tmp_path: Path) -> None:
    fake = FakeNvml(h100())
    heard = Heard(1)
    devices = Devices(nvidia=NvidiaReader(lambda: fake), root=tmp_path)
    taking = Sampler(HostReader(tmp_path), devices, roles=dict, publish=heard, period_s=0.01)
    taking.start()
    heard.enough.wait(10)
    taking.stop()
    assert fake.shutdowns == 1
    assert "telemetry" not in [thread.name for thread in threading.enumerate()]
    taking.stop()


def test_a_sampler_that_never_ran_can_be_stopped(tmp_path: Path) -> None:
    sampler(tmp_path, Heard(1)).stop()
