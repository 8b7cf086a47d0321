"""Prompt and generation speed by llama-bench's procedure.

Each test gets a fresh context and a thread pool, a warm-up, then repetitions: empty cache, fill to the depth (outside
the clock), then the prompt in batches and the generation token by token, with random tokens and no sampling. A model
that generates nothing reads texts instead (`reading`), and has no other test. Invariant: inside the clock, batches are
filled and decoded, nothing else.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import numpy as np
from lathe.engine.errors import DataError
from lathe.engine.measure.bench_rows import BenchRow
from lathe.engine.measure.energy import EnergyMeter
from lathe.engine.measure.reading import reading_times
from lathe.engine.native import tiles
from lathe.engine.native.batch import Batch, Tokens
from lathe.engine.native.devices import Threadpool, commit, devices
from lathe.engine.native.llama import ContextOptions, LlamaContext, LlamaModel, physical_cores

Progress = Callable[[str, int, int], None]
"""(test, repetitions done, repetitions in all)."""


class BenchOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What to time; every combination is one test."""

    prompt_tokens: tuple[int, ...] = (512,)
    generate_tokens: tuple[int, ...] = (128,)
    pairs: tuple[tuple[int, int], ...] = ()
    """Prompt then generation under one clock."""
    depths: tuple[int, ...] = (0,)
    """Tokens already in the cache."""
    n_batch: int = 2048
    n_ubatch: int = 512
    kv_types: tuple[str, ...] = ("f16",)
    threads: tuple[int, ...] = (0,)
    """0: the physical cores."""
    repetitions: int = 5
    gpu_layers: int = -1
    text_tokens: int = 0
    """Read the prompt as an embedder does, in texts of so many tokens; 0: only where nothing is generated."""


class BenchTest(msgspec.Struct, frozen=True, kw_only=True):
    """One row to be."""

    n_prompt: int
    n_gen: int
    n_depth: int
    kv_type: str
    threads: int


class BenchResult(msgspec.Struct, frozen=True, kw_only=True):
    """The rows, and what else was measured."""

    rows: tuple[BenchRow, ...]
    load_s: float
    joules_per_token: dict[str, float] = {}
    """Test -> what the machine spent, where it reports that."""
    peak_rss_bytes: int = 0


def planned(options: BenchOptions) -> list[BenchTest]:
    """List the tests in llama-bench's order."""
    pairs = [(prompt, 0) for prompt in options.prompt_tokens] + [(0, count) for count in options.generate_tokens]
    return [
        BenchTest(n_prompt=prompt, n_gen=generate, n_depth=depth, kv_type=kv_type, threads=threads or physical_cores())
        for kv_type in options.kv_types
        for threads in options.threads
        for depth in options.depths
        for prompt, generate in [*pairs, *options.pairs]
        if prompt + generate > 0
    ]


def bench(path: Path, options: BenchOptions, progress: Progress | None = None) -> BenchResult:
    """Load a model and time every test on it."""
    started = time.monotonic()
    with LlamaModel(path, gpu_layers=options.gpu_layers) as model:
        load_s = time.monotonic() - started
        joules: dict[str, float] = {}
        rows = time_model(model, options, progress, joules)
        return BenchResult(rows=rows, load_s=load_s, joules_per_token=joules, peak_rss_bytes=_peak_rss())


def time_model(
    model: LlamaModel, options: BenchOptions, progress: Progress | None = None, joules: dict[str, float] | None = None
) -> tuple[BenchRow, ...]:
    """Time every test on a loaded model; `joules` receives the energy per token of those it is reported for.

    Raises:
        DataError: the model generates nothing, and nothing else was asked for.
    """
    reads = bool(options.text_tokens) or not model.generates
    wanted = [test for test in planned(options) if not reads or not test.n_gen + test.n_depth]
    if not wanted:
        raise DataError(f"{model.path.name} generates nothing", hint="name the tokens of a prompt that it reads")
    rows = []
    meter = EnergyMeter()
    for number, test in enumerate(wanted):
        row = _row(model, test, options, reads)
        samples = []
        before, spent = meter.read(), 0
        for sample in _reading(model, test, options) if reads else _samples(model, test, options):
            samples.append(sample)
            spent += test.n_prompt + test.n_gen
            if progress is not None:
                progress(row.test, number * options.repetitions + len(samples), len(wanted) * options.repetitions)
        rows.append(msgspec.structs.replace(row, samples_ns=tuple(samples)))
        # The warm-up and filling to the depth are paid, too, so only tests without a depth say what a token costs.
        energy = meter.read().since(before)
        if energy is not None and joules is not None and not test.n_depth:
            joules[row.test] = energy / (spent + test.n_prompt + min(1, test.n_gen))
    return tuple(rows)


def _peak_rss() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes there, KiB elsewhere


def _reading(model: LlamaModel, test: BenchTest, options: BenchOptions) -> Iterator[int]:
    return reading_times(
        model, test.n_prompt, text=options.text_tokens, batch=options.n_ubatch, threads=test.threads,
        repetitions=options.repetitions,
    )  # fmt: skip


def _samples(model: LlamaModel, test: BenchTest, options: BenchOptions) -> Iterator[int]:
    """Run one test; yields nanoseconds."""
    settings = ContextOptions(
        n_ctx=test.n_prompt + test.n_gen + test.n_depth,
        n_batch=options.n_batch,
        n_ubatch=options.n_ubatch,
        n_threads=test.threads,
        kv_type_k=test.kv_type,
        kv_type_v=test.kv_type,
    )
    with ExitStack() as stack:
        pool = stack.enter_context(Threadpool(test.threads))
        context = stack.enter_context(LlamaContext(model, settings))
        pool.attach(context)
        runner = _Runner(context, options.n_batch, test)
        context.clear(data=False)
        runner.prompt(test.n_prompt)
        runner.generate(min(1, test.n_gen))
        filled: bytes | None = None
        for _ in range(options.repetitions):
            context.clear(data=False)
            runner.position = 0
            if test.n_depth and (filled is None or not context.restore(0, filled)):
                runner.prompt(test.n_depth)
                filled = context.save(0)
            runner.position = test.n_depth
            runner.draw()
            started = time.perf_counter_ns()
            runner.prompt(test.n_prompt)
            runner.generate(test.n_gen)
            yield time.perf_counter_ns() - started


class _Runner:
    """Feeds random tokens; the arrays are filled before the clock starts."""

    def __init__(self, context: LlamaContext, n_batch: int, test: BenchTest) -> None:
        self._context = context
        self._n_batch = n_batch
        self._batch = Batch(n_batch)
        self._single = Batch(1)
        self._random = np.random.default_rng(1)
        self._test = test
        self.position = 0
        self.draw()

    def draw(self) -> None:
        """Choose new tokens."""
        model, test = self._context.model, self._test
        self._prompt: Tokens = self._random.integers(0, model.n_vocab, 1 + max(test.n_prompt, test.n_depth), np.int32)
        self._generated: list[int] = self._random.integers(0, model.n_vocab, 1 + test.n_gen).tolist()
        if model.add_bos:
            self._prompt[0] = self._generated[0] = model.bos

    def prompt(self, count: int) -> None:
        """Decode `count` tokens in batches."""
        context, batch = self._context, self._batch
        for start in range(0, count, self._n_batch):
            stop = min(start + self._n_batch, count)
            batch.clear()
            batch.extend(self._prompt[start:stop], self.position)
            batch.output[stop - start - 1] = 1
            context.decode(batch)
            self.position += stop - start
        context.synchronize()

    def generate(self, count: int) -> None:
        """Decode `count` tokens one by one."""
        context, batch = self._context, self._single
        for token in self._generated[:count]:
            batch.clear()
            batch.add(token, self.position, 0, True)
            context.decode(batch)
            context.synchronize()
            self.position += 1


def _row(model: LlamaModel, test: BenchTest, options: BenchOptions, embeddings: bool) -> BenchRow:
    found = devices()
    accelerators = [device.backend for device in found if device.kind not in ("cpu", "meta")]
    return BenchRow(
        build_commit=commit(),
        cpu_info=", ".join(device.description for device in found if device.kind in ("cpu", "accel")),
        gpu_info=", ".join(device.description for device in found if device.kind in ("gpu", "igpu")),
        backends=",".join(dict.fromkeys(accelerators)) or "CPU",
        model_filename=str(model.path),
        model_type=model.description,
        model_size=model.size,
        model_n_params=model.n_params,
        n_batch=options.n_batch,
        n_ubatch=options.n_ubatch,
        n_threads=test.threads,
        type_k=test.kv_type,
        type_v=test.kv_type,
        n_gpu_layers=options.gpu_layers,
        embeddings=embeddings,
        repack=tiles.work(),
        n_prompt=test.n_prompt,
        n_gen=test.n_gen,
        n_depth=test.n_depth,
        test_time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        samples_ns=(),
    )
