"""Panels of the dashboard as lines: memory, throughput, latency, queue. Pure.

Invariant: a figure that is not known is `-`, a quantile of too few samples says so, a prediction carries `~`.
"""

from __future__ import annotations

from lathe.engine.states import Percentiles, Snapshot, WorkerState
from lathe.engine.telemetry.sample import DeviceSample, Sample
from lathe.tui import formats
from lathe.tui.board import Board
from lathe.tui.glyphs import Glyphs
from lathe.tui.text import line as one_line
from lathe.tui.widgets.paint import Line, bar, cell, fit, graph, spread, stacked, whole, width_of

ENOUGH = 20
"""Samples below which a tail quantile would be a guess."""


def _share(workers: tuple[WorkerState, ...], device: str) -> tuple[float, float, float]:
    """(weights, KV, compute) bytes of all workers on a device; a split model's parts are shared out by device bytes."""
    weights = kv = compute = 0.0
    for worker in workers:
        info = worker.info
        if info is None:
            continue
        total = sum(info.device_bytes.values())
        part = info.device_bytes.get(device, 0) / total if total else 0.0
        weights += (info.weights_bytes or 0) * part
        kv += (info.kv_bytes or 0) * part
        compute += (info.compute_bytes or 0) * part
    return weights, kv, compute


def memory_panel(board: Board, width: int, height: int, glyphs: Glyphs) -> list[Line]:
    """Accelerators, RAM, processor and disk; the room that is left goes to graphs."""
    snapshot = board.snapshot
    sample = snapshot.sample if snapshot else None
    if snapshot is None or sample is None:
        return [[("Reading the machine...", "dim")]]
    fixed: list[Line] = []
    graphs: list[tuple[int, str, float | None, str]] = []
    for index, device in enumerate(sample.devices):
        fixed += _device(index, device, snapshot, width, glyphs, detailed=height >= 12)
        if index == 0:
            graphs.append((len(fixed), "device", device.memory_total, "VRAM"))
        fixed.append(_device_facts(index, device, width))
    if not sample.devices:
        weights, kv, compute = _share(snapshot.workers, "cpu")
        fixed.append(_meter("RAM", sample.memory_used, sample.memory_total, width, glyphs, (weights, kv + compute)))
        fixed.append(_legend(weights, kv, sample.memory_used, compute, width, glyphs))
        graphs.append((len(fixed), "memory", sample.memory_total, "RAM"))
    else:
        fixed.append(_meter("RAM", sample.memory_used, sample.memory_total, width, glyphs))
    fixed.append(_cpu(sample, width, glyphs))
    if not sample.devices:
        graphs.append((len(fixed), "cpu", 1.0, "CPU"))
    fixed.append(_meter("Disk", sample.disk_used, sample.disk_total, width, glyphs))
    extras: list[Line] = []
    if sample.swap_total:
        extras.append(_meter("Swap", sample.swap_used, sample.swap_total, width, glyphs))
    if sample.disk_read_bps is not None or sample.disk_write_bps is not None:
        extras.append(
            [
                ("Disk I/O  ", "dim"),
                (f"{formats.size(sample.disk_read_bps)}/s", "value"),
                (" read  ", "dim"),
                (f"{formats.size(sample.disk_write_bps)}/s", "value"),
                (" write", "dim"),
            ]
        )
    if not sample.devices:
        extras.append(
            [(f"{glyphs.separator} no accelerator found: models run on the processor  (lathe doctor)", "dim")]
        )
    extras += [_process(p.role, p.rss, p.cpu, width) for p in sample.processes]
    room = height - len(fixed)
    each = min(6, max(0, room // max(1, len(graphs)))) if room > 0 else 0
    if room - each * len(graphs) < len(extras) and each > 2:
        each = max(2, (room - len(extras)) // max(1, len(graphs)))
    lines: list[Line] = []
    for index, line in enumerate(fixed):
        for at, series, top, _name in graphs:
            if at == index and each > 0:
                lines += graph(
                    board.recent(series), width, each, glyphs, top=top, span=board.window_s, phase=board.phase
                )
        lines.append(line)
    return [*lines, *extras][:height]


def _device(
    index: int, device: DeviceSample, snapshot: Snapshot, width: int, glyphs: Glyphs, *, detailed: bool
) -> list[Line]:
    weights, kv, compute = _share(snapshot.workers, device.id)
    lines: list[Line] = []
    if detailed:
        lines.append([(f"GPU{index} ", "dim"), (one_line(device.name, 60), "text")])
    lines.append(
        _meter(
            f"GPU{index}" if not detailed else "VRAM",
            device.memory_used,
            device.memory_total,
            width,
            glyphs,
            (weights, kv + compute),
        )
    )
    lines.append(_legend(weights, kv, device.memory_used, compute, width, glyphs))
    return lines


def _device_facts(index: int, device: DeviceSample, width: int) -> Line:
    facts: Line = [(f"GPU{index} ", "dim"), (formats.percent(device.utilization), "value"), (" busy", "dim")]
    if device.temperature_c is not None:
        facts.append((f"   {device.temperature_c:.0f} C", "warn" if device.temperature_c >= 85 else "text"))
    if device.power_w is not None:
        limit = f"/{device.power_limit_w:.0f}" if device.power_limit_w else ""
        facts.append((f"   {device.power_w:.0f}{limit} W", "text"))
    if device.clock_mhz is not None and width >= 48:
        facts.append((f"   {device.clock_mhz:.0f} MHz", "dim"))
    return facts


def _meter(
    name: str,
    used: float | None,
    total: float | None,
    width: int,
    glyphs: Glyphs,
    ours: tuple[float, float] = (0.0, 0.0),
) -> Line:
    """A bar of what is used; Lathe's own share (weights, KV) in its colours."""
    figures = formats.used_of(used, total)
    room = width - 5 - 13
    if not total or used is None:
        return [(f"{name:<5}", "dim"), *bar(None, room, glyphs), (cell(figures, 13, ">"), "value")]
    weights, kv = (min(part, used) / total for part in ours)
    parts = [
        (weights, "part1"),
        (kv, "part2"),
        (max(0.0, used / total - weights - kv), "part3" if any(ours) else "graph"),
    ]
    full = used / total
    ink = "bad" if full >= 0.95 else "warn" if full >= 0.9 else "value"
    return [(f"{name:<5}", "dim"), *stacked(parts, room, glyphs), (cell(figures, 13, ">"), ink)]


def _legend(weights: float, kv: float, used: float | None, compute: float, width: int, glyphs: Glyphs) -> Line:
    other = max(0.0, used - weights - kv - compute) if used is not None else None
    pairs: list[Line] = [
        [("weights ", "part1"), (formats.size(weights), "text")],
        [("KV ", "part2"), (formats.size(kv + compute), "text")],
        [("other ", "part3"), (formats.size(other), "text")],
    ]
    line = whole(pairs, width, glyphs.ellipsis, gap=2)
    # Below the bar where there is room for that.
    return [("     ", "text"), *line] if width_of(line) + 5 <= width else line


def _cpu(sample: Sample, width: int, glyphs: Glyphs) -> Line:
    load = "" if sample.load1 is None else f" ld {sample.load1:.1f}"
    return [
        ("CPU  ", "dim"),
        *bar(sample.cpu, width - 18, glyphs),
        (cell(f"{formats.percent(sample.cpu)}{load}", 13, ">"), "value"),
    ]


def _process(role: str, rss: int | None, cpu: float | None, width: int) -> Line:
    right: Line = [
        (cell(formats.size(rss), 8, ">"), "text"),
        (cell(f"{formats.percent(cpu)} cpu" if cpu is not None else "", 10, ">"), "dim"),
    ]
    return spread([(one_line(role), "dim")], right, width)


def throughput_panel(board: Board, width: int, height: int, glyphs: Glyphs) -> list[Line]:
    """Generation and prompt speed with their past."""
    snapshot = board.snapshot
    if snapshot is None:
        return []
    traffic = snapshot.traffic
    facts: list[Line] = [
        _pair(
            "requests",
            formats.count(traffic.requests_total),
            "errors",
            formats.count(traffic.errors),
            width,
            bad=bool(traffic.errors),
        ),
        _pair(
            "tokens out",
            formats.count(traffic.generated_tokens_total),
            "in",
            formats.count(traffic.prompt_tokens_total),
            width,
        ),
    ]
    seen = traffic.prompt_tokens_total + traffic.cached_tokens_total
    hit = traffic.cached_tokens_total / seen if seen else None
    facts.append(_pair("from prefix cache", formats.percent(hit), "rejected", formats.count(traffic.rejected), width))
    # Headings, then graphs that share what is left, then as many facts as fit.
    shown = facts[: max(0, min(len(facts), height - 4))]
    room = height - 2 - len(shown)
    upper, lower = (room + 1) // 2, room // 2
    lines = _speed("generation", "decode", traffic.decode_tps, board, width, upper, glyphs)
    lines += _speed("prompt", "prefill", traffic.prefill_tps, board, width, lower, glyphs)
    return [*lines, *shown][:height]


def _speed(name: str, series: str, now: float, board: Board, width: int, rows: int, glyphs: Glyphs) -> list[Line]:
    values = board.recent(series)
    heading = spread(
        [(f"{name:<11}", "dim"), (formats.rate(now), "value"), (" tok/s", "dim")],
        [("max ", "dim"), (formats.rate(max(values, default=0.0)), "text")],
        width,
    )
    return [heading, *graph(values, width, max(0, rows), glyphs, span=board.window_s, phase=board.phase)]


def _pair(left: str, a: str, right: str, b: str, width: int, *, bad: bool = False) -> Line:
    return spread([(f"{left} ", "dim"), (a, "text")], [(f"{right} ", "dim"), (b, "bad" if bad else "text")], width)


def latency_panel(board: Board, width: int, height: int, glyphs: Glyphs) -> list[Line]:
    """Quantiles of the engine's window; the tail is hidden where there are too few samples."""
    snapshot = board.snapshot
    if snapshot is None:
        return []
    traffic = snapshot.traffic
    each = max(8, (width - 12) // 3)
    lines: list[Line] = [[(" " * 12, "dim"), *((cell(name, each, ">"), "dim") for name in ("p50", "p95", "p99"))]]
    rows = (
        ("first token", traffic.ttft),
        ("per token", traffic.itl),
        ("whole", traffic.e2e),
        ("in queue", traffic.queue),
    )
    lines += [_quantiles(name, quantiles, each) for name, quantiles in rows]
    room = height - len(lines)
    if room >= 5:
        lines.append([])
        each = min(6, (room - 1) // 2 - 1)
        for name, series in (("first token p95", "ttft"), ("per token p50", "itl")):
            values = board.recent(series)
            most = f"max {formats.latency(max(values))}" if values else ""
            lines.append(spread([(name, "dim")], [(most, "dim")], width))
            lines += graph(values, width, each, glyphs, span=board.window_s, phase=board.phase)
    return lines[:height]


def _quantiles(name: str, quantiles: Percentiles, each: int) -> Line:
    tail = formats.latency(quantiles.p99)
    if 0 < quantiles.count < ENOUGH:
        tail = f"n={quantiles.count}"
    cells = (formats.latency(quantiles.p50), formats.latency(quantiles.p95), tail)
    inks = ("value", "text", "text" if quantiles.count >= ENOUGH else "dim")
    return [(f"{name:<12}", "dim"), *((cell(text, each, ">"), ink) for text, ink in zip(cells, inks, strict=True))]


def queue_panel(board: Board, width: int, height: int, glyphs: Glyphs) -> list[Line]:
    """Slots, KV cache and the queue."""
    snapshot = board.snapshot
    if snapshot is None:
        return []
    traffic = snapshot.traffic
    slots = sum(worker.info.slots for worker in snapshot.workers if worker.info is not None and worker.phase == "ready")
    lines: list[Line] = [
        fit(
            [
                ("active ", "dim"),
                (f"{traffic.running}/{slots}" if slots else str(traffic.running), "value"),
                ("   waiting ", "dim"),
                (str(traffic.waiting), "warn" if traffic.waiting else "value"),
                ("   refused ", "dim"),
                (str(traffic.rejected), "warn" if traffic.rejected else "text"),
            ],
            width,
        )
    ]
    kv = traffic.kv_used / traffic.kv_tokens if traffic.kv_tokens else None
    lines.append(
        [
            ("KV   ", "dim"),
            *bar(kv, width - 18, glyphs, "part2"),
            (cell(f"{formats.count(traffic.kv_used)}/{formats.count(traffic.kv_tokens)}", 13, ">"), "value"),
        ]
    )
    lines.append(_slots(snapshot, slots))
    room = height - len(lines)
    if room > 0:
        if height > 6:
            lines.append([("queue", "dim")])
            room -= 1
        lines += graph(board.recent("queue"), width, room, glyphs, span=board.window_s, phase=board.phase)
    return lines[:height]


def _slots(snapshot: Snapshot, slots: int) -> Line:
    stages = [row.stage for row in snapshot.traffic.requests if not row.finished and row.stage != "waiting"]
    line: Line = [("slots", "dim")]
    for stage in stages[:12]:
        line += [(" ", "text"), (f" {stage[:1].upper()} ", "place" if stage == "decode" else "badge")]
    for _ in range(max(0, min(slots, 12) - len(stages))):
        line += [(" ", "text"), (" . ", "faint")]
    line.append(("   D decode  P prefill" if slots else "  no model in memory", "dim"))
    return line
