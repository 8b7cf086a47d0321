"""`Workbench`: the one door to the engine, used by the TUI, the shell, `--batch` and the HTTP API.

Only the interface and the small values of its answers live here. Two carriers implement it: `lathe.engine.local`
(in process) and `lathe.engine.remote` (the private socket); `lathe.engine.connect` chooses. Errors arrive as
`LatheError`s on both. Invariant: every method is usable over the socket, so arguments and results are plain values,
and a stream ends when its caller leaves the loop.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

import msgspec
from lathe.engine.errors import Failure
from lathe.engine.evals.results import TOLERANCE, Comparison, EvalRun, Record, ReportStyle, SuiteInfo
from lathe.engine.events import Event
from lathe.engine.generation import (
    Delta,
    Embeddings,
    EmbedRequest,
    GenerationRequest,
    Message,
    RenderedPrompt,
    Score,
    ScoreRequest,
)
from lathe.engine.jobs.values import Job
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
from lathe.engine.states import Fit, Forecast, ServerOptions, ServerState, Snapshot, WorkerState
from lathe.engine.steps import ConvertStep, OnnxQuantizeStep, QuantizeStep, Step
from lathe.engine.telemetry.sample import Sample
from lathe.engine.worker.messages import LoadOptions
from lathe.quantize.card import ModelCard
from lathe.store.evals import Review
from lathe.store.models import ModelEntry
from lathe.store.rag.values import Question, StoredDocument, StoredPassage, StoreStats


class ModelDetails(msgspec.Struct, frozen=True, kw_only=True):
    """A model with everything known about it."""

    entry: ModelEntry
    card: ModelCard
    children: tuple[str, ...] = ()
    """Ids of models made from it."""
    worker: WorkerState | None = None
    problem: Failure | None = None
    """Why the header cannot be read, where it cannot."""


class ModelAlias(msgspec.Struct, frozen=True, kw_only=True):
    """Another name for a model, or the name of a remote one."""

    name: str
    target: str
    """Name of the model; of a remote one the URL of its server's API."""
    model: str = ""
    """What the remote server calls it; empty where it has only one."""
    key: str | None = None
    """Where the remote server's key is: `env:VARIABLE` or `file:PATH`, never the key itself."""

    @property
    def remote(self) -> bool:
        """Whether it points at another server."""
        return "://" in self.target


class SettingValue(msgspec.Struct, frozen=True, kw_only=True):
    """One setting with where its value comes from."""

    key: str
    """`section.name`."""
    value: str | int | float | bool | None
    default: str | int | float | bool | None
    source: str
    """`default`, `user FILE:LINE`, `project FILE:LINE`, `env NAME`, `flag`."""
    doc: str
    kind: str
    """`bool`, `int`, `float`, `str`, `path`, or the choices joined by `|`."""
    locked: bool = False
    """Set by a source that outranks the user's file."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the doctor's report."""

    area: str
    """cpu, memory, gpu, disk, llama.cpp, sqlite, extras, network, terminal, workspace."""
    name: str
    value: str
    level: str = "ok"
    """ok, info, warn, fail."""
    fix: str = ""
    """The exact command or step that mends it."""


class LogPage(msgspec.Struct, frozen=True, kw_only=True):
    """Part of a log; `next` continues it."""

    lines: tuple[str, ...]
    next: int
    """Byte offset after the last line."""
    ended: bool = False
    """The job is over and nothing more will come."""


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """A token of the HTTP API; the secret itself is shown once, when made."""

    name: str
    created_at: float
    scopes: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    """Allow-list; empty: all."""
    stores: tuple[str, ...] = ()
    """RAG stores it may search; empty: all that are open to it."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    secret: str | None = None
    """In the answer of `make_key`; given to it, the secret to use instead of a drawn one."""


class Workbench(Protocol):
    """What can be asked of the engine."""

    # -- observing -----------------------------------------------------------------------------------------------
    async def snapshot(self) -> Snapshot:
        """Everything a front draws, at one moment."""

    def events(self) -> AsyncGenerator[Event, None]:
        """Facts as they happen, until the caller leaves."""

    async def history(self, seconds: float = 300) -> list[Sample]:
        """Samples of the last while, oldest first."""

    async def doctor(self) -> list[Finding]:
        """What this machine can do, and how to mend each gap."""

    # -- catalogue -----------------------------------------------------------------------------------------------
    async def models(self) -> list[ModelEntry]:
        """Every model of the workspace, by name."""

    async def model(self, reference: str) -> ModelDetails:
        """One model by name, id prefix or path."""

    async def estimate(self, reference: str, options: LoadOptions) -> Fit:
        """Predict the memory of a load, and whether it fits now."""

    async def rename(self, reference: str, name: str) -> ModelEntry:
        """Give a model another name."""

    async def aliases(self) -> list[ModelAlias]:
        """Every alias and every remote model, by name."""

    async def set_alias(self, alias: ModelAlias) -> ModelAlias:
        """Let a name stand for a model or for one of another server, in place of what it stood for."""

    async def remove_alias(self, name: str) -> ModelAlias:
        """Forget an alias or a remote model."""

    async def remove(self, reference: str, delete_files: bool = False, force: bool = False) -> list[str]:
        """Forget a model; delete its files only when asked, and foreign files only with `force`.

        Returns the paths deleted."""

    # -- models in memory ----------------------------------------------------------------------------------------
    async def load(self, reference: str, options: LoadOptions | None = None, force: bool = False) -> WorkerState:
        """Bring a model into memory and wait until it is ready; `force` overrides the fit check."""

    async def unload(self, reference: str) -> None:
        """Drain and stop the model's worker."""

    def generate(self, request: GenerationRequest) -> AsyncGenerator[Delta, None]:
        """Stream an answer; loads the model on demand; leaving the loop cancels."""

    async def render(
        self,
        model: str,
        messages: list[Message],
        tools: str | None = None,
        template_args: dict[str, str | bool | int | float] | None = None,
    ) -> RenderedPrompt:
        """Apply the model's chat template; `template_args` are variables of it, such as `enable_thinking`."""

    async def tokenize(self, model: str, text: str, special: bool = False, bos: bool = False) -> list[int]:
        """Text to token ids."""

    async def detokenize(self, model: str, tokens: list[int]) -> str:
        """Token ids to text."""

    async def score(self, request: ScoreRequest) -> list[Score]:
        """Log-likelihood of continuations."""

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """Texts to vectors."""

    async def cancel_request(self, request_id: str) -> None:
        """Stop one running request of any front."""

    # -- jobs ----------------------------------------------------------------------------------------------------
    async def submit(self, step: Step, run: str | None = None) -> Job:
        """Queue a step; it runs when its lane is free."""

    async def jobs(self, limit: int = 100) -> list[Job]:
        """Newest first."""

    async def job(self, job_id: str) -> Job:
        """One job, whatever its age."""

    async def forecast(self, step: ConvertStep | QuantizeStep | OnnxQuantizeStep) -> Forecast:
        """What a step would make: exact size, types, fit, and every objection; nothing is written."""

    async def artefact_text(self, job_id: str, name: str) -> str:
        """A JSON or text artefact of a finished job."""

    async def wait(self, job_id: str) -> Job:
        """Wait until the job is in a final state."""

    async def previous(self, step: Step) -> Job | None:
        """The newest finished job that did exactly this to the same inputs, if its artefacts are still there."""

    async def cancel(self, job_id: str, force: bool = False) -> Job:
        """Stop a job; its checkpoint stays unless forced."""

    async def resume(self, job_id: str) -> Job:
        """Queue a stopped job again; finished work is kept."""

    async def clear_finished(self) -> int:
        """Drop ended jobs from the list; artefacts stay."""

    async def job_log(self, job_id: str, after: int = 0, limit: int = 500) -> LogPage:
        """Lines of a job's log from a byte offset; negative: the last `limit` lines."""

    # -- RAG stores ----------------------------------------------------------------------------------------------
    async def stores(self) -> list[StoreStats]:
        """Every RAG store, by name."""

    async def store(self, name: str) -> StoreDetails:
        """One store with its documents, errors and versions."""

    async def search_store(self, request: SearchRequest) -> SearchResult:
        """Find passages by meaning, by words, or both."""

    def ask_store(self, request: AskRequest) -> AsyncGenerator[AskEvent, None]:
        """Answer a question from a store with citations; leaving the loop cancels."""

    async def passage(self, store: str, passage: int, principal: str = "local") -> PassageView:
        """A passage in its surroundings: what a citation opens."""

    async def store_documents(self, name: str, after: str = "", limit: int = 200) -> list[StoredDocument]:
        """A store's documents by path, a page at a time: those after a path."""

    async def store_passages(self, name: str, document: str, after: int = -1, limit: int = 200) -> list[StoredPassage]:
        """A document's passages in order, a page at a time: those after an ordinal."""

    async def store_report(self, name: str) -> QualityReport | None:
        """What a store is made of, as its newest exploration found it; None before the first one."""

    async def store_diff(self, name: str, before: int | None = None, after: int | None = None) -> StoreDiff:
        """What came between two versions of a store's corpus; by default in the newest."""

    async def share_store(self, name: str, principals: list[str]) -> StoreStats:
        """Say which API keys may search a store; an empty list: all of them."""

    async def store_questions(self, name: str) -> list[Question]:
        """A store's golden questions, confirmed ones and drafts, by id."""

    async def remove_store(self, name: str) -> int:
        """Delete a store for good, never its documents; returns the bytes that are free again."""

    def watch_store(self, name: str, interval_s: float = 2.0) -> AsyncGenerator[Watched, None]:
        """Bring a store up to date now and whenever its folders change, until the caller leaves."""

    # -- evals ---------------------------------------------------------------------------------------------------
    async def eval_suites(self) -> list[SuiteInfo]:
        """Suites with a name: shipped ones and the workspace's."""

    async def eval_runs(self, limit: int = 100, suite: str | None = None) -> list[EvalRun]:
        """Runs of suites, newest first."""

    async def eval_run(self, reference: str) -> EvalRun:
        """One run by id, by a baseline's name, or `SUITE@MODEL` for the newest finished one."""

    async def eval_records(self, reference: str, after: int = 0, limit: int = 200) -> list[Record]:
        """Cases of a run with prompt, answer and judgement, a page at a time."""

    async def eval_case(self, reference: str, task: str, case: str) -> list[Record]:
        """One case of a run: the original, its variants and repeats; empty where the run did not ask it."""

    async def eval_compare(self, baseline: str, reference: str, tolerance: float = TOLERANCE) -> Comparison:
        """Two runs side by side: cases fixed and broken, figures with noise told from difference."""

    async def eval_report(self, reference: str, style: ReportStyle, baseline: str | None = None) -> str:
        """A run as a document, with its gates."""

    async def bench_history(self, model: str | None = None, limit: int = 200) -> list[BenchPoint]:
        """Speed as it was measured, newest first, each figure with what it was compared with."""

    async def set_baseline(self, name: str, reference: str | None) -> EvalRun | None:
        """Let a name stand for a finished run; None forgets the name."""

    async def remove_eval_run(self, reference: str) -> EvalRun:
        """Forget a run with its cases."""

    async def review(self, review: Review) -> Review:
        """Keep a judgement of an answer."""

    async def reviews(self, subject: str | None = None) -> list[Review]:
        """Judgements, oldest first."""

    # -- the HTTP API --------------------------------------------------------------------------------------------
    async def start_server(self, options: ServerOptions) -> ServerState:
        """Serve over HTTP until told otherwise."""

    async def stop_server(self) -> ServerState:
        """Stop accepting, finish what runs, close."""

    async def keys(self) -> list[ApiKey]:
        """The API's tokens, without their secrets."""

    async def make_key(self, key: ApiKey) -> ApiKey:
        """Make a token; the answer alone holds the secret."""

    async def revoke_key(self, name: str) -> None:
        """Forget a token; it stops working at once."""

    # -- the rest ------------------------------------------------------------------------------------------------
    async def settings(self) -> list[SettingValue]:
        """Every setting with its provenance."""

    async def set_setting(self, key: str, value: str | None) -> SettingValue:
        """Write one setting to the user's file (None removes it), comments kept."""

    async def log(self, after: int = 0, limit: int = 500) -> LogPage:
        """The engine's log, as JSON lines."""

    async def close(self) -> None:
        """Let go of the engine; in process: stop everything."""

    async def shutdown(self) -> None:
        """Stop the engine process: workers, jobs (resumable) and server."""
