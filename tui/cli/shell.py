"""What every verb shares: the workspace, the connection, errors as exit codes, signals, output.

`Shell.run` is the only place where the command line meets the engine. Invariant: every error ends as one line on
stderr (what, which object, what to do next) and a documented exit code; a traceback is shown to nobody. A reader of
stdout who has seen enough, as `head` does, ends the program without a word.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click
from click.core import ParameterSource
from lathe.engine.errors import ExitCode, Failure, UsageError, describe
from lathe.engine.paths import Home
from lathe.engine.workbench import Workbench

Result = TypeVar("Result")


@dataclass(frozen=True)
class Shell:
    """One call of the command line."""

    home: Home
    flags: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, home: Path | None, settings: Iterable[str]) -> Shell:
        """Read the global options."""
        flags: dict[str, str] = {}
        for item in settings:
            key, equals, value = item.partition("=")
            if not equals:
                raise click.UsageError(f"--set {item!r} is not KEY=VALUE")
            flags[key.strip()] = value.strip()
        return cls(Home.find(home), flags)

    def run(
        self, work: Callable[[Workbench], Awaitable[Result]], *, start: bool = False, as_json: bool = False
    ) -> Result:
        """Open the workbench, do the work, end the process with the right code if it fails.

        Args:
            work: the verb's coroutine function.
            start: start the engine process where none runs, so that what is begun outlives this call.
            as_json: errors, too, are a JSON document on stdout.
        """
        with boundary(as_json=as_json):
            return asyncio.run(self._guarded(work, start))

    async def _guarded(self, work: Callable[[Workbench], Awaitable[Result]], start: bool) -> Result:
        from lathe.engine.connect import open_workbench

        with _Signals() as signals:
            try:
                async with open_workbench(self.home, flags=self.flags, start=start) as workbench:
                    return await work(workbench)
            except asyncio.CancelledError:
                if signals.received is None:
                    raise
                sys.exit(ExitCode.TERMINATED if signals.received == signal.SIGTERM else ExitCode.INTERRUPTED)


class _Signals:
    """TERM and INT cancel the running verb, so that it can stop what it began; a second INT ends the process."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._task: asyncio.Task[Any] | None = None

    def __enter__(self) -> _Signals:
        self._task = asyncio.current_task()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        return self

    def __exit__(self, *_: object) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)

    def _on_signal(self, number: int) -> None:
        if self.received is not None:
            os._exit(ExitCode.INTERRUPTED)
        self.received = number
        assert self._task is not None
        self._task.cancel()


@contextmanager
def boundary(*, as_json: bool = False) -> Iterator[None]:
    """The boundary of the program: an error becomes its line, or its JSON document, and the exit code."""
    try:
        yield
    except (SystemExit, click.exceptions.Exit, click.Abort, click.ClickException):
        raise
    except BaseException as error:  # noqa: BLE001 - nothing is beyond it
        fail(describe(error), as_json=as_json)


def fail(failure: Failure, *, as_json: bool = False) -> NoReturn:
    """Say what went wrong and end with its exit code."""
    if as_json:
        document = {
            "error": {"code": failure.code, "message": failure.message, "hint": failure.hint, "exit": failure.exit}
        }
        write(json.dumps(document, ensure_ascii=False) + "\n")
    else:
        say(f"lathe: {failure.message}")
        if failure.hint:
            say(f"  {failure.hint}")
    sys.exit(failure.exit)


def say(text: str) -> None:
    """Narrate on stderr."""
    click.echo(_safe(text), err=True)


def put(text: str) -> None:
    """Write lines of data to stdout."""
    write((_safe(text) if sys.stdout.isatty() else text) + "\n")


def write(text: str) -> None:
    """Write to stdout at once."""
    with until_unread():
        click.echo(text, nl=False)


@contextmanager
def until_unread() -> Iterator[None]:
    """End the program where nobody reads stdout any more, with the code of programs that the signal ends."""
    try:
        yield
    except BrokenPipeError:
        # What is left in the buffer would be tried again when Python ends, with a complaint.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)


def put_json(value: Any) -> None:
    """Write one JSON document to stdout."""
    import msgspec

    write(json.dumps(msgspec.to_builtins(value), ensure_ascii=False, indent=2, default=str) + "\n")


def put_table(header: tuple[str, ...], rows: Iterable[tuple[Any, ...]], right: tuple[int, ...] = ()) -> None:
    """Write aligned columns; columns in `right` are aligned to the right, as numbers are."""
    lines = [tuple(str(cell) for cell in row) for row in rows]
    widths = [max(len(line[i]) for line in [header, *lines]) for i in range(len(header))]
    for line in (header, *lines):
        cells = (
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        put("  ".join(cells).rstrip())


def need_yes(yes: bool, question: str) -> None:
    """Ask before something is destroyed; without a terminal only `--yes` will do."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError("this needs --yes where nobody can be asked")
    click.confirm(_safe(question), abort=True, err=True)


def parse_pairs(items: Iterable[str], option: str) -> dict[str, str]:
    """`KEY=VALUE` options as a dict."""
    pairs: dict[str, str] = {}
    for item in items:
        key, equals, value = item.rpartition("=")
        if not equals:
            raise UsageError(f"{option}: {item!r} is not KEY=VALUE")
        pairs[key] = value
    return pairs


def refuse_given(names: Iterable[str], why: str) -> None:
    """Raise UsageError where one of these parameters was given to the running verb, which would not heed it."""
    context = click.get_current_context()
    for parameter in context.command.params:
        if parameter.name in names and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE:
            raise UsageError(f"{parameter.opts[0]} {why}")


def anchored(path: Path) -> str:
    """A path as the engine needs it: from the root, and with the `~` that shells leave in `--output=~/x`."""
    return str(Path(os.path.expanduser(path)).absolute())  # noqa: PTH111 - `~nobody` stays as it is


def _safe(text: str) -> str:
    from lathe.tui.text import clean

    return "\n".join(clean(line) for line in text.split("\n"))
