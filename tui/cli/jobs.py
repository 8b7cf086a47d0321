"""`lathe jobs`: the queue from the shell."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import click
from lathe.engine.errors import ExitCode, revive
from lathe.engine.jobs.kinds import name_of
from lathe.engine.jobs.values import FINAL, Job
from lathe.engine.workbench import Workbench
from lathe.tui.cli.follow import follow
from lathe.tui.cli.shell import Shell, put, put_json, put_table
from lathe.tui.formats import duration, percent

_POLL_S = 0.5
as_json_option = click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")


@click.group()
def jobs() -> None:
    """The queue; jobs run on when you leave."""


@jobs.command("list")
@click.option("--state", type=click.Choice(["queued", "running", *sorted(FINAL)]), help="Only jobs in this state.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=30, show_default=True)
@as_json_option
@click.pass_obj
def list_jobs(shell: Shell, state: str | None, limit: int, as_json: bool) -> None:
    """Newest first."""

    async def work(workbench: Workbench) -> list[Job]:
        return await workbench.jobs(limit)

    found = [job for job in shell.run(work, as_json=as_json) if state in (None, job.state)]
    if as_json:
        put_json(found)
        return
    rows = [
        (job.id, name_of(job.step), job.title, job.state,
         percent(1.0 if job.state == "done" else job.progress.fraction), duration(job.progress.eta_s),
         job.failure.message if job.failure else "")
        for job in found
    ]  # fmt: skip
    put_table(("id", "kind", "what", "state", "%", "eta", ""), rows, right=(4, 5))


def _one(shell: Shell, as_json: bool, work: Callable[[Workbench], Awaitable[Job]]) -> Job:
    job = shell.run(work, as_json=as_json)
    if as_json:
        put_json(job)
    else:
        put(f"{job.id}  {job.title}  {job.state}" + (f": {job.failure.message}" if job.failure else ""))
    return job


@jobs.command()
@click.argument("job_id")
@as_json_option
@click.pass_obj
def show(shell: Shell, job_id: str, as_json: bool) -> None:
    """One job with its outcome."""
    job = _one(shell, as_json, lambda workbench: workbench.job(job_id))
    for name, value in (job.outcome.figures if job.outcome and not as_json else {}).items():
        put(f"  {name:<24} {value}")


@jobs.command()
@click.argument("job_id")
@as_json_option
@click.pass_obj
def wait(shell: Shell, job_id: str, as_json: bool) -> None:
    """Follow JOB_ID to its end; exits with the job's own code."""

    async def work(workbench: Workbench) -> Job:
        return await follow(workbench, await workbench.job(job_id))

    job = _one(shell, as_json, work)
    if job.failure is not None:
        raise SystemExit(int(revive(job.failure).exit))
    raise SystemExit(job.outcome.exit if job.outcome else int(ExitCode.OK))


@jobs.command()
@click.argument("job_id")
@click.option("--force", is_flag=True, help="Kill it at once.")
@as_json_option
@click.pass_obj
def cancel(shell: Shell, job_id: str, force: bool, as_json: bool) -> None:
    """Stop JOB_ID; its checkpoint stays."""
    _one(shell, as_json, lambda workbench: workbench.cancel(job_id, force))


@jobs.command()
@click.argument("job_id")
@as_json_option
@click.pass_obj
def resume(shell: Shell, job_id: str, as_json: bool) -> None:
    """Queue a stopped job again and follow it."""

    async def work(workbench: Workbench) -> Job:
        return await follow(workbench, await workbench.resume(job_id))

    job = _one(shell, as_json, work)
    raise SystemExit(job.failure.exit if job.failure else 0)


@jobs.command()
@click.argument("job_id")
@click.option("-f", "--follow", "following", is_flag=True, help="Go on until the job is over.")
@click.pass_obj
def log(shell: Shell, job_id: str, following: bool) -> None:
    """The log of JOB_ID."""

    async def work(workbench: Workbench) -> None:
        offset = 0
        while True:
            page = await workbench.job_log(job_id, offset)
            for line in page.lines:
                put(line)
            if page.next == offset and (page.ended or not following):
                return
            if page.next == offset:
                await asyncio.sleep(_POLL_S)
            offset = page.next

    shell.run(work)


@jobs.command()
@click.pass_obj
def clear(shell: Shell) -> None:
    """Drop ended jobs from the list; what they made stays."""

    async def work(workbench: Workbench) -> int:
        return await workbench.clear_finished()

    put(f"cleared {shell.run(work)}")
