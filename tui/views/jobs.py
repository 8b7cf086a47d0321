"""One job as lines: its stages, its pace, how it ended. Pure."""

from __future__ import annotations

import msgspec
from lathe.engine.jobs.values import FINAL, Job
from lathe.tui import formats
from lathe.tui.glyphs import Glyphs
from lathe.tui.text import advice
from lathe.tui.text import line as one_line
from lathe.tui.views.rows import elapsed_of, eta_of, kind_of, rate_of, stalled, state_of
from lathe.tui.widgets.paint import Line, bar, crop, whole, wrap


def title(job: Job, now: float) -> tuple[str, ...]:
    """The parts of the panel's title."""
    pid = f"pid {job.pid}" if job.pid else ""
    return job.id, kind_of(job), "stalled" if stalled(job, now) else job.state, pid


def detail_height(job: Job, width: int) -> int:
    """Lines that `detail` wants."""
    return 4 if job.failure is not None else 3


def detail(job: Job, now: float, width: int, height: int, glyphs: Glyphs) -> list[Line]:
    """Progress, pace, and what to do next."""
    progress = job.progress
    state, ink = state_of(job, now, glyphs)
    room = width - 2
    lines: list[Line] = [[(" ", "text"), (one_line(job.title, 200), "value")]]
    if job.state in ("running", "queued"):
        stage = f"stage {progress.stage}/{progress.stages}  " if progress.stages > 1 else ""
        counts = ""
        if progress.total:
            counts = (
                f"  {formats.size(progress.done)} of {formats.size(progress.total)}"
                if progress.unit == "B"
                else f"  {progress.done:.0f} of {progress.total:.0f} {progress.unit}"
            )
        head = f"{stage}{one_line(progress.label, max(24, room // 3))}{counts}"
        tail = f" {formats.percent(progress.fraction)} "
        lines.append(
            [
                (" ", "text"),
                (f"{head}  ", "text"),
                *bar(progress.fraction, max(8, room - len(head) - 2 - len(tail)), glyphs),
                (tail, "value"),
            ]
        )
        pace: Line = [
            (" ", "text"),
            ("elapsed ", "dim"),
            (formats.duration(elapsed_of(job, now)), "text"),
            ("   ETA ", "dim"),
            (eta_of(job, now), "value"),
            ("   ", "text"),
            (rate_of(job), "text"),
            ("   lane ", "dim"),
            (job.lane, "text"),
        ]
        if stalled(job, now):
            silent = formats.duration(now - (job.last_event_at or now))
            pace = [
                (f" {state}", ink),
                (f" for {silent}: look at the last lines; x cancels and keeps the checkpoint", "dim"),
            ]
        lines.append(pace)
    else:
        took = formats.duration(elapsed_of(job, now))
        lines.append(
            [
                (f" {state}", ink),
                (f"  after {took}", "dim"),
                (f"  ended {formats.clock(job.finished_at)}", "dim"),
                (f"  attempts {job.attempts}", "dim"),
            ]
        )
        if job.failure is not None:
            lines += [[(" ", "text"), *line] for line in wrap(job.failure.message, room, "bad", 1)]
            lines += [
                [(" ", "text"), *line]
                for line in wrap(f"{glyphs.arrow} {advice(job.failure.hint, 'R resumes')}", room, "text", 1)
            ]
        elif job.state != "done":
            lines.append([(" R resumes it, finished work is kept", "dim")])
        else:
            lines.append([(" ", "text"), *_results(job, room, glyphs)])
    return lines[:height]


def _results(job: Job, width: int, glyphs: Glyphs) -> Line:
    if job.outcome is None:
        return []
    made = [f"{a.name}  {formats.long_size(a.bytes)}" for a in job.outcome.artefacts]
    figures = [f"{name} {formats.figure(value)}" for name, value in job.outcome.figures.items()]
    # A single name may be longer than the line; a figure without its last digits would be another one.
    pairs: list[Line] = [[(crop(text, width - 8, glyphs.ellipsis), "text")] for text in (*made, *figures)]
    return whole(pairs, width, glyphs.ellipsis)


def _plain(value: object) -> str:
    """A step's field as people write it."""
    match value:
        case dict():
            return ", ".join(f"{key}={_plain(item)}" for key, item in value.items())
        case list() | tuple():
            return ", ".join(_plain(item) for item in value)
        case bool() | int() | float() | str() | None:
            return formats.figure(value)
        case _:
            return str(value)


def facts(job: Job, now: float) -> list[tuple[str, str]]:
    """Everything about a job, to read."""
    rows: list[tuple[str, str]] = [
        ("state", "stalled" if stalled(job, now) else job.state),
        ("kind", kind_of(job)),
        ("lane", job.lane),
        ("queued", formats.moment(job.created_at)),
        ("started", formats.moment(job.started_at)),
        ("ended", formats.moment(job.finished_at) if job.state in FINAL else formats.NONE),
        ("took", formats.duration(elapsed_of(job, now))),
        ("attempts", str(job.attempts)),
    ]
    if job.run:
        rows.append(("batch run", job.run))
    if job.failure is not None:
        rows += [
            ("failure", f"{job.failure.code}  {job.failure.message}"),
            ("what to do", job.failure.hint or "see the log"),
        ]
    for name, value in msgspec.to_builtins(job.step).items():
        if value:
            rows.append((name, _plain(value)))
    if job.outcome is not None:
        for artefact in job.outcome.artefacts:
            rows += [
                ("made", f"{artefact.path}  {formats.long_size(artefact.bytes)}"),
                ("sha256", artefact.sha256 or formats.NONE),
            ]
        rows += [(name, formats.figure(value)) for name, value in job.outcome.figures.items()]
        for row in job.outcome.rows[:20]:
            rows.append(("row", "  ".join(f"{key}={formats.figure(value)}" for key, value in row.items())))
    return rows
