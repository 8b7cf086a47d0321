"""Serve a model over HTTP, ask it real questions through the API, report, and stop again.

The probe is an ordinary HTTP client on the port that users get: streaming, token and all. Invariant: a server this
step started is stopped when the step ends, unless `keep` was asked for.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from lathe.engine.errors import InternalError
from lathe.engine.jobs.services import ServiceContext
from lathe.engine.jobs.values import Figure, Outcome
from lathe.engine.states import ServerOptions
from lathe.engine.steps import ServeStep
from lathe.engine.workbench import ApiKey


async def run(step: ServeStep, context: ServiceContext) -> Outcome:
    """Start the server, probe every prompt, stop."""
    workbench = context.workbench
    await context.progress("loading", 0, None, stage=1, stages=2)
    name = (await workbench.model(step.model)).entry.name  # HTTP knows models by name, never by path
    already = (await workbench.snapshot()).server
    state = already
    if not already.running:
        options = ServerOptions(host=step.host, port=step.port, models=(step.model,), options=step.options)
        state = await workbench.start_server(options)
    else:
        await workbench.load(step.model, step.options)
    context.log(f"serving at {state.url}")
    key = await workbench.make_key(ApiKey(name=f"probe-{secrets.token_hex(4)}", created_at=time.time()))
    rows: list[dict[str, Figure]] = []
    try:
        for number, prompt in enumerate(step.prompts):
            await context.progress("asking", number, len(step.prompts), "prompt", stage=2, stages=2)
            rows.append(await ask(state.url or "", key.secret or "", name, prompt, step.max_tokens))
            context.log(f"{prompt!r}: {rows[-1]['completion_tokens']} tokens, TTFT {rows[-1]['ttft_s']:.3f} s")
        await context.progress("asking", len(step.prompts), len(step.prompts), "prompt", stage=2, stages=2)
    finally:
        await workbench.revoke_key(key.name)
        if not step.keep and not already.running:
            await workbench.stop_server()
    ttft = sorted(float(row["ttft_s"] or 0) for row in rows)
    figures: dict[str, Figure] = {"prompts": len(rows), "ttft_s": ttft[len(ttft) // 2] if ttft else None}
    if step.keep:
        figures["url"] = state.url
    return Outcome(figures=figures, rows=tuple(rows))


async def ask(url: str, token: str, model: str, prompt: str, max_tokens: int) -> dict[str, Figure]:
    """One streamed chat completion over HTTP; measured at the client."""
    body = {
        "model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": max_tokens, "temperature": 0,
        "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    started = time.monotonic()
    first: float | None = None
    text: list[str] = []
    usage: dict[str, int] = {}
    async with aclosing(_events(f"{url}/v1/chat/completions", token, body)) as events:
        async for event in events:
            usage = event.get("usage") or usage
            for choice in event.get("choices", ()):
                piece = choice.get("delta", {}).get("content") or ""
                if piece and first is None:
                    first = time.monotonic() - started
                text.append(piece)
    elapsed = time.monotonic() - started
    tokens = usage.get("completion_tokens", 0)
    decode_s = elapsed - (first or 0.0)
    return {
        "prompt": prompt, "text": "".join(text), "ttft_s": first, "elapsed_s": elapsed, "completion_tokens": tokens,
        "tokens_per_s": (tokens - 1) / decode_s if tokens > 1 and decode_s > 0 else None,
    }  # fmt: skip


async def _events(url: str, token: str, body: dict[str, object]) -> AsyncGenerator[dict[str, Any], None]:
    """Server-sent events of one streamed response, decoded."""
    import httpx2

    headers = {"Authorization": f"Bearer {token}"}
    async with (
        httpx2.AsyncClient(timeout=120, trust_env=False) as client,
        client.stream("POST", url, json=body, headers=headers) as response,
    ):
        if response.status_code != 200:
            await response.aread()
            raise InternalError(f"the server answered {response.status_code}: {response.text[:200]}")
        async for line in response.aiter_lines():
            if line.startswith("data: ") and line != "data: [DONE]":
                yield json.loads(line[6:])
