"""The history of speed on this machine, and whether the newest figure is a regression.

A test is compared with the earlier ones of the same machine, model, test and setting: with the median of the last few,
so that one disturbed run neither raises nor hides an alarm. Pure. Invariant: `slower` and `faster` are said only beyond
both the noise of the repetitions and `MATERIAL`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec
from lathe.engine.jobs.values import Figure
from lathe.engine.measure.bench_rows import BenchRow
from lathe.store.benches import BenchRecord

EARLIER = 10
"""Earlier figures that a new one is compared with."""
MATERIAL = 0.05
"""Relative change below which nothing is said, however sure."""
_SIGMAS = 3.0
_SETTING = ("backends", "n_threads", "type_k", "type_v", "n_batch", "n_ubatch", "n_gpu_layers")

Trend = Literal["first", "steady", "slower", "faster"]


class BenchPoint(msgspec.Struct, frozen=True, kw_only=True):
    """One figure in its history."""

    number: int
    at: float
    job: str
    machine: str
    model: str
    test: str
    setting: str
    rate: float
    deviation: float
    samples: int
    before: float | None
    """Median of the earlier figures."""
    change: float | None
    """Relative to it: -0.2 is 20 % slower."""
    trend: Trend
    figures: dict[str, Figure] = {}
    """Of the whole bench: `load_s`, `ttft_s`, `peak_rss_bytes`, `joules_per_token`, ..., where they were measured."""


def records_of(
    rows: Iterable[dict[str, Figure]], figures: dict[str, Figure], *, job: str, at: float, model: str
) -> list[BenchRecord]:
    """What a bench job leaves in the history.

    A model is known by its name, kind and size: a file that is made again every night has one history.
    """
    found = []
    for flat in rows:
        row = BenchRow.from_flat(flat)
        parts = [f"{name} {flat[name]}" for name in _SETTING if flat.get(name) not in (None, "")]
        body = {"row": flat, "figures": figures}
        found.append(
            BenchRecord(
                at=at, job=job, machine=machine_of(row), model=model, test=row.test,
                model_key=f"{row.model_type}, {row.model_size} bytes",
                setting=", ".join(parts), rate=row.avg_ts, deviation=row.stddev_ts, samples=len(row.samples_ns),
                body=msgspec.json.encode(body).decode(),
            )
        )  # fmt: skip
    return found


def machine_of(row: BenchRow) -> str:
    """The hardware a figure holds for."""
    return " + ".join(part for part in (row.cpu_info, row.gpu_info) if part) or "unknown"


def points(records: Sequence[BenchRecord]) -> list[BenchPoint]:
    """Every figure with what it was compared with; newest first, as the records are."""
    earlier: dict[tuple[str, ...], list[BenchRecord]] = {}
    found = []
    for record in sorted(records, key=lambda record: record.number):
        line = earlier.setdefault((record.machine, record.model, record.model_key, record.test, record.setting), [])
        found.append(_point(record, line[-EARLIER:]))
        line.append(record)
    return found[::-1]


def _point(record: BenchRecord, earlier: Sequence[BenchRecord]) -> BenchPoint:
    before = statistics.median(one.rate for one in earlier) if earlier else None
    change = record.rate / before - 1 if before else None
    body = msgspec.json.decode(record.body)
    return BenchPoint(
        number=record.number, at=record.at, job=record.job, machine=record.machine, model=record.model,
        test=record.test, setting=record.setting, rate=record.rate, deviation=record.deviation, samples=record.samples,
        before=before, change=change, trend=_trend(record, earlier, change), figures=body.get("figures", {}),
    )  # fmt: skip


def _trend(record: BenchRecord, earlier: Sequence[BenchRecord], change: float | None) -> Trend:
    if change is None or not earlier:
        return "first"
    rates = [one.rate for one in earlier]
    # What runs differ by among themselves, where there are enough of them, else what repetitions differ by.
    between = statistics.stdev(rates) if len(rates) > 2 else statistics.mean(one.deviation for one in earlier)
    noise = math.hypot(record.deviation, between)
    if abs(change) <= MATERIAL or abs(record.rate - statistics.median(rates)) <= _SIGMAS * noise / math.sqrt(2):
        return "steady"
    return "slower" if change < 0 else "faster"
