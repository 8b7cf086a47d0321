"""`LocalWorkbench`: the engine itself, in this process. It joins the services and decides nothing of its own.

    models on disk  -> Registry        models in memory -> ModelPool       jobs  -> JobRunner
    HTTP            -> HttpServer      what is happening -> Pulse           facts -> Bus, Journal
Invariant: `open` either holds the workspace's lock and has every service running, or nothing is left behind; `close`
ends them in the reverse order of their dependence.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec
from lathe.engine import settings as reference
from lathe.engine.bus import Bus
from lathe.engine.catalogue.catalogue import Catalogue
from lathe.engine.catalogue.hashing import Hasher
from lathe.engine.catalogue.remotes import check_policy
from lathe.engine.errors import LatheError, MissingError, UsageError
from lathe.engine.evals.desk import EvalDesk
from lathe.engine.evals.results import TOLERANCE, Comparison, EvalRun, Record, ReportStyle, SuiteInfo
from lathe.engine.events import Event, LogLine, ModelsChanged, SettingsChanged, WorkerChanged
from lathe.engine.forecaster import Forecaster
from lathe.engine.generation import (
    Delta,
    Embeddings,
    EmbedRequest,
    GenerationRequest,
    Message,
    RenderedPrompt,
    Score,
    ScoreRequest,
    check,
)
from lathe.engine.jobs.kinds import kind_of
from lathe.engine.jobs.outputs import artefact_text
from lathe.engine.jobs.records import StoredJobs
from lathe.engine.jobs.reuse import intact, step_keys
from lathe.engine.jobs.runner import JobRunner
from lathe.engine.jobs.values import FINAL, Job, Lane
from lathe.engine.journal import Journal, JournalHandler, read_page
from lathe.engine.measure.history import BenchPoint
from lathe.engine.paths import Home
from lathe.engine.planner import MemoryPlanner
from lathe.engine.pulse import Pulse
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
from lathe.engine.rag.stores import Stores
from lathe.engine.release import RELEASE
from lathe.engine.states import EngineInfo, Fit, Forecast, ServerOptions, ServerState, Snapshot, WorkerState
from lathe.engine.steps import ConvertStep, OnnxQuantizeStep, QuantizeStep, ScanStep, Step
from lathe.engine.telemetry.sample import Sample
from lathe.engine.telemetry.traffic import Observation
from lathe.engine.workbench import ApiKey, Finding, LogPage, ModelAlias, ModelDetails, SettingValue
from lathe.engine.worker.messages import LoadOptions
from lathe.engine.worker.pool import ModelPool
from lathe.engine.worker.supervisor import Supervisor
from lathe.quantize.artefact import collect_parts, remove_part
from lathe.store.database import Database
from lathe.store.evals import Review
from lathe.store.keys import KeyRing, StoredKey
from lathe.store.models import ModelEntry
from lathe.store.rag.values import Question, StoredDocument, StoredPassage, StoreStats

if TYPE_CHECKING:
    from lathe.engine.http.server import HttpServer

Carrier = Literal["in-process", "socket"]


class LocalWorkbench:
    """The engine of one workspace; made by `open`."""

    def __init__(
        self, home: Home, loaded: reference.Loaded, flags: Mapping[str, str], database: Database, carrier: Carrier
    ) -> None:
        settings = loaded.settings
        self._home = home
        self._loaded = loaded
        self._flags = flags
        self._carrier: Carrier = carrier
        self._database = database
        self._started_at = time.time()
        self._bus = Bus()
        self._stop: Callable[[], None] | None = None
        self._fronts: Callable[[], int] = lambda: 0
        self._journal = Journal(home.engine_log, settings.general.log_max_mb * 1024 * 1024, self._bus.publish)
        self._catalogue = Catalogue(database, time.time)
        self._hasher: Hasher | None = None
        self._held: dict[str, tuple[Supervisor, Observation]] = {}
        self._pulse = Pulse(home, settings.general.refresh_s, self._publish)
        planner = MemoryPlanner(self._pulse.devices, settings.serving.memory_reserve_mb * 1024 * 1024)
        self._pool = ModelPool(home.logs, planner=planner, publish=self._publish)
        self._forecaster = Forecaster(home.root, home.logs / "forecast.log", planner, self._pool.states)
        lanes: dict[Lane, int] = {"cpu": settings.general.jobs_cpu, "gpu": 1, "io": 2}
        self._runner = JobRunner(home, StoredJobs(database), _Setting(self), self._publish, lanes)
        self._keys = KeyRing(database)
        self._evals = EvalDesk(home)
        self._stores = Stores(home.stores, self, lasting=carrier == "socket")
        self._server: HttpServer | None = None

    @classmethod
    async def open(
        cls, home: Home, *, flags: Mapping[str, str] | None = None, carrier: Carrier = "in-process"
    ) -> LocalWorkbench:
        """Take the workspace and start its services.

        Raises:
            StoreLocked: another process holds it. ConfigError, CannotCreate, StoreError: why it cannot be opened.
        """
        loaded = reference.load_here(flags)
        home.create()
        database = await asyncio.to_thread(Database.open, home.database)
        try:
            self = cls(home, loaded, flags or {}, database, carrier)
            await self._start()
        except BaseException:
            database.close()
            raise
        return self

    async def _start(self) -> None:
        self._handler = JournalHandler(self._journal)
        logging.getLogger("lathe").addHandler(self._handler)
        loop = asyncio.get_running_loop()
        self._hasher = Hasher(self._database, partial(self._hashed, loop))
        await asyncio.to_thread(self._catalogue.enter_embedded)
        self._pulse.start(self._roles)
        await self._runner.recover()
        self._journal.write(f"engine {RELEASE} started, pid {os.getpid()}")

    async def close(self) -> None:
        """Stop every service; running jobs become resumable."""
        async with AsyncExitStack() as ends:
            ends.callback(self._database.close)
            ends.callback(self._evals.close)
            ends.callback(self._journal.close)
            ends.callback(logging.getLogger("lathe").removeHandler, self._handler)
            if self._hasher is not None:
                ends.push_async_callback(asyncio.to_thread, self._hasher.stop)
            ends.push_async_callback(asyncio.to_thread, self._pulse.stop)
            ends.push_async_callback(self._pool.close)
            ends.push_async_callback(self._stores.close)
            ends.push_async_callback(self._forecaster.close)
            ends.push_async_callback(self._runner.close)
            ends.push_async_callback(self.stop_server)

    async def shutdown(self) -> None:
        """Ask the process that holds the workspace to end."""
        if self._stop is None:
            raise UsageError("this workbench ends with the command that opened it")
        self._journal.write("asked to stop")
        self._stop()

    def on_shutdown(self, stop: Callable[[], None]) -> None:
        """What `shutdown` calls; given by the engine process."""
        self._stop = stop

    def count_fronts(self, fronts: Callable[[], int]) -> None:
        """How many fronts are attached; given by the engine process."""
        self._fronts = fronts

    @property
    def busy(self) -> bool:
        """Whether anything here would be missed: jobs, models in memory, the server."""
        return self._runner.busy or bool(self._pool.states()) or self._server_state.running

    @property
    def settings_now(self) -> reference.Settings:
        """The effective settings."""
        return self._loaded.settings

    # -- observing -----------------------------------------------------------------------------------------------
    async def snapshot(self) -> Snapshot:
        """Everything a front draws, at one moment."""
        await self._pulse.first()
        workers = self._pool.states()
        return Snapshot(
            engine=EngineInfo(
                pid=os.getpid(), version=RELEASE, home=str(self._home.root), started_at=self._started_at,
                fronts=self._fronts(), offline=self._loaded.settings.general.offline, carrier=self._carrier,
                hostname=socket.gethostname(),
            ),
            workers=workers,
            server=self._server_state,
            jobs=tuple(await self._runner.newest(100)),
            traffic=self._pulse.traffic(),
            sample=self._pulse.latest,
        )  # fmt: skip

    async def events(self) -> AsyncGenerator[Event, None]:
        """Facts as they happen."""
        async with aclosing(self._bus.subscribe()) as events:
            async for event in events:
                yield event

    async def history(self, seconds: float = 300) -> list[Sample]:
        """Samples of the last while, oldest first."""
        return self._pulse.history(seconds)

    async def doctor(self) -> list[Finding]:
        """What this machine can do."""
        from lathe.engine.doctor import examine

        return await examine(self._home, offline=self._loaded.settings.general.offline, devices=self._pulse.devices)

    # -- catalogue -----------------------------------------------------------------------------------------------
    async def models(self) -> list[ModelEntry]:
        """Every model, by name."""
        return await asyncio.to_thread(self._catalogue.all)

    async def model(self, reference: str) -> ModelDetails:
        """One model with everything known about it."""
        details = await asyncio.to_thread(self._catalogue.details, reference)
        return msgspec.structs.replace(details, worker=self._pool.state(details.entry.name))

    async def resolve(self, reference: str) -> ModelEntry:
        """The model a reference names."""
        known = self._catalogue.known(reference)
        if known is not None:
            return known  # spares a request a thread and a transaction
        return await asyncio.to_thread(self._catalogue.resolve, reference)

    async def estimate(self, reference: str, options: LoadOptions) -> Fit:
        """Predict the memory of a load."""
        return await self._pool.estimate(await self.resolve(reference), options)

    async def rename(self, reference: str, name: str) -> ModelEntry:
        """Give a model another name."""
        entry = await self.resolve(reference)
        self._refuse_if_loaded(entry, "renamed")
        renamed = await asyncio.to_thread(self._catalogue.rename, entry.id, name)
        self._publish(ModelsChanged((entry.id,)))
        return renamed

    async def aliases(self) -> list[ModelAlias]:
        """Every alias and every remote model, by name."""
        return await asyncio.to_thread(self._catalogue.aliases)

    async def set_alias(self, alias: ModelAlias) -> ModelAlias:
        """Let a name stand for a model or for one of another server."""
        await self._unload_remote(alias.name)
        kept = await asyncio.to_thread(self._catalogue.set_alias, alias)
        self._publish(ModelsChanged(()))
        return kept

    async def remove_alias(self, name: str) -> ModelAlias:
        """Forget an alias or a remote model."""
        await self._unload_remote(name)
        removed = await asyncio.to_thread(self._catalogue.remove_alias, name)
        self._publish(ModelsChanged(()))
        return removed

    async def _unload_remote(self, name: str) -> None:
        """End the worker of a remote model whose name will mean something else."""
        if any(one.name == name and one.remote for one in await self.aliases()) and self._pool.state(name) is not None:
            await self._pool.unload(name)

    async def remove(self, reference: str, delete_files: bool = False, force: bool = False) -> list[str]:
        """Forget a model; returns the paths deleted."""
        entry = await self.resolve(reference)
        self._refuse_if_loaded(entry, "removed")
        deleted = await asyncio.to_thread(self._catalogue.remove, entry.id, delete_files=delete_files, force=force)
        self._journal.write(f"{entry.name} removed" + (f", {len(deleted)} paths deleted" if deleted else ""))
        self._publish(ModelsChanged((entry.id,)))
        return deleted

    def _refuse_if_loaded(self, entry: ModelEntry, what: str) -> None:
        if self._pool.state(entry.name) is not None:
            raise UsageError(f"{entry.name} is in memory and cannot be {what}", hint="unload it first")

    # -- models in memory ----------------------------------------------------------------------------------------
    async def load(self, reference: str, options: LoadOptions | None = None, force: bool = False) -> WorkerState:
        """Bring a model into memory and wait until it is ready."""
        entry = await self.resolve(reference)
        return await self._pool.load(entry, self._filled(options, entry), force)

    async def unload(self, reference: str) -> None:
        """Drain and stop the model's worker."""
        entry = await self.resolve(reference)
        if self._pool.state(entry.name) is None:
            raise MissingError(f"{entry.name} is not in memory")
        await self._pool.unload(entry.name)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Delta, None]:
        """Stream an answer; leaving the loop cancels."""
        check(request)
        entry = await self.resolve(request.model)
        with self._pulse.observe(entry.name, request.client) as seen:
            seen.remote = entry.format == "remote"
            async with self._pool.lease(entry, self._filled(None, entry)) as worker:
                self._held[seen.id] = (worker, seen)
                try:
                    async with aclosing(worker.generate(request, seen)) as deltas:
                        async for delta in deltas:
                            yield delta
                finally:
                    del self._held[seen.id]

    async def render(
        self,
        model: str,
        messages: list[Message],
        tools: str | None = None,
        template_args: dict[str, str | bool | int | float] | None = None,
    ) -> RenderedPrompt:
        """Apply the model's chat template."""
        async with await self._lease(model) as worker:
            return await worker.render(messages, tools, template_args)

    async def tokenize(self, model: str, text: str, special: bool = False, bos: bool = False) -> list[int]:
        """Text to token ids."""
        async with await self._lease(model) as worker:
            return await worker.tokenize(text, special, bos)

    async def detokenize(self, model: str, tokens: list[int]) -> str:
        """Token ids to text."""
        async with await self._lease(model) as worker:
            return await worker.detokenize(tokens)

    async def score(self, request: ScoreRequest) -> list[Score]:
        """Log-likelihood of continuations."""
        async with await self._lease(request.model) as worker:
            return await worker.score(request)

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """Texts to vectors."""
        async with await self._lease(request.model) as worker:
            return await worker.embed(request)

    async def _lease(self, reference: str) -> AbstractAsyncContextManager[Supervisor]:
        """A worker for the time of a call, loaded by the settings where it is not in memory."""
        entry = await self.resolve(reference)
        return self._pool.lease(entry, self._filled(None, entry))

    async def cancel_request(self, request_id: str) -> None:
        """Stop one running request of any front."""
        worker, seen = self._held.get(request_id, (None, None))
        if worker is None or seen is None:
            raise MissingError(f"no request {request_id!r} is running")
        if seen.number is not None:
            worker.cancel(seen.number)

    def _filled(self, options: LoadOptions | None, entry: ModelEntry) -> LoadOptions | None:
        """The server's or the settings' choices where the caller made none; PolicyError where it may not load."""
        check_policy(entry, self._loaded.settings.general.offline)
        options = options or (self._server.load_options(entry.id) if self._server else None)
        if options is not None:
            return options
        serving = self._loaded.settings.serving
        return LoadOptions(
            context=serving.context or None, slots=serving.slots, kv_type=serving.kv_type,
            threads=serving.threads or None,
            gpu_layers=None if serving.gpu_layers == -2 else serving.gpu_layers, prefix_cache=serving.prefix_cache,
            ttl_s=serving.idle_unload_s or None,
        )  # fmt: skip

    # -- jobs ----------------------------------------------------------------------------------------------------
    async def submit(self, step: Step, run: str | None = None) -> Job:
        """Queue a step."""
        return await self._runner.submit(step, run)

    async def jobs(self, limit: int = 100) -> list[Job]:
        """Newest first."""
        return await self._runner.newest(limit)

    async def job(self, job_id: str) -> Job:
        """One job."""
        return await self._runner.get(job_id)

    async def forecast(self, step: ConvertStep | QuantizeStep | OnnxQuantizeStep) -> Forecast:
        """What a step would make."""
        if isinstance(step, ConvertStep) and step.base is not None:
            step = msgspec.structs.replace(step, base=(await self.resolve(step.base)).path)
        return await self._forecaster.forecast(step, await self.resolve(step.model))

    async def artefact_text(self, job_id: str, name: str) -> str:
        """A JSON or text artefact of a finished job."""
        return await asyncio.to_thread(artefact_text, await self._runner.get(job_id), name)

    async def wait(self, job_id: str) -> Job:
        """Wait until the job is in a final state."""
        return await self._runner.wait(job_id)

    async def previous(self, step: Step) -> Job | None:
        """The newest finished job that did exactly this, if its artefacts are intact."""
        if not kind_of(step).reusable:
            return None
        try:
            keys = await step_keys(step, RELEASE, self.resolve)
        except (LatheError, OSError):
            return None  # an input is missing: running the step will say so properly
        done = await StoredJobs(self._database).with_key(keys)
        for job in done:
            made = job.outcome
            if made and not made.exit and await asyncio.to_thread(intact, made, job.finished_at or 0.0):
                return job
        return None

    async def cancel(self, job_id: str, force: bool = False) -> Job:
        """Stop a job."""
        return await self._runner.cancel(job_id, force)

    async def resume(self, job_id: str) -> Job:
        """Queue a stopped job again."""
        return await self._runner.resume(job_id)

    async def clear_finished(self) -> int:
        """Drop ended jobs from the list."""
        return await self._runner.clear_finished()

    async def job_log(self, job_id: str, after: int = 0, limit: int = 500) -> LogPage:
        """Lines of a job's log."""
        job = await self._runner.get(job_id)
        path = self._home.job(job_id) / "log"
        return await asyncio.to_thread(read_page, path, after, limit, ended=job.state in FINAL)

    # -- RAG stores ----------------------------------------------------------------------------------------------
    async def stores(self) -> list[StoreStats]:
        """Every RAG store, by name."""
        return await self._stores.listing()

    async def store(self, name: str) -> StoreDetails:
        """One store with its documents, errors and versions."""
        return await self._stores.details(name)

    async def search_store(self, request: SearchRequest) -> SearchResult:
        """Find passages."""
        return await self._stores.search(request)

    async def ask_store(self, request: AskRequest) -> AsyncGenerator[AskEvent, None]:
        """Answer a question from a store."""
        async with aclosing(self._stores.ask(request)) as events:
            async for event in events:
                yield event

    async def passage(self, store: str, passage: int, principal: str = "local") -> PassageView:
        """A passage in its surroundings."""
        return await self._stores.passage(store, passage, principal)

    async def store_documents(self, name: str, after: str = "", limit: int = 200) -> list[StoredDocument]:
        """A store's documents, a page at a time."""
        return await self._stores.documents(name, after, limit)

    async def store_passages(self, name: str, document: str, after: int = -1, limit: int = 200) -> list[StoredPassage]:
        """A document's passages, a page at a time."""
        return await self._stores.passages(name, document, after, limit)

    async def store_report(self, name: str) -> QualityReport | None:
        """What a store is made of."""
        return await self._stores.report(name)

    async def store_diff(self, name: str, before: int | None = None, after: int | None = None) -> StoreDiff:
        """What came between two versions of a store's corpus."""
        return await self._stores.diff(name, before, after)

    async def share_store(self, name: str, principals: list[str]) -> StoreStats:
        """Say which API keys may search a store."""
        return await self._stores.share(name, tuple(principals))

    async def store_questions(self, name: str) -> list[Question]:
        """A store's golden questions."""
        return await self._stores.questions(name)

    async def remove_store(self, name: str) -> int:
        """Delete a store for good."""
        free = await self._stores.remove(name)
        self._journal.write(f"store {name} deleted, {free} bytes")
        return free

    async def watch_store(self, name: str, interval_s: float = 2.0) -> AsyncGenerator[Watched, None]:
        """Bring a store up to date whenever its folders change."""
        async with aclosing(self._stores.watch(name, interval_s)) as rounds:
            async for watched in rounds:
                yield watched

    # -- evals ---------------------------------------------------------------------------------------------------
    @property
    def evals(self) -> EvalDesk:
        """The memory of evals, for services."""
        return self._evals

    async def eval_suites(self) -> list[SuiteInfo]:
        """Suites with a name."""
        return await self._evals.suites()

    async def eval_runs(self, limit: int = 100, suite: str | None = None) -> list[EvalRun]:
        """Runs, newest first."""
        return await self._evals.book.runs(limit, suite)

    async def eval_run(self, reference: str) -> EvalRun:
        """One run."""
        return await self._evals.book.run(reference)

    async def eval_records(self, reference: str, after: int = 0, limit: int = 200) -> list[Record]:
        """Cases of a run, a page at a time."""
        return await self._evals.records(reference, after, limit)

    async def eval_case(self, reference: str, task: str, case: str) -> list[Record]:
        """One case."""
        return await self._evals.case(reference, task, case)

    async def eval_compare(self, baseline: str, reference: str, tolerance: float = TOLERANCE) -> Comparison:
        """Two runs side by side."""
        return await self._evals.compare(baseline, reference, tolerance)

    async def eval_report(self, reference: str, style: ReportStyle, baseline: str | None = None) -> str:
        """A run as a document."""
        return await self._evals.report(reference, style, baseline)

    async def bench_history(self, model: str | None = None, limit: int = 200) -> list[BenchPoint]:
        """The history of speed."""
        name = (await self.resolve(model)).name if model else None
        return await self._evals.book.benches(name, limit)

    async def set_baseline(self, name: str, reference: str | None) -> EvalRun | None:
        """Let a name stand for a finished run."""
        return await self._evals.book.set_baseline(name, reference)

    async def remove_eval_run(self, reference: str) -> EvalRun:
        """Forget a run with its cases."""
        return await self._evals.book.remove(reference)

    async def review(self, review: Review) -> Review:
        """Keep a judgement of an answer."""
        return await self._evals.review(review)

    async def reviews(self, subject: str | None = None) -> list[Review]:
        """Judgements, oldest first."""
        return await self._evals.reviews(subject)

    # -- the HTTP API --------------------------------------------------------------------------------------------
    async def start_server(self, options: ServerOptions) -> ServerState:
        """Serve over HTTP."""
        if self._server is None:
            from lathe.engine.http.server import HttpServer  # a quarter of a second that most verbs can do without

            self._server = HttpServer(self, self._keys, self._publish, bodies=self._bodies)
        return await self._server.start(options)

    async def stop_server(self) -> ServerState:
        """Stop serving."""
        return await self._server.stop() if self._server else self._server_state

    def _bodies(self) -> Path | None:
        """Where the server logs what clients send and get; None unless the user wants it."""
        return self._home.http_bodies if self._loaded.settings.privacy.log_content else None

    @property
    def _server_state(self) -> ServerState:
        return self._server.state if self._server else ServerState(running=False)

    async def keys(self) -> list[ApiKey]:
        """The API's tokens, without their secrets."""
        return [_shown(key) for key in self._keys.keys()]  # noqa: SIM118 - a key ring is no dict

    async def make_key(self, key: ApiKey) -> ApiKey:
        """Make a token; the answer alone holds the secret."""
        stored, secret = await asyncio.to_thread(
            self._keys.make, key.name, scopes=key.scopes, models=key.models, stores=key.stores,
            requests_per_minute=key.requests_per_minute, tokens_per_minute=key.tokens_per_minute, secret=key.secret,
        )  # fmt: skip
        return msgspec.structs.replace(key, created_at=stored.created_at, secret=secret)

    async def revoke_key(self, name: str) -> None:
        """Forget a token."""
        await asyncio.to_thread(self._keys.revoke, name)

    # -- the rest ------------------------------------------------------------------------------------------------
    async def settings(self) -> list[SettingValue]:
        """Every setting with its provenance."""
        return [self._setting(key) for key in reference.names()]

    async def set_setting(self, key: str, value: str | None) -> SettingValue:
        """Write one setting to the user's file; services read it at their next start."""
        parsed = None if value is None else reference.parse(key, value)
        await asyncio.to_thread(reference.write, reference.user_file(), key, parsed)
        self._loaded = reference.load_here(self._flags)
        self._publish(SettingsChanged((key,)))
        return self._setting(key)

    def _setting(self, key: str) -> SettingValue:
        origin = self._loaded.origin(key)
        return SettingValue(
            key=key, value=self._loaded.value(key), default=reference.default(key), source=str(origin),
            doc=reference.docs()[key], kind=reference.kind(key), locked=origin.kind in ("project", "env", "flag"),
        )  # fmt: skip

    async def log(self, after: int = 0, limit: int = 500) -> LogPage:
        """The engine's log, as JSON lines."""
        return await asyncio.to_thread(read_page, self._home.engine_log, after, limit)

    # -- for the queue -------------------------------------------------------------------------------------------
    async def register(self, job: Job) -> None:
        """Enter a finished job's artefacts and figures into the catalogue."""
        assert job.outcome is not None
        changed = await asyncio.to_thread(self._catalogue.register, job.step, job.outcome)
        if changed:
            self._publish(ModelsChanged(tuple(entry.id for entry in changed)))
        await self._evals.keep_bench(job, self.resolve)
        if self._hasher is not None and not (isinstance(job.step, ScanStep) and not job.step.hashes):
            self._hasher.wake()

    async def collect(self, job: Job) -> None:
        """Remove parts that a killed job left where it wrote."""
        output = getattr(job.step, "output", None)
        folders = {self._home.models, *([Path(output).parent] if output else [])}
        for folder in folders:
            for part in await asyncio.to_thread(collect_parts, folder):
                await asyncio.to_thread(remove_part, part)
                self._journal.write(f"removed what {job.id} left: {part}")

    # -- inside --------------------------------------------------------------------------------------------------
    def _hashed(self, loop: asyncio.AbstractEventLoop, model_id: str) -> None:
        """Called in the hasher's thread."""
        loop.call_soon_threadsafe(self._publish, ModelsChanged((model_id,)))

    def _publish(self, event: Event) -> None:
        """Hand an event to the fronts; log lines of services go through the journal, which publishes them."""
        if isinstance(event, LogLine):
            self._journal.write(event.text, event.level, event.source)
        else:
            if isinstance(event, WorkerChanged):
                self._pulse.on_worker(event)
            self._bus.publish(event)

    def _roles(self) -> dict[int, str]:
        """pid -> role of every process of Lathe, for the memory panel."""
        roles = {os.getpid(): "engine"}
        roles |= {state.pid: f"worker {state.name}" for state in self._pool.states() if state.pid}
        return roles | {pid: f"job {job_id}" for job_id, pid in self._runner.pids().items()}


def _shown(key: StoredKey) -> ApiKey:
    """A key as fronts see it."""
    return ApiKey(
        name=key.name, created_at=key.created_at, scopes=key.scopes, models=key.models,
        stores=key.stores, requests_per_minute=key.requests_per_minute, tokens_per_minute=key.tokens_per_minute,
    )  # fmt: skip


class _Setting:
    """What the job queue needs of the rest."""

    def __init__(self, workbench: LocalWorkbench) -> None:
        self._workbench = workbench

    async def resolve(self, reference: str) -> ModelEntry:
        """The model a reference names."""
        return await self._workbench.resolve(reference)

    async def key(self, step: Step) -> str:
        """The reuse key of a step."""
        return (await step_keys(step, RELEASE, self._workbench.resolve))[0]

    async def register(self, job: Job) -> None:
        """Enter a finished job's artefacts and figures into the catalogue."""
        await self._workbench.register(job)

    async def collect(self, job: Job) -> None:
        """Remove parts that a killed job left where it wrote."""
        await self._workbench.collect(job)

    def workbench(self) -> LocalWorkbench:
        """The facade, for services."""
        return self._workbench
