"""Job: divergence of a model from a base; a stopped run goes on at the chunk it had reached.

Embedders predict no next token: theirs is how far the vectors of the same passages are apart.
"""

from __future__ import annotations

import hashlib
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from lathe.engine.embedded import HELD_OUT_TEXT
from lathe.engine.errors import DataError, UsageError
from lathe.engine.jobs.outputs import gguf_path
from lathe.engine.jobs.values import Artefact, Figure, JobContext, Outcome
from lathe.engine.steps import KldStep
from lathe.quantize.artefact import file_sha256, new_artefact

if TYPE_CHECKING:
    from lathe.engine.measure.base_file import BaseFile
    from lathe.engine.measure.chunks import Chunks
    from lathe.engine.measure.kld import Divergence, Rows
    from lathe.engine.native.llama import LlamaContext, LlamaModel

_SAVE_INTERVAL_S = 10.0


def run(step: KldStep, context: JobContext) -> Outcome:
    """Compare, with checkpoints."""
    from lathe.engine.jobs.loading import load
    from lathe.engine.measure.base_file import BaseWriter
    from lathe.engine.measure.kld import measure, statistics
    from lathe.engine.native.llama import LlamaContext

    if (step.base is None) == (step.base_file is None):
        raise UsageError("kld: name the base model, or a file of its log-probabilities, and not both")
    if step.save_base and step.base is None:
        raise UsageError("kld: a base file is written from a base model, and none is named")
    entry = context.model(step.model)
    with ExitStack() as stack:
        model = stack.enter_context(load(gguf_path(entry), step.gpu_layers, context))
        if model.embeds and step.base is not None:
            return _vectors(step, context, model, stack)
        base, chunks, digest = _base(step, context, model, stack)
        runner = stack.enter_context(LlamaContext(model, chunks.options(threads=step.threads)))
        file = Path(context.spec.work_dir) / f"kld-{_key(step, context, digest, chunks)}.npy"
        saved = time.monotonic()

        def progress(done: int, total: int, rows: Rows) -> None:
            nonlocal saved
            context.progress(f"mean KLD {rows[:, 2].mean():.5f}", done, total, "chunk")
            if time.monotonic() - saved > _SAVE_INTERVAL_S:
                saved = time.monotonic()
                with new_artefact(file, force=True) as part, part.open("wb") as opened:
                    np.save(opened, rows)

        artefacts: tuple[Artefact, ...] = ()
        if step.save_base:
            output = Path(step.save_base).expanduser()
            with (
                new_artefact(output, inputs=_inputs(step, context), force=step.force) as part,
                BaseWriter(part, chunks) as writer,
            ):
                rows = measure(base, runner, chunks, save=writer, progress=progress)
            artefacts = (_artefact(output, context, step),)
        else:
            rows = measure(base, runner, chunks, earlier=_resumed(file, chunks), progress=progress)
    file.unlink(missing_ok=True)
    result = statistics(rows)
    context.log(f"mean KLD {result.kld.value:.6f} ± {result.kld.error:.6f}, same top token {result.same_top.value:.2%}")
    return Outcome(artefacts=artefacts, figures=_figures(result, digest), rows=_percentiles(result))


def _inputs(step: KldStep, context: JobContext) -> list[Path]:
    """What the base file must not be written over."""
    paths = [Path(context.model(name).path) for name in (step.model, step.base) if name is not None]
    return paths + ([Path(step.text).expanduser()] if step.text else [])


def _text(step: KldStep) -> bytes:
    from lathe.engine.measure.chunks import read_text

    return read_text(Path(step.text).expanduser() if step.text else HELD_OUT_TEXT)


def _vectors(step: KldStep, context: JobContext, model: LlamaModel, stack: ExitStack) -> Outcome:
    """Compare two embedders passage by passage."""
    from lathe.engine.jobs.loading import load
    from lathe.engine.measure.vectors import compare, embed, passages

    if step.save_base:
        raise UsageError("kld: an embedder has no log-probabilities to save", hint="leave the base file out")
    assert step.base is not None
    text = _text(step)
    base = stack.enter_context(load(gguf_path(context.model(step.base)), step.gpu_layers, context))
    pieces = passages(text, step.context, step.chunks)

    def vectors(of: LlamaModel, past: int) -> Rows:
        def progress(done: int) -> None:
            context.progress("vectors", past + done, 2 * len(pieces), "passage")

        return embed(of, pieces, step.context, threads=step.threads, progress=progress)

    result = compare(vectors(base, 0), vectors(model, len(pieces)))
    context.log(f"mean distance {result.distance.value:.6f}, same nearest passage {result.same_nearest.value:.2%}")
    figures: dict[str, Figure] = {"passages": result.passages}
    for name, estimate in (
        ("mean_distance", result.distance), ("same_nearest", result.same_nearest), ("neighbours", result.neighbours)
    ):  # fmt: skip
        figures |= {name: estimate.value, f"{name}_error": estimate.error}
    figures |= {"max_distance": result.distance_maximum, "text_sha256": hashlib.sha256(text).hexdigest()}
    return Outcome(
        figures=figures,
        rows=tuple({"percentile": at, "distance": value} for at, value in result.distance_percentiles.items()),
    )


def _base(
    step: KldStep, context: JobContext, model: LlamaModel, stack: ExitStack
) -> tuple[LlamaContext | BaseFile, Chunks, str]:
    """The reference, the text as it cuts it, and the text's hash."""
    from lathe.engine.jobs.loading import load
    from lathe.engine.measure import chunks as chunked
    from lathe.engine.measure.base_file import BaseFile
    from lathe.engine.native.llama import LlamaContext

    if step.base_file:
        stored = BaseFile(Path(step.base_file).expanduser())
        chunks = stored.chunks(model.bos if model.add_bos else None)
        if step.chunks >= 0:
            chunks = chunks.limited(step.chunks)
        return stored, chunks, hashlib.sha256(stored.tokens.tobytes()).hexdigest()
    assert step.base is not None
    text = _text(step)
    base = stack.enter_context(load(gguf_path(context.model(step.base)), step.gpu_layers, context))
    chunks = chunked.cut(base, text, step.context, step.chunks)
    own = model.tokenize(text, add_special=True)
    if not np.array_equal(own, chunks.tokens):
        raise DataError(
            f"{model.path.name} and {base.path.name} tokenize the text differently, so their tokens cannot be compared",
            hint="compare models that were converted from the same checkpoint",
        )
    reference = stack.enter_context(LlamaContext(base, chunks.options(threads=step.threads)))
    return reference, chunks, hashlib.sha256(text).hexdigest()


def _key(step: KldStep, context: JobContext, digest: str, chunks: Chunks) -> str:
    models = [context.model(name) for name in (step.model, step.base) if name]
    parts = [*(model.sha256 or model.id for model in models), digest, str(chunks.n_ctx), str(chunks.n_chunks)]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]


def _resumed(file: Path, chunks: Chunks) -> Rows | None:
    try:
        rows: Rows = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    fits = rows.ndim == 2 and rows.shape[1] == 4 and len(rows) % chunks.rows == 0
    return rows if fits and rows.dtype == np.float32 else None


def _artefact(output: Path, context: JobContext, step: KldStep) -> Artefact:
    parent = context.model(step.base).id if step.base else None
    return Artefact(
        name=output.name, path=str(output), format="logits", bytes=output.stat().st_size,
        sha256=file_sha256(output), parent=parent,
    )  # fmt: skip


def _figures(result: Divergence, digest: str) -> dict[str, Figure]:
    figures: dict[str, Figure] = {"tokens": result.tokens}
    for name, estimate in (
        ("mean_kld", result.kld),
        ("same_top_p", result.same_top),
        ("delta_p_rms", result.delta_p_rms),
        ("delta_p", result.delta_p),
        ("perplexity", result.perplexity),
        ("base_perplexity", result.base_perplexity),
        ("ln_ratio", result.log_ratio),
        ("ratio", result.ratio),
        ("difference", result.difference),
    ):
        figures |= {name: estimate.value, f"{name}_error": estimate.error}
    return figures | {
        "correlation": result.correlation,
        "max_kld": result.kld_maximum,
        "kld_99_9": result.kld_percentiles[99.9],
        "kld_99": result.kld_percentiles[99.0],
        "kld_median": result.kld_percentiles[50.0],
        "text_sha256": digest,
    }


def _percentiles(result: Divergence) -> tuple[dict[str, Figure], ...]:
    return tuple(
        {"percentile": at, "kld": value, "delta_p": result.delta_p_percentiles[at]}
        for at, value in result.kld_percentiles.items()
    )
