"""Job: perplexity of a model on a text; a stopped run goes on at the chunk it had reached."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec
from lathe.engine.embedded import HELD_OUT_TEXT
from lathe.engine.jobs.outputs import gguf_path
from lathe.engine.jobs.values import Figure, JobContext, Outcome
from lathe.engine.steps import PerplexityStep
from lathe.quantize.artefact import new_artefact
from lathe.store.models import ModelEntry

if TYPE_CHECKING:
    from lathe.engine.measure.chunks import Chunks
    from lathe.engine.measure.perplexity import Moments, Perplexity, Progress

_SAVE_INTERVAL_S = 5.0


class Checkpoint(msgspec.Struct, frozen=True):
    """How far a run came; useless under another key."""

    key: str
    chunks: int
    count: int
    total: float
    squares: float


def run(step: PerplexityStep, context: JobContext) -> Outcome:
    """Measure, with checkpoints."""
    from lathe.engine.measure import chunks as chunked
    from lathe.engine.measure.perplexity import Moments

    entry = context.model(step.model)
    text = chunked.read_text(Path(step.text).expanduser() if step.text else HELD_OUT_TEXT)
    digest = hashlib.sha256(text).hexdigest()
    file = Path(context.spec.work_dir) / "perplexity.json"
    saved = time.monotonic()
    with _opened(step, entry, context) as measure:
        chunks = measure.cut(text)
        key = f"{entry.sha256 or entry.id} {digest} {chunks.n_ctx} {chunks.n_chunks}"
        before = _resumed(file, key)

        def progress(done: int, total: int, figure: float, sums: Moments) -> None:
            nonlocal saved
            context.progress(f"perplexity {figure:.4f}", done, total, "chunk")
            if time.monotonic() - saved > _SAVE_INTERVAL_S:
                saved = time.monotonic()
                _save(file, Checkpoint(key, done, sums.count, sums.total, sums.squares))

        sums = Moments(before.count, before.total, before.squares) if before else Moments()
        result = measure.run(chunks, progress, sums, before.chunks if before else 0)
    file.unlink(missing_ok=True)
    for warning in result.warnings:
        context.log(warning, "warn")
    context.log(
        f"perplexity {result.perplexity:.4f} ± {result.error:.4f} over {result.chunks} chunks of {result.n_ctx}"
    )
    figures: dict[str, Figure] = {
        "perplexity": result.perplexity,
        "perplexity_error": result.error,
        "bits_per_byte": result.bits_per_byte,
        "nll": result.nll,
        "tokens": result.tokens,
        "chunks": result.chunks,
        "context": result.n_ctx,
        # Not `tokens_per_s`: in the catalogue that is the speed of generation, which bench measures.
        "read_tokens_per_s": result.tokens_per_s,
        "text_sha256": digest,
    }
    return Outcome(figures=figures)


class _Measure(NamedTuple):
    """A loaded model of either kind."""

    cut: Callable[[bytes], Chunks]
    run: Callable[[Chunks, Progress, Moments, int], Perplexity]


@contextmanager
def _opened(step: PerplexityStep, entry: ModelEntry, context: JobContext) -> Iterator[_Measure]:
    if entry.format == "onnx":
        from lathe.engine.native.llama import physical_cores
        from lathe.engine.onnx.scoring import Scorer

        scorer = Scorer(Path(entry.path), step.threads or physical_cores())
        yield _Measure(
            lambda text: scorer.cut(text, step.context, step.chunks),
            lambda chunks, progress, sums, start: scorer.perplexity(chunks, progress=progress, sums=sums, start=start),
        )
        return
    from lathe.engine.jobs.loading import load
    from lathe.engine.measure import chunks as chunked
    from lathe.engine.measure.perplexity import perplexity
    from lathe.engine.native.llama import LlamaContext

    with load(gguf_path(entry), step.gpu_layers, context) as model:

        def run(chunks: Chunks, progress: Progress, sums: Moments, start: int) -> Perplexity:
            with LlamaContext(model, chunks.options(threads=step.threads)) as runner:
                return perplexity(runner, chunks, progress=progress, sums=sums, start=start)

        yield _Measure(lambda text: chunked.cut(model, text, step.context, step.chunks), run)


def _resumed(file: Path, key: str) -> Checkpoint | None:
    try:
        checkpoint = msgspec.json.decode(file.read_bytes(), type=Checkpoint)
    except (OSError, msgspec.MsgspecError):
        return None
    return checkpoint if checkpoint.key == key else None


def _save(file: Path, checkpoint: Checkpoint) -> None:
    with new_artefact(file, force=True) as part:
        part.write_bytes(msgspec.json.encode(checkpoint))
