"""`lathe` without a verb: the TUI on a terminal that can show it."""

from __future__ import annotations

import os
import sys

from lathe.engine.errors import ExitCode, Failure
from lathe.engine.workbench import Workbench
from lathe.tui.cli.shell import Shell, fail


def run_tui(shell: Shell, *, read_only: bool) -> int:
    """Attach to the engine (started where none runs) and show the workbench."""
    _need_terminal()

    async def work(workbench: Workbench) -> int:
        from lathe.engine.connect import attach, start_engine
        from lathe.tui.app import LatheApp

        async def connect(start: bool) -> Workbench | None:
            remote = await attach(shell.home)
            if remote is None and start:
                remote = await start_engine(shell.home)
            return remote.as_workbench() if remote is not None else None

        app = LatheApp(workbench, connect=connect, read_only=read_only)
        await app.run_async()
        return app.return_code or 0

    return shell.run(work, start=True)


def _need_terminal() -> None:
    """Refuse to paint into pipes, files and dumb terminals; Textual itself would."""
    streams = (sys.stdin, sys.stdout, sys.__stderr__)
    if not all(stream is not None and stream.isatty() for stream in streams):
        why = "no terminal here"
    elif os.environ.get("TERM", "") in ("", "dumb", "unknown"):
        why = f"TERM={os.environ.get('TERM', '')!r} cannot show the workbench"
    else:
        return
    fail(Failure("E_NO_TERMINAL", why, "use `lathe status`, `lathe watch` or `lathe --batch`", int(ExitCode.USAGE)))
