"""LoRA adapters over HTTP: chosen by name or number, active by default where the server was started with them."""

from __future__ import annotations

from typing import Any

import msgspec
from lathe.engine.worker.messages import LoadOptions
from support.http_kit import MODEL, Served, serving

CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
ADAPTERS = ("/secret/place/poet.gguf", "/secret/place/coder.gguf")


def with_adapters(served: Served) -> None:
    worker = served.workbench.workers[served.workbench._find(MODEL).id]
    changed = msgspec.structs.replace(worker, options=LoadOptions(adapters=ADAPTERS))
    served.workbench.workers[worker.model_id] = changed


def adapters_of(served: Served) -> dict[str, float]:
    request = next(call[1] for call in reversed(served.workbench.calls) if call[0] == "generate")
    return request.adapters


async def test_a_request_names_its_adapters() -> None:
    async with serving() as served:
        with_adapters(served)
        await served.post("/v1/chat/completions", CHAT | {"lora": [{"id": "coder", "scale": 0.5}]})
        assert adapters_of(served) == {"poet": 0.0, "coder": 0.5}
        prompt = {"model": MODEL, "prompt": "Hi", "max_tokens": 3}
        await served.post("/v1/completions", prompt | {"lora": [{"id": 0, "scale": 1}, {"id": "coder", "scale": -1}]})
        assert adapters_of(served) == {"poet": 1.0, "coder": -1.0}
        for wrong in ("pirate", "", 2, "/secret/place/poet.gguf"):
            refused = await served.post("/v1/chat/completions", CHAT | {"lora": [{"id": wrong, "scale": 1}]})
            assert refused.status_code == 400
            assert wrong == ADAPTERS[0] or "/secret" not in refused.text


async def test_what_the_server_was_started_with_acts_unless_told_otherwise() -> None:
    async with serving(options=LoadOptions(adapters=ADAPTERS)) as served:
        with_adapters(served)
        await served.post("/v1/chat/completions", CHAT)
        assert adapters_of(served) == {"poet": 1.0, "coder": 1.0}
        await served.post("/v1/chat/completions", CHAT | {"lora": []})
        assert adapters_of(served) == {"poet": 0.0, "coder": 0.0}
        await served.post("/lora-adapters", [{"id": "poet", "scale": 0.2}], params={"model": MODEL})
        await served.post("/v1/chat/completions", CHAT)
        assert adapters_of(served) == {"poet": 0.2, "coder": 0.0}
