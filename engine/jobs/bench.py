"""Job: prompt and generation speed, as llama-bench's rows."""

from __future__ import annotations

from collections.abc import Sequence

from lathe.engine.jobs.outputs import gguf_path
from lathe.engine.jobs.values import Figure, JobContext, Outcome
from lathe.engine.measure.bench_rows import BenchRow
from lathe.engine.steps import BenchStep
from lathe.quantize.gguf.header import read_sharded


def run(step: BenchStep, context: JobContext) -> Outcome:
    """Time every test."""
    from lathe.engine.measure.bench import BenchOptions, bench

    path = gguf_path(context.model(step.model))
    read_sharded(path)
    options = BenchOptions(
        prompt_tokens=step.prompt_tokens,
        generate_tokens=step.generate_tokens,
        pairs=step.pairs,
        depths=step.depths,
        n_batch=step.batch,
        n_ubatch=step.micro_batch,
        kv_types=step.kv_types,
        threads=step.threads,
        repetitions=step.repetitions,
        gpu_layers=-1 if step.gpu_layers is None else step.gpu_layers,
    )

    def progress(test: str, done: int, total: int) -> None:
        context.progress(test, done, total, "repetition")

    result = bench(path, options, progress)
    if any(row.embeddings for row in result.rows):
        context.log("it generates nothing: texts that it reads are timed", "warn")
    for row in result.rows:
        context.log(f"{row.test}: {row.avg_ts:.2f} ± {row.stddev_ts:.2f} tokens/s")
    figures: dict[str, Figure] = headline(result.rows) | {
        "load_s": result.load_s, "peak_rss_bytes": result.peak_rss_bytes
    }  # fmt: skip
    figures |= {f"joules_per_token.{test}": joules for test, joules in result.joules_per_token.items()}
    return Outcome(figures=figures, rows=tuple(row.flat() for row in result.rows))


def headline(rows: Sequence[BenchRow]) -> dict[str, Figure]:
    """The figures that gates ask about: of the first prompt test and the first generation test."""
    prompts = [row for row in rows if row.n_gen == 0]
    generations = [row for row in rows if row.n_prompt == 0]
    return {
        "prompt_tokens_per_s": prompts[0].avg_ts if prompts else None,
        "tokens_per_s": generations[0].avg_ts if generations else None,
        # Nobody waits in a queue here: the first token is there when its prompt is done.
        "ttft_s": sum(prompts[0].samples_ns) / len(prompts[0].samples_ns) / 1e9 if prompts else None,
    }
