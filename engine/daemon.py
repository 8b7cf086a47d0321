"""The engine process: one per workspace, started by the first front that needs it, gone when idle.

`python -m lathe.engine.daemon [--home DIR]`. TERM and INT stop it in order: server, jobs (resumable), workers, store.
Invariant: at most one engine holds a workspace (the store's lock decides), and a second one ends with 0, since its
starter only wants one to be there.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
import time

from lathe.engine.errors import EngineStopped, describe
from lathe.engine.host import Host
from lathe.engine.local import LocalWorkbench
from lathe.engine.paths import Home
from lathe.engine.release import RELEASE
from lathe.store.errors import StoreLocked

_IDLE_POLL_S = 1.0


async def serve(home: Home) -> int:
    """Hold the workspace until told to stop or idle."""
    try:
        workbench = await LocalWorkbench.open(home, carrier="socket")
    except StoreLocked:
        return 0
    stop = asyncio.Event()
    host = Host(workbench, home, RELEASE)

    def end(why: str) -> None:
        if not stop.is_set():
            stop.set()
            host.say_goodbye(EngineStopped(f"the engine was stopped{why}", hint="`lathe engine start` starts it again"))

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end, f" by {number.name}")
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    workbench.on_shutdown(lambda: end(""))
    workbench.count_fronts(lambda: host.fronts)
    await host.start()
    idle = asyncio.create_task(_stop_when_idle(workbench, host, stop))
    try:
        await stop.wait()
    finally:
        idle.cancel()
        await workbench.close()
        await host.stop()
    return 0


async def _stop_when_idle(workbench: LocalWorkbench, host: Host, stop: asyncio.Event) -> None:
    """End the process after the configured time without fronts and work."""
    limit = workbench.settings_now.general.engine_idle_exit_s
    since = time.monotonic()
    while limit > 0:
        await asyncio.sleep(min(_IDLE_POLL_S, limit))
        if host.fronts or workbench.busy:
            since = time.monotonic()
        elif time.monotonic() - since >= limit:
            stop.set()
            return


def main() -> int:
    """Run the engine; errors end as one line on stderr, which the starter shows."""
    parser = argparse.ArgumentParser(prog="lathe-engine")
    parser.add_argument("--home")
    arguments = parser.parse_args()
    with contextlib.suppress(OSError):
        sys.stdin.close()
    try:
        return asyncio.run(serve(Home.find(arguments.home)))
    except Exception as error:  # noqa: BLE001 - the boundary of the process
        failure = describe(error)
        sys.stderr.write(f"{failure.message}" + (f" ({failure.hint})" if failure.hint else "") + "\n")
        return failure.exit


if __name__ == "__main__":
    sys.exit(main())
