"""Which carrier a front gets: the running engine, a new one, or one in its own process.

    an engine runs            -> attach over its socket
    none, start=True          -> start the engine process and attach (what is begun outlives the front)
    none, start=False         -> open the workspace in this process, host its socket meanwhile, close it at the end
Invariant: one process holds a workspace at a time, and whoever holds it can be attached to.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from lathe.engine.errors import UnavailableError
from lathe.engine.paths import Home
from lathe.engine.remote import RemoteWorkbench
from lathe.engine.workbench import Workbench
from lathe.store.errors import StoreLocked

_START_TIMEOUT_S = 20.0
_HANDOVER_S = 2.0
_POLL_S = 0.05
_AGAIN_S = 0.5
_STARTED: list[subprocess.Popen[bytes]] = []
"""Engines that this process started: kept, for a dropped handle complains that its process still runs."""


@asynccontextmanager
async def open_workbench(
    home: Home, *, flags: Mapping[str, str] | None = None, start: bool = False
) -> AsyncGenerator[Workbench, None]:
    """A workbench for the time of the block, by whichever carrier fits."""
    remote = await attach(home)
    if remote is None and start:
        remote = await start_engine(home)
    if remote is not None:
        try:
            yield remote.as_workbench()
        finally:
            await remote.close()
        return
    async with _own_or_attached(home, flags) as workbench:
        yield workbench


async def attach(home: Home) -> RemoteWorkbench | None:
    """The running engine, or None where none runs."""
    if not home.socket.exists():
        return None
    try:
        return await RemoteWorkbench.open(home.socket)
    except UnavailableError:
        return None


async def start_engine(home: Home) -> RemoteWorkbench:
    """Start the engine process, detached from this terminal, and attach to it.

    Raises:
        UnavailableError: it did not come up; the message holds its last words.
    """
    home.create()
    log = home.logs / "engine.stderr"
    child = _spawn(home, log)
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        remote = await attach(home)
        if remote is not None:
            return remote
        if child.poll() not in (None, 0):
            break
        if child.poll() == 0:  # another process holds the workspace: it answers soon, or is about to leave
            await asyncio.sleep(_AGAIN_S)
            child = _spawn(home, log)
        await asyncio.sleep(_POLL_S)
    last = log.read_text("utf-8", "replace").strip().splitlines()[-1:] or ["no message"]
    raise UnavailableError(f"the engine did not start: {last[0]}", hint=f"its output: {log}")


def _spawn(home: Home, log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "lathe.engine.daemon", "--home", str(home.root)],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, cwd="/",
        )  # fmt: skip
    _STARTED.append(child)
    return child


@asynccontextmanager
async def _own_or_attached(home: Home, flags: Mapping[str, str] | None) -> AsyncGenerator[Workbench, None]:
    """Open the workspace here; if another process takes it first, attach to that one."""
    from lathe.engine.host import Host
    from lathe.engine.local import LocalWorkbench
    from lathe.engine.release import RELEASE

    deadline = time.monotonic() + _HANDOVER_S
    while True:
        try:
            local = await LocalWorkbench.open(home, flags=flags)
            break
        except StoreLocked:
            # Whoever holds it hosts it in a moment, or is about to leave.
            remote = await attach(home)
            if remote is None:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(_POLL_S)
                continue
        try:
            yield remote.as_workbench()
        finally:
            await remote.close()
        return
    host = Host(local, home, RELEASE)
    try:
        await host.start()
        yield local
    finally:
        await host.stop()
        await local.close()
