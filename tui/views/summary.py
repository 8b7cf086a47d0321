"""The text summary: what a terminal below 60 x 16 shows of every place, and `--plain` of the dashboard."""

from __future__ import annotations

from lathe.tui import formats
from lathe.tui.board import Board
from lathe.tui.glyphs import Glyphs
from lathe.tui.text import line as one_line
from lathe.tui.widgets.paint import Line, bar, cell, spread


def summary(board: Board, width: int, height: int, glyphs: Glyphs) -> list[Line]:
    """The most telling figures first, as many lines as there is room for."""
    snapshot = board.snapshot
    if snapshot is None:
        return [[("Starting the engine..." if board.lost is None else board.lost.message, "dim")]]
    lines: list[Line] = []
    sample, traffic = snapshot.sample, snapshot.traffic
    room = max(4, width - 22)
    if sample is not None:
        for index, device in enumerate(sample.devices[:2]):
            lines.append(_gauge(f"GPU{index}", device.memory_used, device.memory_total, room, glyphs))
        lines.append(_gauge("RAM", sample.memory_used, sample.memory_total, room, glyphs))
    lines.append(
        [
            ("gen ", "dim"),
            (f"{formats.rate(traffic.decode_tps)} tok/s", "value"),
            ("  prompt ", "dim"),
            (formats.rate(traffic.prefill_tps), "value"),
        ]
    )
    for name, quantiles in (("TTFT", traffic.ttft), ("ITL", traffic.itl)):
        if quantiles.p50 is not None:
            lines.append(
                [
                    (f"{name:<5}", "dim"),
                    (f"p50 {formats.latency(quantiles.p50)}  ", "text"),
                    (f"p95 {formats.latency(quantiles.p95)}", "text"),
                ]
            )
    lines.append(
        [
            ("run ", "dim"),
            (str(traffic.running), "value"),
            ("  wait ", "dim"),
            (str(traffic.waiting), "value"),
            ("  models ", "dim"),
            (str(len(snapshot.workers)), "value"),
        ]
    )
    for job in snapshot.jobs:
        if job.state == "running":
            done = formats.percent(job.progress.fraction)
            lines.append(spread([(f"{job.id} ", "dim"), (one_line(job.title), "text")], [(f" {done}", "value")], width))
    live = [row for row in traffic.requests if not row.finished]
    lines += [
        [
            (f"{row.id} ", "dim"),
            (cell(row.model, max(8, width - 26)), "text"),
            (f" {row.stage} {row.generated} tok", "dim"),
        ]
        for row in live
    ]
    return lines[: height - 1] + [[("below 60x16: text summary only", "faint")]] * (height > 6)


def _gauge(name: str, used: int | None, total: int | None, room: int, glyphs: Glyphs) -> Line:
    fraction = used / total if used is not None and total else None
    return [(f"{name:<5}", "dim"), *bar(fraction, room, glyphs), (f" {formats.used_of(used, total)}", "value")]
