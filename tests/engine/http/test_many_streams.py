"""Many slow streams at once on one event loop: all begin before any ends, and all are served in full."""

from __future__ import annotations

import asyncio
import os

import pytest
from lathe.engine.http.limits import Limits
from support.http_kit import MODEL, HeldWorkbench, raw_connection, request, serving
from support.waiting import until

STREAMS = int(os.environ.get("LATHE_STREAMS", "100"))
"""A thousand is what benchmarks/http_load.py measures."""


@pytest.mark.timeout(300)
async def test_every_stream_has_its_first_token_while_all_are_open() -> None:
    body = b'{"model":"%s","messages":[{"role":"user","content":"hi"}],"stream":true}' % MODEL.encode()
    asked = request("POST", "/v1/chat/completions", f"Content-Length: {len(body)}", "Connection: close", body=body)
    workbench = HeldWorkbench()
    workbench.held, workbench.after = asyncio.Event(), 1
    begun = 0

    async with serving(workbench, limits=Limits(active=2 * STREAMS)) as served:

        async def client() -> bytes:
            nonlocal begun
            async with raw_connection(served.port) as (reader, writer):
                writer.write(asked)
                await reader.readuntil(b"data: ")
                begun += 1
                return await reader.read(-1)

        clients = [asyncio.create_task(client()) for _ in range(STREAMS)]
        await until(lambda: begun == STREAMS, 120)
        assert workbench.open == STREAMS
        workbench.held.set()
        answers = await asyncio.gather(*clients)
        assert all(b"[DONE]" in answer for answer in answers)
        assert len({answer.count(b"data: ") for answer in answers}) == 1
        assert workbench.open == 0
