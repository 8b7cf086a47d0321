"""A language model that is a table, behind as much of the `Workbench` as evals use; and a killable child that runs one.

Tokens are UTF-8 bytes, 256 begins a text; the next byte depends on the last one alone, so every likelihood can be
computed by hand. Prompts with CRASH in them kill the model, as native code would.
"""

from __future__ import annotations

import asyncio
import hashlib
import struct
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import numpy as np
from lathe.engine.errors import CrashedError
from lathe.engine.evals import suite as suites
from lathe.engine.evals.book import EvalBook
from lathe.engine.evals.results import EvalRun
from lathe.engine.evals.runner import Order, run_suite
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
    TokenLogprob,
    Usage,
)
from lathe.engine.states import WorkerState
from lathe.engine.workbench import ModelDetails
from lathe.engine.worker.messages import LoadOptions, WorkerInfo
from lathe.quantize.card import ModelCard
from lathe.store.models import ModelEntry

BOS = 256


class TableModel:
    """The part of a workbench that evals need, over a table of next-byte log-probabilities."""

    def __init__(self, seed: int = 0, *, say: Callable[[str], str] | None = None, delay_s: float = 0.0) -> None:
        logits = np.random.default_rng(seed).normal(scale=2.0, size=(257, 256))
        self.table = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        self.seed = seed
        self.say = say
        self.delay_s = delay_s
        self.asked: list[str] = []
        self.lie = 0.0
        """Added to every score, to be caught."""
        self.running = self.most = 0
        self.template = "t" * 64

    async def model(self, reference: str) -> ModelDetails:
        digest = hashlib.sha256(f"{self.seed} {reference}".encode()).hexdigest()
        entry = ModelEntry(id=digest[:12], name=reference, path="/m", format="gguf", bytes=1, sha256=digest)
        return ModelDetails(entry=entry, card=ModelCard(format="gguf"))

    async def load(self, reference: str, options: LoadOptions | None = None, force: bool = False) -> WorkerState:
        info = WorkerInfo(backend="table", pid=1, context=64, kv_tokens=64, slots=1, vocabulary=257)
        entry = (await self.model(reference)).entry
        return WorkerState(
            model_id=entry.id, name=reference, path="/m", phase="ready", options=options or LoadOptions(), info=info
        )

    async def tokenize(self, model: str, text: str, special: bool = False, bos: bool = False) -> list[int]:
        return list(text.encode())

    async def render(
        self,
        model: str,
        messages: list[Message],
        tools: str | None = None,
        template_args: dict[str, str | bool | int | float] | None = None,
    ) -> RenderedPrompt:
        text = "".join(f"{m.role}: {m.content}\n" for m in messages)
        return RenderedPrompt(text, tuple(text.encode()), self.template)

    async def score(self, request: ScoreRequest) -> list[Score]:
        context = _ids(request.context)
        async with _Asked(self, _text(context), _text([*context, *_ids(request.continuations[0])])):
            return [self._score(context or [BOS], _ids(text)) for text in request.continuations]

    def _score(self, context: list[int], continuation: list[int]) -> Score:
        each, last, greedy = [], context[-1], True
        for token in continuation:
            each.append(float(self.table[last, token]) + self.lie)
            greedy &= token == int(self.table[last].argmax())
            last = token
        return Score(sum(each), len(each), bool(greedy), tuple(each))

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Delta, None]:
        shown = request.prompt if request.prompt is not None else "\n".join(m.content for m in request.messages)
        async with _Asked(self, shown if request.logprobs is None else ""):
            if request.logprobs is not None:
                last = (_ids(request.prompt) if request.tokens is None else list(request.tokens))[-1]
                for _ in range(request.max_tokens or 1):
                    row = self.table[last]
                    top = tuple((int(i), chr(i), float(row[i])) for i in np.argsort(-row)[: request.logprobs])
                    last = top[0][0]
                    yield Delta(logprobs=(TokenLogprob(*top[0], bytes([last]), top),))
                yield Delta(finish="length")
                return
            text = self.say(shown) if self.say else shown[::-1]
            timing = Timing(scheduled_s=0.0, first_token_s=0.1, finished_s=0.3, prefill_s=0.1, decode_s=0.2)
            yield Delta(text=text)
            yield Delta(finish="stop", usage=Usage(len(shown), len(text)), timing=timing)

    async def embed(self, request: EmbedRequest) -> Embeddings:
        rows = []
        for text in request.texts:
            row = np.bincount(np.frombuffer(text.encode(), dtype=np.uint8), minlength=256).astype(np.float32)
            rows.append(row / np.linalg.norm(row))
        flat = np.concatenate(rows).astype("<f4")
        return Embeddings(struct.pack(f"<{len(flat)}f", *flat), len(rows), 256, 1)


class _Asked:
    """Counts what is asked, and dies of CRASH."""

    def __init__(self, model: TableModel, prompt: str, whole: str = "") -> None:
        self.model, self.prompt, self.whole = model, prompt, whole or prompt

    async def __aenter__(self) -> None:
        self.model.asked.append(self.prompt)
        self.model.running += 1
        self.model.most = max(self.model.most, self.model.running)
        await asyncio.sleep(self.model.delay_s)
        if "CRASH" in self.whole:
            self.model.running -= 1
            raise CrashedError("the worker was killed by SIGSEGV")

    async def __aexit__(self, *_: object) -> None:
        self.model.running -= 1


def _text(tokens: list[int]) -> str:
    return bytes(token for token in tokens if token < 256).decode("utf-8", "replace")


def _ids(part: str | tuple[int, ...]) -> list[int]:
    return list(part.encode()) if isinstance(part, str) else list(part)


async def evaluate(path: Path, book: EvalBook, model: Any, **options: Any) -> EvalRun:
    """Run a suite file on a model."""
    told = options.pop("told", lambda done: None)
    load = {name: options.pop(name) for name in ("limit", "skip_bad", "tags", "variables") if name in options}

    async def report(label: str, done: float, total: float | None, unit: str) -> None:
        told(done)

    order = Order(suite=suites.load(path, **load), model=options.pop("name", "m"), **options)
    return await run_suite(order, model, book, report, lambda text, level: None)


def run(report: Callable[[object], None], suite: str, store: str) -> None:
    """Run a suite until done or killed; report when it begins and how it ended."""

    async def work() -> None:
        book = EvalBook(Path(store))
        report("start")
        run = await evaluate(Path(suite), book, TableModel(delay_s=0.01), cache=False, told=lambda done: report("."))
        report(f"{run.id} {run.done} {run.failed}")
        book.close()

    asyncio.run(work())
