"""RAG stores over HTTP: listed, searched, and attached to a chat whose answer cites them."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from lathe.store.rag.values import StoreStats
from support.http_kit import MODEL, HeldWorkbench, key, serving

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "how do I reset the token"}]}


class Guarded(HeldWorkbench):
    """Its store `handbook` is open to the key `ops` alone."""

    async def stores(self) -> list[StoreStats]:
        return [
            msgspec.structs.replace(s, settings=msgspec.structs.replace(s.settings, access=("ops",)))
            if s.settings.name == "handbook" else s
            for s in await super().stores()
        ]  # fmt: skip


async def test_stores_are_listed_and_shown() -> None:
    async with serving() as served:
        listed = (await served.client.get("/v1/stores")).json()
        assert [(s["id"], s["embedder"]) for s in listed["data"]] == [("handbook", "all-minilm-l6-v2"), ("notes", None)]
        shown = (await served.client.get("/v1/stores/handbook")).json()
        assert (shown["documents"], shown["dimensions"], shown["version"]) == (2, 384, 2)
        for name in ("nothing", "..%2Fetc", "UPPER"):
            answer = await served.client.get(f"/v1/stores/{name}")
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "store_not_found")


async def test_a_search_tells_where_passages_stand() -> None:
    async with serving() as served:
        answer = await served.post("/v1/stores/handbook/search", {"query": "token", "k": 1, "mode": "bm25"})
        assert answer.status_code == 200
        [hit] = answer.json()["data"]
        assert hit["passage"]["path"] == "handbook/vpn.md" and hit["passage"]["heading"] == ["Network", "VPN"]
        assert hit["sources"]["bm25"]["rank"] == 1
        for body in ({}, {"query": ""}, {"query": "x", "k": 0}, {"query": "x", "mode": "sql"}, {"query": "x", "y": 1}):
            assert (await served.post("/v1/stores/handbook/search", body)).status_code == 400, body
        for length, status in ((4096, 200), (4097, 400)):
            body = {"query": "token", "filter": {"paths": ["*" * length]}}
            assert (await served.post("/v1/stores/handbook/search", body)).status_code == status
        assert (await served.post("/v1/stores/none/search", {"query": "x"})).status_code == 404


async def test_a_key_sees_its_own_stores_only() -> None:
    async with serving(keys=(key("k", stores=("notes",)),)) as served:
        assert [s["id"] for s in (await served.client.get("/v1/stores")).json()["data"]] == ["notes"]
        assert (await served.post("/v1/stores/handbook/search", {"query": "token"})).status_code == 404
        assert (await served.post("/v1/chat/completions", CHAT | {"store": "handbook"})).status_code == 404


async def test_a_stores_own_list_keeps_keys_out() -> None:
    for name, expected in (("ops", ["handbook", "notes"]), ("eve", ["notes"]), ("local", ["notes"])):
        async with serving(Guarded(), keys=(key(name),)) as served:
            assert [s["id"] for s in (await served.client.get("/v1/stores")).json()["data"]] == expected
            status = (await served.post("/v1/stores/handbook/search", {"query": "token"})).status_code
            assert status == (200 if name == "ops" else 404)


async def test_a_chat_with_a_store_cites_it() -> None:
    async with serving() as served:
        body = (await served.post("/v1/chat/completions", CHAT | {"store": "handbook"})).json()
        assert body["choices"][0]["message"]["content"].startswith("Reset the token in the portal [1].")
        assert body["choices"][0]["finish_reason"] == "stop"
        assert [c["number"] for c in body["citations"]] == [1, 2] and body["cited"] == [1, 2]
        assert body["citations"][0]["passage"]["path"] == "handbook/vpn.md"
        assert body["in_documents"] is True and len(body["support"]) == 2
        plain = (await served.post("/v1/chat/completions", CHAT | {"store": False})).json()
        assert "citations" not in plain


async def test_a_stream_begins_with_its_citations_and_ends_with_those_it_names() -> None:
    async with serving() as served:
        lines = await served.stream("/v1/chat/completions", CHAT | {"stream": True, "store": {"name": "handbook"}})
        assert lines.pop() == "data: [DONE]"
        chunks: list[dict[str, Any]] = [json.loads(line.removeprefix("data: ")) for line in lines]
        assert [c["number"] for c in chunks[0]["citations"]] == [1, 2]
        assert all("citations" not in chunk for chunk in chunks[1:])
        text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
        assert text == "Reset the token in the portal [1]. It is valid for eight hours [2]."
        assert chunks[-1]["cited"] == [1, 2] and chunks[-1]["choices"][0]["finish_reason"] == "stop"


async def test_what_is_not_in_the_documents_is_said() -> None:
    async with serving() as served:
        body = CHAT | {"store": "handbook", "messages": [{"role": "user", "content": "whales"}]}
        answer = (await served.post("/v1/chat/completions", body)).json()
        assert answer["in_documents"] is False and answer["citations"] == []
        assert answer["choices"][0]["message"]["content"] == "Not in the documents."


async def test_a_store_goes_with_no_tools() -> None:
    tool = {"type": "function", "function": {"name": "send", "parameters": {"type": "object"}}}
    async with serving() as served:
        for more in (
            {"tools": [tool]},
            {"n": 2},
            {"logprobs": True},
            {"messages": [{"role": "system", "content": "x"}]},
        ):
            answer = await served.post("/v1/chat/completions", {**CHAT, "store": "handbook", **more})
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_value"), more
