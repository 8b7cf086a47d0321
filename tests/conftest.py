"""Fixtures for every test: the machine is kept out, the embedded model is brought in.

`home` gives each test its own workspace; the network is closed except for loopback; `embedded_gguf` converts the
embedded checkpoint once per session.
"""

from __future__ import annotations

import gc
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# The same examples each time, so that a red run is the fault of what changed; LATHE_EXPLORE=1 draws new ones. How long
# an example takes says more about what else the machine does than about the code.
settings.register_profile(
    "suite", deadline=None, derandomize="LATHE_EXPLORE" not in os.environ, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")

SHARED = Path(os.environ.get("LATHE_SHARED_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
"""Development data beside the checkout; tests that use it skip where it is missing."""


def pytest_collection_finish() -> None:
    """What was imported and collected lives to the end: collections of garbage need not walk through it each time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace of its own for each test, and no setting of the developer's."""
    folder = tmp_path_factory.mktemp("home")
    for name in list(os.environ):
        if name.startswith("LATHE_") and name != "LATHE_SHARED_DATA":
            monkeypatch.delenv(name)
    monkeypatch.setenv("LATHE_HOME", str(folder))
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return folder


@pytest.fixture(autouse=True)
def closed_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every connection that would leave this machine."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        host = address[0] if isinstance(address, tuple) else "unix"
        if host not in ("unix", "127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a test tried to reach {host}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real models and texts; skips where it is missing."""
    if not SHARED.is_dir():
        pytest.skip(f"development data not found at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def embedded_gguf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The embedded model as GGUF F16, made by our own converter."""
    from lathe.engine.embedded import CHECKPOINT
    from lathe.quantize.convert import convert_checkpoint

    path = tmp_path_factory.mktemp("gguf") / "stdlib-4m-f16.gguf"
    convert_checkpoint(CHECKPOINT, path, outtype="f16")
    yield path
