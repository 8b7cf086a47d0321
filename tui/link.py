"""`Link`: keeps the app attached to an engine, whatever happens to it.

attach (snapshot, models, settings, history, log) -> follow events -> on loss: say so, wait, attach again.
An engine that died is started again; one that somebody stopped is started again only when the user says so, and another
that appears meanwhile is taken. Invariant: one task runs at any time; a call that fails never closes the app.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Protocol

from lathe.engine.errors import EngineStopped, Failure, LatheError, UnavailableError, describe
from lathe.engine.events import (
    Event,
    JobChanged,
    LogLine,
    ModelsChanged,
    ServerChanged,
    SettingsChanged,
    Stale,
    WorkerChanged,
)
from lathe.engine.workbench import Workbench
from lathe.tui.board import Board, apply
from lathe.tui.views.loglines import parse_engine_line

Connect = Callable[[bool], Awaitable[Workbench | None]]
"""Attach to the engine that runs; with True start one where none does, else None says that none does."""
FIRST_DELAY_S, LONGEST_DELAY_S = 0.25, 8.0
LOOK_S = 1.0
"""Between two looks for an engine that somebody else may have started."""
ANSWER_S = 10.0
"""A snapshot that takes longer means that the engine is gone."""


class Listener(Protocol):
    """Whom the link tells."""

    def attached(self) -> None:
        """The engine answers."""

    def detached(self, failure: Failure) -> None:
        """The engine is gone; another attempt follows."""

    def happened(self, event: Event) -> None:
        """The board took in an event that should be seen soon."""


class Link:
    """The attachment of one app to one engine."""

    def __init__(self, board: Board, listener: Listener, workbench: Workbench | None, connect: Connect | None) -> None:
        self._board = board
        self._listener = listener
        self._connect = connect
        self._following: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self.workbench = workbench

    @property
    def bench(self) -> Workbench:
        """The engine's door.

        Raises:
            UnavailableError: not attached.
        """
        if self.stopped:
            raise UnavailableError("the engine was stopped", hint="ctrl+e starts it again")
        if self.workbench is None or self._board.lost is not None:
            raise UnavailableError("the engine does not answer", hint="Lathe attaches again by itself")
        return self.workbench

    @property
    def stopped(self) -> bool:
        """Whether the engine was told to end, so that it is not started again by itself."""
        return self._board.lost is not None and self._board.lost.code == EngineStopped.code

    async def run(self) -> None:
        """Stay attached until cancelled."""
        delay, told = FIRST_DELAY_S, False
        while True:
            try:
                if self.workbench is None:
                    self.workbench = await self._find(start=told or not self.stopped)
                if self.workbench is not None:
                    await self._attach(self.workbench)
                    delay = FIRST_DELAY_S
                    self._following = asyncio.create_task(self._follow(self.workbench), name="link-events")
                    await self._following
                    self._down(Failure("E_UNAVAILABLE", "the engine ended"))
            except asyncio.CancelledError:
                if (task := asyncio.current_task()) is not None and task.cancelling():
                    await self._let_go()
                    raise
                self._down(Failure("E_UNAVAILABLE", "the engine does not answer"))
            except Exception as error:  # noqa: BLE001 - whatever broke, the answer is to attach again
                self._down(describe(error))
            if self._connect is not None:
                await self._let_go()
                self.workbench = None
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), LOOK_S if self.stopped else delay)
            told = self._wake.is_set()
            self._wake.clear()
            delay = FIRST_DELAY_S if self.stopped else min(delay * 2, LONGEST_DELAY_S)

    async def _find(self, *, start: bool) -> Workbench | None:
        if self._connect is None:
            raise UnavailableError("no engine was given")
        return await self._connect(start)

    def retry_now(self) -> None:
        """Do not wait for the next attempt; where the engine was stopped, start it."""
        self._wake.set()

    async def poll(self) -> bool:
        """Fetch a snapshot into the board; False where the engine did not answer."""
        if self.workbench is None or self._board.lost is not None or not self._board.attached:
            return False
        try:
            self._board.take(await asyncio.wait_for(self.workbench.snapshot(), ANSWER_S))
        except (LatheError, OSError, TimeoutError) as error:
            self._down(describe(error))
            if self._following is not None:
                self._following.cancel()
            return False
        return True

    async def refresh_models(self) -> None:
        """Read the catalogue again."""
        self._board.models, self._board.aliases = tuple(await self.bench.models()), tuple(await self.bench.aliases())

    async def refresh_settings(self) -> None:
        """Read the settings again."""
        self._board.settings = tuple(await self.bench.settings())

    def _down(self, failure: Failure) -> None:
        """Note the loss; the first cause stands, unless the user's start of a stopped engine failed."""
        if self._board.lost is None or (self.stopped and failure.code != EngineStopped.code):
            self._board.lost = failure
            self._listener.detached(failure)

    async def _let_go(self) -> None:
        if self.workbench is not None:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(self.workbench.close(), 1.0)

    async def _attach(self, bench: Workbench) -> None:
        snapshot = await asyncio.wait_for(bench.snapshot(), ANSWER_S)
        models, aliases, settings = await bench.models(), await bench.aliases(), await bench.settings()
        if not self._board.attached:
            self._board.past(await bench.history(300))
            for text in (await bench.log(-1, 500)).lines:
                self._board.note(parse_engine_line(text))
        self._board.models, self._board.aliases, self._board.settings = tuple(models), tuple(aliases), tuple(settings)
        self._board.take(snapshot)
        self._board.lost = None
        self._board.attached = True
        self._listener.attached()

    async def _follow(self, bench: Workbench) -> None:
        async for event in bench.events():
            board = self._board
            if board.snapshot is not None:
                board.snapshot = apply(board.snapshot, event)
            match event:
                case LogLine():
                    board.note(event)
                case ModelsChanged():
                    await self.refresh_models()
                case SettingsChanged():
                    await self.refresh_settings()
                case Stale():
                    await self.poll()
                    await self.refresh_models()
                case _:
                    pass
            if isinstance(
                event, JobChanged | WorkerChanged | ServerChanged | ModelsChanged | SettingsChanged | LogLine
            ):
                self._listener.happened(event)
