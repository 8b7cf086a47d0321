"""`lathe status`, `watch` and `logs`: the dashboard's and the log screen's headless twins."""

from __future__ import annotations

import asyncio
import time

import click
from lathe.engine.states import Percentiles, Snapshot
from lathe.engine.workbench import Workbench
from lathe.tui.cli.numbers import Finite
from lathe.tui.cli.shell import Shell, put, put_json
from lathe.tui.formats import latency, long_size, percent, rate, used_of


@click.command()
@click.option("--json", "as_json", is_flag=True, help="The whole snapshot as JSON.")
@click.pass_obj
def status(shell: Shell, as_json: bool) -> None:
    """What the engine does now."""

    async def work(workbench: Workbench) -> Snapshot:
        return await workbench.snapshot()

    snapshot = shell.run(work, as_json=as_json)
    if as_json:
        put_json(snapshot)
    else:
        for line in describe_snapshot(snapshot):
            put(line)


@click.command()
@click.option("--interval", type=Finite(0.2, 3600), default=2.0, show_default=True, help="Seconds.")
@click.option("--once", is_flag=True)
@click.option("--jsonl", is_flag=True, help="One JSON snapshot per line.")
@click.pass_obj
def watch(shell: Shell, interval: float, once: bool, jsonl: bool) -> None:
    """Print the status every few seconds until stopped."""
    import msgspec

    async def work(workbench: Workbench) -> None:
        while True:
            snapshot = await workbench.snapshot()
            if jsonl:
                put(msgspec.json.encode(snapshot).decode())
            else:
                put(time.strftime("-- %H:%M:%S"))
                for line in describe_snapshot(snapshot):
                    put(line)
            if once:
                return
            await asyncio.sleep(interval)

    shell.run(work)


def describe_snapshot(snapshot: Snapshot) -> list[str]:
    """The dashboard as lines of text, every number included; for screen readers and logs."""
    engine, traffic, sample = snapshot.engine, snapshot.traffic, snapshot.sample
    where = f"process {engine.pid}" if engine.carrier == "socket" else "not running (opened for this command)"
    lines = [f"engine    {engine.version}  {where}  workspace {engine.home}" + ("  OFFLINE" if engine.offline else "")]
    if sample is not None:
        lines.append(
            f"host      CPU {percent(sample.cpu)}  RAM {used_of(sample.memory_used, sample.memory_total)}"
            f"  disk {used_of(sample.disk_used, sample.disk_total)}"
        )
        for device in sample.devices:
            temperature = "-" if device.temperature_c is None else f"{device.temperature_c:.0f} C"
            lines.append(
                f"{device.id:<9} {device.name}  VRAM {used_of(device.memory_used, device.memory_total)}"
                f"  util {percent(device.utilization)}  {temperature}"
            )
    for worker in snapshot.workers:
        stats = worker.stats
        memory = long_size(sum(worker.info.device_bytes.values())) if worker.info else "-"
        lines.append(
            f"model     {worker.name}  {worker.phase}  {memory}  running {stats.running}  waiting {stats.waiting}"
            f"  KV {stats.kv_used}/{stats.kv_tokens}" + (f"  {worker.failure.message}" if worker.failure else "")
        )
    server = snapshot.server
    lines.append(f"server    {server.url if server.running else 'stopped'}")
    lines.append(
        f"speed     generation {rate(traffic.decode_tps)} tok/s  prompt {rate(traffic.prefill_tps)} tok/s"
        f"  requests {traffic.requests_total}  errors {traffic.errors}"
    )
    for name, values in (("TTFT", traffic.ttft), ("ITL", traffic.itl), ("E2E", traffic.e2e)):
        lines.append(f"{name:<9} {_percentiles(values)}")
    active = [job for job in snapshot.jobs if job.state in ("queued", "running")]
    lines.append(f"jobs      {sum(job.state == 'running' for job in active)} running, {len(active)} in all")
    lines += [f"  {job.id}  {job.title}  {job.state}  {percent(job.progress.fraction)}" for job in active]
    return lines


def _percentiles(values: Percentiles) -> str:
    if not values.count:
        return "no requests yet"
    return f"p50 {latency(values.p50)}  p95 {latency(values.p95)}  p99 {latency(values.p99)}  n={values.count}"


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on until stopped.")
@click.option("-n", "--lines", type=click.IntRange(1, 100_000), default=50, show_default=True, help="How far back.")
@click.pass_obj
def logs(shell: Shell, follow: bool, lines: int) -> None:
    """The engine's log, as JSON lines."""

    async def work(workbench: Workbench) -> None:
        offset = -1
        while True:
            page = await workbench.log(offset, lines)
            for line in page.lines:
                put(line)
            if not follow:
                return
            offset = page.next
            await asyncio.sleep(0.5)

    shell.run(work)
