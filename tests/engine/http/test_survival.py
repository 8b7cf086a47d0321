"""Generated requests on the real model: nothing that arrives is answered with a 5xx or costs the worker's life.

S05, S07, F40 to F44, F54. The suite sends two thousand; `LATHE_SURVIVAL=20000` in the environment sends as many.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from pathlib import Path

import httpx2
import pytest
from support.hostile_requests import Hostile, Maker
from support.served_model import ServedModel, served_model

pytestmark = pytest.mark.native
COUNT = int(os.environ.get("LATHE_SURVIVAL", "2000"))
REPORT = os.environ.get("LATHE_SURVIVAL_REPORT")
"""Read now: the workspace of each test begins without Lathe's variables."""
AT_ONCE = 8
CUTS = {"deadline_s"}
"""Parameters by which a client asks for a 504."""


@pytest.mark.timeout(3600)
async def test_S05_F40_F42_generated_requests_get_an_answer_and_leave_the_worker_alone(
    home: Path, embedded_gguf: Path
) -> None:
    strings = _naughty_strings()
    async with served_model(home, embedded_gguf) as served:
        before = await served.worker()
        seen: Counter[tuple[str, int]] = Counter()
        bad: list[str] = []
        fair: Counter[str] = Counter()
        requests = Maker(served.model, 20, strings).requests(COUNT)

        async def client() -> None:
            for request in requests:
                status, text = await _send(served, request)
                seen[request.kind, status] += 1
                if status >= 500 and not (status == 504 and any(name in str(request.body) for name in CUTS)):
                    bad.append(f"{status} {request} -> {text[:300]}")
                fair[request.kind] += request.fair
                if request.fair and status != 200:
                    bad.append(f"{status} though within the rules: {request} -> {text[:300]}")

        await asyncio.gather(*(client() for _ in range(AT_ONCE)))
        assert not bad, "\n".join(bad[:10])
        assert sum(seen.values()) == COUNT
        assert all(fair[kind] for kind, _ in seen), "each kind has requests that must be served"
        after = await served.worker()
        assert (after.pid, after.restarts, after.phase) == (before.pid, 0, "ready")
        assert await served.errors() == 0
        answer = await served.client.post(
            "/v1/completions", json={"model": served.model, "prompt": "x", "max_tokens": 2}
        )
        assert answer.status_code == 200
        _report(seen)


async def _send(served: ServedModel, request: Hostile) -> tuple[int, str]:
    try:
        answer = await served.client.request(
            request.method, request.path, content=request.body, headers={**request.headers}
        )
    except (httpx2.InvalidURL, httpx2.LocalProtocolError, UnicodeEncodeError):
        return 0, "the client refuses to send it"
    return answer.status_code, answer.text


def _naughty_strings() -> list[str]:
    shared = Path(__file__).resolve().parents[4] / "shared" / "data" / "robustness" / "blns" / "blns.json"
    return list(json.loads(shared.read_text("utf-8"))) if shared.is_file() else []


def _report(seen: Counter[tuple[str, int]]) -> None:
    """Write the counts where `LATHE_SURVIVAL_REPORT` says."""
    if REPORT:
        rows = {f"{kind} {status}": count for (kind, status), count in sorted(seen.items())}
        Path(REPORT).write_text(json.dumps(rows, indent=1), "utf-8")


@pytest.mark.timeout(3600)
async def test_S12_interleaved_requests_of_two_keys_never_meet(home: Path, embedded_gguf: Path) -> None:
    """Each key sends secrets of its own behind a prefix that both share, and echoes show what the model had before it.

    No secret of one key appears with the other, and a key finds nothing in the cache that it did not send itself.
    The suite sends four hundred; LATHE_SURVIVAL=20000 makes it ten thousand.
    """
    count = COUNT // 2 if COUNT > 2000 else 400
    shared = "Return the absolute pathname of the directory. " * 4
    secrets = {"ann": [f"ann-canary-{n:x}" for n in range(97)], "bob": [f"bob-canary-{n:x}" for n in range(97)]}
    async with served_model(home, embedded_gguf) as served:
        keys = {name: await served.key(name) for name in secrets}
        crossed: list[str] = []

        async def ask(name: str, number: int) -> int:
            prompt = f"{shared}{secrets[name][number % 97]} "
            body = {"model": served.model, "prompt": prompt, "max_tokens": 6, "echo": number % 3 == 0, "logprobs": 1}
            answer = await served.client.post("/v1/completions", json=body, headers=keys[name])
            assert answer.status_code == 200, answer.text
            stranger = "bob-canary" if name == "ann" else "ann-canary"
            if stranger in answer.text:
                crossed.append(f"{name} got {answer.text}")
            return int(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])

        assert [await ask(name, 1) for name in secrets] == [0, 0], "the prefix of one key served the other"
        turns = iter([(name, number) for number in range(count // 2) for name in secrets])
        found: list[int] = []

        async def client() -> None:
            for name, number in turns:
                found.append(await ask(name, number))

        await asyncio.gather(*(client() for _ in range(AT_ONCE)))
        assert not crossed, crossed[:5]
        assert sum(cached > 0 for cached in found) > count // 2, "the cache was in use"
        assert (await served.worker()).restarts == 0
