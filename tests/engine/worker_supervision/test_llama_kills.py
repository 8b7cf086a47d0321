"""A worker with a real model is killed in the middle of its work, again and again (FAULTS F20)."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from pathlib import Path

import pytest
from lathe.engine.errors import CrashedError
from lathe.engine.generation import GenerationRequest, Sampling
from lathe.engine.worker.messages import LoadOptions
from lathe.store.models import ModelEntry
from support.waiting import until
from support.workers import pool_of, strike

KILLS = max(2, int(os.environ.get("LATHE_KILLS", "0")) // 25)
"""Forty where the scripted backend gets a thousand: a model takes a second to start."""
TOKENS = 12


@pytest.mark.native
@pytest.mark.timeout(1800)
async def test_F20_kills_of_a_model_at_work(tmp_path: Path, embedded_gguf: Path) -> None:
    """Each request gets all of its tokens or a typed error, and the next one is served."""
    entry = ModelEntry(id="id-own", name="own", path=str(embedded_gguf), format="gguf", bytes=1)
    options = LoadOptions(context=256, slots=4, kv_tokens=1024, threads=1)
    rng = random.Random(20)
    over = asyncio.Event()
    outcomes: list[str] = []

    async with pool_of(tmp_path) as (pool, _):
        await pool.load(entry, options)

        async def answer(prompt: str) -> int:
            sampling = Sampling(temperature=0, ignore_eos=True)
            request = GenerationRequest(model="own", prompt=prompt, max_tokens=TOKENS, sampling=sampling)
            async with pool.lease(entry) as worker:
                return sum([len(delta.tokens) async for delta in worker.generate(request)])

        prompts = [f"def function_{number}(path):\n    return " for number in range(4)]

        async def user(number: int) -> None:
            while not over.is_set():
                try:
                    outcomes.append("answered" if await answer(prompts[number]) == TOKENS else "torn")
                except CrashedError:
                    outcomes.append("crashed")

        users = [asyncio.create_task(user(number)) for number in range(4)]
        for _ in range(KILLS):
            done = len(outcomes)
            await until(lambda done=done: pool.states()[0].pid is not None and len(outcomes) > done, 120)
            await asyncio.sleep(rng.uniform(0.01, 0.2))
            pool._crashes[entry.id].clear()  # the breaker has its own tests
            strike(pool, "own", rng.choice([signal.SIGKILL, signal.SIGSEGV]))
        over.set()
        await asyncio.gather(*users)
        assert "torn" not in outcomes and "answered" in outcomes
        assert await answer(prompts[0]) == TOKENS
        assert pool.states()[0].restarts >= 1
