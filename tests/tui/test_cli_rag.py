"""`lathe rag`: the steps its verbs submit, what they print, and the exit codes that scripts read."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from lathe.engine import connect
from lathe.engine.steps import RagBuildStep, RagExploreStep, RagVerifyStep
from lathe.store.rag.values import Filter
from lathe.tui.cli.root import cli
from support.scripted_workbench import ScriptedWorkbench


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> ScriptedWorkbench:
    scripted = ScriptedWorkbench()

    @asynccontextmanager
    async def opened(home: Any, *, flags: Any = None, start: bool = False) -> Any:
        yield scripted

    monkeypatch.setattr(connect, "open_workbench", opened)
    return scripted


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["rag", *arguments])


def submitted(engine: ScriptedWorkbench) -> list[Any]:
    return [job.step for job in engine.queue.values() if type(job.step).__name__.startswith("Rag")]


def test_lists_and_shows(engine: ScriptedWorkbench) -> None:
    listed = run("list")
    assert listed.exit_code == 0 and "handbook" in listed.stdout and "words only" in listed.stdout
    shown = run("show", "handbook")
    assert "handbook/vpn.md" in shown.stdout and "failed: handbook/old.doc" in shown.stderr
    assert run("show", "nothing").exit_code == 66


def test_a_report_is_drawn_and_given_as_json(engine: ScriptedWorkbench) -> None:
    drawn = run("report", "handbook")
    assert drawn.exit_code == 0
    for part in ("2 documents, 3 passages", "text/markdown 1", "e-mail addresses 1", "exact 0, near 1, similar 0",
                 "near 0.86  handbook/vpn.md#1 repeats handbook/vpn.md#0"):  # fmt: skip
        assert part in drawn.stdout, drawn.stdout
    assert json.loads(run("report", "handbook", "--json").stdout)["near_duplicates"] == 1
    never = run("report", "notes")
    assert never.exit_code == 1 and "never explored" in never.stderr


def test_versions_are_compared(engine: ScriptedWorkbench) -> None:
    found = run("diff", "handbook")
    assert found.exit_code == 1
    assert "added" in found.stdout and "handbook/printers.pdf" in found.stdout and "version 1 -> 2" in found.stderr
    assert json.loads(run("diff", "handbook", "1", "2", "--json").stdout)["changes"][0]["what"] == "added"


def test_access_is_shown_and_set(engine: ScriptedWorkbench) -> None:
    assert run("access", "handbook").stdout.strip() == "every key"
    assert run("access", "handbook", "--allow", "ops", "--allow", "eve").stdout.strip() == "ops, eve"
    assert run("access", "handbook", "--everyone").stdout.strip() == "every key"
    assert run("access", "handbook", "--everyone", "--allow", "x").exit_code == 2


def test_an_answer_is_streamed_with_its_sources(engine: ScriptedWorkbench) -> None:
    answered = run("ask", "handbook", "reset the token", "--model", "qwen3-8b-q4_k_m")
    assert answered.exit_code == 0
    assert answered.stdout.strip() == "Reset the token in the portal [1]. It is valid for eight hours [2]."
    assert "[1] handbook/vpn.md" in answered.stderr and "rests on [2]" in answered.stderr
    nothing = run("ask", "handbook", "whales", "--model", "qwen3-8b-q4_k_m", "--quote")
    assert nothing.exit_code == 1 and nothing.stdout.strip() == "Not in the documents."


def test_passages_are_explained(engine: ScriptedWorkbench) -> None:
    found = run("query", "handbook", "token", "--explain", "-k", "1")
    assert found.exit_code == 0 and "dense #1 0.7000  bm25 #1 8.0000" in found.stdout
    assert run("query", "handbook", "whales").exit_code == 1
    narrowed = run("query", "handbook", "token", "--path", "*.md", "--meta", "author=Ann", "--without", "injection",
                   "--language", "en", "--type", "text/markdown")  # fmt: skip
    assert narrowed.exit_code == 0
    [request] = [call[1] for call in engine.calls if call[0] == "search_store"][-1:]
    assert request.filter == Filter(
        paths=("*.md",), metadata={"author": "Ann"}, without_flags=("injection",), languages=("en",),
        media_types=("text/markdown",),
    )  # fmt: skip
    assert run("query", "handbook", "token", "--meta", "author").exit_code == 2


def test_the_steps_of_building(engine: ScriptedWorkbench, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    options = ["--duplicates", "drop-near", "--reembed", "manual", "--no-explore", "--mask-personal", "--detach"]
    run("build", "new", str(tmp_path / "docs"), *options)
    run("report", "handbook", "--fresh")
    run("verify", "handbook", "--mend")
    run("eval", "--beir", str(tmp_path), "--embedder", "a", "--embedder", "b", "--tokens", "64", "--mode", "dense")
    build, explore, verify, evaluate = submitted(engine)
    assert (evaluate.embedder, evaluate.embedders, evaluate.tokens) == (None, ("a", "b"), (64,))
    assert build == RagBuildStep(
        store="new", sources=(str(tmp_path / "docs"),), duplicates="drop-near", reembed="manual", explore=False,
        mask_personal=True,
    )  # fmt: skip
    assert explore == RagExploreStep(store="handbook") and verify == RagVerifyStep(store="handbook", mend=True)


def test_a_store_is_deleted_when_it_was_meant(engine: ScriptedWorkbench) -> None:
    assert run("rm", "handbook").exit_code == 2
    assert not engine.stores_removed
    gone = run("rm", "handbook", "--yes", "--json")
    assert gone.exit_code == 0 and json.loads(gone.stdout) == {"store": "handbook", "bytes": 172_032}
    assert engine.stores_removed == {"handbook"}
    assert run("rm", "nothing", "--yes").exit_code == 66


def test_watching_tells_each_round(engine: ScriptedWorkbench) -> None:
    watched = run("watch", "handbook", "--interval", "0.1")
    assert watched.exit_code == 0 and watched.stdout.startswith("added")
