"""Prometheus metrics under both vocabularies that dashboards use: `llamacpp:*` and `vllm:*`.

Requests over HTTP are counted here as their last delta passes; gauges and the workers' own counters come from the
workbench's snapshot at the moment of a scrape. Durations are the worker's (one monotonic clock), except the
inter-token latency, which is what a client sees. Invariant: labels are model names and finish reasons, never text
that a client chose.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence

from lathe.engine.generation import Delta, Timing, Usage
from lathe.engine.states import ServerState, Snapshot, WorkerState
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest

_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
_LATENCY = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480)
_INTERVALS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
_HISTOGRAMS: dict[str, tuple[str, Sequence[float]]] = {
    "time_to_first_token_seconds": ("From queued to the first token.", _SECONDS),
    "inter_token_latency_seconds": ("Between tokens of one stream.", _INTERVALS),
    "e2e_request_latency_seconds": ("From queued to finished.", _LATENCY),
    "request_queue_time_seconds": ("From queued to scheduled.", _LATENCY),
    "request_prefill_time_seconds": ("From scheduled to the first token.", _LATENCY),
    "request_decode_time_seconds": ("From the first to the last token.", _LATENCY),
    "request_prompt_tokens": ("Prompt tokens per request.", _TOKENS),
    "request_generation_tokens": ("Generated tokens per request.", _TOKENS),
    "request_max_num_generation_tokens": ("Tokens asked for per request.", _TOKENS),
}


class Histogram:
    """Counts per bucket; a plain list, because it is touched once per token."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    def buckets(self) -> list[tuple[str, float]]:
        """Return cumulative counts by upper bound, as Prometheus wants them."""
        cumulative = 0
        rows: list[tuple[str, float]] = []
        for bound, count in zip((*map(str, map(float, self.bounds)), "+Inf"), self.counts, strict=True):
            cumulative += count
            rows.append((bound, cumulative))
        return rows


class ModelMetrics:
    """What was measured for one model's requests over HTTP."""

    def __init__(self) -> None:
        self.histograms = {name: Histogram(bounds) for name, (_, bounds) in _HISTOGRAMS.items()}
        self.finished: dict[str, int] = {}
        self.prompt_tokens = 0
        self.generated_tokens = 0
        self.largest = 0


class Meter:
    """Watches the deltas of one request; `done` books them."""

    __slots__ = ("_clock", "_last", "_model", "booked", "first_at", "timing", "tokens", "usage")

    def __init__(self, model: ModelMetrics, clock: Callable[[], float]) -> None:
        self._model = model
        self._clock = clock
        self._last: dict[int, float] = {}
        self.first_at: float | None = None
        self.tokens = 0
        """Generated tokens that passed so far."""
        self.booked = 0
        """Requests that have told their usage."""
        self.usage: Usage | None = None
        self.timing: Timing | None = None

    def feed(self, delta: Delta, index: int) -> None:
        """Take a delta as it passes to the client."""
        if delta.tokens or delta.text:
            now = self._clock()
            last = self._last.get(index)
            count = max(1, len(delta.tokens))
            self.tokens += count
            if last is not None:
                self._model.histograms["inter_token_latency_seconds"].observe((now - last) / count, count)
            elif self.first_at is None:
                self.first_at = now
            self._last[index] = now
        if delta.finish is not None:
            self._model.finished[delta.finish] = self._model.finished.get(delta.finish, 0) + 1
        if delta.usage is not None:
            self._book(delta.usage, delta.timing)

    def _book(self, usage: Usage, timing: Timing | None) -> None:
        model, histograms = self._model, self._model.histograms
        self.booked += 1
        self.usage = usage if self.usage is None else _sum(self.usage, usage)
        self.timing = timing
        model.prompt_tokens += usage.prompt_tokens
        model.generated_tokens += usage.completion_tokens
        model.largest = max(model.largest, usage.prompt_tokens + usage.completion_tokens)
        histograms["request_prompt_tokens"].observe(usage.prompt_tokens)
        histograms["request_generation_tokens"].observe(usage.completion_tokens)
        if timing is None:
            return
        if timing.first_token_s is not None:
            histograms["time_to_first_token_seconds"].observe(timing.first_token_s)
        histograms["e2e_request_latency_seconds"].observe(timing.finished_s)
        histograms["request_queue_time_seconds"].observe(timing.queue_s)
        histograms["request_prefill_time_seconds"].observe(timing.prefill_s)
        histograms["request_decode_time_seconds"].observe(timing.decode_s)


def _sum(left: Usage, right: Usage) -> Usage:
    return Usage(*(getattr(left, name) + getattr(right, name) for name in Usage.__struct_fields__))


class Metrics:
    """Everything counted since the server started."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._models: dict[str, ModelMetrics] = {}
        self.responses: dict[tuple[str, int], int] = {}
        """(route, status) -> answers."""

    def meter(self, model: str, max_tokens: int | None) -> Meter:
        """Begin to watch one request."""
        metrics = self._models.setdefault(model, ModelMetrics())
        if max_tokens is not None:
            metrics.histograms["request_max_num_generation_tokens"].observe(max_tokens)
        return Meter(metrics, self._clock)

    def answered(self, route: str, status: int) -> None:
        """Count an answer."""
        key = (route, status)
        self.responses[key] = self.responses.get(key, 0) + 1

    def render(self, snapshot: Snapshot, server: ServerState, only: str | None = None) -> bytes:
        """Return the text exposition; `only` one model if named."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Scrape(self, snapshot, server, only))
        return generate_latest(registry)

    def models(self, only: str | None) -> Iterator[tuple[str, ModelMetrics]]:
        """Yield the metrics of each model."""
        for name, metrics in sorted(self._models.items()):
            if only is None or name == only:
                yield name, metrics


class _Scrape:
    """One scrape as a prometheus_client collector."""

    def __init__(self, metrics: Metrics, snapshot: Snapshot, server: ServerState, only: str | None) -> None:
        self._metrics = metrics
        self._workers = [worker for worker in snapshot.workers if only is None or worker.name == only]
        self._server = server
        self._only = only

    def collect(self) -> Iterable[Metric]:
        """Yield every family."""
        yield from self._llamacpp()
        yield from self._vllm_gauges()
        yield from self._vllm_requests()
        yield from self._own()

    def _per_worker(
        self, kind: type[CounterMetricFamily] | type[GaugeMetricFamily], name: str, doc: str, label: str,
        value: Callable[[WorkerState], float | None],
    ) -> Metric:  # fmt: skip
        family = kind(name, doc, labels=[label])
        for worker in self._workers:
            measured = value(worker)
            if measured is not None:
                family.add_metric([worker.name], measured)
        return family

    def _llamacpp(self) -> Iterator[Metric]:
        rows: list[tuple[type[CounterMetricFamily] | type[GaugeMetricFamily], str, str,
                         Callable[[WorkerState], float | None]]] = [
            (CounterMetricFamily, "prompt_tokens", "Prompt tokens processed.", lambda w: w.stats.prompt_tokens),
            (CounterMetricFamily, "prompt_seconds", "Prompt process time.", lambda w: w.stats.prefill_s),
            (CounterMetricFamily, "tokens_predicted", "Generated tokens.", lambda w: w.stats.generated_tokens),
            (CounterMetricFamily, "tokens_predicted_seconds", "Generation time.", lambda w: w.stats.decode_s),
            (CounterMetricFamily, "n_decode", "Scheduler iterations.", lambda w: w.stats.iterations),
            (CounterMetricFamily, "spec_decode_num_draft_tokens", "Draft tokens.", lambda w: w.stats.draft_tokens),
            (CounterMetricFamily, "spec_decode_num_accepted_tokens", "Draft tokens accepted.",
             lambda w: w.stats.accepted_tokens),
            (GaugeMetricFamily, "prompt_tokens_seconds", "Average prompt throughput, tokens/s.",
             lambda w: _ratio(w.stats.prompt_tokens, w.stats.prefill_s)),
            (GaugeMetricFamily, "predicted_tokens_seconds", "Average generation throughput, tokens/s.",
             lambda w: _ratio(w.stats.generated_tokens, w.stats.decode_s)),
            (GaugeMetricFamily, "requests_processing", "Requests running.", lambda w: w.stats.running),
            (GaugeMetricFamily, "requests_deferred", "Requests waiting.", lambda w: w.stats.waiting),
            (GaugeMetricFamily, "kv_cache_usage_ratio", "KV cache in use, 0 to 1.", _kv_usage),
            (GaugeMetricFamily, "kv_cache_tokens", "KV cache in use, in tokens.", lambda w: w.stats.kv_used),
        ]  # fmt: skip
        for kind, name, doc, value in rows:
            yield self._per_worker(kind, f"llamacpp:{name}", doc, "model", value)
        largest = GaugeMetricFamily("llamacpp:n_tokens_max", "Largest context of a request so far.", labels=["model"])
        for name, metrics in self._metrics.models(self._only):
            largest.add_metric([name], metrics.largest)
        yield largest

    def _vllm_gauges(self) -> Iterator[Metric]:
        rows: list[tuple[type[CounterMetricFamily] | type[GaugeMetricFamily], str, str,
                         Callable[[WorkerState], float | None]]] = [
            (GaugeMetricFamily, "num_requests_running", "Requests running.", lambda w: w.stats.running),
            (GaugeMetricFamily, "num_requests_waiting", "Requests waiting.", lambda w: w.stats.waiting),
            (GaugeMetricFamily, "kv_cache_usage_perc", "KV cache in use, 0 to 1.", _kv_usage),
            (CounterMetricFamily, "prefix_cache_queries", "Prompt tokens looked up in the prefix cache.",
             lambda w: w.stats.prompt_tokens + w.stats.cached_tokens),
            (CounterMetricFamily, "prefix_cache_hits", "Prompt tokens found in the prefix cache.",
             lambda w: w.stats.cached_tokens),
            (CounterMetricFamily, "num_preemptions", "Preempted requests.", lambda w: w.stats.preemptions),
        ]  # fmt: skip
        for kind, name, doc, value in rows:
            yield self._per_worker(kind, f"vllm:{name}", doc, "model_name", value)

    def _vllm_requests(self) -> Iterator[Metric]:
        models = list(self._metrics.models(self._only))
        prompt = CounterMetricFamily("vllm:prompt_tokens", "Prompt tokens.", labels=["model_name"])
        generated = CounterMetricFamily("vllm:generation_tokens", "Generated tokens.", labels=["model_name"])
        success = CounterMetricFamily(
            "vllm:request_success", "Finished choices by reason.", labels=["model_name", "finished_reason"]
        )
        for name, metrics in models:
            prompt.add_metric([name], metrics.prompt_tokens)
            generated.add_metric([name], metrics.generated_tokens)
            for reason, count in sorted(metrics.finished.items()):
                success.add_metric([name, reason], count)
        yield from (prompt, generated, success)
        for kind, (doc, _) in _HISTOGRAMS.items():
            family = HistogramMetricFamily(f"vllm:{kind}", doc, labels=["model_name"])
            for name, metrics in models:
                histogram = metrics.histograms[kind]
                family.add_metric([name], buckets=histogram.buckets(), sum_value=histogram.total)
            yield family

    def _own(self) -> Iterator[Metric]:
        server = self._server
        answers = CounterMetricFamily("lathe_http_responses", "HTTP answers.", labels=["route", "status"])
        for (route, status), count in sorted(self._metrics.responses.items()):
            answers.add_metric([route, str(status)], count)
        yield answers
        yield GaugeMetricFamily("lathe_http_requests_active", "HTTP requests under way.", value=server.requests_active)
        yield CounterMetricFamily("lathe_http_rejected", "HTTP requests refused.", value=server.rejected_total)


def _ratio(amount: float, seconds: float) -> float | None:
    return amount / seconds if seconds > 0 else None


def _kv_usage(worker: WorkerState) -> float | None:
    return worker.stats.kv_used / worker.stats.kv_tokens if worker.stats.kv_tokens else None
