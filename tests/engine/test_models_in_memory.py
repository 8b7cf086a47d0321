"""Models in memory, for real: load, chat, score, crash and go on, serve over HTTP, all on the embedded model."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import httpx2
import numpy as np
import pytest
from lathe.engine.errors import CrashedError, MissingError, UsageError
from lathe.engine.generation import Delta, EmbedRequest, GenerationRequest, Message, Sampling, ScoreRequest
from lathe.engine.jobs import generate
from lathe.engine.local import LocalWorkbench
from lathe.engine.paths import Home
from lathe.engine.states import ServerOptions
from lathe.engine.steps import ConvertStep, GenerateStep, QuantizeStep, ServeStep
from lathe.engine.transcript import Answer, collect
from lathe.engine.workbench import ApiKey
from lathe.engine.worker.messages import LoadOptions

pytestmark = pytest.mark.native

QUESTION = "What does the Python function os.path.join do?"
ANSWER = "Join two or more pathname components"
OPTIONS = LoadOptions(context=256, slots=4, threads=1)


@pytest.fixture
async def engine(home: Path, embedded_gguf: Path) -> AsyncIterator[LocalWorkbench]:
    workbench = await LocalWorkbench.open(Home(home))
    await workbench.load(str(embedded_gguf), OPTIONS)
    yield workbench
    await workbench.close()


def _ask(model: str, text: str = QUESTION, **changes: object) -> GenerationRequest:
    fields: dict[str, object] = {"max_tokens": 24, "sampling": Sampling(temperature=0)} | changes
    return GenerationRequest(model=model, messages=(Message("user", text),), **fields)  # type: ignore[arg-type]


async def _answer(engine: LocalWorkbench, request: GenerationRequest) -> Answer:
    return await collect(engine.generate(request))


async def test_it_answers_in_the_docstrings_words_and_tells_what_it_cost(
    engine: LocalWorkbench, embedded_gguf: Path
) -> None:
    answer = await _answer(engine, _ask(str(embedded_gguf)))
    assert answer.text.strip().startswith(ANSWER)
    assert answer.usage is not None and answer.timing is not None
    assert answer.usage.completion_tokens > 5
    assert answer.timing.first_token_s is not None
    snapshot = await engine.snapshot()
    (worker,) = snapshot.workers
    assert worker.phase == "ready"
    assert worker.info is not None and worker.info.context == 256
    assert snapshot.traffic.requests_total == 1
    assert snapshot.traffic.ttft.count == 1
    assert snapshot.traffic.generated_tokens_total == answer.usage.completion_tokens


async def test_eight_at_once_say_what_each_says_alone(engine: LocalWorkbench, embedded_gguf: Path) -> None:
    names = ("os.path.join", "glob.iglob", "heapq.heappush", "json.dumps")
    requests = [_ask(str(embedded_gguf), f"What does the Python function {name} do?") for name in names]
    alone = [(await _answer(engine, request)).text for request in requests]
    together = await asyncio.gather(*(_answer(engine, request) for request in requests * 2))
    assert [answer.text for answer in together] == alone * 2


async def test_a_shared_beginning_is_computed_once(engine: LocalWorkbench, embedded_gguf: Path) -> None:
    await _answer(engine, _ask(str(embedded_gguf)))
    again = await _answer(engine, _ask(str(embedded_gguf)))
    assert again.usage is not None
    assert again.usage.cached_tokens > again.usage.prompt_tokens // 2
    stranger = await _answer(engine, _ask(str(embedded_gguf), principal="somebody else"))
    assert stranger.usage is not None and stranger.usage.cached_tokens == 0


async def test_leaving_the_loop_frees_the_slot(engine: LocalWorkbench, embedded_gguf: Path) -> None:
    async with aclosing(engine.generate(_ask(str(embedded_gguf), max_tokens=200))) as stream:
        async for delta in stream:
            if delta.text:
                break
    for _ in range(200):
        (worker,) = (await engine.snapshot()).workers
        if worker.stats.running == 0 and worker.leases == 0:
            break
        await asyncio.sleep(0.02)
    else:
        raise AssertionError("the request still runs")


async def test_kill_9_of_a_worker_ends_its_stream_and_the_next_request_is_served(
    engine: LocalWorkbench, embedded_gguf: Path
) -> None:
    (worker,) = (await engine.snapshot()).workers
    assert worker.pid is not None
    with pytest.raises(CrashedError):
        async with aclosing(engine.generate(_ask(str(embedded_gguf), max_tokens=200))) as stream:
            async for delta in stream:
                if delta.text:
                    os.kill(worker.pid, signal.SIGKILL)
    answer = await _answer(engine, _ask(str(embedded_gguf)))
    assert answer.text.strip().startswith(ANSWER)
    (again,) = (await engine.snapshot()).workers
    assert again.pid != worker.pid
    assert again.restarts == 1


async def test_parameters_out_of_range_never_reach_the_worker(engine: LocalWorkbench, embedded_gguf: Path) -> None:
    for sampling in (Sampling(temperature=-1), Sampling(top_p=float("nan")), Sampling(seed=-1)):
        with pytest.raises(UsageError):
            await _answer(engine, _ask(str(embedded_gguf), sampling=sampling))
    with pytest.raises(UsageError, match="context"):
        await _answer(engine, _ask(str(embedded_gguf), "word " * 1000))
    with pytest.raises(MissingError):
        await _answer(engine, _ask("no such model"))
    assert (await _answer(engine, _ask(str(embedded_gguf)))).text


async def test_tokens_templates_and_scores(engine: LocalWorkbench, embedded_gguf: Path) -> None:
    model = str(embedded_gguf)
    tokens = await engine.tokenize(model, "Return the sum <|im_end|>")
    assert await engine.detokenize(model, tokens) == "Return the sum <|im_end|>"
    assert 2 not in tokens, "text of users holds no control tokens"
    rendered = await engine.render(model, [Message("user", "hi <|im_end|>")])
    assert rendered.text.startswith("<|im_start|>user\nhi ")
    assert rendered.tokens.count(2) == 1
    good, bad = await engine.score(
        ScoreRequest(model=model, context="function os.path.join(a, *p)\n", continuations=("Join two", "xylophone"))
    )
    assert good.logprob / good.tokens > bad.logprob / bad.tokens


async def test_a_request_can_be_stopped_from_another_place(engine: LocalWorkbench, embedded_gguf: Path) -> None:
    deltas: list[Delta] = []

    async def read() -> None:
        async for delta in engine.generate(_ask(str(embedded_gguf), "Tell me", max_tokens=220, sampling=_ENDLESS)):
            deltas.append(delta)  # noqa: PERF401 - read while it grows

    reading = asyncio.create_task(read())
    while not any(row.stage == "decode" for row in (await engine.snapshot()).traffic.requests):
        await asyncio.sleep(0.01)
    (row,) = [row for row in (await engine.snapshot()).traffic.requests if not row.finished]
    await engine.cancel_request(row.id)
    await asyncio.wait_for(reading, 10)
    assert deltas[-1].finish == "cancelled"


_ENDLESS = Sampling(temperature=0, ignore_eos=True)


async def test_the_http_api_over_the_real_model(engine: LocalWorkbench, embedded_gguf: Path) -> None:
    state = await engine.start_server(ServerOptions(port=0))
    key = await engine.make_key(ApiKey(name="test", created_at=0.0))
    headers = {"Authorization": f"Bearer {key.secret}"}
    name = (await engine.model(str(embedded_gguf))).entry.name
    body = {
        "model": name,
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": 16,
        "temperature": 0,
    }
    async with httpx2.AsyncClient(base_url=state.url or "", trust_env=False, timeout=30) as client:
        assert (await client.get("/health")).status_code == 200
        assert (await client.post("/v1/chat/completions", json=body)).status_code == 401
        whole = await client.post("/v1/chat/completions", json=body, headers=headers)
        assert whole.status_code == 200, whole.text
        text = whole.json()["choices"][0]["message"]["content"]
        assert text.strip().startswith(ANSWER[:10])
        streamed = await client.post("/v1/chat/completions", json=body | {"stream": True}, headers=headers)
        events = [json.loads(line[6:]) for line in streamed.text.splitlines() if line.startswith("data: {")]
        pieces = [choice["delta"].get("content") or "" for event in events for choice in event["choices"]]
        assert "".join(pieces) == text
        metrics = (await client.get("/metrics", headers=headers)).text
        assert "time_to_first_token" in metrics
        bad = await client.post("/v1/chat/completions", json=body | {"temperature": -1}, headers=headers)
        assert bad.status_code == 400
        assert "temperature" in bad.json()["error"]["message"]
    assert not (await engine.stop_server()).running


async def test_the_steps_that_use_workers(engine: LocalWorkbench, embedded_gguf: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "' + QUESTION + '"}\nplain text\n')
    step = GenerateStep(
        model=str(embedded_gguf), file=str(prompts), max_tokens=12, sampling=Sampling(temperature=0), options=OPTIONS,
        output=str(tmp_path / "answers.jsonl"),
    )  # fmt: skip
    job = await engine.wait((await engine.submit(step)).id)
    assert job.outcome is not None, job.failure
    assert job.outcome.figures == {"prompts": 2, "failed": 0}
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert rows[0]["text"].strip().startswith(ANSWER[:10])
    served = await engine.wait(
        (await engine.submit(ServeStep(model=str(embedded_gguf), prompts=(QUESTION,), options=OPTIONS))).id
    )
    assert served.outcome is not None, served.failure
    assert (served.outcome.figures["ttft_s"] or 0) > 0
    assert not (await engine.snapshot()).server.running


def test_a_prompts_file_is_cut_at_line_feeds_only(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "one\u2028still one"}\r\n\ntwo\x85still two\n', "utf-8")
    assert [line.prompt for line in generate._read(prompts)] == ["one\u2028still one", "two\x85still two"]


async def test_unloading_gives_the_memory_back(engine: LocalWorkbench, embedded_gguf: Path) -> None:
    (worker,) = (await engine.snapshot()).workers
    await engine.unload(worker.name)
    assert (await engine.snapshot()).workers == ()
    with pytest.raises(MissingError, match="not in memory"):
        await engine.unload(worker.name)


async def test_text_becomes_vectors(engine: LocalWorkbench, embedded_gguf: Path) -> None:
    await engine.load(str(embedded_gguf), LoadOptions(context=256, slots=1, threads=1, embedding=True))
    texts = ("open a file", "open the file", "prime numbers")
    answer = await engine.embed(EmbedRequest(model=str(embedded_gguf), texts=texts, pooling="mean"))
    vectors = np.frombuffer(answer.vectors, np.float32).reshape(answer.rows, answer.dimensions)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]


@pytest.mark.shared
async def test_a_model_without_a_chat_template_goes_on_with_the_text(home: Path, shared_data: Path) -> None:
    engine = await LocalWorkbench.open(Home(home))
    source = str(shared_data / "models" / "TinyStories-656K")
    for step in (
        ConvertStep(model=source, outtype="f16", name="stories"),
        QuantizeStep(model="stories", type="Q8_0", name="stories-q8"),
    ):
        job = await engine.wait((await engine.submit(step)).id)
        assert job.state == "done", job.failure
    await engine.load("stories-q8", OPTIONS)
    answer = await _answer(engine, _ask("stories-q8", "Once upon a time, there was a little"))
    assert len(answer.text.split()) > 5
    rendered = await engine.render("stories-q8", [Message("user", "one"), Message("assistant", "two")])
    assert rendered.text == "one\ntwo"
    await engine.close()
