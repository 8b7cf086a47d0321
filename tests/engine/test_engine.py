"""The engine whole, on the embedded model: jobs in real children, a lock, a daemon that outlives its front."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from lathe.engine.connect import attach, open_workbench, start_engine
from lathe.engine.errors import MissingError, PolicyError, UnavailableError
from lathe.engine.events import JobChanged, ModelsChanged
from lathe.engine.jobs.values import Job
from lathe.engine.local import LocalWorkbench
from lathe.engine.paths import Home
from lathe.engine.steps import BenchStep, ConvertStep, PerplexityStep, QuantizeStep, ScanStep, Step, VerifyStep
from lathe.engine.worker.messages import LoadOptions
from lathe.store.errors import StoreLocked
from lathe.store.jobs import JobRecord, Jobs

pytestmark = pytest.mark.native


@pytest.fixture
async def engine(home: Path) -> AsyncIterator[LocalWorkbench]:
    workbench = await LocalWorkbench.open(Home(home))
    yield workbench
    await workbench.close()


async def _do(engine: LocalWorkbench, step: Step) -> Job:
    return await engine.wait((await engine.submit(step)).id)


async def test_the_embedded_model_is_known_from_the_start(engine: LocalWorkbench) -> None:
    (entry,) = await engine.models()
    assert (entry.name, entry.format, entry.origin) == ("stdlib-4m", "safetensors", "embedded")
    details = await engine.model("stdlib-4m")
    assert (details.card.parameters, details.card.layers, details.problem) == (4_196_608, 4, None)
    with pytest.raises(MissingError, match="no model is called 'stdlib'") as caught:
        await engine.model("stdlib")
    assert "stdlib-4m" in caught.value.hint
    with pytest.raises(PolicyError, match="part of Lathe itself"):
        await engine.remove("stdlib-4m", delete_files=True)


async def test_convert_quantize_measure_and_what_the_catalogue_knows_then(engine: LocalWorkbench, home: Path) -> None:
    heard: list[object] = []

    async def listen() -> None:
        async for event in engine.events():
            heard.append(event)  # noqa: PERF401 - what was heard must stand when this is cancelled

    listener = asyncio.create_task(listen())
    converted = await _do(engine, ConvertStep(model="stdlib-4m", outtype="f16", name="tiny"))
    assert converted.state == "done", converted.failure
    quantized = await _do(engine, QuantizeStep(model="tiny", type="Q4_K_M"))
    assert quantized.state == "done", quantized.failure
    assert quantized.outcome is not None
    (made,) = quantized.outcome.artefacts
    assert Path(made.path).parent == home / "models"
    measured = await _do(engine, PerplexityStep(model=made.name, context=128, chunks=4))
    assert measured.outcome is not None, measured.failure
    assert 5 < float(measured.outcome.figures["perplexity"] or 0) < 40
    benched = await _do(engine, BenchStep(model=made.name, prompt_tokens=(8,), generate_tokens=(4,), repetitions=1))
    assert benched.outcome is not None, benched.failure
    assert [(row["n_prompt"], row["n_gen"]) for row in benched.outcome.rows] == [(8, 0), (0, 4)]
    listener.cancel()

    entry = (await engine.model(made.name)).entry
    assert entry.origin == "made"
    assert entry.sha256 == made.sha256
    assert entry.parent == (await engine.model("tiny")).entry.id
    assert entry.recipe["type"] == "Q4_K_M"
    assert entry.measured["perplexity"] == measured.outcome.figures["perplexity"]
    assert any(isinstance(event, ModelsChanged) for event in heard)
    states = [event.job.state for event in heard if isinstance(event, JobChanged) and event.job.id == quantized.id]
    assert [state for state in states if state != states[states.index(state) - 1]] or states[-1] == "done"
    assert (await engine.job_log(measured.id, 0)).ended
    verified = await _do(engine, VerifyStep(model=made.name))
    assert verified.state == "done"
    Path(made.path).write_bytes(Path(made.path).read_bytes()[:-1] + b"\x99")
    assert (await _do(engine, VerifyStep(model=made.name))).state == "failed"


async def test_a_finished_step_is_recognised_by_its_inputs(engine: LocalWorkbench) -> None:
    step = ConvertStep(model="stdlib-4m", outtype="f16", name="tiny")
    assert await engine.previous(step) is None
    job = await _do(engine, step)
    again = await engine.previous(step)
    assert again is not None and again.id == job.id
    assert await engine.previous(ConvertStep(model="stdlib-4m", outtype="f32", name="tiny")) is None
    assert job.outcome is not None
    made = Path(job.outcome.artefacts[0].path)
    later = time.time() + 60
    os.utime(made, (later, later))
    assert await engine.previous(step) is not None, "touched, and the same inside"
    made.write_bytes(bytes(made.stat().st_size))
    os.utime(made, (later, later))
    assert await engine.previous(step) is None, "of the same size, and another inside"
    made.unlink()
    assert await engine.previous(step) is None


async def test_a_job_that_cannot_be_read_hides_no_other(engine: LocalWorkbench) -> None:
    """As one of another release, whose steps have other fields."""
    job = await _do(engine, ScanStep(roots=(), hashes=False))

    def write(db: Any) -> None:
        jobs = Jobs(db)
        number = jobs.new_id()
        jobs.save(JobRecord(id=number, kind="perplexity", state="running", created_at=1.0, body='{"step": {}}'))

    await asyncio.wrap_future(engine._database.write(write))
    assert [one.id for one in await engine.jobs()] == [job.id]
    assert await engine.previous(ConvertStep(model="stdlib-4m")) is None
    await engine._runner.recover()


async def test_bad_steps_fail_in_one_line(engine: LocalWorkbench, tmp_path: Path) -> None:
    with pytest.raises(MissingError):
        await engine.submit(QuantizeStep(model="nothing"))
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF\x03\x00\x00\x00" + b"\xff" * 64)
    scan = await _do(engine, ScanStep(roots=(str(tmp_path),)))
    assert scan.outcome is not None and scan.outcome.figures["problems"] == 1
    job = await _do(engine, ConvertStep(model="stdlib-4m", output=str(tmp_path / "no" / "such" / "x.gguf")))
    assert job.state == "failed"
    assert job.failure is not None
    assert (job.failure.exit, "\n" in job.failure.message) == (73, False)


async def test_a_cancelled_job_leaves_nothing_and_resumes(engine: LocalWorkbench, home: Path) -> None:
    await _do(engine, ConvertStep(model="stdlib-4m", outtype="f16", name="tiny"))
    job = await engine.submit(PerplexityStep(model="tiny", context=64))
    while (await engine.job(job.id)).progress.done < 2:
        await asyncio.sleep(0.01)
    cancelled = await engine.cancel(job.id)
    assert cancelled.state == "cancelled"
    assert not list((home / "models").glob("*.part"))
    resumed = await engine.resume(job.id)
    assert resumed.id == job.id
    await engine.cancel(job.id, force=True)


async def test_a_job_whose_process_is_killed_fails_and_the_queue_goes_on(engine: LocalWorkbench, home: Path) -> None:
    await _do(engine, ConvertStep(model="stdlib-4m", outtype="f16", name="tiny"))
    job = await engine.submit(PerplexityStep(model="tiny", context=64))
    while (pid := (await engine.job(job.id)).pid) is None or (await engine.job(job.id)).progress.done < 1:
        await asyncio.sleep(0.01)
    os.kill(pid, signal.SIGSEGV)
    ended = await engine.wait(job.id)
    assert ended.state == "failed"
    assert ended.failure is not None
    assert ended.failure.code == "E_ENGINE_CRASH"
    assert "segmentation fault" in ended.failure.message
    assert (await _do(engine, VerifyStep(model="tiny"))).state == "done"


async def test_an_estimate_says_what_a_load_would_take(engine: LocalWorkbench) -> None:
    await _do(engine, ConvertStep(model="stdlib-4m", outtype="f16", name="tiny"))
    fit = await engine.estimate("tiny", LoadOptions(context=512, slots=2))
    assert fit.verdict in ("fits", "tight")
    assert fit.footprint.total == sum(fit.footprint.devices.values())
    absurd = await engine.estimate("tiny", LoadOptions(context=1024, kv_tokens=2**31))
    assert absurd.verdict == "no"
    assert "short by" in absurd.reason


async def test_a_second_holder_is_refused_and_attaches_instead(home: Path) -> None:
    place = Home(home)
    async with open_workbench(place) as first:
        with pytest.raises(StoreLocked):
            await LocalWorkbench.open(place)
        async with open_workbench(place) as second:
            assert type(second).__name__ == "RemoteWorkbench"
            assert (await second.snapshot()).engine.pid == os.getpid()
            assert [entry.name for entry in await second.models()] == [entry.name for entry in await first.models()]
    assert await attach(place) is None


async def test_settings_are_written_and_come_with_their_origin(engine: LocalWorkbench) -> None:
    value = await engine.set_setting("serving.port", "9001")
    assert (value.value, value.source.split()[0]) == (9001, "user")
    values = {item.key: item for item in await engine.settings()}
    assert values["serving.port"].value == 9001
    assert (await engine.set_setting("serving.port", None)).source == "default"


def _engines_of(home: Path) -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if "lathe.engine.daemon" in (process.info["cmdline"] or []) and str(home) in (process.info["cmdline"] or [])
    ]


async def test_the_engine_process_outlives_its_front_and_remembers(home: Path) -> None:
    place = Home(home)
    remote = await start_engine(place)
    bench = remote.as_workbench()
    job = await bench.submit(ConvertStep(model="stdlib-4m", outtype="f16", name="tiny"))
    await remote.close()
    again = await attach(place)
    assert again is not None
    assert again.engine.pid == remote.engine.pid
    assert (await again.as_workbench().wait(job.id)).state == "done"
    await again.as_workbench().shutdown()
    await again.close()
    while _engines_of(home):
        await asyncio.sleep(0.05)
    async with open_workbench(place) as workbench:
        assert (await workbench.job(job.id)).state == "done"
        assert "tiny" in [entry.name for entry in await workbench.models()]


async def test_two_starters_get_one_engine(home: Path) -> None:
    place = Home(home)
    first, second = await asyncio.gather(start_engine(place), start_engine(place))
    assert first.engine.pid == second.engine.pid
    while len(_engines_of(home)) > 1:  # the other one ends by itself; a slow one would find the place free below
        await asyncio.sleep(0.05)
    await first.as_workbench().shutdown()
    await first.close()
    await second.close()
    while _engines_of(home):
        await asyncio.sleep(0.05)


async def test_kill_9_of_the_engine_interrupts_its_jobs_and_leaves_no_orphan(home: Path) -> None:
    place = Home(home)
    remote = await start_engine(place)
    bench = remote.as_workbench()
    made = await bench.wait((await bench.submit(ConvertStep(model="stdlib-4m", outtype="f16", name="tiny"))).id)
    assert made.state == "done"
    job = await bench.submit(PerplexityStep(model="tiny", context=64))
    while (child := (await bench.job(job.id)).pid) is None:
        await asyncio.sleep(0.01)
    os.kill(remote.engine.pid, signal.SIGKILL)
    with pytest.raises(UnavailableError):
        await bench.wait(job.id)
    await remote.close()
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        await asyncio.sleep(0.05)
    async with open_workbench(place) as workbench:
        after = await workbench.job(job.id)
        assert after.state == "interrupted"
        assert after.failure is not None and "resume" in after.failure.hint
        assert (await workbench.job(made.id)).state == "done"


def test_an_engine_that_cannot_start_says_why(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    command = [sys.executable, "-m", "lathe.tui.main", "--home", str(blocked / "home"), "engine", "start"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 73
    assert done.stderr.startswith("lathe: cannot create the workspace")
    assert "LATHE_HOME" in done.stderr
    assert "Traceback" not in done.stderr
