"""`lathe engine`: the process that owns jobs, loaded models and the server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time

import click
import psutil
from lathe.engine.connect import attach, start_engine
from lathe.engine.errors import BusyError, ExitCode
from lathe.engine.paths import Home
from lathe.tui.cli.shell import Shell, put, put_json

_STOP_TIMEOUT_S = 30.0


@click.group()
def engine() -> None:
    """The engine process outlives the terminal; it ends when idle or told."""


@engine.command()
@click.option("--foreground", is_flag=True, help="Stay in this terminal, for service managers.")
@click.pass_obj
def start(shell: Shell, foreground: bool) -> None:
    """Start the engine of this workspace, unless one runs."""
    if foreground:
        arguments = [sys.executable, "-P", "-m", "lathe.engine.daemon", "--home", str(shell.home.root)]
        os.execv(sys.executable, arguments)  # noqa: S606 - becomes the engine, arguments are ours
    pid = asyncio.run(_start(shell.home))
    put(f"engine {pid} runs for {shell.home.root}")


async def _start(home: Home) -> int:
    remote = await attach(home) or await start_engine(home)
    await remote.close()
    return remote.engine.pid


@engine.command()
@click.option("--json", "as_json", is_flag=True)
@click.pass_obj
def status(shell: Shell, as_json: bool) -> None:
    """Whether an engine runs; exit 69 when none does."""

    async def look() -> tuple[int, str] | None:
        remote = await attach(shell.home)
        if remote is None:
            return None
        await remote.close()
        return remote.engine.pid, remote.engine.release

    found = asyncio.run(look())
    if as_json:
        put_json({"running": bool(found), "pid": found[0] if found else None, "version": found[1] if found else None})
    else:
        put(f"engine {found[0]} (Lathe {found[1]}) runs for {shell.home.root}" if found else "no engine runs")
    raise SystemExit(ExitCode.OK if found else ExitCode.UNAVAILABLE)


@engine.command()
@click.option("--force", is_flag=True, help="Kill it if it does not answer.")
@click.pass_obj
def stop(shell: Shell, force: bool) -> None:
    """Stop the engine: running jobs become resumable, workers and server end."""
    put(asyncio.run(_stop(shell.home, force)))


async def _stop(home: Home, force: bool) -> str:
    remote = await attach(home)
    if remote is None:
        return "no engine runs"
    pid = remote.engine.pid
    await remote.as_workbench().shutdown()
    await remote.close()
    deadline = time.monotonic() + _STOP_TIMEOUT_S
    while _alive(pid):
        if time.monotonic() > deadline:
            if not force:
                raise BusyError(f"engine {pid} is still stopping", hint="`lathe engine stop --force` kills it")
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(0.05)
    return f"engine {pid} stopped"


def _alive(pid: int) -> bool:
    """Whether it still runs; a front that started it may not have reaped it yet."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
