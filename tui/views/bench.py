"""Speeds as rows: the newest of each test with its trend, and one test's history. Pure.

Signs that carry the meaning without colour: `v` slower, `^` faster, `=` steady.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec
from lathe.engine.jobs.values import FINAL, Job
from lathe.engine.measure.history import BenchPoint
from lathe.engine.steps import BenchServedStep, BenchStep
from lathe.tui import formats
from lathe.tui.glyphs import Glyphs
from lathe.tui.views.rows import eta_of, state_of
from lathe.tui.widgets.columns import Column
from lathe.tui.widgets.grid import Cell, Row
from lathe.tui.widgets.paint import Line, graph, spread

TESTS = (
    Column("model", least=16, most=44, flex=True, sort="model"),
    Column("test", least=6, most=20, sort="test"),
    Column("tok/s", ">", least=6, most=9, sort="rate"),
    Column("dev", ">", rank=3, least=5, most=8),
    Column("before", ">", rank=2, least=6, most=9),
    Column("change", ">", least=6, sort="change"),
    Column("trend", least=8, most=10, sort="trend"),
    Column("runs", ">", rank=4, least=4),
    Column("when", rank=5, least=12),
    Column("setting", rank=6, most=60, flex=True),
)
POINTS = (
    Column("when", least=12),
    Column("tok/s", ">", least=6, most=9),
    Column("dev", ">", least=5, most=8),
    Column("change", ">", least=6),
    Column("trend", least=8, most=10),
    Column("load", ">", rank=2, least=6),
    Column("first", ">", rank=3, least=6),
    Column("memory", ">", rank=4, least=6),
    Column("J/token", ">", rank=5, least=6),
    Column("job", rank=1, most=8),
)
_TRENDS = {"slower": ("v slower", "bad"), "faster": ("^ faster", "good"), "steady": ("= steady", "dim")}


class Series(msgspec.Struct, frozen=True):
    """One test of one model on one machine, with one setting: figures that may be compared, newest first."""

    points: tuple[BenchPoint, ...]

    @property
    def newest(self) -> BenchPoint:
        """The figure that a table shows."""
        return self.points[0]

    @property
    def key(self) -> str:
        """What names it among all."""
        point = self.newest
        return "\n".join((point.machine, point.model, point.test, point.setting))


def series_of(points: Sequence[BenchPoint]) -> list[Series]:
    """Figures grouped by what may be compared; slower ones first, then the newest."""
    groups: dict[tuple[str, str, str, str], list[BenchPoint]] = {}
    for point in points:
        groups.setdefault((point.machine, point.model, point.test, point.setting), []).append(point)
    found = [Series(tuple(group)) for group in groups.values()]
    return sorted(found, key=lambda one: (one.newest.trend != "slower", -one.newest.number))


def open_jobs(jobs: Sequence[Job]) -> list[Job]:
    """Bench jobs that wait or run."""
    return [job for job in jobs if isinstance(job.step, BenchStep | BenchServedStep) and job.state not in FINAL]


def rows(series: Sequence[Series], jobs: Sequence[Job], names: dict[str, str], now: float, glyphs: Glyphs) -> list[Row]:
    """Benches in progress, then the newest figure of every test."""
    return [*(_job_row(job, names, now, glyphs) for job in open_jobs(jobs)), *(_row(one) for one in series)]


def _job_row(job: Job, names: dict[str, str], now: float, glyphs: Glyphs) -> Row:
    model = names.get(getattr(job.step, "model", ""), getattr(job.step, "model", ""))
    state, ink = state_of(job, now, glyphs)
    eta = eta_of(job, now)
    done = formats.percent(job.progress.fraction) if job.state == "running" else ""
    cells: tuple[Cell, ...] = (
        model, (job.progress.label or job.id, "dim"), formats.NONE, "", "", (done, "value"), (state, ink), "",
        (f"ETA {eta}" if eta != formats.NONE else "", "dim"), "",
    )  # fmt: skip
    return Row(job.id, cells, {"model": model, "test": job.progress.label})


def _row(series: Series) -> Row:
    point = series.newest
    cells: tuple[Cell, ...] = (
        point.model, point.test, (formats.rate(point.rate), "value"), (formats.rate(point.deviation), "dim"),
        (formats.rate(point.before), "dim"), change_of(point), _TRENDS.get(point.trend, ("first", "dim")),
        (str(len(series.points)), "dim"), (_when(point.at), "dim"), (point.setting, "dim"),
    )  # fmt: skip
    fields: dict[str, str | float | None] = {
        "model": point.model, "test": point.test, "rate": point.rate, "change": point.change, "trend": point.trend,
        "setting": point.setting, "machine": point.machine,
    }  # fmt: skip
    return Row(series.key, cells, fields)


def point_rows(series: Series) -> list[Row]:
    """A test's history, newest first."""
    return [_point_row(point) for point in series.points]


def _point_row(point: BenchPoint) -> Row:
    load, first = _number(point, "load_s"), _number(point, "ttft_s")
    cells: tuple[Cell, ...] = (
        (_when(point.at), "dim"), (formats.rate(point.rate), "value"), (formats.rate(point.deviation), "dim"),
        change_of(point), _TRENDS.get(point.trend, ("first", "dim")), (formats.latency(load), "dim"),
        (formats.latency(first), "dim"), (formats.size(_number(point, "peak_rss_bytes")), "dim"),
        (formats.figure(_number(point, "joules_per_token")), "dim"), (point.job, "dim"),
    )  # fmt: skip
    return Row(str(point.number), cells, {"rate": point.rate, "trend": point.trend, "job": point.job})


def change_of(point: BenchPoint) -> tuple[str, str]:
    """A change as a percentage with its sign; coloured only where it is more than noise."""
    if point.change is None:
        return formats.NONE, "dim"
    ink = _TRENDS.get(point.trend, ("", "dim"))[1]
    return f"{point.change:+.1%}", ink


def history_lines(series: Series, width: int, height: int, glyphs: Glyphs) -> list[Line]:
    """The figures as a graph over the runs, oldest left, with its scale."""
    values = [point.rate for point in reversed(series.points)][-width:]
    top = max(values) * 1.05
    # Each figure is several columns wide: a bench is an event, not a second.
    each = max(1, min(6, width // max(1, len(values))))
    wide = [value for value in values for _ in range(each)]
    lines = graph(wide, width, max(1, height - 1), glyphs, top=top, phase=len(wide) - 1, span=width)
    scale = spread(
        [(f"0 to {formats.rate(top)} tok/s", "dim")],
        [(f"{formats.many(len(values), 'run')}, newest right", "dim")],
        width,
    )
    return [*lines, scale][:height]


def facts(point: BenchPoint) -> list[tuple[str, str]]:
    """Everything about one figure, to read."""
    told = [
        ("model", point.model), ("test", point.test), ("tokens/s", f"{point.rate:.2f} +/- {point.deviation:.2f}"),
        ("repetitions", str(point.samples)), ("earlier median", formats.figure(point.before)),
        ("change", change_of(point)[0]), ("trend", point.trend), ("when", formats.moment(point.at)),
        ("job", point.job), ("machine", point.machine), ("setting", point.setting),
    ]  # fmt: skip
    return told + [(name, formats.figure(value)) for name, value in point.figures.items()]


def _number(point: BenchPoint, name: str) -> float | None:
    value = point.figures.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _when(unix: float) -> str:
    return time.strftime("%b %d %H:%M", time.localtime(unix))
