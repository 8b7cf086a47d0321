"""Prometheus metrics: both vocabularies, figures that add up, labels that no client chooses."""

from __future__ import annotations

import msgspec
from lathe.engine.generation import Delta, Timing, Usage
from lathe.engine.http.metrics import Histogram, Metrics
from lathe.engine.states import ServerState
from lathe.engine.worker.messages import WorkerStats
from prometheus_client.parser import text_string_to_metric_families
from support.http_kit import MODEL, Served, key, serving

LLAMACPP = {
    "llamacpp:prompt_tokens_total", "llamacpp:prompt_seconds_total", "llamacpp:tokens_predicted_total",
    "llamacpp:tokens_predicted_seconds_total", "llamacpp:n_decode_total", "llamacpp:prompt_tokens_seconds",
    "llamacpp:predicted_tokens_seconds", "llamacpp:requests_processing", "llamacpp:requests_deferred",
    "llamacpp:kv_cache_usage_ratio", "llamacpp:n_tokens_max", "llamacpp:spec_decode_num_draft_tokens_total",
}  # fmt: skip
VLLM = {
    "vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc",
    "vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total", "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total", "vllm:request_success_total", "vllm:time_to_first_token_seconds_bucket",
    "vllm:inter_token_latency_seconds_count", "vllm:e2e_request_latency_seconds_sum",
    "vllm:request_queue_time_seconds_bucket", "vllm:request_prefill_time_seconds_bucket",
    "vllm:request_decode_time_seconds_bucket", "vllm:request_prompt_tokens_bucket",
    "vllm:request_generation_tokens_bucket", "vllm:request_max_num_generation_tokens_bucket",
}  # fmt: skip


async def samples(served: Served, **query: str) -> dict[tuple[str, str], float]:
    answer = await served.client.get("/metrics", params=query)
    assert answer.status_code == 200
    return {
        (sample.name, ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


async def test_both_vocabularies_are_there_and_count() -> None:
    async with serving() as served:
        worker = served.workbench.workers[served.workbench._find(MODEL).id]
        stats = WorkerStats(prompt_tokens=300, cached_tokens=100, generated_tokens=50, prefill_s=2, decode_s=5,
                            running=3, waiting=1, kv_used=512, kv_tokens=2048, iterations=70)  # fmt: skip
        served.workbench.workers[worker.model_id] = msgspec.structs.replace(worker, stats=stats)
        body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
        for stream in (False, True):
            await served.post("/v1/chat/completions", body | {"stream": stream})
        found = await samples(served)
        assert {name for name, _ in found} >= LLAMACPP | VLLM
        own, named = f"model={MODEL}", f"model_name={MODEL}"
        assert found["llamacpp:prompt_tokens_total", own] == 300
        assert found["llamacpp:prompt_tokens_seconds", own] == 150
        assert found["llamacpp:predicted_tokens_seconds", own] == 10
        assert found["llamacpp:requests_deferred", own] == 1
        assert found["vllm:kv_cache_usage_perc", named] == 0.25
        assert found["vllm:prefix_cache_queries_total", named] == 400
        assert found["vllm:generation_tokens_total", named] == 8
        assert found["vllm:request_success_total", f"finished_reason=length,{named}"] == 2
        assert found["vllm:time_to_first_token_seconds_count", named] == 2
        assert found["vllm:inter_token_latency_seconds_count", named] == 6
        assert found["lathe_http_responses_total", "route=POST /v1/chat/completions,status=200"] == 2


async def test_one_model_may_be_asked_for_and_a_limited_key_must() -> None:
    async with serving(keys=(key("k", models=(MODEL,)),)) as served:
        assert (await served.client.get("/metrics")).status_code == 403
        assert (await served.client.get("/metrics", params={"model": "stdlib-4m-f16"})).status_code == 404
        found = await samples(served, model=MODEL)
        models = {label for name, label in found if name == "llamacpp:requests_processing"}
        assert models == {f"model={MODEL}"}


async def test_what_clients_write_makes_no_new_series() -> None:
    async with serving() as served:
        before = len(await samples(served))
        for number in range(30):
            await served.client.get(f"/invented/{number}")
            await served.post("/v1/completions", {"model": f"invented-{number}", "prompt": "x"})
        after = await samples(served)
        assert len(after) - before <= 4
        assert not [label for _, label in after if "invented" in label]


def test_histograms_are_cumulative() -> None:
    histogram = Histogram((1, 5))
    for value in (0.5, 1, 3, 5, 9):
        histogram.observe(value)
    assert histogram.buckets() == [("1.0", 2), ("5.0", 4), ("+Inf", 5)]
    assert histogram.total == 18.5


def test_intervals_are_those_between_tokens_of_one_choice() -> None:
    now = [0.0]
    metrics = Metrics(lambda: now[0])
    meter = metrics.meter("m", None)
    for moment, index, tokens in ((1.0, 0, 1), (1.1, 1, 1), (1.5, 0, 1), (2.5, 0, 4)):
        now[0] = moment
        meter.feed(Delta(index=index, text="x", tokens=(1,) * tokens), index)
    ((_, model),) = metrics.models(None)
    intervals = model.histograms["inter_token_latency_seconds"]
    # 0.5 s for one token, then four tokens in one second.
    assert sum(intervals.counts) == 5
    assert intervals.total == 1.5


def test_several_prompts_of_one_request_add_up() -> None:
    metrics = Metrics(lambda: 0.0)
    meter = metrics.meter("m", 5)
    timing = Timing(0.1, 0.2, 0.5, 0.1, 0.3)
    for _ in range(2):
        meter.feed(Delta(finish="stop", usage=Usage(10, 3), timing=timing), 0)
    assert meter.usage == Usage(20, 6)
    text = metrics.render(_snapshot(), ServerState(running=True)).decode()
    assert 'vllm:prompt_tokens_total{model_name="m"} 20.0' in text


def _snapshot():  # type: ignore[no-untyped-def]
    from lathe.engine.states import EngineInfo, Snapshot

    return Snapshot(engine=EngineInfo(pid=1, version="", home="", started_at=0))
