"""Anthropic's, Ollama's and the Responses dialect: mapping in, shapes out, streams that add up."""

from __future__ import annotations

import json
from typing import Any

import pytest
from lathe.engine.errors import CrashedError
from lathe.engine.generation import GenerationRequest
from support.http_kit import MODEL, SECRET, HeldWorkbench, Served, serving, sse

CALL = 'See:\n<tool_call>{"name": "weather", "arguments": {"city": "Bonn"}}</tool_call>'
MESSAGES = {"model": MODEL, "max_tokens": 50, "messages": [{"role": "user", "content": "hi"}]}
RESPONSES = {"model": MODEL, "input": "hi"}
OLLAMA = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
ANTHROPIC_TOOL = {"name": "weather", "description": "d", "input_schema": {"type": "object"}}
OPENAI_TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def asked(served: Served) -> GenerationRequest:
    return next(call[1] for call in reversed(served.workbench.calls) if call[0] == "generate")


def speaker() -> HeldWorkbench:
    return HeldWorkbench(answer=lambda request: CALL if request.tools else "Keys and values. é😀")


class Crashing(HeldWorkbench):
    """Dies after the first word."""

    async def generate(self, request: GenerationRequest):  # type: ignore[no-untyped-def,override]
        async for delta in super().generate(request):
            yield delta
            raise CrashedError("SIGSEGV")


# -- Anthropic -----------------------------------------------------------------------------------------------------
async def test_anthropic_conversations_become_engine_messages() -> None:
    async with serving(speaker()) as served:
        body = MESSAGES | {
            "system": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}},
                       {"type": "text", "text": "b"}],
            "messages": [
                {"role": "user", "content": "weather?"},
                {"role": "assistant", "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "x"}, {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Bonn"}}]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "sunny"}]},
                    {"type": "text", "text": "thanks"}]},
            ],
            "stop_sequences": ["END"], "temperature": 0.5, "top_k": 3, "metadata": {"user_id": "u"},
            "thinking": {"type": "disabled"},
        }  # fmt: skip
        assert (await served.post("/v1/messages", body)).status_code == 200
        request = asked(served)
        assert [(message.role, message.content) for message in request.messages] == [
            ("system", "a\nb"), ("user", "weather?"), ("assistant", "I look."), ("tool", "sunny"), ("user", "thanks"),
        ]  # fmt: skip
        assert request.messages[2].tool_calls[0].arguments == '{"city":"Bonn"}'
        assert request.messages[3].tool_call_id == "t1"
        assert (request.stop, request.max_tokens, request.sampling.temperature) == (("END",), 50, 0.5)
        assert request.template_args == {"enable_thinking": False}


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ({}, "end_turn"),
        ({"max_tokens": 2}, "max_tokens"),
        ({"stop_sequences": ["values"]}, "stop_sequence"),
        ({"tools": [ANTHROPIC_TOOL]}, "tool_use"),
    ],
)
async def test_an_anthropic_stream_adds_up_to_the_whole_answer(extra: dict[str, Any], reason: str) -> None:
    async with serving(speaker()) as served:
        whole = (await served.post("/v1/messages", MESSAGES | extra)).json()
        events = sse(await served.stream("/v1/messages", MESSAGES | extra | {"stream": True}))
        kinds = [event["type"] for event in events]
        assert (kinds[0], kinds[-2:]) == ("message_start", ["message_delta", "message_stop"])
        assert events[-2]["delta"]["stop_reason"] == whole["stop_reason"] == reason
        assert events[-2]["delta"]["stop_sequence"] == whole["stop_sequence"]
        assert events[-2]["usage"] == whole["usage"]
        blocks: list[dict[str, Any]] = []
        for event in events:
            if event["type"] == "content_block_start":
                assert event["index"] == len(blocks)
                blocks.append(event["content_block"] | {"json": ""})
            elif event["type"] == "content_block_delta":
                delta = event["delta"]
                blocks[event["index"]]["text" if "text" in delta else "json"] += (
                    delta.get("text") or delta["partial_json"]
                )
        assert kinds.count("content_block_start") == kinds.count("content_block_stop")
        for block in blocks:
            arguments = block.pop("json")
            if block["type"] == "tool_use":
                block["input"] = json.loads(arguments)
                block["id"] = next(item["id"] for item in whole["content"] if item["type"] == "tool_use")
        assert blocks == whole["content"]


async def test_anthropic_takes_its_own_key_header_and_answers_in_its_own_words() -> None:
    async with serving(speaker()) as served:
        del served.client.headers["authorization"]
        mine = {"x-api-key": SECRET, "anthropic-version": "2023-06-01"}
        assert (await served.post("/v1/messages", MESSAGES, headers=mine)).status_code == 200
        assert (await served.client.get("/v1/models", headers=mine)).status_code == 401
        count = await served.post(
            "/v1/messages/count_tokens", {"messages": MESSAGES["messages"], "model": MODEL}, headers=mine
        )
        assert count.json() == {"input_tokens": 9}
        refused = await served.post("/v1/messages", MESSAGES, headers={"x-api-key": "wrong"})
        assert refused.json()["error"]["type"] == "authentication_error"


@pytest.mark.parametrize(
    "extra",
    [
        {"max_tokens": 0}, {"max_tokens": None}, {"temperature": 1.5}, {"messages": []}, {"stop_sequences": [""]},
        {"messages": [{"role": "system", "content": "x"}]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "The answer is"}]},
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "http://x"}}]}]},
        {"tools": [{"type": "bash_20250124", "name": "bash"}]}, {"tool_choice": {"type": "any"}}, {"top_n": 1},
    ],
)  # fmt: skip
async def test_odd_anthropic_requests_are_refused(extra: dict[str, Any]) -> None:
    async with serving(speaker()) as served:
        answer = await served.post("/v1/messages", MESSAGES | extra)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_an_anthropic_stream_tells_its_failure() -> None:
    async with serving(Crashing()) as served:
        lines = await served.stream("/v1/messages", MESSAGES | {"stream": True})
        assert lines[-2] == "event: error"
        assert sse(lines)[-1]["error"]["type"] == "overloaded_error"


# -- Responses -----------------------------------------------------------------------------------------------------
async def test_responses_input_becomes_engine_messages() -> None:
    async with serving(speaker()) as served:
        body = RESPONSES | {
            "instructions": "be brief", "max_output_tokens": 9, "temperature": 0, "truncation": "auto",
            "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "array"}}},
            "reasoning": {"effort": "low"},
            "input": [
                {"role": "developer", "content": "rules"},
                {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
                {"type": "reasoning", "summary": [], "id": "r"},
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c", "output": "42"},
                {"type": "message", "role": "assistant", "id": "m", "content": [{"type": "output_text", "text": "b"}]},
            ],
        }  # fmt: skip
        assert (await served.post("/v1/responses", body)).status_code == 200
        request = asked(served)
        assert [(message.role, message.content) for message in request.messages] == [
            ("system", "be brief"), ("system", "rules"), ("user", "a"), ("assistant", ""), ("tool", "42"),
            ("assistant", "b"),
        ]  # fmt: skip
        assert (request.max_tokens, request.overflow) == (9, "truncate_middle")
        assert request.sampling.json_schema == '{"type":"array"}'
        assert request.template_args == {"reasoning_effort": "low"}


FLAT_TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object"}}


@pytest.mark.parametrize(
    ("extra", "status"),
    [({}, "completed"), ({"max_output_tokens": 2}, "incomplete"), ({"tools": [FLAT_TOOL]}, "completed")],
)
async def test_a_responses_stream_builds_the_whole_answer(extra: dict[str, Any], status: str) -> None:
    async with serving(speaker()) as served:
        whole = (await served.post("/v1/responses", RESPONSES | extra)).json()
        events = sse(await served.stream("/v1/responses", RESPONSES | extra | {"stream": True}))
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        assert events[0]["type"] == "response.created"
        assert events[0]["response"]["output"] == []
        final = events[-1]["response"]
        assert events[-1]["type"] == f"response.{status}"
        assert final["status"] == whole["status"] == status
        items: list[dict[str, Any]] = []
        for event in events:
            match event["type"].removeprefix("response."):
                case "output_item.added":
                    items.append(event["item"])
                case "content_part.added":
                    items[event["output_index"]]["content"].append(event["part"])
                case "output_text.delta":
                    items[event["output_index"]]["content"][event["content_index"]]["text"] += event["delta"]
                case "function_call_arguments.delta":
                    items[event["output_index"]]["arguments"] += event["delta"]
                case "output_item.done":
                    assert event["item"] | {"status": 0} == items[event["output_index"]] | {"status": 0}
        assert [_bare(item) for item in items] == [_bare(item) for item in final["output"]]
        assert [_bare(item) for item in items] == [_bare(item) for item in whole["output"]]
        assert final["usage"] == whole["usage"]


def _bare(item: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in item.items() if name not in ("id", "call_id", "status")}


@pytest.mark.parametrize(
    "extra",
    [
        {"previous_response_id": "resp_1"}, {"background": True}, {"conversation": "c"}, {"input": []}, {"input": None},
        {"input": [{"type": "item_reference", "id": "x"}]}, {"max_output_tokens": 0},
        {"tools": [{"type": "web_search"}]},
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://x"}]}]},
    ],
)  # fmt: skip
async def test_responses_that_need_storage_or_sight_are_refused(extra: dict[str, Any]) -> None:
    async with serving(speaker()) as served:
        assert (await served.post("/v1/responses", RESPONSES | extra)).status_code == 400


async def test_a_responses_stream_tells_its_failure() -> None:
    async with serving(Crashing()) as served:
        events = sse(await served.stream("/v1/responses", RESPONSES | {"stream": True}))
        assert (events[-1]["type"], events[-1]["code"]) == ("error", "engine_crashed")


# -- Ollama --------------------------------------------------------------------------------------------------------
async def lines(served: Served, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in await served.stream(path, body)]


@pytest.mark.parametrize("extra", [{}, {"tools": [OPENAI_TOOL]}, {"options": {"num_predict": 2}}])
async def test_an_ollama_stream_adds_up_to_the_whole_answer(extra: dict[str, Any]) -> None:
    async with serving(speaker()) as served:
        whole = (await served.post("/api/chat", OLLAMA | extra | {"stream": False})).json()
        parts = await lines(served, "/api/chat", OLLAMA | extra)
        assert "".join(part["message"]["content"] for part in parts) == whole["message"]["content"]
        calls = [call for part in parts for call in part["message"].get("tool_calls", [])]
        assert calls == whole["message"].get("tool_calls", [])
        assert [part["done"] for part in parts] == [False] * (len(parts) - 1) + [True]
        for name in ("done_reason", "prompt_eval_count", "eval_count", "total_duration", "eval_duration"):
            assert parts[-1][name] == whole[name]
        assert all(part["created_at"].endswith("Z") for part in parts)


async def test_ollama_generates_with_the_template_or_raw() -> None:
    async with serving(speaker()) as served:
        body = {"model": f"{MODEL}:latest", "prompt": "hi", "system": "be brief", "stream": False}
        assert (await served.post("/api/generate", body)).json()["response"] == "Keys and values. é😀"
        assert [message.role for message in asked(served).messages] == ["system", "user"]
        await served.post("/api/generate", body | {"raw": True})
        assert asked(served).prompt == "hi"
        parts = await lines(served, "/api/generate", body | {"stream": True})
        assert "".join(part["response"] for part in parts) == "Keys and values. é😀"


async def test_ollama_options_pass_and_loader_settings_are_ignored() -> None:
    async with serving(speaker()) as served:
        options = {
            "temperature": 0.1,
            "num_ctx": 99,
            "num_gpu": 5,
            "seed": -1,
            "stop": ["x"],
            "num_predict": -1,
            "numa": 1,
        }
        body = OLLAMA | {"stream": False, "options": options, "format": {"type": "array"}, "think": "low"}
        assert (await served.post("/api/chat", body)).status_code == 200
        request = asked(served)
        assert (request.sampling.temperature, request.sampling.seed, request.max_tokens) == (0.1, None, None)
        assert (request.stop, request.sampling.json_schema) == (("x",), '{"type":"array"}')
        assert request.template_args == {"enable_thinking": True, "reasoning_effort": "low"}


async def test_ollama_loads_and_unloads_with_empty_requests() -> None:
    async with serving(speaker()) as served:
        loaded = (await served.post("/api/generate", {"model": "stdlib-4m-f16"})).json()
        assert (loaded["done"], loaded["done_reason"], loaded["response"]) == (True, "load", "")
        gone = (await served.post("/api/chat", {"model": "stdlib-4m-f16", "messages": [], "keep_alive": 0})).json()
        assert gone["done_reason"] == "unload"
        assert served.workbench.calls[-1] == ("unload", "stdlib-4m-f16")


async def test_unloading_needs_a_key_that_may() -> None:
    from support.http_kit import key

    async with serving(speaker(), keys=(key("k"),)) as served:
        answer = await served.post("/api/generate", {"model": MODEL, "keep_alive": 0})
        assert answer.status_code == 403
        assert served.workbench.workers


async def test_ollama_embeds_and_describes() -> None:
    async with serving(speaker()) as served:
        body = {"model": MODEL, "input": ["a", "b"]}
        assert [len(row) for row in (await served.post("/api/embed", body)).json()["embeddings"]] == [8, 8]
        assert (await served.post("/api/embed", body | {"input": []})).json()["embeddings"] == []
        old = (await served.post("/api/embeddings", {"model": MODEL, "prompt": "a"})).json()
        assert len(old["embedding"]) == 8
        shown = (await served.post("/api/show", {"model": MODEL})).json()
        assert shown["details"]["quantization_level"] == "Q4_K_M"
        assert "completion" in shown["capabilities"]
        running = (await served.client.get("/api/ps")).json()["models"]
        assert MODEL in [model["name"] for model in running]
        assert "version" in (await served.client.get("/api/version")).json()


async def test_an_ollama_stream_tells_its_failure() -> None:
    async with serving(Crashing()) as served:
        assert "error" in (await lines(served, "/api/chat", OLLAMA))[-1]


@pytest.mark.parametrize(
    "extra",
    [{"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}, {"options": {"temperature": -1}},
     {"options": {"stop": [""]}}, {"format": "xml"}, {"nonsense": 1},
     {"messages": [{"role": "wizard", "content": "x"}]}],
)  # fmt: skip
async def test_odd_ollama_requests_are_refused(extra: dict[str, Any]) -> None:
    async with serving(speaker()) as served:
        answer = await served.post("/api/chat", OLLAMA | extra)
        assert answer.status_code == 400
        assert isinstance(answer.json()["error"], str)
