"""lm-evaluation-harness on Lathe's models: its `LM` over `Workbench.score` and `generate`, in this process or attached.

    with Bridge(home) as bridge:
        results = run_tasks(bridge, "my-model", ["arc_easy"], include_path=...)

Its tasks call from ordinary threads and all at once; the bridge runs a loop of its own and asks with bounded
concurrency. Invariant: a request that fails ends the harness's run, for its tables cannot say `failed`; and before any
likelihood is used, the canary has to live.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from lathe.engine.errors import PolicyError, UnavailableError, UsageError
from lathe.engine.evals import canary
from lathe.engine.evals.asking import windows
from lathe.engine.generation import MAX_STOP_CHARS, MAX_STOPS, GenerationRequest, Message, Sampling, ScoreRequest
from lathe.engine.paths import Home
from lathe.engine.transcript import collect
from lathe.engine.workbench import Workbench
from lathe.engine.worker.messages import LoadOptions

Result = TypeVar("Result")
Asked = TypeVar("Asked")
CONCURRENCY = 16
SCORED_AT_ONCE = 64
"""Contexts whose continuations are scored at once: they share batches, which are filled best from many."""
_CLIENT = "eval lm_eval"
_DEFAULT_TOKENS = 256
"""What the harness's own backends generate where a task says nothing."""


class Bridge:
    """A workbench for callers without a loop."""

    def __init__(self, home: Home, told: Callable[[], None] | None = None) -> None:
        self._home = home
        self._told = told
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="lm-eval-bridge", daemon=True)

    def __enter__(self) -> Bridge:
        from lathe.engine.connect import open_workbench

        self._thread.start()
        self._manager = open_workbench(self._home)
        self.workbench: Workbench = self.call(self._manager.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.call(self._manager.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def call(self, work: Awaitable[Result]) -> Result:
        """Run one coroutine to its end."""

        async def run() -> Result:
            return await work

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()

    def map(
        self, ask: Callable[[Asked], Awaitable[Result]], items: Iterable[Asked], at_once: int = CONCURRENCY
    ) -> list[Result]:
        """Ask all, a bounded number at once, answers in order."""

        async def run() -> list[Result]:
            room = asyncio.Semaphore(at_once)

            async def one(item: Asked) -> Result:
                async with room:
                    answer = await ask(item)
                if self._told is not None:
                    self._told()
                return answer

            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(item)) for item in items]
            return [task.result() for task in tasks]

        return self.call(run())


def make_lm(bridge: Bridge, model: str, options: LoadOptions | None = None) -> Any:
    """An `lm_eval.api.model.LM` over one of Lathe's models, loaded and checked.

    Raises:
        UnavailableError: lm_eval is not installed. CanaryDied: the model's likelihoods contradict each other.
    """
    try:
        from lm_eval.api.model import LM
    except ImportError:
        raise UnavailableError("lm_eval is not installed", hint="install `lathe-llm[harness]`") from None
    state = bridge.call(bridge.workbench.load(model, options))
    longest = (state.info.context if state.info else 2048) - 1
    bridge.call(canary.check(bridge.workbench, model, _CLIENT, state.info))
    asker = _Asker(bridge.workbench, model, longest)

    class LatheLM(LM):  # type: ignore[misc]
        """Lathe's model as the harness sees it."""

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            # Continuations of one context are asked together: it is computed once.
            grouped: dict[str, list[int]] = {}
            for index, request in enumerate(requests):
                grouped.setdefault(request.args[0], []).append(index)
            pairs = [(context, [requests[i].args[1] for i in where]) for context, where in grouped.items()]
            answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
            for where, scores in zip(grouped.values(), bridge.map(asker.score, pairs, SCORED_AT_ONCE), strict=True):
                for index, score in zip(where, scores, strict=True):
                    answers[index] = score
                    self.cache_hook.add_partial("loglikelihood", requests[index].args, score)
            return answers

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            return bridge.map(asker.roll, [request.args[0] for request in requests], SCORED_AT_ONCE)

        def generate_until(self, requests: list[Any]) -> list[str]:
            return bridge.map(asker.generate, [request.args for request in requests])

        def apply_chat_template(
            self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
        ) -> str:  # fmt: skip
            if not add_generation_prompt:
                raise UsageError("prefilled answers are not offered: the template is rendered for a new turn")
            turns = [Message(turn["role"], turn["content"]) for turn in chat_history]
            return bridge.call(bridge.workbench.render(model, turns)).text

        def chat_template(self, chat_template: bool | str = False) -> str | None:
            return state.info.chat_template if chat_template and state.info else None

        @property
        def tokenizer_name(self) -> str:
            return model.replace("/", "__")

    return LatheLM()


def run_tasks(
    bridge: Bridge,
    model: str,
    tasks: Sequence[str],
    *,
    include_path: Path | None = None,
    options: LoadOptions | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Run the harness's tasks, offline; settings are those of its `simple_evaluate`.

    Raises:
        PolicyError: the harness's request cache was asked for, which it keeps as pickles.
    """
    refused = [name for name in ("use_cache", "cache_requests", "rewrite_requests_cache") if settings.get(name)]
    if refused:
        raise PolicyError(f"{refused[0]}: the harness keeps its cache as pickles, which Lathe does not read")
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "DO_NOT_TRACK": "1"}
    lm = make_lm(bridge, model, options)
    from lm_eval import evaluator
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(include_path) if include_path else None)
    found: dict[str, Any] = evaluator.simple_evaluate(model=lm, tasks=list(tasks), task_manager=manager, **settings)
    return found


class _Asker:
    """The three questions of the harness."""

    def __init__(self, workbench: Workbench, model: str, longest: int) -> None:
        self._workbench = workbench
        self._model = model
        self._longest = longest

    async def score(self, pair: tuple[str, list[str]]) -> list[tuple[float, bool]]:
        """Log-likelihoods of continuations of one context."""
        context, continuations = pair
        request = ScoreRequest(
            model=self._model, context=context, continuations=tuple(continuations), client=_CLIENT
        )  # fmt: skip
        return [(score.logprob, score.greedy) for score in await self._workbench.score(request)]

    async def roll(self, text: str) -> float:
        """Log-likelihood of a whole text."""
        total = 0.0
        for before, part in windows(await self._workbench.tokenize(self._model, text), self._longest):
            request = ScoreRequest(model=self._model, context=before, continuations=(part,), client=_CLIENT)
            total += (await self._workbench.score(request))[0].logprob
        return total

    async def generate(self, arguments: tuple[str, dict[str, Any]]) -> str:
        """Text until a stop string."""
        context, settings = arguments
        until = settings.get("until") or ()
        stops = (until,) if isinstance(until, str) else tuple(until)
        sampled = bool(settings.get("do_sample")) and float(settings.get("temperature") or 0) > 0
        sampling = Sampling(
            temperature=float(settings["temperature"]), top_p=float(settings.get("top_p", 1.0)), seed=0
        ) if sampled else Sampling(temperature=0.0)  # fmt: skip
        usable = tuple(stop[:MAX_STOP_CHARS] for stop in stops if stop)[:MAX_STOPS]
        request = GenerationRequest(
            model=self._model, prompt=context, special=True, stop=usable,
            max_tokens=int(settings.get("max_gen_toks") or _DEFAULT_TOKENS), sampling=sampling, client=_CLIENT,
            overflow="truncate_left",
        )  # fmt: skip
        return (await collect(self._workbench.generate(request))).text
