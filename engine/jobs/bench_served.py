"""Speed of a model as it is served: through its worker and scheduler, whatever computes behind it.

The rows are llama-bench's, so that GGUF, ONNX and remote models stand in one table; `n_parallel` requests run at once.
Each prompt is drawn anew, so no prefix cache helps. Invariant: a prompt's clock runs from the call to the first token
of the slowest request, a generation's from the first token of the fastest to the last token of all.
"""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import aclosing

import msgspec
from lathe.engine.checkup.machine import processor_name
from lathe.engine.errors import DataError
from lathe.engine.generation import GenerationRequest, Sampling
from lathe.engine.jobs.bench import headline
from lathe.engine.jobs.services import ServiceContext
from lathe.engine.jobs.values import Figure, Outcome
from lathe.engine.measure.bench_rows import BenchRow
from lathe.engine.release import RELEASE
from lathe.engine.steps import BenchServedStep
from lathe.engine.workbench import ModelDetails, Workbench
from lathe.engine.worker.messages import WorkerInfo

_WORDS = ("river", "stone", "cloud", "seven", "paper", "light", "north", "green", "table", "music", "glass", "winter")
_SHORT = 4
"""Tokens of prompt before a generation that is timed."""
_CLIENT = "bench"


class _Times(msgspec.Struct, frozen=True):
    """One request, in nanoseconds of one clock."""

    first: int
    last: int
    prompt_tokens: int
    tokens: int


async def run(step: BenchServedStep, context: ServiceContext) -> Outcome:
    """Time every test."""
    workbench = context.workbench
    await context.progress("loading", 0)
    began = time.monotonic()
    state = await workbench.load(step.model, step.options)
    load_s = time.monotonic() - began
    details = await workbench.model(step.model)
    sample = (await workbench.snapshot()).sample
    gpus = ", ".join(device.name for device in sample.devices) if sample else ""
    tests = [(count, 0) for count in step.prompt_tokens if count] + [(0, n) for n in step.generate_tokens if n]
    rows: list[BenchRow] = []
    firsts: list[float] = []
    whole = len(tests) * len(step.parallel) * step.repetitions
    timer = _Timer(workbench, step.model, state.info)
    for at_once in step.parallel:
        for prompt, generate in tests:
            row = _row(details, state.info, gpus, prompt, generate, at_once, step)
            await timer.sample(prompt, min(generate, 1), at_once)
            samples = []
            for _ in range(step.repetitions):
                sample_ns, size = await timer.sample(prompt, generate, at_once)
                samples.append(sample_ns)
                # Text for a remote model is drawn in words: what it counted is what it is measured by.
                row = msgspec.structs.replace(row, n_prompt=size if prompt else 0)
                done = len(rows) * step.repetitions + len(samples)
                await context.progress(row.test, done, whole, "repetition")
            rows.append(msgspec.structs.replace(row, samples_ns=tuple(samples)))
            firsts += [sample / 1e9 for sample in samples] if prompt and at_once == 1 else []
            context.log(f"{row.test}: {rows[-1].avg_ts:.2f} ± {rows[-1].stddev_ts:.2f} tokens/s")
    figures: dict[str, Figure] = headline(rows) | {
        "load_s": load_s,
        "ttft_s": sum(firsts) / len(firsts) if firsts else None,
    }
    if state.info is not None and state.info.weights_bytes is not None:
        parts = (state.info.weights_bytes, state.info.kv_bytes, state.info.compute_bytes)
        figures["model_bytes"] = sum(part or 0 for part in parts)
    return Outcome(figures=figures, rows=tuple(row.flat() for row in rows))


class _Timer:
    """Asks one model with prompts that were never asked before."""

    def __init__(self, workbench: Workbench, model: str, info: WorkerInfo | None) -> None:
        self._workbench = workbench
        self._model = model
        self._random = random.Random(time.time_ns())
        remote = info is None or info.backend == "remote"
        self._vocabulary = 0 if remote or info is None else info.vocabulary

    async def sample(self, prompt: int, generate: int, at_once: int) -> tuple[int, int]:
        """Nanoseconds of one repetition, and how many tokens the longest prompt had."""
        requests = [self._request(prompt or _SHORT, generate + 1 if generate else 1) for _ in range(at_once)]
        began = time.perf_counter_ns()
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._ask(request)) for request in requests]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        done = [task.result() for task in tasks]
        size = max(one.prompt_tokens for one in done)
        if not generate:
            return max(one.first for one in done) - began, size
        short = min(one.tokens for one in done)
        if short < generate:
            raise DataError(f"{self._model} ended after {short} of {generate} tokens, so its speed cannot be told")
        return max(1, max(one.last for one in done) - min(one.first for one in done)), size

    def _request(self, prompt: int, tokens: int) -> GenerationRequest:
        sampling = Sampling(temperature=0.0, ignore_eos=True)
        if self._vocabulary:
            drawn = tuple(self._random.randrange(3, self._vocabulary) for _ in range(prompt))
            return GenerationRequest(
                model=self._model, tokens=drawn, max_tokens=tokens, sampling=sampling, client=_CLIENT
            )
        text = " ".join(self._random.choice(_WORDS) for _ in range(prompt))
        return GenerationRequest(model=self._model, prompt=text, max_tokens=tokens, sampling=sampling, client=_CLIENT)

    async def _ask(self, request: GenerationRequest) -> _Times:
        first, last, usage = 0, 0, None
        async with aclosing(self._workbench.generate(request)) as deltas:
            async for delta in deltas:
                last = time.perf_counter_ns()
                first = first or last
                usage = delta.usage or usage
        if usage is None:
            raise DataError(f"{self._model} did not say how many tokens it made")
        return _Times(first, last, usage.prompt_tokens, usage.completion_tokens)


def _row(
    details: ModelDetails, info: WorkerInfo | None, gpus: str, prompt: int, generate: int, at_once: int,
    step: BenchServedStep,
) -> BenchRow:  # fmt: skip
    return BenchRow(
        build_commit=RELEASE, model_filename=details.entry.path, model_type=details.entry.name,
        cpu_info=processor_name(), gpu_info=gpus,
        backends=f"served {info.backend}" if info else "served", model_size=details.entry.bytes,
        model_n_params=details.card.parameters or 0, n_threads=info.threads if info else 0,
        type_k=step.options.kv_type if step.options else "f16", type_v=step.options.kv_type if step.options else "f16",
        n_gpu_layers=info.gpu_layers if info else 0, n_prompt=prompt, n_gen=generate, n_parallel=at_once,
        test_time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), samples_ns=(),
    )  # fmt: skip
