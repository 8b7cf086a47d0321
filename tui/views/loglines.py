"""Log lines of jobs and of the engine as entries of a `LogView`. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime

import msgspec
from lathe.engine.events import LogLine
from lathe.tui import formats
from lathe.tui.widgets.logview import LEVELS, LogEntry

_JOB_LINE = re.compile(r"(\d\d:\d\d:\d\d) (debug|info|warn|error) +(.*)", re.DOTALL)


def job_entry(text: str) -> LogEntry:
    """A line of a job's log: UTC time, level, text; whatever else is shown as it is."""
    found = _JOB_LINE.fullmatch(text)
    if found is None:
        return LogEntry(text)
    time, level, rest = found.groups()
    return LogEntry(rest, level, time)


def engine_entry(line: LogLine) -> LogEntry:
    """A line of the engine's log."""
    return LogEntry(line.text, line.level, formats.clock(line.ts) if line.ts else "", line.source, line.ts)


def parse_engine_line(text: str) -> LogLine:
    """A line of the engine's log file; one that is no JSON of ours is kept as text."""
    try:
        record = msgspec.json.decode(text)
        level, ts = record["level"], record["ts"]
        unix = datetime.fromisoformat(ts).timestamp() if isinstance(ts, str) else float(ts)
        return LogLine(
            ts=unix, level=level if level in LEVELS else "info", source=str(record["source"]), text=str(record["text"])
        )
    except (msgspec.DecodeError, KeyError, TypeError, ValueError):
        return LogLine(ts=0.0, level="info", source="engine", text=text)


def sources(lines: Iterable[LogLine]) -> list[str]:
    """Every source seen, in order of first sight, numbers folded: `job j-118` counts as `job`."""
    return list(dict.fromkeys(line.source.split(" ")[0] for line in lines))
