"""OpenAI's dialect: what is asked of the engine, what comes back, and that a stream adds up to the whole answer."""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from lathe.engine.errors import BusyError, CrashedError, UsageError
from lathe.engine.generation import Delta, Embeddings, EmbedRequest, GenerationRequest
from lathe.engine.http import pump
from lathe.engine.http.limits import Limits
from support.http_kit import MODEL, HeldWorkbench, Served, serving, sse
from support.waiting import until

USER = [{"role": "user", "content": "hi"}]
CHAT: dict[str, Any] = {"model": MODEL, "messages": USER}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}},
    {"type": "function", "function": {"name": "time"}},
]
CALL = 'Wait.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'


def asked(served: Served) -> GenerationRequest:
    """The last request that reached the engine."""
    return next(call[1] for call in reversed(served.workbench.calls) if call[0] == "generate")


async def test_parameters_reach_the_engine_under_their_engine_names() -> None:
    async with serving() as served:
        body = CHAT | {
            "temperature": 0, "top_p": 0.5, "top_k": 7, "min_p": 0.1, "typical_p": 0.9, "repeat_penalty": 1.2,
            "repeat_last_n": 32, "frequency_penalty": 0.3, "presence_penalty": -0.3, "seed": 2**33 + 5, "n": 2,
            "stop": ["a", "b"], "max_tokens": 9, "max_completion_tokens": 4, "logit_bias": {"5": -100, "6": 1.5},
            "logprobs": True, "top_logprobs": 3, "ignore_eos": True, "mirostat": 2, "cache_prompt": False,
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array"}}},
            "chat_template_kwargs": {"enable_thinking": False}, "reasoning_effort": "low", "deadline_s": 5,
            "overflow": "truncate_left", "user": "u", "metadata": {"a": "b"}, "store": True, "temperature_": None,
        }  # fmt: skip
        del body["temperature_"]
        assert (await served.post("/v1/chat/completions", body)).status_code == 200
        request = asked(served)
        sampling = request.sampling
        assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0, 0.5, 7, 0.1)
        assert (sampling.seed, sampling.logit_bias) == (5, {5: -100.0, 6: 1.5})
        assert (sampling.json_schema, sampling.ignore_eos, sampling.mirostat) == ('{"type":"array"}', True, 2)
        assert (request.n, request.stop, request.max_tokens, request.logprobs) == (2, ("a", "b"), 4, 3)
        assert (request.template_args, request.overflow, request.deadline_s) == (
            {"enable_thinking": False, "reasoning_effort": "low"}, "truncate_left", 5,
        )  # fmt: skip
        assert (request.principal, request.client, request.cache_prompt) == ("key:ops", "http ops@127.0.0.1", False)


async def test_null_means_not_given() -> None:
    async with serving() as served:
        body = CHAT | dict.fromkeys(("temperature", "stop", "n", "tools", "seed", "stream", "user", "logit_bias"))
        assert (await served.post("/v1/chat/completions", body)).status_code == 200
        assert asked(served).sampling.temperature == 0.8


async def test_messages_of_every_kind() -> None:
    async with serving() as served:
        messages = [
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": None, "refusal": None, "audio": None, "annotations": [],
             "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "content": "42", "tool_call_id": "c1"},
        ]  # fmt: skip
        assert (await served.post("/v1/chat/completions", {"model": MODEL, "messages": messages})).status_code == 200
        system, user, assistant, tool = asked(served).messages
        assert (system.role, user.content, assistant.content) == ("system", "ab", "")
        assert (assistant.tool_calls[0].name, tool.tool_call_id) == ("f", "c1")


@pytest.mark.parametrize(
    "part",
    [{"type": "image_url", "image_url": {"url": "http://evil/x"}}, {"type": "input_audio", "input_audio": {}},
     {"type": "file", "file": {}}],
)  # fmt: skip
async def test_pictures_and_sound_are_refused_and_nothing_is_fetched(part: dict[str, Any]) -> None:
    async with serving() as served:
        answer = await served.post("/v1/chat/completions", CHAT | {"messages": [{"role": "user", "content": [part]}]})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unsupported_content")


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"n": 3},
        {"logprobs": True, "top_logprobs": 2},
        {"max_tokens": 3},
        {"stop": "memory"},
        {"tools": TOOLS},
        {"tools": TOOLS, "n": 2},
    ],
)
async def test_a_chat_stream_adds_up_to_the_whole_answer(extra: dict[str, Any]) -> None:
    workbench = HeldWorkbench(answer=lambda request: CALL if request.tools else "Keys and **values** in memory. é😀")
    async with serving(workbench) as served:
        whole = (await served.post("/v1/chat/completions", CHAT | extra)).json()
        lines = await served.stream(
            "/v1/chat/completions", CHAT | extra | {"stream": True, "stream_options": {"include_usage": True}}
        )
        assert lines[-1] == "data: [DONE]"
        chunks = sse(lines)
        assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
        assert chunks[-1]["choices"] == []
        assert chunks[-1]["usage"] == whole["usage"]
        for choice in whole["choices"]:
            mine = [part for chunk in chunks for part in chunk["choices"] if part["index"] == choice["index"]]
            assert mine[0]["delta"]["role"] == "assistant"
            text = "".join(part["delta"].get("content") or "" for part in mine)
            assert text == (choice["message"]["content"] or "")
            calls = [call["function"] for part in mine for call in part["delta"].get("tool_calls", [])]
            assert calls == [call["function"] for call in choice["message"].get("tool_calls", [])]
            reasons = [part["finish_reason"] for part in mine if part["finish_reason"]]
            assert reasons == [choice["finish_reason"]]
            logprobs = [item for part in mine if part["logprobs"] for item in part["logprobs"]["content"]]
            assert logprobs == ((choice["logprobs"] or {}).get("content") or [])


async def test_tool_calls_end_the_answer_with_their_own_reason() -> None:
    async with serving(HeldWorkbench(answer=CALL)) as served:
        choice = (await served.post("/v1/chat/completions", CHAT | {"tools": TOOLS})).json()["choices"][0]
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["content"] == "Wait.\n"
        assert choice["message"]["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"city": "Köln"}'}
        # The same text without tools, or with the tool not offered, is text.
        for extra in ({}, {"tools": TOOLS, "tool_choice": "none"}, {"tools": TOOLS[1:]}):
            choice = (await served.post("/v1/chat/completions", CHAT | extra)).json()["choices"][0]
            assert (choice["message"]["content"], choice["finish_reason"]) == (CALL, "stop")


async def test_a_forced_tool_constrains_the_output() -> None:
    answer = '{"name": "time", "arguments": {}}'
    async with serving(HeldWorkbench(answer=answer)) as served:
        choice = {"type": "function", "function": {"name": "time"}}
        whole = await served.post("/v1/chat/completions", CHAT | {"tools": TOOLS, "tool_choice": choice})
        assert whole.json()["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "time"
        assert '"const":"time"' in (asked(served).sampling.json_schema or "")


async def test_timings_and_usage_have_the_peers_names() -> None:
    async with serving() as served:
        answer = (await served.post("/v1/chat/completions", CHAT)).json()
        assert set(answer["timings"]) >= {
            "cache_n", "prompt_n", "prompt_ms", "prompt_per_token_ms", "prompt_per_second", "predicted_n",
            "predicted_ms", "predicted_per_token_ms", "predicted_per_second",
        }  # fmt: skip
        assert (
            answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + answer["usage"]["completion_tokens"]
        )
        assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}


@pytest.mark.parametrize("extra", [{}, {"n": 2}, {"echo": True}, {"echo": True, "n": 2, "logprobs": 2}, {"logprobs": 0},
                                   {"echo": True, "logprobs": 1, "max_tokens": 0}])  # fmt: skip
@pytest.mark.parametrize("prompt", ["hello world", ["a b", "c"], "é😀"])
async def test_a_completion_stream_adds_up_to_the_whole_answer(extra: dict[str, Any], prompt: Any) -> None:
    async with serving() as served:
        body = {"model": MODEL, "prompt": prompt, "max_tokens": 4} | extra
        whole = (await served.post("/v1/completions", body)).json()
        chunks = sse(await served.stream("/v1/completions", body | {"stream": True}))
        prompts = prompt if isinstance(prompt, list) else [prompt]
        assert len(whole["choices"]) == len(prompts) * extra.get("n", 1)
        for place, choice in enumerate(whole["choices"]):
            assert choice["index"] == place
            mine = [part for chunk in chunks for part in chunk["choices"] if part["index"] == place]
            assert "".join(part["text"] for part in mine) == choice["text"]
            if extra.get("echo"):
                assert choice["text"].startswith(prompts[place // extra.get("n", 1)])
            joined: dict[str, list[Any]] = {}
            for part in mine:
                for name, values in (part["logprobs"] or {}).items():
                    joined.setdefault(name, []).extend(values)
            assert joined == (choice["logprobs"] or {})
            for token, offset in zip(joined.get("tokens", []), joined.get("text_offset", []), strict=True):
                assert choice["text"][offset:].startswith(token)


async def test_token_ids_as_prompts() -> None:
    async with serving() as served:
        ids = (await served.post("/tokenize", {"model": MODEL, "prompt": "a b", "add_special": False})).json()["tokens"]
        for prompt in (ids, [ids, ids]):
            answer = await served.post("/v1/completions", {"model": MODEL, "prompt": prompt, "max_tokens": 1})
            assert answer.status_code == 200
            assert asked(served).tokens == tuple(ids)


@pytest.mark.parametrize("prompt", [[], ["a", 1], [1, "a"], [[1], "a", 2], [""] * 257, {"prompt_string": "x"}, None, 5])
async def test_odd_prompts_are_refused(prompt: Any) -> None:
    async with serving() as served:
        answer = await served.post("/v1/completions", {"model": MODEL, "prompt": prompt})
        assert answer.status_code == 400


async def test_several_prompts_run_side_by_side_within_a_bound() -> None:
    workbench = HeldWorkbench()
    workbench.held = asyncio.Event()
    async with serving(workbench) as served:
        running = asyncio.create_task(
            served.post("/v1/completions", {"model": MODEL, "prompt": ["a"] * 40, "max_tokens": 1})
        )
        await until(lambda: workbench.open == 16)
        workbench.held.set()
        answer = (await running).json()
        assert workbench.most == 16
        assert [choice["index"] for choice in answer["choices"]] == list(range(40))
        assert answer["usage"]["completion_tokens"] == 40


async def test_one_failing_prompt_fails_the_request_and_frees_the_rest() -> None:
    async with serving() as served:
        served.workbench.fail["generate"] = UsageError("too long", code="E_CONTEXT_OVERFLOW", hint="shorten it")
        answer = await served.post("/v1/completions", {"model": MODEL, "prompt": ["a", "b", "c"]})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
        assert served.workbench.open == 0


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (UsageError("bad"), 400, "E_USAGE"),
        (BusyError("queue full"), 503, "E_BUSY"),
        (CrashedError("SIGSEGV"), 503, "engine_crashed"),
        (RuntimeError("secret"), 500, "E_INTERNAL"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_errors_before_the_first_token_have_their_own_status(
    error: Exception, status: int, code: str, stream: bool
) -> None:
    async with serving() as served:
        served.workbench.fail["generate"] = error  # type: ignore[assignment]
        answer = await served.post("/v1/chat/completions", CHAT | {"stream": stream})
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
        assert "secret" not in answer.text
        assert (status == 503) == ("retry-after" in answer.headers)


async def test_an_error_in_mid_stream_is_an_event_and_no_done_follows() -> None:
    class Broken(HeldWorkbench):
        async def generate(self, request: GenerationRequest):  # type: ignore[no-untyped-def,override]
            async for delta in super().generate(request):
                yield delta
                if "cache" in delta.text:
                    raise CrashedError("SIGSEGV")

    async with serving(Broken()) as served:
        lines = await served.stream("/v1/chat/completions", CHAT | {"stream": True})
        assert sse(lines)[-1]["error"]["code"] == "engine_crashed"
        assert "data: [DONE]" not in lines
        whole = await served.post("/v1/chat/completions", CHAT)
        assert whole.status_code == 503


async def test_an_answer_cancelled_on_the_server_does_not_pass_for_a_short_one() -> None:
    workbench = HeldWorkbench(token_s=0.01)
    async with serving(workbench) as served:
        running = asyncio.create_task(served.stream("/v1/chat/completions", CHAT | {"stream": True}))
        await until(lambda: any(id_ in workbench.requests for id_ in workbench._stop))
        await workbench.cancel_request(next(iter(workbench._stop)))
        assert sse(await running)[-1]["error"]["code"] == "cancelled"


async def test_a_stream_whose_first_token_is_late_starts_and_pings() -> None:
    workbench = HeldWorkbench()
    workbench.held = asyncio.Event()
    async with serving(workbench, limits=Limits(first_byte_s=0.02, ping_s=0.02)) as served:
        body = CHAT | {"stream": True}
        async with served.client.stream("POST", "/v1/chat/completions", json=body) as answer:
            assert answer.status_code == 200
            lines = answer.aiter_lines()
            pings = [line for line in [await anext(lines) for _ in range(6)] if line]
            assert pings == [": ping"] * 3
            workbench.held.set()
            rest = [line async for line in lines if line]
            assert rest[-1] == "data: [DONE]"


async def test_a_stream_that_speaks_is_not_pinged() -> None:
    async with serving(HeldWorkbench(token_s=0.01), limits=Limits(first_byte_s=0.05, ping_s=5)) as served:
        lines = await served.stream("/v1/chat/completions", CHAT | {"stream": True, "max_tokens": 20})
        assert not [line for line in lines if line.startswith(":")]


async def test_a_failure_after_an_early_start_is_an_event() -> None:
    workbench = HeldWorkbench()
    workbench.load_s = 0.3
    del workbench.workers[workbench._find(MODEL).id]
    workbench.fail["estimate"] = BusyError("no memory")
    original = workbench.load

    async def slowly(*arguments: Any) -> Any:
        await asyncio.sleep(0.1)
        return await original(*arguments)

    workbench.load = slowly  # type: ignore[method-assign,assignment]
    async with serving(workbench, limits=Limits(first_byte_s=0.01, ping_s=5)) as served:
        lines = await served.stream("/v1/chat/completions", CHAT | {"stream": True})
        assert [line for line in lines if line.startswith("data:")] == lines[1:]
        assert sse(lines)[0]["error"]["code"] == "E_BUSY"


async def test_a_failure_in_the_moment_of_the_first_ping_keeps_its_own_status(monkeypatch: pytest.MonkeyPatch) -> None:
    failing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    look = pump.Silence._look

    def fail_and_look(silence: pump.Silence) -> None:
        if not failing.done():
            failing.set_exception(BusyError("the queue is full"))
        look(silence)

    class Failing(HeldWorkbench):
        async def generate(self, request: GenerationRequest) -> AsyncGenerator[Delta, None]:
            await failing
            yield Delta()

    monkeypatch.setattr(pump.Silence, "_look", fail_and_look)
    async with serving(Failing(), limits=Limits(first_byte_s=0.01)) as served:
        answer = await served.post("/v1/chat/completions", CHAT | {"stream": True})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "E_BUSY")


async def test_embeddings_in_both_encodings_and_fewer_dimensions() -> None:
    async with serving() as served:
        body = {"model": MODEL, "input": ["a", "b"]}
        plain = (await served.post("/v1/embeddings", body)).json()
        packed = (await served.post("/v1/embeddings", body | {"encoding_format": "base64"})).json()
        for left, right in zip(plain["data"], packed["data"], strict=True):
            decoded = struct.unpack("<8f", base64.b64decode(right["embedding"]))
            assert list(decoded) == left["embedding"]
        assert plain["usage"]["prompt_tokens"] == 2
        short = (await served.post("/v1/embeddings", body | {"dimensions": 3})).json()["data"]
        for left, right in zip(plain["data"], short, strict=True):
            assert sum(x * x for x in right["embedding"]) == pytest.approx(1)
            ratio = left["embedding"][0] / right["embedding"][0]
            assert right["embedding"] == pytest.approx([x / ratio for x in left["embedding"][:3]])
        for bad in ({"dimensions": 9}, {"input": []}, {"input": [1, "a"]}, {"input": ["x"] * 2049}):
            assert (await served.post("/v1/embeddings", body | bad)).status_code == 400
        ids = (await served.post("/tokenize", {"model": MODEL, "prompt": "a", "add_special": False})).json()["tokens"]
        assert (await served.post("/v1/embeddings", body | {"input": ids})).json()["data"][0] == plain["data"][0]


class Reranker(HeldWorkbench):
    """Its model gives one score per pair."""

    async def embed(self, request: EmbedRequest) -> Embeddings:
        found = await super().embed(request)
        scores = [found.vectors[start : start + 4] for start in range(0, len(found.vectors), found.dimensions * 4)]
        return Embeddings(b"".join(scores), found.rows, 1, found.prompt_tokens)


async def test_a_model_that_gives_vectors_is_no_reranker() -> None:
    async with serving() as served:
        answer = await served.post("/v1/rerank", {"model": MODEL, "query": "q", "documents": ["a"]})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "not_supported")


async def test_rerank_orders_by_score() -> None:
    async with serving(Reranker()) as served:
        body = {"model": MODEL, "query": "q", "documents": ["a", {"text": "b"}, "c"], "return_documents": True}
        answer = (await served.post("/v1/rerank", body)).json()
        scores = [row["relevance_score"] for row in answer["results"]]
        assert scores == sorted(scores, reverse=True)
        assert {row["index"]: row["document"]["text"] for row in answer["results"]} == {0: "a", 1: "b", 2: "c"}
        top = (await served.post("/v1/rerank", body | {"top_n": 1, "return_documents": False})).json()["results"]
        assert top == [{key: answer["results"][0][key] for key in ("index", "relevance_score")}]
        embed = next(call[1] for call in served.workbench.calls if call[0] == "embed")
        assert (embed.pooling, embed.query, embed.normalize) == ("rank", "q", False)


async def test_score_gives_each_continuation_its_likelihood() -> None:
    async with serving() as served:
        body = {"model": MODEL, "context": "the", "continuations": [" cat", " dog ran"]}
        rows = (await served.post("/v1/score", body)).json()["data"]
        assert [row["tokens"] for row in rows] == [1, 2]
        for row in rows:
            assert row["logprob"] == pytest.approx(sum(row["token_logprobs"]))


async def test_tokens_go_and_come_back_under_both_vocabularies() -> None:
    async with serving() as served:
        llama = (await served.post("/tokenize", {"model": MODEL, "content": "a b", "with_pieces": True})).json()
        vllm = (await served.post("/tokenize", {"model": MODEL, "prompt": "a b", "return_token_strs": True})).json()
        assert [token["piece"] for token in llama["tokens"]] == ["a", " b"]
        assert vllm["token_strs"] == ["<s>", "a", " b"]
        assert vllm["count"] == 3
        text = (await served.post("/detokenize", {"model": MODEL, "tokens": vllm["tokens"][1:]})).json()
        assert text == {"content": "a b", "prompt": "a b"}
        template = (await served.post("/apply-template", CHAT)).json()
        assert template["prompt"].endswith("<|im_start|>assistant\n")
        info = (await served.client.get("/tokenizer_info", params={"model": MODEL})).json()
        assert set(info) == {"tokenizer_class", "bos_token", "eos_token", "chat_template"}


async def test_lora_scales_per_request_and_for_all() -> None:
    import msgspec
    from lathe.engine.worker.messages import LoadOptions

    async with serving() as served:
        worker = served.workbench.workers[served.workbench._find(MODEL).id]
        options = LoadOptions(adapters=("/secret/place/poet.gguf", "/secret/place/coder.gguf"))
        served.workbench.workers[worker.model_id] = msgspec.structs.replace(worker, options=options)
        query = {"model": MODEL}
        listed = await served.client.get("/lora-adapters", params=query)
        assert listed.json() == [
            {"id": 0, "path": "poet", "scale": 1.0},
            {"id": 1, "path": "coder", "scale": 1.0},
        ]
        await served.post("/v1/chat/completions", CHAT | {"lora": [{"id": 1, "scale": 0.5}]})
        assert asked(served).adapters == {"poet": 0.0, "coder": 0.5}
        await served.post("/lora-adapters", [{"id": 0, "scale": 0.2}], params=query)
        await served.post("/v1/chat/completions", CHAT)
        assert asked(served).adapters == {"poet": 0.2, "coder": 0.0}
        missing = await served.post("/v1/chat/completions", CHAT | {"lora": [{"id": 2, "scale": 1}]})
        assert missing.status_code == 400


async def test_slots_show_stages_and_no_text() -> None:
    import msgspec
    from lathe.engine.worker.messages import RequestState, WorkerStats

    async with serving() as served:
        worker = served.workbench.workers[served.workbench._find(MODEL).id]
        rows = (RequestState(7, "decode", "http x", "key:ops", 10, 10, 3, 0.5),
                RequestState(8, "waiting", "http y", "key:other", 20, 0, 0, 0.1))  # fmt: skip
        stats = WorkerStats(requests=rows)
        served.workbench.workers[worker.model_id] = msgspec.structs.replace(worker, stats=stats)
        slots = (await served.client.get("/slots", params={"model": MODEL})).json()
        assert [(slot["is_processing"], slot["own"]) for slot in slots] == [(True, True), (False, False)]
        assert "other" not in str(slots)


@pytest.mark.parametrize("repeats", [False, True])
@pytest.mark.parametrize("joined", [False, True])
def test_every_choice_begins_with_the_prompt_once(repeats: bool, joined: bool) -> None:
    """Whether a backend gives the prompt for each choice or for the first, alone or with the tokens after it."""
    from lathe.engine.generation import Delta, TokenLogprob
    from lathe.engine.http.completions import Choices

    token = TokenLogprob(5, " b", -1.0)
    scored = Delta(index=0, text="a", prompt_logprobs=(TokenLogprob(4, "a", None),))
    deltas = [scored, Delta(index=0, text=" b", tokens=(5,), logprobs=(token,))]
    if repeats and joined:
        deltas.append(Delta(index=1, text="a b", tokens=(5,), logprobs=(token,)))
    else:
        deltas += [Delta(index=1, text="a")] if repeats else []
        deltas.append(Delta(index=1, text=" b", tokens=(5,), logprobs=(token,)))
    choices = Choices(echo=True, n=2)
    pieces = [piece for delta in deltas for piece in choices.feed(delta)]
    for index in (0, 1):
        mine = [piece for piece in pieces if piece.index == index]
        assert "".join(piece.text for piece in mine) == "a b"
        offsets = [offset for piece in mine if piece.logprobs for offset in piece.logprobs.text_offset]
        assert offsets == [0, 1]


async def test_two_keys_asking_at_once_never_see_each_other() -> None:
    """Canaries of one key in the answers of another would mean crossed wires (S12)."""
    from support.http_kit import key

    secrets = {"ann": "lathe-" + "a" * 43, "bob": "lathe-" + "b" * 43}
    workbench = HeldWorkbench(answer=lambda request: f"{request.principal} said {request.messages[-1].content}")
    keys = tuple(key(name, secret) for name, secret in secrets.items())
    async with serving(workbench, keys=keys) as served:

        async def ask(name: str, number: int) -> None:
            canary = f"{name}-canary-{number}"
            body = CHAT | {"messages": [{"role": "user", "content": canary}], "stream": number % 2 == 0}
            headers = {"authorization": f"Bearer {secrets[name]}"}
            answer = await served.post("/v1/chat/completions", body, headers=headers)
            if body["stream"]:
                parts = [part for chunk in sse(answer.text.split("\n")) for part in chunk["choices"]]
                text = "".join(part["delta"].get("content") or "" for part in parts)
            else:
                text = answer.json()["choices"][0]["message"]["content"]
            assert text == f"key:{name} said {canary}"

        await asyncio.gather(*(ask(name, number) for number in range(150) for name in secrets))
        principals = {call[1].principal for call in workbench.calls if call[0] == "generate"}
        assert principals == {"key:ann", "key:bob"}
