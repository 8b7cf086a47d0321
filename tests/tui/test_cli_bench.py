"""`lathe bench` as a user types it: llama-bench's rows, served rows beside them, the history, and its alert."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from lathe.engine.evals.book import EvalBook
from lathe.engine.paths import Home
from lathe.store.benches import BenchRecord
from lathe.tui.cli.root import cli

pytestmark = pytest.mark.native
QUICK = ("-p", "16", "-n", "4", "-t", "1", "-r", "2")


def _lathe(home: Path, *arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(cli, ["--home", str(home), "bench", *arguments])
    assert done.exit_code == code, done.output
    return done.stdout


def test_rows_history_and_alert(home: Path, embedded_gguf: Path) -> None:
    rows = [json.loads(line) for line in _lathe(home, str(embedded_gguf), *QUICK, "-o", "jsonl").splitlines()]
    assert [(row["n_prompt"], row["n_gen"], row["n_threads"]) for row in rows] == [(16, 0, 1), (0, 4, 1)]
    assert all(len(row["samples_ns"]) == 2 for row in rows)
    told = json.loads(_lathe(home, "history", "--json"))
    assert [(point["test"], point["trend"]) for point in told] == [("tg4", "first"), ("pp16", "first")]
    assert told[0]["figures"]["load_s"] > 0
    assert told[0]["figures"]["ttft_s"] > 0
    assert told[0]["figures"]["peak_rss_bytes"] > 2**20
    asyncio.run(_once_faster(Home(home)))
    _lathe(home, str(embedded_gguf), *QUICK, "--fail-on-slower", code=1)
    assert "SLOWER" in _lathe(home, "history")


async def _once_faster(home: Home) -> None:
    """A history in which this machine was a million times faster."""
    book = EvalBook(home.evals)
    point = (await book.benches(None, 1))[0]
    fields = {name: getattr(point, name) for name in BenchRecord.__struct_fields__ if hasattr(point, name)}
    model = await asyncio.to_thread(_key, home)
    record = BenchRecord(**(fields | {"number": 0, "rate": point.rate * 1e6, "deviation": 0.0, "model_key": model}))
    await book.keep_bench([msgspec.structs.replace(record) for _ in range(10)])
    book.close()


def _key(home: Home) -> str:
    import sqlite3

    with sqlite3.connect(home.evals) as db:
        return str(db.execute("SELECT model_key FROM benches LIMIT 1").fetchone()[0])


def test_served_rows_stand_in_the_same_table(home: Path, embedded_gguf: Path) -> None:
    said = _lathe(home, str(embedded_gguf), *QUICK, "--served", "-npl", "1,2")
    assert "served llama_cpp" in said
    assert [test in said for test in ("pp16 |", "tg4 |", "pp16 x2 |", "tg4 x2 |")] == [True] * 4


def test_wrong_options_are_told(home: Path) -> None:
    for arguments in (("m", "-pg", "12"), ("m", "-p", "many")):
        done = CliRunner().invoke(cli, ["--home", str(home), "bench", *arguments])
        assert done.exit_code == 2
        assert "is not" in done.output
