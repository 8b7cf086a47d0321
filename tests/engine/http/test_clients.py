"""The official clients against a running server; each is skipped where it is not installed.

pip install openai anthropic ollama "lm_eval[api]" schemathesis
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.http_kit import MODEL, SECRET, HeldWorkbench, Served, serving

pytestmark = pytest.mark.filterwarnings("ignore")

ANSWER = "Keys and **values** in memory. é😀"
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Bonn"}}</tool_call>'
USER: list[Any] = [{"role": "user", "content": "hi"}]
TOOL: Any = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def speaker() -> HeldWorkbench:
    return HeldWorkbench(answer=lambda request: CALL if request.tools else ANSWER)


async def test_openai() -> None:
    openai = pytest.importorskip("openai")
    async with serving(speaker()) as served:
        client = openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key=SECRET, max_retries=0)
        assert MODEL in [model.id async for model in client.models.list()]
        whole = await client.chat.completions.create(model=MODEL, messages=USER, logprobs=True, top_logprobs=2)
        assert whole.choices[0].message.content == ANSWER
        assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
        assert len(whole.choices[0].logprobs.content) == whole.usage.completion_tokens
        stream = await client.chat.completions.create(model=MODEL, messages=USER, stream=True)
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == ANSWER
        called = await client.chat.completions.create(model=MODEL, messages=USER, tools=[TOOL])
        message = called.choices[0].message
        assert (called.choices[0].finish_reason, message.tool_calls[0].function.name) == ("tool_calls", "weather")
        result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "sunny"}
        assert (await client.chat.completions.create(model=MODEL, messages=[*USER, message, result])).choices
        async with client.chat.completions.stream(model=MODEL, messages=USER, tools=[TOOL]) as events:
            final = await events.get_final_completion()
        assert final.choices[0].message.tool_calls[0].function.arguments == '{"city": "Bonn"}'
        text = await client.completions.create(model=MODEL, prompt=["a", "b"], max_tokens=1, echo=True, logprobs=1)
        assert [choice.text[0] for choice in text.choices] == ["a", "b"]
        vectors = await client.embeddings.create(model=MODEL, input=["a", "b"])
        assert [len(row.embedding) for row in vectors.data] == [8, 8]
        response = await client.responses.create(model=MODEL, input="hi")
        assert response.output_text == ANSWER
        tool = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": False}
        async with client.responses.stream(model=MODEL, input="hi", tools=[tool]) as events:
            final = await events.get_final_response()
        assert final.output[0].name == "weather"
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model="nope", messages=USER)
        with pytest.raises(openai.BadRequestError, match="temperature"):
            await client.chat.completions.create(model=MODEL, messages=USER, temperature=-1)
        with pytest.raises(openai.AuthenticationError):
            await client.with_options(api_key="wrong").models.list()
        await client.close()


async def test_openai_frees_the_stream_it_leaves() -> None:
    openai = pytest.importorskip("openai")
    from support.waiting import until

    workbench = HeldWorkbench()
    workbench.held, workbench.after = asyncio.Event(), 2
    async with serving(workbench) as served:
        client = openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key=SECRET, max_retries=0)
        stream = await client.chat.completions.create(model=MODEL, messages=USER, stream=True)
        await anext(aiter(stream))
        assert workbench.open == 1
        await stream.close()
        await until(lambda: workbench.open == 0, 1.0)
        await client.close()


async def test_anthropic() -> None:
    anthropic = pytest.importorskip("anthropic")
    async with serving(speaker()) as served:
        client = anthropic.AsyncAnthropic(base_url=served.url, api_key=SECRET, max_retries=0)
        arguments: dict[str, Any] = {"model": MODEL, "max_tokens": 50, "messages": USER}
        whole = await client.messages.create(**arguments, system="be brief")
        assert (whole.content[0].text, whole.stop_reason) == (ANSWER, "end_turn")
        async with client.messages.stream(**arguments) as stream:
            assert "".join([text async for text in stream.text_stream]) == ANSWER
            final = await stream.get_final_message()
        assert final.usage.input_tokens > 0
        tool: Any = {"name": "weather", "input_schema": {"type": "object"}}
        async with client.messages.stream(**arguments, tools=[tool]) as stream:
            final = await stream.get_final_message()
        assert (final.stop_reason, final.content[0].input) == ("tool_use", {"city": "Bonn"})
        counted = await client.messages.count_tokens(model=MODEL, messages=USER)
        assert counted.input_tokens == 9
        with pytest.raises(anthropic.NotFoundError):
            await client.messages.create(**{**arguments, "model": "nope"})
        with pytest.raises(anthropic.AuthenticationError):
            await client.with_options(api_key="wrong").messages.create(**arguments)
        await client.close()


async def test_ollama() -> None:
    ollama = pytest.importorskip("ollama")
    async with serving(speaker()) as served:
        client = ollama.AsyncClient(host=served.url, headers={"authorization": f"Bearer {SECRET}"})
        assert MODEL in [model.model for model in (await client.list()).models]
        assert (await client.chat(MODEL, USER)).message.content == ANSWER
        parts = await client.chat(MODEL, USER, stream=True)
        assert "".join([part.message.content async for part in parts]) == ANSWER
        called = await client.chat(MODEL, USER, tools=[TOOL])
        assert called.message.tool_calls[0].function.arguments == {"city": "Bonn"}
        assert (await client.generate(MODEL, "hi", options={"num_ctx": 1})).response == ANSWER
        assert len((await client.embed(MODEL, ["a", "b"])).embeddings) == 2
        assert (await client.show(MODEL)).details.quantization_level == "Q4_K_M"
        assert (await client.ps()).models
        with pytest.raises(ollama.ResponseError, match="no model"):
            await client.chat("nope", USER)


async def test_lm_eval_reads_log_likelihoods_and_texts() -> None:
    pytest.importorskip("lm_eval")
    pytest.importorskip("aiohttp")
    async with serving(speaker(), models=(MODEL,)) as served:
        cases = [("The capital of France is", " Paris"), ("The capital of France is", " a banana split"), ("a b", " c")]
        got, said = await asyncio.to_thread(_lm_eval, served, cases)
        for (context, continuation), (logprob, greedy) in zip(cases, got, strict=True):
            body = {"context": context, "continuations": [continuation]}
            expected = (await served.post("/v1/score", body)).json()["data"][0]
            assert logprob == pytest.approx(expected["logprob"])
            assert isinstance(greedy, bool)
        assert said == ["Keys and **values** in"]


def _lm_eval(served: Served, cases: list[tuple[str, str]]) -> tuple[list[tuple[float, bool]], list[str]]:
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    model = LocalCompletionsAPI(
        base_url=f"{served.url}/v1/completions", model=MODEL, tokenizer_backend="remote", num_concurrent=2,
        batch_size=1, auth_token=SECRET,
    )  # fmt: skip
    model.__dict__["header"] = {"Authorization": f"Bearer {SECRET}"}
    scored = [Instance("loglikelihood", {}, case, place) for place, case in enumerate(cases)]
    asked = Instance("generate_until", {}, ("hi", {"until": [" memory"], "max_gen_toks": 20}), 0)
    return model.loglikelihood(scored), model.generate_until([asked])


async def test_schemathesis_finds_no_server_error(tmp_path: Path) -> None:
    pytest.importorskip("schemathesis")
    async with serving(speaker(), models=(MODEL,)) as served:
        document = tmp_path / "openapi.json"
        document.write_bytes((await served.client.get("/openapi.json")).content)
        command = [
            str(Path(sys.executable).with_name("schemathesis")), "run", str(document), "--url", served.url,
            "-H", f"Authorization: Bearer {SECRET}", "-c", "not_a_server_error,content_type_conformance",
            "-n", "20", "--max-time", "30", "--suppress-health-check", "all", "--seed", "1", "--generation-database",
            "none", "--no-color",
        ]  # fmt: skip
        done = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, cwd=tmp_path, check=False, timeout=150
        )
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
        assert served.server.state.errors_total == 0
        assert served.server.state.requests_total > 500


async def test_the_document_describes_every_route() -> None:
    from lathe.engine.http.routes import ROUTES

    async with serving() as served:
        document = json.loads((await served.client.get("/openapi.json")).content)
        described = {f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods}
        assert described == {route.name for route in ROUTES}
        identifiers = [
            operation["operationId"] for methods in document["paths"].values() for operation in methods.values()
        ]
        assert len(set(identifiers)) == len(identifiers)
        chat = document["components"]["schemas"]["ChatBody"]["properties"]["temperature"]["anyOf"]
        assert {"type": "number", "minimum": 0, "maximum": 100} in chat
