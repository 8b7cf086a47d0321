"""The official clients against the embedded model: a whole engine, a worker process, llama.cpp, HTTP.

`test_clients.py` checks every shape on scripted answers; here the answers are the model's. lm-evaluation-harness is
skipped where it is not installed (it brings torch); its figures on tasks stand in benchmarks/RESULTS.md.
"""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support.served_model import ServedModel, served_model
from support.waiting import until

pytestmark = [pytest.mark.native, pytest.mark.filterwarnings("ignore")]

ASK: list[Any] = [{"role": "user", "content": "What does the Python function os.path.join do?"}]
SAYS = "Join two or more pathname components"
WEATHER: dict[str, Any] = {
    "type": "object", "properties": {"city": {"enum": ["Bonn", "Oslo"]}}, "required": ["city"],
    "additionalProperties": False,
}  # fmt: skip


@pytest.fixture
async def served(home: Path, embedded_gguf: Path) -> AsyncIterator[ServedModel]:
    async with served_model(home, embedded_gguf) as server:
        yield server


async def test_openai_chats_streams_scores_and_embeds(served: ServedModel) -> None:
    openai = pytest.importorskip("openai")
    async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key=served.secret, max_retries=0) as client:
        (listed,) = [model.id async for model in client.models.list()]
        assert listed == served.model
        greedy: dict[str, Any] = {"model": served.model, "messages": ASK, "max_tokens": 24, "temperature": 0}
        whole = await client.chat.completions.create(**greedy, logprobs=True, top_logprobs=3)
        choice = whole.choices[0]
        assert choice.message.content.startswith(SAYS)
        assert len(choice.logprobs.content) == whole.usage.completion_tokens
        assert all(len(token.top_logprobs) == 3 and token.logprob <= 0 for token in choice.logprobs.content)
        stream = await client.chat.completions.create(**greedy, stream=True, stream_options={"include_usage": True})
        chunks = [chunk async for chunk in stream]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == choice.message.content
        assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
        assert chunks[-1].usage.prompt_tokens_details.cached_tokens > 0, "the same key asked the same before"
        several = await client.chat.completions.create(**{**greedy, "temperature": 1}, n=3, seed=7)
        assert len({choice.message.content for choice in several.choices}) > 1
        response = await client.responses.create(model=served.model, input=ASK, temperature=0, max_output_tokens=24)
        assert response.output_text.startswith(SAYS)
        scored = await client.completions.create(
            model=served.model, prompt="import os", max_tokens=0, echo=True, logprobs=2
        )
        logprobs = scored.choices[0].logprobs
        assert "".join(logprobs.tokens) == "import os" == scored.choices[0].text
        assert logprobs.token_logprobs[0] is None and all(value < 0 for value in logprobs.token_logprobs[1:])
        vectors = await client.embeddings.create(model=served.model, input=["a list", "a tuple"], dimensions=16)
        assert all(len(row.embedding) == 16 for row in vectors.data)
        with pytest.raises(openai.BadRequestError, match="does not fit the context of 256"):
            await client.chat.completions.create(model=served.model, messages=[{"role": "user", "content": "x " * 900}])


async def test_openai_gets_json_of_its_schema_and_forced_tool_calls(served: ServedModel) -> None:
    openai = pytest.importorskip("openai")
    async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key=served.secret, max_retries=0) as client:
        made = await client.chat.completions.create(
            model=served.model, messages=ASK, max_tokens=60,
            response_format={"type": "json_schema", "json_schema": {"name": "place", "schema": WEATHER}},
        )  # fmt: skip
        assert json.loads(made.choices[0].message.content) in ({"city": "Bonn"}, {"city": "Oslo"})
        tool: Any = {"type": "function", "function": {"name": "weather", "parameters": WEATHER}}
        called = await client.chat.completions.create(
            model=served.model, messages=ASK, max_tokens=60, tools=[tool], tool_choice="required"
        )
        (call,) = called.choices[0].message.tool_calls
        assert (call.function.name, called.choices[0].finish_reason) == ("weather", "tool_calls")


async def test_openai_frees_the_slot_it_leaves(served: ServedModel) -> None:
    openai = pytest.importorskip("openai")
    async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key=served.secret, max_retries=0) as client:
        stream = await client.completions.create(
            model=served.model, prompt="x", max_tokens=240, stream=True, extra_body={"ignore_eos": True}
        )
        await anext(aiter(stream))
        await stream.close()
    await until(lambda: served.workbench._held == {})
    (row,) = (await served.workbench.snapshot()).traffic.requests
    assert row.finished and row.generated < 240, "it was left, and did not end by itself"


async def test_anthropic(served: ServedModel) -> None:
    anthropic = pytest.importorskip("anthropic")
    async with anthropic.AsyncAnthropic(base_url=served.url, api_key=served.secret, max_retries=0) as client:
        greedy = {"temperature": 0}  # the client's signature of today has no samplers; the API still takes them
        arguments: dict[str, Any] = {"model": served.model, "max_tokens": 24, "messages": ASK, "extra_body": greedy}
        whole = await client.messages.create(**arguments)
        assert whole.content[0].text.startswith(SAYS)
        async with client.messages.stream(**arguments) as stream:
            assert "".join([text async for text in stream.text_stream]) == whole.content[0].text
            final = await stream.get_final_message()
        counted = await client.messages.count_tokens(model=served.model, messages=ASK)
        usage = final.usage
        assert counted.input_tokens == usage.input_tokens + usage.cache_read_input_tokens
        tool: Any = {"name": "weather", "input_schema": WEATHER}
        called = await client.messages.create(
            **{**arguments, "max_tokens": 60}, tools=[tool], tool_choice={"type": "tool", "name": "weather"}
        )
        assert (called.stop_reason, called.content[0].input["city"] in ("Bonn", "Oslo")) == ("tool_use", True)
        with pytest.raises(anthropic.BadRequestError, match="does not fit"):
            await client.messages.create(**{**arguments, "messages": [{"role": "user", "content": "x " * 900}]})


async def test_ollama(served: ServedModel) -> None:
    ollama = pytest.importorskip("ollama")
    client = ollama.AsyncClient(host=served.url, headers={"authorization": f"Bearer {served.secret}"})
    (listed,) = (await client.list()).models
    assert listed.model == served.model
    options = {"temperature": 0, "num_predict": 24}
    said = await client.chat(served.model, ASK, options=options)
    assert said.message.content.startswith(SAYS)
    parts = [part async for part in await client.chat(served.model, ASK, options=options, stream=True)]
    assert "".join(part.message.content for part in parts) == said.message.content
    assert parts[-1].eval_count > 0 and parts[-1].done_reason in ("stop", "length")
    (row,) = (await client.embed(served.model, "text")).embeddings
    assert sum(value * value for value in row) == pytest.approx(1.0, abs=1e-4)
    before = (await served.worker()).pid
    await client.generate(served.model, "", keep_alive=300)
    assert (await served.worker()).pid == before, "warming up a model leaves the one in memory as it is"
    await client._client.aclose()


async def test_vectors_have_the_same_bytes_in_both_encodings(served: ServedModel) -> None:
    body: dict[str, Any] = {"model": served.model, "input": "a list", "pooling": "mean"}
    plain = (await served.client.post("/v1/embeddings", json=body)).json()["data"][0]["embedding"]
    coded = (await served.client.post("/v1/embeddings", json=body | {"encoding_format": "base64"})).json()
    raw = base64.b64decode(coded["data"][0]["embedding"])
    assert list(struct.unpack(f"<{len(plain)}f", raw)) == pytest.approx(plain, abs=1e-7)
    poolings = {}
    for pooling in ("mean", "cls", "last"):
        answer = await served.client.post("/v1/embeddings", json=body | {"pooling": pooling, "dimensions": 8})
        poolings[pooling] = tuple(answer.json()["data"][0]["embedding"])
        assert sum(value * value for value in poolings[pooling]) == pytest.approx(1.0, abs=1e-4)
    assert len(set(poolings.values())) == 3


async def test_lm_eval_reads_log_likelihoods(served: ServedModel) -> None:
    pytest.importorskip("lm_eval")
    cases = [("The os module", " provides"), ("Return the", " xylophone"), ("import", " os")]
    got = await asyncio.to_thread(_harness, served, cases)
    for (context, continuation), (logprob, greedy) in zip(cases, got, strict=True):
        body = {"model": served.model, "context": context, "continuations": [continuation]}
        expected = (await served.client.post("/v1/score", json=body)).json()["data"][0]
        # The two ways batch the same tokens differently, which products of 16 bits show in the fourth digit.
        assert logprob == pytest.approx(expected["logprob"], abs=1e-3)
        assert greedy == expected["greedy"]


def _harness(served: ServedModel, cases: list[tuple[str, str]]) -> list[tuple[float, bool]]:
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    model = LocalCompletionsAPI(
        base_url=f"{served.url}/v1/completions", model=served.model, tokenizer_backend="remote", num_concurrent=2,
        batch_size=1, auth_token=served.secret,
    )  # fmt: skip
    model.__dict__["header"] = {"Authorization": f"Bearer {served.secret}"}
    found: list[tuple[float, bool]] = model.loglikelihood(
        [Instance("loglikelihood", {}, case, place) for place, case in enumerate(cases)]
    )
    return found


async def test_S12_S13_what_one_key_cached_another_neither_gets_nor_sees(served: ServedModel) -> None:
    """`cached_tokens` tells a key about its own requests only: across keys it is always 0 the first time."""
    body = {"model": served.model, "prompt": "The os module provides " * 12, "max_tokens": 1, "temperature": 0}
    other = await served.key("other")

    async def cached(headers: dict[str, str] | None = None) -> int:
        answer = (await served.client.post("/v1/completions", json=body, headers=headers)).json()
        return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])

    assert [await cached(), await cached() > 0] == [0, True]
    assert [await cached(other), await cached(other) > 0] == [0, True]
    slots = (await served.client.get("/slots", headers=other)).json()
    assert all(not slot["own"] or slot["model"] == served.model for slot in slots)


async def test_F41_an_overflow_is_refused_with_counts_or_cut_and_counted(served: ServedModel) -> None:
    body: dict[str, Any] = {"model": served.model, "prompt": "a " * 600, "max_tokens": 8}
    refused = await served.client.post("/v1/completions", json=body)
    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (400, "context_length_exceeded")
    assert "a prompt of 601 tokens and an answer of 8 does not fit the context of 256" in error["message"]
    for policy in ("truncate_left", "truncate_middle"):
        cut = (await served.client.post("/v1/completions", json=body | {"overflow": policy})).json()
        usage = cut["usage"]
        assert usage["prompt_tokens"] + usage["truncated_tokens"] == 601
        assert usage["total_tokens"] <= 256
    whole = (await served.client.post("/v1/completions", json=body | {"prompt": "a"})).json()
    assert "truncated_tokens" not in whole["usage"]


async def test_F41_empty_special_and_odd_prompts(served: ServedModel) -> None:
    for prompt, status in (("", 200), ("\x00", 200), ("<|im_end|>" * 20, 200), ([], 400)):
        answer = await served.client.post(
            "/v1/completions", json={"model": served.model, "prompt": prompt, "max_tokens": 2}
        )
        assert answer.status_code in (status, 400), (prompt, answer.text)
    # The text of a control token is text: it takes several tokens.
    body = {"model": served.model, "prompt": "<|im_end|>", "max_tokens": 1}
    assert (await served.client.post("/v1/completions", json=body)).json()["usage"]["prompt_tokens"] > 3


async def test_F20_a_crash_is_told_and_the_next_request_is_served(served: ServedModel) -> None:
    """F20: the worker is killed under a stream."""
    import os
    import signal

    worker = await served.worker()
    body = {"model": served.model, "prompt": "x", "max_tokens": 240, "stream": True, "ignore_eos": True}
    async with served.client.stream("POST", "/v1/completions", json=body) as answer:
        lines = answer.aiter_lines()
        await anext(lines)
        os.kill(worker.pid or 0, signal.SIGKILL)
        rest = [line async for line in lines if line]
    assert "engine_crashed" in rest[-1]
    after = await served.client.post("/v1/completions", json={"model": served.model, "prompt": "x", "max_tokens": 1})
    assert after.status_code == 200
    assert (await served.worker()).restarts == 1


async def test_disconnect_during_a_long_prefill_frees_the_slot(served: ServedModel) -> None:
    """F46, S11: the client leaves while its prompt is read."""
    text = " ".join(f"word{i}" for i in range(40))
    body = {"model": served.model, "prompt": text, "max_tokens": 100, "n": 8, "ignore_eos": True}
    asking = asyncio.create_task(served.client.post("/v1/completions", json=body))
    await until(lambda: served.workbench._held != {}, 5)
    asking.cancel()
    await until(lambda: served.workbench._held == {})
    (row,) = (await served.workbench.snapshot()).traffic.requests
    assert row.finished and row.generated < 800, "it was left, and did not end by itself"
