"""Rows of the tables that several places show: requests, jobs, what needs attention. Pure."""

from __future__ import annotations

from lathe.engine.errors import Failure
from lathe.engine.jobs.values import Job
from lathe.engine.states import RequestRow, Snapshot
from lathe.engine.steps import ScanStep
from lathe.tui import formats
from lathe.tui.glyphs import Glyphs
from lathe.tui.widgets.columns import Column
from lathe.tui.widgets.grid import Cell, Row
from lathe.tui.widgets.paint import bar

STALLED_S = 30.0
"""A running job that has said nothing for this long is shown as stalled."""

REQUESTS = (
    Column("id", most=11, sort="id"),
    Column("model", least=10, most=34, flex=True, sort="model"),
    Column("state", least=7, most=10, sort="state"),
    Column("client", rank=1, least=6, most=26, sort="client"),
    Column("in", ">", least=4, sort="in"),
    Column("out", ">", least=4, sort="out"),
    Column("first", ">", rank=2, least=6),
    Column("tok/s", ">", least=5, sort="speed"),
    Column("age", ">", least=5, sort="age"),
)
SERVED = tuple(
    Column("client", rank=1, least=16, most=44, flex=True, sort="client") if column.title == "client" else column
    for column in REQUESTS
)
"""Where the client is what one looks for: `http KEY@ADDRESS` is longer than `playground A`."""
_STAGE_INKS = {
    "decode": "good",
    "prefill": "accent",
    "waiting": "warn",
    "error": "bad",
    "deadline": "bad",
    "cancelled": "dim",
}


def request_rows(requests: tuple[RequestRow, ...], glyphs: Glyphs) -> list[Row]:
    """Live requests, then the finished ones under a divider."""
    live = [row for row in requests if not row.finished]
    done = [row for row in requests if row.finished]
    rows = [_request(row) for row in live]
    if done:
        rows.append(
            Row("-- finished", ((f"{glyphs.rule * 2} finished", "faint"), *("",) * (len(REQUESTS) - 1)), heading=True)
        )
        rows += [_request(row) for row in done]
    return rows


def _request(row: RequestRow) -> Row:
    quiet = "dim" if row.finished else "text"
    cells: tuple[Cell, ...] = (
        (row.id, quiet),
        (row.model, quiet),
        (row.stage, _STAGE_INKS.get(row.stage, quiet)),
        (row.client, "dim"),
        (formats.count(row.prompt_tokens or None), quiet),
        (formats.count(row.generated), quiet),
        (formats.latency(row.ttft_s), quiet),
        (formats.rate(row.tokens_per_s), quiet if row.finished else "value"),
        (formats.ago(row.age_s), quiet),
    )
    fields: dict[str, str | float | None] = {
        "id": row.id,
        "model": row.model,
        "state": row.stage,
        "client": row.client,
        "in": row.prompt_tokens,
        "out": row.generated,
        "speed": row.tokens_per_s,
        "age": row.age_s,
    }
    return Row(row.id, cells, fields)


def request_facts(row: RequestRow) -> list[tuple[str, str]]:
    """All that is known of a request."""
    return [
        ("model", row.model),
        ("client", row.client),
        ("state", row.stage),
        ("prompt", f"{row.prompt_tokens} tokens"),
        ("answer", f"{row.generated} tokens"),
        ("first token", formats.latency(row.ttft_s)),
        ("speed", f"{formats.rate(row.tokens_per_s)} tok/s"),
        ("age", formats.ago(row.age_s)),
        ("", "The prompt is not kept: the engine stores no content."),
    ]


JOBS = (
    Column("id", most=8, sort="created"),
    Column("kind", rank=1, least=8, most=10, sort="kind"),
    Column("title", least=26, most=60, flex=True, sort="title"),
    Column("state", least=9, most=12, sort="state"),
    Column("stage", rank=4, least=9, most=18),
    Column("progress", rank=2, least=14, most=20),
    Column("%", ">", least=4),
    Column("rate", ">", rank=5, least=10, most=14),
    Column("elapsed", ">", rank=3, least=7),
    Column("ETA", ">", least=5),
    Column("lane", rank=6, least=4),
)


def kind_of(job: Job) -> str:
    """`quantize`, `convert`, ...: the word that plans use."""
    return str(job.step.__struct_config__.tag)


def target_of(job: Job) -> str:
    """The model, the store or the folders a job is about."""
    step = job.step
    if isinstance(step, ScanStep):
        return " ".join(step.roots)
    return str(getattr(step, "model", None) or getattr(step, "store", None) or "")


def stalled(job: Job, now: float) -> bool:
    """Whether a running job has been silent for too long."""
    return job.state == "running" and job.last_event_at is not None and now - job.last_event_at > STALLED_S


def state_of(job: Job, now: float, glyphs: Glyphs) -> tuple[str, str]:
    """A job's state as a sign, a word and an ink."""
    if stalled(job, now):
        return f"{glyphs.warn} stalled", "warn"
    return {
        "queued": (f"{glyphs.idle} queued", "dim"),
        "running": (f"{glyphs.busy} running", "accent"),
        "done": (f"{glyphs.good} done", "good"),
        "failed": (f"{glyphs.bad} failed", "bad"),
        "cancelled": (f"{glyphs.bad} cancelled", "dim"),
        "interrupted": (f"{glyphs.warn} interrupted", "warn"),
    }[job.state]


def eta_of(job: Job, now: float) -> str:
    """Hidden rather than wrong: shown after 5 % or 20 s."""
    if job.state != "running" or job.progress.eta_s is None:
        return formats.NONE
    early = (job.progress.fraction or 0) < 0.05 and now - (job.started_at or now) < 20
    return formats.NONE if early else formats.duration(job.progress.eta_s)


def rate_of(job: Job) -> str:
    """`4.1 tensors/s`, `412M/s`."""
    progress = job.progress
    if job.state != "running" or progress.rate is None:
        return formats.NONE
    if progress.unit == "B":
        return f"{formats.size(progress.rate)}/s"
    return f"{formats.rate(progress.rate)} {progress.unit or 'it'}/s"


def elapsed_of(job: Job, now: float) -> float | None:
    """Seconds a job has run."""
    if job.started_at is None:
        return None
    return (job.finished_at or now) - job.started_at


def job_rows(jobs: tuple[Job, ...], now: float, glyphs: Glyphs) -> list[Row]:
    """Jobs, newest first; running ones carry a bar, ended ones their result."""
    return [_job(job, now, glyphs) for job in jobs]


def _job(job: Job, now: float, glyphs: Glyphs) -> Row:
    state, ink = state_of(job, now, glyphs)
    quiet = "dim" if job.state in ("done", "cancelled") else "text"
    fraction = job.progress.fraction
    progress: Cell = (result_of(job), "bad" if job.state == "failed" else quiet)
    if job.state == "running":
        progress = ("".join(text for text, _ in bar(fraction, 14, glyphs)), "graph")
    stage = job.progress.label
    if job.progress.stages > 1 and job.state != "queued":
        stage = f"{job.progress.stage}/{job.progress.stages} {stage}"
    cells: tuple[Cell, ...] = (
        (job.id, quiet),
        (kind_of(job), quiet),
        (job.title, "text" if quiet == "text" else "dim"),
        (state, ink),
        (stage or formats.NONE, quiet),
        progress,
        (formats.percent(1.0 if job.state == "done" else fraction), "value" if job.state == "running" else quiet),
        (rate_of(job), quiet),
        (formats.duration(elapsed_of(job, now)), quiet),
        (eta_of(job, now), "value" if job.state == "running" else quiet),
        (job.lane, "dim"),
    )
    fields: dict[str, str | float | None] = {
        "id": job.id,
        "kind": kind_of(job),
        "title": job.title,
        "state": "stalled" if stalled(job, now) else job.state,
        "lane": job.lane,
        "created": job.created_at,
        "model": target_of(job),
    }
    return Row(job.id, cells, fields)


def result_of(job: Job) -> str:
    """What an ended job has to show, in a few words."""
    if job.failure is not None:
        return job.failure.message
    if job.outcome is None:
        return formats.NONE
    if job.outcome.artefacts:
        return formats.long_size(sum(artefact.bytes for artefact in job.outcome.artefacts))
    shown = [f"{name} {formats.figure(value)}" for name, value in job.outcome.figures.items() if value is not True]
    return "  ".join(shown[:2]) or formats.NONE


def attention(snapshot: Snapshot, now: float) -> list[tuple[str, str, Failure, float]]:
    """(what, kind, why, when) of everything that went wrong and was not mended, newest first."""
    found: list[tuple[str, str, Failure, float]] = [
        (worker.name, worker.phase, worker.failure, worker.since)
        for worker in snapshot.workers
        if worker.failure is not None and worker.phase in ("failed", "quarantined")
    ]
    for job in snapshot.jobs:
        if job.state == "failed" and job.failure is not None:
            found.append((job.id, "failed", job.failure, job.finished_at or 0.0))
        elif stalled(job, now):
            silent = now - (job.last_event_at or now)
            failure = Failure(
                "STALLED",
                f"no progress for {formats.duration(silent)}",
                "see its log; x cancels and keeps the checkpoint",
            )
            found.append((job.id, "stalled", failure, job.last_event_at or 0.0))
        elif job.state == "interrupted":
            failure = job.failure or Failure("E_INTERRUPTED", "stopped with the engine", "R resumes it")
            found.append((job.id, "interrupted", failure, job.finished_at or 0.0))
    if snapshot.server.failure is not None:
        found.append(("HTTP API", "failed", snapshot.server.failure, now))
    return sorted(found, key=lambda item: -item[3])
