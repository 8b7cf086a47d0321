"""`ScriptedWorkbench`: the whole `Workbench` protocol without an engine, for tests of the fronts.

Nothing moves by itself: `advance(seconds)` moves the clock, the running job and the events; `generate` answers from
`answer` at `token_s` per token. Set `fail["load"] = SomeError(...)` to make the next `load` raise, `lost = True` to
make every call fail as if the engine had gone. `calls` lists every call that changes something.
Invariant: state and answers depend only on the constructor's arguments and the calls made.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
from lathe.engine.errors import (
    BusyError,
    DoesNotFit,
    EngineStopped,
    Failure,
    LatheError,
    MissingError,
    UnavailableError,
    UsageError,
)
from lathe.engine.evals.results import TOLERANCE, Comparison, EvalRun, Record, ReportStyle, SuiteInfo
from lathe.engine.events import (
    Event,
    JobChanged,
    JobProgressed,
    LogLine,
    ModelsChanged,
    SampleTaken,
    ServerChanged,
    SettingsChanged,
    TrafficChanged,
    WorkerChanged,
)
from lathe.engine.generation import (
    Delta,
    Embeddings,
    EmbedRequest,
    GenerationRequest,
    Message,
    RenderedPrompt,
    Score,
    ScoreRequest,
    Timing,
    Usage,
    check,
)
from lathe.engine.jobs.values import FINAL, Job, Outcome, Progress
from lathe.engine.measure.history import BenchPoint
from lathe.engine.rag.ingest.report import QualityReport
from lathe.engine.rag.requests import (
    AskEvent,
    AskRequest,
    PassageView,
    SearchRequest,
    SearchResult,
    StoreDetails,
    StoreDiff,
    Watched,
)
from lathe.engine.states import (
    EngineInfo,
    Fit,
    Footprint,
    Forecast,
    RequestRow,
    ServerOptions,
    ServerState,
    Snapshot,
    Traffic,
    WorkerState,
)
from lathe.engine.steps import ConvertStep, OnnxQuantizeStep, QuantizeStep, RagBuildStep, ScanStep, Step
from lathe.engine.telemetry.sample import Sample
from lathe.engine.workbench import ApiKey, Finding, LogPage, ModelAlias, ModelDetails, SettingValue
from lathe.engine.worker.messages import LoadOptions
from lathe.quantize.card import ModelCard
from lathe.store.evals import Review
from lathe.store.models import ModelEntry
from lathe.store.rag.values import Question, StoredDocument, StoredPassage, StoreStats
from support import scripted_data as data
from support import scripted_evals as evals
from support import scripted_stores as rag
from support import scripted_text as language
from support import scripted_tune as tune

SEED = 1234567
REPLACE = msgspec.structs.replace


class ScriptedWorkbench:
    """An engine that follows a script; `living=False` is a first run on an empty machine."""

    def __init__(
        self,
        *,
        living: bool = True,
        answer: str | Callable[[GenerationRequest], str] = language.ANSWER,
        token_s: float = 0.0,
        load_s: float = 0.0,
    ) -> None:
        self.answer, self.token_s, self.load_s = answer, token_s, load_s
        self.living = living
        self.t = 0.0
        self.lost = False
        self.closed = False
        self.stores_removed: set[str] = set()
        self.stores_changed: dict[str, dict[str, Any]] = {}
        """By store: facts that differ from the script."""
        self.fail: dict[str, LatheError] = {}
        self.calls: list[tuple[Any, ...]] = []
        self.catalogue = {e.id: e for e in (data.models() if living else data.empty_models())}
        self.queue = {j.id: j for j in ([*data.jobs(), tune.job()] if living else [])}
        self.logs: dict[str, list[str]] = {id_: list(data.JOB_LOG) for id_ in self.queue}
        self.model_aliases: dict[str, ModelAlias] = {}
        self.documents = {tune.JOB_ID: tune.document()} if living else {}
        self.lines: list[str] = []
        self.workers: dict[str, WorkerState] = {}
        self.server = ServerState(running=False)
        self.tokens: dict[str, ApiKey] = {}
        self.values = {s.key: s for s in data.settings()}
        self.requests: dict[str, RequestRow] = {r.id: r for r in (data.REQUESTS if living else ())}
        self.report = data.findings()
        self.eval_book = evals.runs() if living else {}
        self.judgements: list[Review] = []
        self._stop: dict[str, asyncio.Event] = {}
        self._queues: list[asyncio.Queue[Event | LatheError]] = []
        if living:
            for name, layers in (("qwen3-8b-q4_k_m", None), ("qwen3-8b-q5_k_m", 22)):
                entry = self._find(name)
                self.workers[entry.id] = data.worker(entry, LoadOptions(context=8192, slots=2), gpu_layers=layers)
            self.tokens["ops"] = ApiKey(name="ops", created_at=data.T0 - 3600, requests_per_minute=60)
        self._log("engine", "ready")

    # -- the script's own handles ----------------------------------------------------------------------------------
    def emit(self, event: Event) -> None:
        """Give one event to every subscriber."""
        for queue in self._queues:
            if not queue.full():
                queue.put_nowait(event)

    def stop(self) -> None:
        """As if somebody had told the engine to end."""
        for queue in self._queues:
            queue.put_nowait(EngineStopped("the engine was stopped", hint="`lathe engine start` starts it again"))

    def advance(self, seconds: float = 1.0) -> None:
        """Let time pass: samples, traffic and the running jobs move."""
        self.t += seconds
        for job in list(self.queue.values()):
            if job.state == "running":
                self._work(job, seconds)
        if not any(job.state == "running" for job in self.queue.values()):
            waiting = [job for job in self.queue.values() if job.state == "queued"]
            if waiting:
                first = min(waiting, key=lambda job: job.created_at)
                self._change(first, state="running", started_at=self.now, last_event_at=self.now, attempts=1, pid=4300)
        self.emit(SampleTaken(self._sample()))
        self.emit(TrafficChanged(data.traffic(self.t, tuple(self.requests.values()))))

    def crash(self, reference: str) -> None:
        """Kill a loaded model as a signal would."""
        entry = self._find(reference)
        failure = Failure("E_ENGINE_CRASH", f"{entry.name}: the worker was killed by SIGKILL", "load it again", 70)
        self._worker_changed(REPLACE(self.workers[entry.id], phase="failed", failure=failure, since=self.now))

    @property
    def now(self) -> float:
        """Unix seconds of the script."""
        return data.T0 + self.t

    # -- observing -------------------------------------------------------------------------------------------------
    async def snapshot(self) -> Snapshot:
        self._enter("snapshot")
        engine = EngineInfo(pid=4100, version="0.1.0", home=data.HOME, started_at=data.T0 - 273_600, fronts=1,
                            carrier="socket", hostname="edge-07")  # fmt: skip
        requests = tuple(self.requests.values())
        quiet = Traffic(window_s=300, requests=requests, running=len(self._stop))
        return Snapshot(
            engine=engine,
            workers=tuple(self.workers.values()),
            server=self.server,
            jobs=tuple(self._ordered()),
            traffic=data.traffic(self.t, requests) if self.living else quiet,
            sample=self._sample(),
        )

    async def events(self) -> AsyncGenerator[Event, None]:
        self._enter("events")
        queue: asyncio.Queue[Event | LatheError] = asyncio.Queue(10_000)
        self._queues.append(queue)
        try:
            while True:
                event = await queue.get()
                if isinstance(event, LatheError):
                    raise event
                yield event
        finally:
            self._queues.remove(queue)

    async def history(self, seconds: float = 300) -> list[Sample]:
        self._enter("history")
        take = data.sample if self.living else data.bare_sample
        return [take(self.t - seconds + i) for i in range(int(seconds))]

    async def doctor(self) -> list[Finding]:
        self._enter("doctor")
        return list(self.report)

    # -- catalogue -------------------------------------------------------------------------------------------------
    async def models(self) -> list[ModelEntry]:
        self._enter("models")
        return sorted(self.catalogue.values(), key=lambda entry: entry.name)

    async def model(self, reference: str) -> ModelDetails:
        self._enter("model")
        entry = self._find(reference)
        problem = None
        if not entry.card:
            problem = Failure("E_GGUF_HEADER", f"{entry.name}: bad magic 0x00000000", "fetch the file again", 65)
        return ModelDetails(
            entry=entry,
            card=msgspec.convert(entry.card, ModelCard) if entry.card else ModelCard(format=entry.format),
            children=tuple(e.id for e in self.catalogue.values() if e.parent == entry.id),
            worker=self.workers.get(entry.id),
            problem=problem,
        )

    async def estimate(self, reference: str, options: LoadOptions) -> Fit:
        self._enter("estimate")
        entry = self._find(reference)
        if not entry.card:
            footprint = Footprint(weights=entry.bytes, kv_cache=0, compute=0, overhead=0)
            return Fit(footprint=footprint, options=options, verdict="unknown", reason="the header cannot be read")
        info = data.worker(entry, options).info
        assert info is not None
        filled = REPLACE(options, context=info.context, gpu_layers=info.layers, threads=info.threads)
        footprint = Footprint(weights=info.weights_bytes or 0, kv_cache=info.kv_bytes or 0,
                              compute=info.compute_bytes or 0, overhead=200 * data.MIB,
                              gpu_layers=info.gpu_layers)  # fmt: skip
        footprint = REPLACE(footprint, devices={"nvidia0" if self.living else "cpu": footprint.total})
        free = 11 * data.GIB if self.living else 13 * data.GIB
        short = max(0, footprint.total - free - (32 * data.GIB if self.living else 0))
        available = {"nvidia0": free, "cpu": 43 * data.GIB} if self.living else {"cpu": free}
        if short:
            reason = f"does not fit: short by {short / data.GIB:.1f} GiB of RAM"
            return Fit(footprint=footprint, options=filled, verdict="no", short=short, available=available,
                       reason=reason)  # fmt: skip
        verdict = "fits" if footprint.total < 0.9 * free else "tight" if footprint.total < free else "partial"
        return Fit(footprint=footprint, options=filled, verdict=verdict, available=available,
                   reason=f"needs {footprint.total / data.GIB:.1f} GiB")  # fmt: skip

    async def rename(self, reference: str, name: str) -> ModelEntry:
        self._enter("rename", reference, name)
        if any(entry.name == name for entry in self.catalogue.values()):
            raise UsageError(f"{name}: that name is taken", hint="choose another")
        entry = REPLACE(self._find(reference), name=name)
        self.catalogue[entry.id] = entry
        self.emit(ModelsChanged((entry.id,)))
        return entry

    async def aliases(self) -> list[ModelAlias]:
        self._enter("aliases")
        return sorted(self.model_aliases.values(), key=lambda alias: alias.name)

    async def set_alias(self, alias: ModelAlias) -> ModelAlias:
        self._enter("set_alias", alias)
        self.model_aliases[alias.name] = alias
        self.emit(ModelsChanged(()))
        return alias

    async def remove_alias(self, name: str) -> ModelAlias:
        self._enter("remove_alias", name)
        if name not in self.model_aliases:
            raise MissingError(f"there is no alias {name!r}")
        return self.model_aliases.pop(name)

    async def remove(self, reference: str, delete_files: bool = False, force: bool = False) -> list[str]:
        self._enter("remove", reference, delete_files, force)
        entry = self._find(reference)
        if entry.id in self.workers:
            raise BusyError(f"{entry.name} is loaded", hint="unload it first")
        if delete_files and entry.origin != "made" and not force:
            raise UsageError(f"{entry.path}: Lathe did not make this file", hint="force deletes it all the same")
        del self.catalogue[entry.id]
        self.emit(ModelsChanged((entry.id,)))
        return [entry.path] if delete_files else []

    # -- models in memory ------------------------------------------------------------------------------------------
    async def load(self, reference: str, options: LoadOptions | None = None, force: bool = False) -> WorkerState:
        self._enter("load", reference, options, force)
        entry = self._find(reference)
        options = options or LoadOptions()
        fit = await self.estimate(entry.id, options)
        if fit.verdict == "no" and not force:
            raise DoesNotFit(f"{entry.name} {fit.reason}", hint="choose a smaller context or a smaller quant")
        ready = data.worker(entry, options)
        starting = REPLACE(ready, phase="starting", info=None, since=self.now)
        for step in range(4):
            self._worker_changed(REPLACE(starting, progress=step / 4))
            await asyncio.sleep(self.load_s / 4)
        state = REPLACE(ready, since=self.now, predicted=fit.footprint)
        self._worker_changed(state)
        self._log(f"worker {entry.name}", "ready")
        return state

    async def unload(self, reference: str) -> None:
        self._enter("unload", reference)
        entry = self._find(reference)
        worker = self.workers.pop(entry.id, None)
        if worker is None:
            raise UsageError(f"{entry.name} is not loaded")
        self.emit(WorkerChanged(REPLACE(worker, phase="stopped", info=None, since=self.now)))

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Delta, None]:
        self._enter("generate", request)
        check(request)
        entry = self._find(request.model)
        if entry.id not in self.workers:
            await self.load(entry.id)
        prompt, prompt_ids = language.prompt_of(request)
        answer = self.answer if isinstance(self.answer, str) else self.answer(request)
        id_ = f"r-{100 + sum(call[0] == 'generate' for call in self.calls)}"
        stop = self._stop[id_] = asyncio.Event()
        generated = 0
        row = RequestRow(id=id_, model=entry.name, stage="decode", client=request.client or request.principal,
                         prompt_tokens=len(prompt_ids), ttft_s=0.18, tokens_per_s=40.0)  # fmt: skip
        try:
            for index in range(request.n):
                body, stop_text = _until_stop(answer, request.stop)
                if index == 0 and request.echo:
                    scored = request.logprobs is not None
                    yield Delta(index=index, text=prompt, prompt_logprobs=tuple(
                        language.logprob(i, language.detokenize([i]), request.logprobs or 0) for i in prompt_ids
                    ) if scored else ())  # fmt: skip
                finish = "stop"
                for said, piece in enumerate(language.pieces(body)):
                    await asyncio.sleep(self.token_s)
                    if stop.is_set():
                        finish = "cancelled"
                        break
                    if said == request.max_tokens:
                        finish = "length"
                        break
                    generated += 1
                    self.requests[id_] = REPLACE(row, generated=generated, age_s=0.18 + generated / 40)
                    yield _delta(index, piece, request.logprobs)
                last = index == request.n - 1
                yield Delta(
                    index=index,
                    finish=finish,  # type: ignore[arg-type]
                    stop_text=stop_text if finish == "stop" else None,
                    usage=Usage(len(prompt_ids), generated) if last else None,
                    timing=self._timing(request, generated) if last else None,
                )
            self.requests[id_] = REPLACE(row, stage=finish, generated=generated, finished=True)
        finally:
            del self._stop[id_]
            if not self.requests.get(id_, row).finished:
                self.requests[id_] = REPLACE(row, stage="cancelled", generated=generated, finished=True)

    async def render(
        self,
        model: str,
        messages: list[Message],
        tools: str | None = None,
        template_args: dict[str, str | bool | int | float] | None = None,
    ) -> RenderedPrompt:
        self._enter("render")
        self._find(model)
        return language.render(messages)

    async def tokenize(self, model: str, text: str, special: bool = False, bos: bool = False) -> list[int]:
        self._enter("tokenize")
        self._find(model)
        return language.tokenize(text, special, bos)

    async def detokenize(self, model: str, tokens: list[int]) -> str:
        self._enter("detokenize")
        self._find(model)
        return language.detokenize(tokens)

    async def score(self, request: ScoreRequest) -> list[Score]:
        self._enter("score", request)
        self._find(request.model)
        return [language.score(continuation) for continuation in request.continuations]

    async def embed(self, request: EmbedRequest) -> Embeddings:
        self._enter("embed", request)
        self._find(request.model)
        return language.embed(request.texts, request.normalize)

    async def cancel_request(self, request_id: str) -> None:
        self._enter("cancel_request", request_id)
        if request_id not in self.requests:
            raise MissingError(f"no request {request_id}")
        if request_id in self._stop:
            self._stop[request_id].set()
        else:
            row = self.requests[request_id]
            self.requests[request_id] = REPLACE(row, stage="cancelled", finished=True)

    # -- jobs ------------------------------------------------------------------------------------------------------
    async def submit(self, step: Step, run: str | None = None) -> Job:
        self._enter("submit", step, run)
        if hasattr(step, "model"):
            self._find(step.model)
        number = max((int(id_.removeprefix("j-")) for id_ in self.queue), default=0) + 1
        kind = type(step).__name__.removesuffix("Step").lower()
        named = getattr(step, "model", None) or getattr(step, "store", "")
        target = " ".join(step.roots) if isinstance(step, ScanStep) else named
        job = Job(id=f"j-{number}", step=step, title=f"{kind} {target}".strip(), created_at=self.now, run=run,
                  lane="io" if isinstance(step, ScanStep) else "cpu")  # fmt: skip
        self.queue[job.id] = job
        self.logs[job.id] = []
        self.emit(JobChanged(job))
        return job

    async def jobs(self, limit: int = 100) -> list[Job]:
        self._enter("jobs")
        return self._ordered()[:limit]

    async def job(self, job_id: str) -> Job:
        self._enter("job")
        return self._job(job_id)

    async def forecast(self, step: ConvertStep | QuantizeStep | OnnxQuantizeStep) -> Forecast:
        self._enter("forecast")
        return tune.forecast(step, self._find(step.model), {entry.name for entry in self.catalogue.values()})

    async def artefact_text(self, job_id: str, name: str) -> str:
        self._enter("artefact_text")
        if self._job(job_id).id not in self.documents:
            raise MissingError(f"{job_id} made no document {name!r}")
        return self.documents[job_id]

    async def wait(self, job_id: str) -> Job:
        self._enter("wait", job_id)
        while self._job(job_id).state not in FINAL:
            self.advance(30)
            await asyncio.sleep(0)
        return self._job(job_id)

    async def previous(self, step: Step) -> Job | None:
        """No step was done before."""
        return None

    async def cancel(self, job_id: str, force: bool = False) -> Job:
        self._enter("cancel", job_id, force)
        job = self._job(job_id)
        if job.state in FINAL:
            raise UsageError(f"{job_id} is already {job.state}")
        return self._change(job, state="cancelled", finished_at=self.now, pid=None)

    async def resume(self, job_id: str) -> Job:
        self._enter("resume", job_id)
        job = self._job(job_id)
        if job.state not in FINAL or job.state == "done":
            raise UsageError(f"{job_id} is {job.state}: nothing to resume")
        return self._change(job, state="queued", finished_at=None, failure=None)

    async def clear_finished(self) -> int:
        self._enter("clear_finished")
        ended = [job.id for job in self.queue.values() if job.state in FINAL]
        for id_ in ended:
            del self.queue[id_]
        return len(ended)

    async def job_log(self, job_id: str, after: int = 0, limit: int = 500) -> LogPage:
        self._enter("job_log")
        ended = self._job(job_id).state in FINAL
        return _page(self.logs.get(job_id, []), after, limit, ended)

    # -- the HTTP API ----------------------------------------------------------------------------------------------
    async def start_server(self, options: ServerOptions) -> ServerState:
        self._enter("start_server", options)
        if self.server.running:
            raise BusyError(f"already serving at {self.server.url}")
        port = options.port or 40_123
        self.server = ServerState(running=True, url=f"http://{options.host}:{port}", options=options,
                                  started_at=self.now)  # fmt: skip
        self.emit(ServerChanged(self.server))
        return self.server

    async def stop_server(self) -> ServerState:
        self._enter("stop_server")
        self.server = ServerState(running=False, options=self.server.options)
        self.emit(ServerChanged(self.server))
        return self.server

    async def keys(self) -> list[ApiKey]:
        self._enter("keys")
        return list(self.tokens.values())

    async def make_key(self, key: ApiKey) -> ApiKey:
        self._enter("make_key", key)
        if key.name in self.tokens:
            raise UsageError(f"{key.name}: that name is taken")
        self.tokens[key.name] = REPLACE(key, created_at=self.now, secret=None)
        return REPLACE(self.tokens[key.name], secret=f"lathe-{data.digest(key.name)[:32]}")

    async def revoke_key(self, name: str) -> None:
        self._enter("revoke_key", name)
        if self.tokens.pop(name, None) is None:
            raise MissingError(f"no key named {name}")

    # -- the rest --------------------------------------------------------------------------------------------------
    async def settings(self) -> list[SettingValue]:
        self._enter("settings")
        return list(self.values.values())

    async def set_setting(self, key: str, value: str | None) -> SettingValue:
        self._enter("set_setting", key, value)
        old = self.values.get(key)
        if old is None:
            raise MissingError(f"no setting {key}")
        if old.locked:
            raise UsageError(f"{key} is set by {old.source}", hint="change it there")
        self.values[key] = (
            REPLACE(old, value=old.default, source="default")
            if value is None
            else REPLACE(old, value=_parse(old, value), source=f"user {data.HOME}/config.toml:20")
        )
        self.emit(SettingsChanged((key,)))
        return self.values[key]

    async def log(self, after: int = 0, limit: int = 500) -> LogPage:
        self._enter("log")
        return _page(self.lines, after, limit, False)

    async def close(self) -> None:
        self.closed = True

    async def shutdown(self) -> None:
        self._enter("shutdown")
        self.lost = True

    # -- evals -----------------------------------------------------------------------------------------------------
    async def eval_suites(self) -> list[SuiteInfo]:
        self._enter("eval_suites")
        return list(evals.SUITES)

    async def eval_runs(self, limit: int = 100, suite: str | None = None) -> list[EvalRun]:
        self._enter("eval_runs")
        newest = sorted(self.eval_book.values(), key=lambda run: run.created_at, reverse=True)
        return [run for run in newest if suite in (None, run.suite)][:limit]

    async def eval_run(self, reference: str) -> EvalRun:
        self._enter("eval_run")
        return evals.find(self.eval_book, reference)

    async def eval_records(self, reference: str, after: int = 0, limit: int = 200) -> list[Record]:
        self._enter("eval_records")
        return evals.RECORDS[evals.find(self.eval_book, reference).id][after : after + limit]

    async def eval_case(self, reference: str, task: str, case: str) -> list[Record]:
        self._enter("eval_case")
        records = evals.RECORDS[evals.find(self.eval_book, reference).id]
        return [record for record in records if (record.task, record.case) == (task, case)]

    async def bench_history(self, model: str | None = None, limit: int = 200) -> list[BenchPoint]:
        self._enter("bench_history")
        return evals.bench_history(model)[:limit] if self.living else []

    async def eval_compare(self, baseline: str, reference: str, tolerance: float = TOLERANCE) -> Comparison:
        self._enter("eval_compare")
        return evals.compared(evals.find(self.eval_book, baseline), evals.find(self.eval_book, reference))

    async def eval_report(self, reference: str, style: ReportStyle, baseline: str | None = None) -> str:
        self._enter("eval_report")
        base = evals.find(self.eval_book, baseline) if baseline else None
        return evals.report(evals.find(self.eval_book, reference), base)

    async def set_baseline(self, name: str, reference: str | None) -> EvalRun | None:
        self._enter("set_baseline", name, reference)
        for run in list(self.eval_book.values()):
            kept = tuple(alias for alias in run.aliases if alias != name)
            self.eval_book[run.id] = REPLACE(run, aliases=kept)
        if reference is None:
            return None
        run = evals.named(evals.find(self.eval_book, reference), name)
        self.eval_book[run.id] = run
        return run

    async def remove_eval_run(self, reference: str) -> EvalRun:
        self._enter("remove_eval_run", reference)
        return self.eval_book.pop(evals.find(self.eval_book, reference).id)

    async def review(self, review: Review) -> Review:
        self._enter("review", review)
        kept = REPLACE(review, number=len(self.judgements) + 1, at=self.now)
        self.judgements.append(kept)
        return kept

    async def reviews(self, subject: str | None = None) -> list[Review]:
        self._enter("reviews")
        return [review for review in self.judgements if subject in (None, review.subject)]

    # -- RAG stores ------------------------------------------------------------------------------------------------
    async def stores(self) -> list[StoreStats]:
        self._enter("stores")
        kept = [s for s in rag.stats() if s.settings.name not in self.stores_removed] if self.living else []
        return [REPLACE(s, **self.stores_changed.get(s.settings.name, {})) for s in kept]

    async def store(self, name: str) -> StoreDetails:
        self._enter("store")
        return rag.details(self._store(name))

    async def search_store(self, request: SearchRequest) -> SearchResult:
        self._enter("search_store", request)
        self._store(request.store)
        return rag.search(request)

    async def ask_store(self, request: AskRequest) -> AsyncGenerator[AskEvent, None]:
        self._enter("ask_store", request)
        self._store(request.store)
        for event in rag.answer(rag.search(SearchRequest(store=request.store, query=request.question, k=request.k))):
            await asyncio.sleep(self.token_s)
            yield event

    async def passage(self, store: str, passage: int, principal: str = "local") -> PassageView:
        self._enter("passage")
        self._store(store)
        for found in rag.passages():
            if found.id == passage:
                return rag.view(found)
        raise MissingError(f"store {store} has no passage {passage}")

    async def store_documents(self, name: str, after: str = "", limit: int = 200) -> list[StoredDocument]:
        self._enter("store_documents", name)
        rows = rag.details(self._store(name)).documents
        return [row for row in rows if row.path > after][:limit]

    async def store_passages(self, name: str, document: str, after: int = -1, limit: int = 200) -> list[StoredPassage]:
        self._enter("store_passages", name, document)
        self._store(name)
        return [row for row in rag.passages() if row.path == document and row.ordinal > after][:limit]

    async def store_report(self, name: str) -> QualityReport | None:
        self._enter("store_report", name)
        return rag.report(self._store(name))

    async def store_diff(self, name: str, before: int | None = None, after: int | None = None) -> StoreDiff:
        self._enter("store_diff", name, before, after)
        return StoreDiff(store=name, before=1, after=2, changes=rag.details(self._store(name)).changes)

    async def share_store(self, name: str, principals: list[str]) -> StoreStats:
        self._enter("share_store", name, principals)
        stats = self._store(name)
        settings = msgspec.structs.replace(stats.settings, access=tuple(principals))
        return msgspec.structs.replace(stats, settings=settings)

    async def store_questions(self, name: str) -> list[Question]:
        self._enter("store_questions", name)
        self._store(name)
        return rag.questions() if name == "handbook" else []

    async def remove_store(self, name: str) -> int:
        self._enter("remove_store", name)
        stats = self._store(name)
        self.stores_removed.add(name)
        return stats.bytes

    async def watch_store(self, name: str, interval_s: float = 2.0) -> AsyncGenerator[Watched, None]:
        self._enter("watch_store", name)
        self._store(name)
        yield Watched(job=await self.wait((await self.submit(RagBuildStep(store=name))).id))

    def _store(self, name: str) -> StoreStats:
        for stats in rag.stats() if self.living else []:
            if stats.settings.name == name:
                return stats
        raise MissingError(f"there is no store {name!r}", hint="`lathe rag list` shows every store")

    # -- inside ----------------------------------------------------------------------------------------------------
    def _enter(self, name: str, *arguments: Any) -> None:
        if arguments or name in ("clear_finished", "stop_server", "shutdown"):
            self.calls.append((name, *arguments))
        if self.lost:
            raise UnavailableError("the engine is gone", hint="`lathe engine status` tells whether it runs")
        if name in self.fail:
            raise self.fail.pop(name)

    def _find(self, reference: str) -> ModelEntry:
        for entry in self.catalogue.values():
            if reference in (entry.id, entry.name, entry.path) or (
                len(reference) >= 4 and entry.id.startswith(reference)
            ):
                return entry
        raise MissingError(f"no model {reference!r}", hint="`lathe models list` shows them")

    def _job(self, job_id: str) -> Job:
        if job_id not in self.queue:
            raise MissingError(f"no job {job_id}")
        return self.queue[job_id]

    def _ordered(self) -> list[Job]:
        return sorted(self.queue.values(), key=lambda job: -int(job.id.removeprefix("j-")))

    def _sample(self) -> Sample:
        return data.sample(self.t) if self.living else data.bare_sample(self.t)

    def _worker_changed(self, worker: WorkerState) -> None:
        self.workers[worker.model_id] = worker
        self.emit(WorkerChanged(worker))

    def _change(self, job: Job, **fields: Any) -> Job:
        changed = REPLACE(job, **fields)
        self.queue[job.id] = changed
        self.emit(JobChanged(changed))
        self._log(f"job {job.id}", f"{changed.title}: {changed.state}")
        return changed

    def _work(self, job: Job, seconds: float) -> None:
        progress = job.progress
        total = progress.total or 399
        done = progress.done + 4.1 * seconds
        if done < total:
            eta = (total - done) / 4.1
            progress = REPLACE(progress, label=progress.label or "work", done=done, total=total, rate=4.1, eta_s=eta)
        elif progress.stage < progress.stages:
            progress = Progress(stage=progress.stage + 1, stages=progress.stages, label="verify", done=0, total=total)
        else:
            self._change(job, state="done", finished_at=self.now, pid=None, outcome=Outcome(figures={"ok": True}),
                         progress=REPLACE(progress, done=total, total=total, eta_s=None))  # fmt: skip
            return
        self.queue[job.id] = REPLACE(job, progress=progress, last_event_at=self.now)
        self.logs[job.id].append(f"{progress.label} {int(progress.done)}/{int(total)}")
        self.emit(JobProgressed(job.id, progress))

    def _log(self, source: str, message: str, level: str = "info") -> None:
        line = LogLine(ts=self.now, level=level, source=source, text=message)  # type: ignore[arg-type]
        stamp = datetime.fromtimestamp(self.now, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        record = {"v": 1, "ts": stamp, "level": level, "source": source, "text": message}
        self.lines.append(msgspec.json.encode(record).decode())
        self.emit(line)

    def _timing(self, request: GenerationRequest, generated: int) -> Timing:
        decode = max(0, generated - 1) / 40
        return Timing(scheduled_s=0.01, first_token_s=0.18, finished_s=0.18 + decode, prefill_s=0.17, decode_s=decode,
                      seed=SEED if request.sampling.seed is None else request.sampling.seed)  # fmt: skip


def _delta(index: int, piece: str, alternatives: int | None) -> Delta:
    (token,) = language.tokenize(piece)
    logprobs = () if alternatives is None else (language.logprob(token, piece, alternatives),)
    return Delta(index=index, text=piece, tokens=(token,), logprobs=logprobs)


def _until_stop(answer: str, stops: tuple[str, ...]) -> tuple[str, str | None]:
    """Cut an answer at the first stop string; also which one it was."""
    found = [(answer.find(stop), stop) for stop in stops if stop in answer]
    if not found:
        return answer, None
    at, stop = min(found)
    return answer[:at], stop


def _page(lines: list[str], after: int, limit: int, ended: bool) -> LogPage:
    sizes = [len(line.encode()) + 1 for line in lines]
    total = sum(sizes)
    if after < 0:
        return LogPage(lines=tuple(lines[-limit:]), next=total, ended=ended)
    taken: list[str] = []
    position = 0
    for line, size in zip(lines, sizes, strict=True):
        if position >= after and len(taken) < limit:
            taken.append(line)
            after = position + size
        position += size
    return LogPage(lines=tuple(taken), next=after, ended=ended)


def _parse(setting: SettingValue, value: str) -> str | int | float | bool:
    try:
        if setting.kind == "bool":
            return {"true": True, "false": False}[value.lower()]
        if setting.kind in ("int", "float"):
            return int(value) if setting.kind == "int" else float(value)
    except (KeyError, ValueError):
        raise UsageError(f"{setting.key}: {value!r} is no {setting.kind}") from None
    if "|" in setting.kind and value not in setting.kind.split("|"):
        raise UsageError(f"{setting.key}: {value!r} is none of {setting.kind}")
    return value
