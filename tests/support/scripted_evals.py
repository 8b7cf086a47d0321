"""Eval runs as the scripted workbench has them: two runs of one small suite, a baseline and what broke since."""

from __future__ import annotations

import msgspec
from lathe.engine.errors import MissingError
from lathe.engine.evals.compare import compare
from lathe.engine.evals.reports.text import markdown
from lathe.engine.evals.results import Comparison, EvalRun, Record, SuiteInfo
from lathe.engine.evals.summary import summarize
from lathe.engine.evals.values import Response, Task
from lathe.engine.evals.verdict import decide
from lathe.engine.measure.history import BenchPoint, points
from lathe.store.benches import BenchRecord

T0 = 1_795_000_000.0
_TASK = Task(id="capitals", kind="generate", cases=(), metrics=("exact_match",))
_ANSWERS = (
    ("France", "Paris", "Paris", "Paris"), ("Peru", "Lima", "Lima", "Cusco"), ("Chad", "N'Djamena", "N'Djamena", "?"),
    ("Italy", "Rome", "Milan", "Rome"), ("Japan", "Tokyo", "Tokyo", "Tokyo"),
    ("Kenya", "Nairobi", "Nairobi", "Nairobi"),
)  # fmt: skip

SUITES = [
    SuiteInfo(name="smoke", version="1", description="Chat format, JSON mode, tool calls", path="/suites/smoke.yaml",
              origin="shipped", tasks=("chat_format (generate)",)),
    SuiteInfo(name="stdlib", version="1", description="What stdlib-4m knows", path="/suites/stdlib.yaml",
              origin="shipped", tasks=("names (choice)", "text (perplexity)")),
]  # fmt: skip


def _record(column: int, row: int) -> Record:
    country, target = _ANSWERS[row][0], _ANSWERS[row][1]
    said = _ANSWERS[row][column]
    right = float(said == target)
    return Record(
        task="capitals", case=f"{row + 1:05d}", kind="generate", item_sha256=country, prompt=f"Capital of {country}?",
        targets=(target,), tags=("critical",) if row == 1 else (), response=Response(text=said, finish="stop"),
        statistics={"exact_match": (right, 1.0)}, values={"exact_match": right},
    )  # fmt: skip


RECORDS = {f"e-{column - 1}": [_record(column, row) for row in range(len(_ANSWERS))] for column in (2, 3)}


def runs() -> dict[str, EvalRun]:
    """Both runs by id."""
    found = {}
    for number, model in ((1, "qwen3-8b-q5_k_m"), (2, "qwen3-8b-q4_k_m")):
        records = RECORDS[f"e-{number}"]
        found[f"e-{number}"] = EvalRun(
            id=f"e-{number}", suite="capitals", suite_sha256="c" * 64, model=model, model_key=str(number) * 64,
            state="done", created_at=T0 + 60 * number, finished_at=T0 + 60 * number + 9, seconds=9.0,
            total=len(records), done=len(records), tasks=(_TASK,), summaries=summarize((_TASK,), records),
            release="0.1.0", aliases=("release",) if number == 1 else (),
        )  # fmt: skip
    return found


def find(known: dict[str, EvalRun], reference: str) -> EvalRun:
    """A run by id or by a baseline's name."""
    for run in known.values():
        if reference in (run.id, *run.aliases):
            return run
    raise MissingError(f"no eval run or baseline {reference!r}")


def compared(base: EvalRun, other: EvalRun) -> Comparison:
    """Two of the runs."""
    return compare(base, RECORDS[base.id], other, RECORDS[other.id])


def report(run: EvalRun, base: EvalRun | None) -> str:
    """A run in Markdown."""
    comparison = compared(base, run) if base else None
    return markdown(run, comparison, decide(run, comparison))


def bench_history(model: str | None = None) -> list[BenchPoint]:
    """Two benches of one model: its generation became slower."""
    records = [
        BenchRecord(
            number=2 * bench + row, at=T0 + 3600 * bench, job=f"j-{bench + 1}", machine="A processor, 8 cores",
            model="qwen3-8b-q4_k_m", model_key="2" * 64, test=test, setting="backends CPU, n_threads 8", rate=rate,
            deviation=rate / 100, samples=5,
        )
        for bench, rates in enumerate(((212.0, 18.4), (214.5, 18.3), (213.1, 15.1)))
        for row, (test, rate) in enumerate(zip(("pp512", "tg128"), rates, strict=True))
    ]  # fmt: skip
    return [point for point in points(records[::-1]) if model in (None, point.model)]


def named(run: EvalRun, name: str) -> EvalRun:
    """The run with one more name."""
    return msgspec.structs.replace(run, aliases=(*run.aliases, name))
