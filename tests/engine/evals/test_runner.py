"""The runner: every case once, on disk, whatever is killed; cached by content; a crash fails its case alone."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from lathe.engine.errors import BusyError, MissingError, UsageError
from lathe.engine.evals.asking import windows
from lathe.engine.evals.book import EvalBook
from lathe.engine.evals.canary import CanaryDied
from lathe.engine.evals.results import EvalRun, Record
from lathe.engine.worker.messages import LoadOptions
from lathe.store.database import Database
from lathe.store.errors import StoreCorrupt, StoreFull
from lathe.store.migrations import EVALS
from support.eval_model import TableModel, evaluate
from support.nursery import Nursery

SUITE = """\
name: letters
tasks:
  - id: pick
    kind: choice
    prompt: "{{ text }}"
    transforms: [reorder]
    cases: {file: cases.jsonl}
  - id: read
    kind: perplexity
    prompt: "{{ text }} and a tail that is longer than the window of sixty-four bytes of context"
    cases: {file: cases.jsonl}
  - id: say
    kind: generate
    prompt: "{{ text }}"
    answer: text
    metrics: [exact_match, f1]
    primary: f1
    cases: {file: cases.jsonl}
"""
CASES = 40
ANSWERS = CASES * 4


def _suite(folder: Path, **changes: Any) -> Path:
    rows = [{"text": f"text {i}", "choices": ["aa", "bb", "cc"], "answer": i % 3} for i in range(CASES)]
    for index, row in changes.get("rows", {}).items():
        rows[index] = row
    (folder / "cases.jsonl").write_text("\n".join(map(json.dumps, rows)))
    path = folder / "suite.yaml"
    path.write_text(changes.get("text", SUITE))
    return path


@pytest.fixture
async def book(tmp_path: Path) -> AsyncIterator[EvalBook]:
    book = EvalBook(tmp_path / "evals.db")
    yield book
    book.close()


async def test_every_case_is_asked_judged_and_recorded(tmp_path: Path, book: EvalBook) -> None:
    model = TableModel()
    run = await evaluate(_suite(tmp_path), book, model)
    assert (run.id, run.state, run.total, run.done, run.failed, run.cached) == ("e-1", "done", ANSWERS, ANSWERS, 0, 0)
    records = {record.label: record for record in await book.records(run)}
    assert len(records) == ANSWERS
    pick = records["pick/00002"]
    wanted = [float(model.table[ord("1"), ord(" ")] + model.table[ord(" "), ord(c)] + model.table[ord(c), ord(c)])
              for c in "abc"]  # fmt: skip
    assert [score.logprob for score in pick.response.scores] == pytest.approx(wanted)
    assert pick.choice == max(range(3), key=wanted.__getitem__)
    assert pick.values["acc"] == float(pick.choice == 1)
    read = records["read/00001"]
    text = read.prompt.encode()
    whole = sum(float(model.table[a, b]) for a, b in zip([256, *text], text, strict=False))
    assert len(read.response.scores) == 2, "the text is longer than the context"
    assert sum(score.logprob for score in read.response.scores) == pytest.approx(whole)
    summaries = {summary.task: summary for summary in run.summaries}
    assert summaries["pick"].metrics["acc"].n == CASES
    assert summaries["pick"].invariance["reorder"].value == 1.0
    assert summaries["pick"].metrics["acc"].method == "Wilson"
    assert summaries["say"].primary == "f1"
    figures = run.figures()
    assert figures["acc"] == figures["pick.acc"] == summaries["pick"].metrics["acc"].value
    assert figures["acc.low"] < figures["acc"] < figures["acc.high"]  # type: ignore[operator]
    assert figures["ttft_s.p95"] == 0.1


async def test_answers_are_used_again_by_content_and_only_then(tmp_path: Path, book: EvalBook) -> None:
    first = TableModel()
    run = await evaluate(_suite(tmp_path), book, first)
    again = TableModel()
    cached = await evaluate(_suite(tmp_path), book, again)
    assert cached.cached == ANSWERS
    assert [prompt for prompt in again.asked if prompt.startswith("text")] == []
    assert cached.summaries == run.summaries
    assert cached.id == "e-2"
    other = await evaluate(_suite(tmp_path), book, TableModel(seed=1))
    assert other.cached == 0, "another model"
    changed = SUITE.replace("    metrics: [exact_match, f1]\n", "    metrics: [exact_match, f1]\n    max_tokens: 9\n")
    assert (await evaluate(_suite(tmp_path, text=changed), book, TableModel())).cached == ANSWERS - CASES
    assert (await evaluate(_suite(tmp_path), book, TableModel(), cache=False)).cached == 0
    assert (await evaluate(_suite(tmp_path), book, TableModel(), options=LoadOptions(kv_type="q8_0"))).cached == 0


async def test_another_chat_template_is_another_question(tmp_path: Path, book: EvalBook) -> None:
    text = SUITE[: SUITE.index("  - id: read")].replace("    prompt", "    chat: true\n    prompt")
    path = _suite(tmp_path, text=text)
    await evaluate(path, book, TableModel())
    assert (await evaluate(path, book, TableModel())).cached == CASES * 2
    other = TableModel()
    other.template = "other" * 10
    assert (await evaluate(path, book, other)).cached == 0


async def test_timed_metrics_are_never_answered_from_the_cache(tmp_path: Path, book: EvalBook) -> None:
    text = SUITE.replace("[exact_match, f1]", "[f1, ttft_s]")
    await evaluate(_suite(tmp_path, text=text), book, TableModel())
    assert (await evaluate(_suite(tmp_path, text=text), book, TableModel())).cached == ANSWERS - CASES


async def test_a_crash_fails_its_cases_and_the_run_goes_on(tmp_path: Path, book: EvalBook) -> None:
    rows = {i: {"text": f"CRASH {i}", "choices": ["a", "b"], "answer": 0} for i in (3, 17)}
    run = await evaluate(_suite(tmp_path, rows=rows), book, TableModel())
    assert (run.state, run.done, run.failed) == ("done", ANSWERS, 8)
    failed = [record for record in await book.records(run) if record.failure]
    assert {record.case for record in failed} == {"00004", "00018"}
    assert all("SIGSEGV" in record.answer() for record in failed)
    assert {summary.task: (summary.failed, summary.metrics[summary.primary].n) for summary in run.summaries} == {
        "pick": (4, CASES - 2), "read": (2, CASES - 2), "say": (2, CASES - 2),
    }  # fmt: skip
    again = await evaluate(_suite(tmp_path, rows=rows), book, TableModel())
    assert (again.cached, again.failed) == (ANSWERS - 8, 8), "a failure is never an answer"


async def test_concurrency_is_bounded(tmp_path: Path, book: EvalBook) -> None:
    model = TableModel(delay_s=0.001)
    await evaluate(_suite(tmp_path), book, model, concurrency=3)
    assert model.most == 3


async def test_a_stopped_run_is_gone_on_with_and_the_same_run_is_not_worked_at_twice(
    tmp_path: Path, book: EvalBook
) -> None:
    path = _suite(tmp_path)
    model = TableModel(delay_s=0.002)
    task = asyncio.create_task(evaluate(path, book, model))
    while len(await _labels(book)) < 20 and not task.done():
        await asyncio.sleep(0.005)
    with pytest.raises(BusyError, match="asks the same questions"):
        await evaluate(path, book, TableModel())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    stopped = await book.run("e-1")
    there = set(await _labels(book))
    assert stopped.state == "interrupted"
    assert 20 <= len(there) < ANSWERS
    second = TableModel()
    run = await evaluate(path, book, second, cache=False)
    assert (run.id, run.done) == ("e-1", ANSWERS)
    assert run.seconds > stopped.seconds > 0
    records = await book.records(run)
    assert len({record.label for record in records}) == len(records) == ANSWERS
    choices = [prompt for prompt in second.asked if prompt.startswith("text") and len(prompt) < 8]
    assert len(choices) == len([r for r in records if r.label not in there and r.kind != "perplexity"])
    fresh = await evaluate(path, book, TableModel(), fresh=True)
    assert fresh.id == "e-2"


async def _labels(book: EvalBook) -> list[str]:
    runs = await book.runs()
    return [record.label for record in await book.records(runs[0])] if runs else []


def test_kill_9_loses_no_case_and_counts_none_twice(tmp_path: Path) -> None:
    path, store = _suite(tmp_path), tmp_path / "evals.db"
    chance = random.Random(25)
    kills = mid_run = 0
    finished = ""
    with Nursery("support.eval_model:run") as nursery:
        while not finished:
            child = nursery.spawn(str(path), str(store))
            # A third dies anywhere in opening and loading, the others while they record.
            heard = [child.read() for _ in range((1, 3, 4)[kills % 3])]
            time.sleep(chance.uniform(0.0, 0.05))
            heard += child.kill()
            kills += 1
            assert not [line for line in heard if "Error" in line], heard
            count, keys = _count(store)
            # One that was killed between its last write and its last word has finished, too.
            finished = next((line for line in heard if line.startswith("e-")), _done(store))
            assert count == keys
            mid_run += 0 < count < ANSWERS
    assert mid_run >= 3, "no child died while recording, so this test proved less than it says"
    assert finished == f"e-1 {ANSWERS} 0"
    assert _count(store) == (ANSWERS, ANSWERS)


def _done(store: Path) -> str:
    if not store.exists():
        return ""
    with Database.open(store, schema=EVALS) as database:
        bodies = database.read(lambda db: [row[0] for row in db.execute("SELECT body FROM runs")])
    runs = [msgspec.json.decode(body, type=EvalRun) for body in bodies]
    assert len(runs) <= 1, "every child goes on with the same run"
    return f"e-1 {runs[0].done} {runs[0].failed}" if runs and runs[0].state == "done" else ""


def _count(store: Path) -> tuple[int, int]:
    if not store.exists():
        return 0, 0
    with Database.open(store, schema=EVALS) as database:
        assert database.check() == []
        rows = database.read(
            lambda db: [tuple(r) for r in db.execute('SELECT run, task, "case", variant FROM records')]
        )
    return len(rows), len(set(rows))


async def test_a_full_disk_fails_the_run_resumably(
    tmp_path: Path, book: EvalBook, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, batches = EvalBook.record, 0

    async def full(self: EvalBook, *arguments: Any) -> None:
        nonlocal batches
        batches += 1
        if batches > 1:
            raise StoreFull("evals.db: no space left on device")
        await record(self, *arguments)

    monkeypatch.setattr(EvalBook, "record", full)
    with pytest.raises(StoreFull):
        await evaluate(_suite(tmp_path), book, TableModel(delay_s=0.01))
    monkeypatch.setattr(EvalBook, "record", record)
    there = len(await _labels(book))
    assert 0 < there < ANSWERS
    run = await evaluate(_suite(tmp_path), book, TableModel())
    assert (run.id, run.done, run.cached) == ("e-1", ANSWERS, 0)


@pytest.mark.parametrize("jump", [-365 * 86_400.0, 365 * 86_400.0])
async def test_clock_jumps_change_no_duration(
    tmp_path: Path, book: EvalBook, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    wall, calls = time.time, 0

    def jumping() -> float:
        nonlocal calls
        calls += 1
        return wall() + (jump if calls > 1 else 0)

    monkeypatch.setattr(time, "time", jumping)
    run = await evaluate(_suite(tmp_path), book, TableModel())
    assert calls > 1
    assert 0 < run.seconds < 120
    assert run.state == "done"
    later = await evaluate(_suite(tmp_path), book, TableModel(seed=1))
    assert [listed.id for listed in await book.runs()] == [later.id, run.id], "order is by number, not by clock"


async def test_a_model_whose_likelihoods_lie_measures_nothing(tmp_path: Path, book: EvalBook) -> None:
    model = TableModel()
    model.lie = -0.2
    with pytest.raises(CanaryDied, match="no likelihood can be trusted"):
        await evaluate(_suite(tmp_path), book, model)
    model.lie = float("nan")
    with pytest.raises(CanaryDied):
        await evaluate(_suite(tmp_path), book, model)
    assert await book.runs() == []


async def test_baselines_are_names_of_finished_runs(tmp_path: Path, book: EvalBook) -> None:
    run = await evaluate(_suite(tmp_path), book, TableModel())
    named = await book.set_baseline("release", "e-1")
    assert named is not None
    assert named.aliases == ("release",)
    assert (await book.run("release")).id == (await book.run("letters@m")).id == run.id
    for wrong in ("e-7", "", "a b", "9"):
        with pytest.raises(UsageError, match="is no name for a baseline"):
            await book.set_baseline(wrong, "e-1")
    await book.set_baseline("release", None)
    with pytest.raises(MissingError, match="no eval run or baseline 'release'"):
        await book.run("release")


async def test_foreign_caches_are_refused(tmp_path: Path) -> None:
    import sqlite3

    (tmp_path / "pickle.db").write_bytes(b"\x80\x04\x95")
    connection = sqlite3.connect(tmp_path / "sqlitedict.db")
    connection.execute("CREATE TABLE unnamed (key TEXT PRIMARY KEY, value BLOB)")
    connection.commit()
    connection.close()
    for name in ("pickle.db", "sqlitedict.db"):
        book = EvalBook(tmp_path / name)
        before = (tmp_path / name).read_bytes()
        with pytest.raises(StoreCorrupt):
            await book.runs()
        assert (tmp_path / name).read_bytes() == before
        book.close()


def test_windows_score_each_token_once() -> None:
    assert windows([1, 2, 3], 5) == [((), (1, 2, 3))]
    assert windows([1, 2, 3, 4, 5], 2) == [((), (1, 2)), ((2,), (3, 4)), ((3, 4), (5,))]
    harness = pytest.importorskip("lm_eval.utils", exc_type=ImportError)
    for count in (1, 5, 9, 10, 11, 30):
        tokens = list(range(100, 100 + count))
        theirs = [harness.make_disjoint_window(pair) for pair in
                  harness.get_rolling_token_windows(tokens, prefix_token=0, max_seq_len=10, context_len=1)]  # fmt: skip
        ours = windows(tokens, 10)
        assert [tuple(part) for _, part in theirs] == [part for _, part in ours]
        assert [tuple(before) for before, _ in theirs][1:] == [before for before, _ in ours][1:]


def test_records_say_what_was_answered() -> None:
    record = Record(task="t", case="c", variant="typo", repeat=2, kind="choice", item_sha256="x", choice=1,
                    continuations=(" a", " b"))  # fmt: skip
    assert (record.label, record.answer()) == ("t/c~typo#2", "b")
