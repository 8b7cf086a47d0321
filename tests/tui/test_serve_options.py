"""`lathe serve`: what is loaded beside the models, and for how long they stay."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from click.testing import CliRunner
from lathe.engine import connect
from lathe.engine.states import ServerOptions
from lathe.tui.cli.root import cli
from support.scripted_workbench import ScriptedWorkbench

MODEL, SMALL = "qwen3-8b-q4_k_m", "bge-small-en"


def served(monkeypatch: pytest.MonkeyPatch, *words: str) -> ServerOptions:
    """The options with which the engine was asked to serve."""
    bench = ScriptedWorkbench()

    @asynccontextmanager
    async def opened(home: Any, *, flags: Any = None, start: bool = False) -> AsyncIterator[ScriptedWorkbench]:
        yield bench

    monkeypatch.setattr(connect, "open_workbench", opened)
    result = CliRunner().invoke(cli, ["serve", MODEL, "--detach", "--no-token", *words])
    assert result.exit_code == 0, result.output
    return next(call[1] for call in reversed(bench.calls) if call[0] == "start_server")


def test_nothing_is_guessed_adapted_or_unloaded_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    options = served(monkeypatch).options
    assert (options.draft, options.adapters) == (None, ())


def test_names_of_drafts_and_adapters_become_files(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = ScriptedWorkbench()
    path = next(entry.path for entry in bench.catalogue.values() if entry.name == SMALL)
    options = served(monkeypatch, "--draft", SMALL, "--lora", SMALL, "--ttl", "600").options
    assert (options.draft, options.adapters, options.ttl_s) == (path, (path,), 600)
    assert served(monkeypatch, "--draft", "lookup").options.draft == "lookup"
