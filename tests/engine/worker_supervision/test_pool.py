"""The pool with real child processes: loads, leases, eviction, crashes, hangs, junk (FAULTS F20, F21, S06)."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from lathe.engine.errors import CrashedError, DataError, DoesNotFit, InternalError, LatheError, UnavailableError
from lathe.engine.generation import Delta, EmbedRequest, Message, ScoreRequest
from lathe.engine.process import Child
from lathe.engine.states import Fit
from lathe.engine.worker import client as client_module
from lathe.engine.worker.messages import LoadOptions
from lathe.quantize.errors import GgufError
from support.waiting import until
from support.workers import GIB, Machine, answer, ask, pool_of, scripted, strike


def phases(seen: list, name: str) -> list[str]:
    """The distinct phases a worker went through, in order."""
    walked: list[str] = []
    for state in seen:
        if state.name == name and walked[-1:] != [state.phase]:
            walked.append(state.phase)
    return walked


async def test_a_model_is_loaded_used_and_unloaded(tmp_path: Path) -> None:
    toy = scripted("toy", "echo?slow_load_s=0.2")
    async with pool_of(tmp_path) as (pool, seen):
        state = await pool.load(toy)
        assert state.phase == "ready" and state.info is not None and state.pid == state.info.pid
        assert await answer(pool, toy, "grüße") == "grüße"
        async with pool.lease(toy) as client:
            assert await client.detokenize(await client.tokenize("abc")) == "abc"
            rendered = await client.render([Message("user", "hi")])
            assert rendered.text == "user: hi\nassistant: "
            scores = await client.score(ScoreRequest(model="toy", context="a", continuations=("b", "c")))
            assert len(scores) == 2
            assert (await client.embed(EmbedRequest(model="toy", texts=("x",)))).rows == 1
        await pool.unload("toy")
        assert pool.states() == ()
        assert phases(seen, "toy") == ["starting", "ready", "draining", "stopping", "stopped"]
        loading = [state.progress for state in seen if state.phase == "starting" and state.progress]
        assert loading == sorted(loading) and loading


async def test_concurrent_loads_of_one_model_share_one_worker(tmp_path: Path) -> None:
    toy = scripted("toy", "echo?slow_load_s=0.1")
    async with pool_of(tmp_path) as (pool, seen):
        states = await asyncio.gather(*(pool.load(toy) for _ in range(8)))
        assert len({state.pid for state in states}) == 1
        assert phases(seen, "toy") == ["starting", "ready"]


async def test_other_options_reload_and_the_same_do_not(tmp_path: Path) -> None:
    toy = scripted("toy")
    async with pool_of(tmp_path) as (pool, _):
        first = await pool.load(toy, LoadOptions(context=128))
        assert (await pool.load(toy, LoadOptions(context=128))).pid == first.pid
        assert (await pool.load(toy)).pid == first.pid
        second = await pool.load(toy, LoadOptions(context=256))
        assert second.pid != first.pid and second.info is not None and second.info.context == 256
        async with pool.lease(toy, LoadOptions(context=64)) as client:
            assert client.state.pid == second.pid  # a lease takes what is there


async def test_F51_a_replaced_file_is_loaded_anew(tmp_path: Path) -> None:
    toy = scripted("toy")
    async with pool_of(tmp_path) as (pool, _):
        first = await pool.load(toy)
        async with pool.lease(msgspec.structs.replace(toy, id="id-other")) as client:
            assert client.state.pid != first.pid


async def test_a_refused_load_says_why_and_can_be_tried_again(tmp_path: Path) -> None:
    async with pool_of(tmp_path) as (pool, seen):
        with pytest.raises(DataError, match="unknown tensor type") as refused:
            await pool.load(scripted("toy", "echo?fail_load=unknown tensor type"))
        assert refused.value.code == "E_GGUF_MODEL"
        (state,) = pool.states()
        assert state.phase == "failed" and state.failure is not None
        assert phases(seen, "toy") == ["starting", "failed"]
        assert await answer(pool, scripted("toy")) == "hello world"


async def test_a_worker_that_cannot_be_started_fails_the_load_and_can_be_tried_again(tmp_path: Path) -> None:
    async def no_descriptors(_name: str, _log: Path) -> Child:
        raise OSError(errno.EMFILE, "Too many open files")

    async with pool_of(tmp_path) as (pool, _):
        launch, pool._launch = pool._launch, no_descriptors
        with pytest.raises(LatheError, match="Too many open files"):
            await pool.load(scripted("toy"))
        assert pool.states()[0].phase == "failed"
        pool._launch = launch
        assert await answer(pool, scripted("toy")) == "hello world"


async def test_unloading_stops_a_load_in_progress(tmp_path: Path) -> None:
    async with pool_of(tmp_path) as (pool, _):
        loading = asyncio.create_task(pool.load(scripted("toy", "echo?slow_load_s=600")))
        await until(lambda: pool.states() != () and pool.states()[0].progress is not None)
        await pool.unload("toy")
        with pytest.raises(UnavailableError, match="unloaded"):
            await loading
        assert pool.states() == ()


async def test_leaving_a_stream_cancels_it_in_the_worker(tmp_path: Path) -> None:
    toy = scripted("toy", "words?tokens=3000&delay_ms=1")
    async with pool_of(tmp_path) as (pool, _), pool.lease(toy) as client:
        stream = client.generate(ask("toy"))
        await anext(stream)
        await stream.aclose()
        await until(lambda: client.state.stats.running == 0 and client.state.stats.generated_tokens > 0)
        assert client.state.phase == "ready"


async def test_a_request_can_be_cancelled_by_its_number(tmp_path: Path) -> None:
    class Seen:
        number = 0
        deltas = 0

        def placed(self, number: int) -> None:
            self.number = number

        def on_delta(self, delta: Delta, at: float | None = None) -> None:
            self.deltas += 1

    seen = Seen()
    toy = scripted("toy", "words?tokens=3000&delay_ms=1")
    async with pool_of(tmp_path) as (pool, _), pool.lease(toy) as client:
        received = []
        async for delta in client.generate(ask("toy"), seen):
            received.append(delta)
            client.cancel(seen.number)
        assert received[-1].finish == "cancelled" and seen.deltas >= len(received)
        client.cancel(seen.number)  # too late is harmless


# -- memory ----------------------------------------------------------------------------------------------------------
async def test_an_idle_model_makes_room_the_least_recently_used_first(tmp_path: Path) -> None:
    a, b, c = (scripted(name, size=4 * GIB) for name in "abc")
    async with pool_of(tmp_path, Machine(10 * GIB)) as (pool, _):
        await answer(pool, a)
        await answer(pool, b)
        await answer(pool, a)
        await answer(pool, c)
        assert {state.name for state in pool.states()} == {"a", "c"}


async def test_a_model_in_use_is_never_evicted(tmp_path: Path) -> None:
    a, b = (scripted(name, size=6 * GIB) for name in "ab")
    async with pool_of(tmp_path, Machine(10 * GIB)) as (pool, _):
        async with pool.lease(a):
            with pytest.raises(DoesNotFit, match=r"b does not fit: short by 2.0 GiB of RAM") as refused:
                await pool.load(b)
            assert "in memory now: a" in refused.value.hint
        assert (await pool.load(b)).phase == "ready"
        assert [state.name for state in pool.states()] == ["b"]


async def test_nothing_is_evicted_for_a_model_that_would_not_fit_anyway(tmp_path: Path) -> None:
    async with pool_of(tmp_path, Machine(10 * GIB)) as (pool, _):
        await pool.load(scripted("small", size=2 * GIB))
        with pytest.raises(DoesNotFit):
            await pool.load(scripted("huge", size=20 * GIB))
        assert [state.name for state in pool.states()] == ["small"]
        assert (await pool.load(scripted("huge", size=20 * GIB), force=True)).phase == "ready"


async def test_loads_at_the_same_time_do_not_both_take_the_last_memory(tmp_path: Path) -> None:
    a, b = (scripted(name, "echo?slow_load_s=0.2", size=6 * GIB) for name in "ab")
    async with pool_of(tmp_path, Machine(10 * GIB)) as (pool, _):
        outcomes = await asyncio.gather(pool.load(a), pool.load(b), return_exceptions=True)
        assert sorted(type(outcome).__name__ for outcome in outcomes) == ["DoesNotFit", "WorkerState"]


async def test_an_unused_model_is_unloaded_after_its_time(tmp_path: Path) -> None:
    toy = scripted("toy")
    async with pool_of(tmp_path) as (pool, seen):
        await pool.load(toy, LoadOptions(ttl_s=0.2))
        async with pool.lease(toy):
            await asyncio.sleep(0.3)
            assert pool.states()[0].phase == "ready"  # in use: not unloaded
        await until(lambda: pool.states() == ())
        assert phases(seen, "toy")[-1] == "stopped"
        assert await answer(pool, toy) == "hello world"


async def test_unload_waits_for_requests_and_later_ones_load_anew(tmp_path: Path) -> None:
    toy = scripted("toy", "words?tokens=40&delay_ms=10")
    async with pool_of(tmp_path) as (pool, seen):
        first = asyncio.create_task(answer(pool, toy))
        await until(lambda: any(state.phase == "ready" for state in pool.states()))
        unloading = asyncio.create_task(pool.unload("toy"))
        await until(lambda: pool.states()[0].phase == "draining")
        later = await answer(pool, toy)
        await unloading
        assert len(await first) == 120 and await first == later
        assert phases(seen, "toy").count("starting") == 2


async def test_a_request_that_outlasts_the_drain_is_cut_with_a_reason(tmp_path: Path) -> None:
    toy = scripted("toy", "words?tokens=3000&delay_ms=5")
    async with pool_of(tmp_path, drain_s=0.1) as (pool, _):
        endless = asyncio.create_task(answer(pool, toy))
        await until(lambda: any(state.stats.running for state in pool.states()))
        await pool.unload("toy")
        with pytest.raises(UnavailableError, match="stopped"):
            await endless


@pytest.mark.parametrize(("phase", "drain_s"), [("draining", 60.0), ("stopping", 0.0)])
async def test_an_unload_goes_on_when_its_caller_leaves(tmp_path: Path, phase: str, drain_s: float) -> None:
    toy = scripted("toy", "words?tokens=40&delay_ms=10")
    async with pool_of(tmp_path, drain_s=drain_s) as (pool, seen):
        running = asyncio.create_task(answer(pool, toy))
        await until(lambda: any(state.phase == "ready" for state in pool.states()))
        unloading = asyncio.create_task(pool.unload("toy"))
        await until(lambda: phase in phases(seen, "toy"))
        unloading.cancel()
        await asyncio.gather(running, unloading, return_exceptions=True)
        await until(lambda: pool.states() == ())
        assert phases(seen, "toy") == ["starting", "ready", "draining", "stopping", "stopped"]
        assert phase == "stopping" or len(await running) == 120
        assert len(await answer(pool, toy)) == 120


async def test_a_caller_that_leaves_its_unload_does_not_hold_up_the_close(tmp_path: Path) -> None:
    async with pool_of(tmp_path, drain_s=3600) as (pool, _), pool.lease(scripted("toy")):
        unloading = asyncio.create_task(pool.unload("toy"))
        await until(lambda: pool.states()[0].phase == "draining")
        unloading.cancel()
        await pool.close(drain_s=0)
        assert pool.states() == ()


# -- crashes, hangs, junk --------------------------------------------------------------------------------------------
async def test_a_crash_in_a_stream_fails_it_and_the_next_request_is_served(tmp_path: Path) -> None:
    toy = scripted("toy", "words?tokens=64&delay_ms=5")
    async with pool_of(tmp_path) as (pool, seen):
        async with pool.lease(toy) as client:
            stream = client.generate(ask("toy"))
            await anext(stream)
            os.kill(client.state.pid, signal.SIGSEGV)
            with pytest.raises(CrashedError, match=r"worker toy crashed \(segmentation fault\)"):
                async for _ in stream:
                    pass
        assert len(await answer(pool, toy)) == 192
        assert phases(seen, "toy") == ["starting", "ready", "starting", "ready"]
        assert pool.states()[0].restarts == 1


async def test_a_request_that_had_streamed_nothing_is_asked_again(tmp_path: Path) -> None:
    toy = scripted("toy", "echo?prefill_ms=1200")
    async with pool_of(tmp_path) as (pool, _):
        asked = asyncio.create_task(answer(pool, toy))
        await until(lambda: any(state.stats.running for state in pool.states()))  # within half a second: the next beat
        os.kill(pool.states()[0].pid, signal.SIGKILL)
        assert await asked == "hello world"
        assert pool.states()[0].restarts == 1


async def test_it_is_asked_again_only_once(tmp_path: Path) -> None:
    toy = scripted("toy", "echo?prefill_ms=60000")
    async with pool_of(tmp_path) as (pool, _):
        asked = asyncio.create_task(answer(pool, toy))
        for _ in range(2):
            await until(lambda: any(state.pid and state.stats.running for state in pool.states()))
            pid = pool.states()[0].pid
            os.kill(pid, signal.SIGKILL)
            await until(lambda pid=pid: pool.states()[0].pid != pid)
        with pytest.raises(CrashedError, match="killed"):
            await asked


async def test_a_file_that_is_cut_short_while_its_worker_restarts_fails_the_requests(tmp_path: Path) -> None:
    class CutShort(Machine):
        def __call__(self, *known: Any) -> Fit:
            if self.calls:
                raise GgufError("the file was cut short")
            return super().__call__(*known)

    toy = scripted("toy")
    async with pool_of(tmp_path, CutShort()) as (pool, _):
        await pool.load(toy)
        strike(pool, "toy", signal.SIGKILL)
        with pytest.raises(DataError, match="cut short"):
            await answer(pool, toy)
        assert pool.states()[0].phase == "failed"


async def test_three_crashes_quarantine_the_model_until_forced(tmp_path: Path) -> None:
    toy = scripted("toy", "words?tokens=10&crash_after=3")
    async with pool_of(tmp_path) as (pool, _):
        for _ in range(3):
            with pytest.raises(CrashedError, match="abort"):
                await answer(pool, toy)
        await until(lambda: pool.states()[0].phase == "quarantined")
        with pytest.raises(UnavailableError, match="toy crashed 3 times in 5 minutes and is quarantined") as refused:
            await answer(pool, toy)
        assert refused.value.code == "E_QUARANTINED" and "--force" in refused.value.hint
        with pytest.raises(UnavailableError):
            await pool.load(toy)
        assert pool.states()[0].phase == "quarantined"
        await pool.unload("toy")
        with pytest.raises(UnavailableError):
            await pool.load(toy)
        assert (await pool.load(toy, force=True)).phase == "ready"


async def test_a_model_that_crashes_while_loading_reaches_quarantine_too(tmp_path: Path) -> None:
    toy = scripted("toy", "echo?crash_load=1")
    async with pool_of(tmp_path) as (pool, _):
        for _ in range(2):
            with pytest.raises(CrashedError, match="abort"):
                await pool.load(toy)
            assert pool.states()[0].phase == "failed"
        with pytest.raises(UnavailableError, match="quarantined"):
            await pool.load(toy)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("junk_after=2", "sent what is no message"),
        ("exit_after=2", "exited with code 3"),
        ("hang_after=2", "stuck in one native call"),
        ("freeze_after=2", "no sign of life"),
    ],
)
async def test_a_misbehaving_worker_is_ended_and_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, message: str
) -> None:
    monkeypatch.setattr(client_module, "_TICK_S", 0.1)
    monkeypatch.setattr(client_module, "SILENCE_S", 1.5)
    monkeypatch.setattr(client_module, "BUSY_S", 0.3)
    async with pool_of(tmp_path) as (pool, _):
        with pytest.raises(CrashedError, match=message):
            await answer(pool, scripted("toy", f"words?tokens=2000&{fault}"))
        assert await answer(pool, scripted("other")) == "hello world"
        await until(lambda: pool.state("toy") is not None and pool.state("toy").phase == "ready")


async def test_a_failed_request_leaves_the_worker_alone(tmp_path: Path) -> None:
    async with pool_of(tmp_path) as (pool, _):
        toy = scripted("toy", "words?tokens=4&fail_after=2")
        with pytest.raises(InternalError, match="told to fail"):
            await answer(pool, toy)
        assert pool.states()[0].restarts == 0 and pool.states()[0].phase == "ready"


async def test_a_worker_that_ignores_everything_is_killed_on_unload(tmp_path: Path) -> None:
    toy = scripted("toy", "words?tokens=4&hang_after=1&ignore_term=1")
    async with pool_of(tmp_path, drain_s=0.0) as (pool, _):
        hung = asyncio.create_task(answer(pool, toy))
        await until(lambda: any(state.stats.busy_s for state in pool.states()))
        pid = pool.states()[0].pid
        async with asyncio.timeout(20):
            await pool.unload("toy")
        with pytest.raises(LatheError):
            await hung
        assert not Path(f"/proc/{pid}").exists()


async def test_a_flood_on_stderr_hurts_nobody(tmp_path: Path) -> None:
    async with pool_of(tmp_path) as (pool, _):
        assert await answer(pool, scripted("toy", "echo?flood_stderr=2000000")) == "hello world"


KILLS = int(os.environ.get("LATHE_KILLS", "4"))
"""How often the worker is killed; a thousand take some ten minutes."""


@pytest.mark.timeout(3600)
async def test_F20_random_kills_under_load(tmp_path: Path) -> None:
    """Whatever dies when, each request is answered in full or fails with a typed error, and the pool stays usable."""
    toy = scripted("toy", "words?tokens=20&delay_ms=2")
    rng = random.Random(20)
    outcomes: list[str] = []
    over = asyncio.Event()

    async def user() -> None:
        while not over.is_set():
            try:
                outcomes.append("answered" if len(await answer(pool, toy)) == 60 else "torn")
            except CrashedError:
                outcomes.append("crashed")

    async with pool_of(tmp_path) as (pool, _):
        await pool.load(toy)
        users = [asyncio.create_task(user()) for _ in range(8)]
        for _ in range(KILLS):
            await until(lambda: pool.states()[0].pid is not None)
            await asyncio.sleep(rng.uniform(0.01, 0.1))
            pool._crashes[toy.id].clear()  # the breaker has its own tests
            strike(pool, "toy", rng.choice([signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT]))
        over.set()
        await asyncio.gather(*users)
        assert "torn" not in outcomes and "answered" in outcomes
        assert pool.states()[0].leases == 0
        assert len(await answer(pool, toy)) == 60, "and the next one is served"


async def test_S06_F51_unload_races_requests(tmp_path: Path) -> None:
    """S06: unloading under load never meets a request in the middle: all are answered in full."""
    toy = scripted("toy", "words?tokens=3")
    async with pool_of(tmp_path) as (pool, _):

        async def user() -> set[int]:
            return {len(await answer(pool, toy)) for _ in range(6)}

        users = asyncio.gather(*(user() for _ in range(6)))
        while not users.done():
            await pool.unload("toy")
            await asyncio.sleep(0.02)
        assert await users == [{9}] * 6


async def test_close_ends_every_process(tmp_path: Path) -> None:
    async with pool_of(tmp_path) as (pool, _):
        pids = [(await pool.load(scripted(name))).pid for name in "ab"]
        await pool.close()
        assert pool.states() == ()
        assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
        with pytest.raises(UnavailableError, match="stopping"):
            await pool.load(scripted("c"))
