"""Job: the importance matrix of a model on a text; a stopped run goes on at the chunk it had reached."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

from lathe.engine.jobs.outputs import gguf_path, output_path, tools, variant_name
from lathe.engine.jobs.values import Artefact, Figure, JobContext, Outcome
from lathe.engine.steps import ImatrixMergeStep, ImatrixStep
from lathe.quantize.artefact import file_sha256, refuse_existing
from lathe.quantize.errors import FormatError
from lathe.quantize.imatrix import Imatrix, merge, read_imatrix, write_imatrix
from lathe.quantize.imatrix_statistics import statistics

_SAVE_INTERVAL_S = 10.0


def run(step: ImatrixStep, context: JobContext) -> Outcome:
    """Collect, merge, write."""
    from lathe.engine.jobs.loading import load
    from lathe.engine.measure import chunks as chunked
    from lathe.engine.measure.imatrix import collect

    entry = context.model(step.model)
    path = Path(step.text).expanduser()
    text = chunked.read_text(path)
    digest = hashlib.sha256(text).hexdigest()
    merged = [Path(name).expanduser() for name in step.merge]
    others = [read_imatrix(name) for name in merged]
    output = output_path(context, step.output, step.name or variant_name(entry, "imatrix"), any_suffix=True)
    inputs = (Path(entry.path), path, *merged)
    refuse_existing(output, inputs, force=step.force)
    with load(gguf_path(entry), step.gpu_layers, context) as model:
        chunks = chunked.cut(model, text, step.context, step.chunks, embedders=True)
        key = hashlib.sha256(f"{entry.sha256 or entry.id} {digest} {chunks.n_ctx} {step.process_output}".encode())
        file = Path(context.spec.work_dir) / f"imatrix-{key.hexdigest()[:16]}.gguf"
        earlier = _resumed(file)
        saved = time.monotonic()

        def progress(done: int, total: int, matrix: Imatrix) -> None:
            nonlocal saved
            context.progress("importance matrix", done, total, "chunk")
            if time.monotonic() - saved > _SAVE_INTERVAL_S:
                saved = time.monotonic()
                write_imatrix(file, matrix, force=True)

        collected = collect(
            model,
            chunks,
            path.name,
            threads=step.threads,
            output=step.process_output,
            earlier=earlier,
            start=min(earlier.chunks, chunks.n_chunks) if earlier else 0,
            progress=progress,
        )
    matrix = merge([*others, collected]) if others else collected
    write_imatrix(output, matrix, inputs=inputs, force=step.force)
    file.unlink(missing_ok=True)
    context.log(f"{len(matrix.entries)} tensors, {matrix.chunks} chunks of {matrix.chunk_size} tokens: {output}")
    recipe: dict[str, Figure] = {"made_by": "imatrix", "source": entry.name, "source_sha256": entry.sha256}
    recipe |= {"text_sha256": digest, "context": chunks.n_ctx, "chunks": chunks.n_chunks}
    artefact = Artefact(
        name=step.name or output.stem,
        path=str(output),
        format="imatrix",
        bytes=output.stat().st_size,
        sha256=file_sha256(output),
        parent=entry.id,
        recipe=recipe | tools(),
    )
    figures: dict[str, Figure] = {
        "tensors": len(matrix.entries), "chunks": matrix.chunks, "context": matrix.chunk_size, "text_sha256": digest
    }  # fmt: skip
    return Outcome(artefacts=(artefact,), figures=figures, rows=tuple(_rows(matrix)))


def run_merge(step: ImatrixMergeStep, context: JobContext) -> Outcome:
    """Add up and write."""
    paths = [Path(name).expanduser() for name in step.matrices]
    matrix = merge([read_imatrix(path) for path in paths])
    output = Path(step.output).expanduser()
    write_imatrix(output, matrix, inputs=paths, force=step.force)
    context.log(f"{len(matrix.entries)} tensors, {matrix.chunks} chunks of {matrix.chunk_size} tokens: {output}")
    artefact = Artefact(
        name=output.stem, path=str(output), format="imatrix", bytes=output.stat().st_size, sha256=file_sha256(output)
    )
    figures: dict[str, Figure] = {"tensors": len(matrix.entries), "chunks": matrix.chunks, "matrices": len(paths)}
    return Outcome(artefacts=(artefact,), figures=figures, rows=tuple(_rows(matrix)))


def described(path: Path) -> tuple[dict[str, Figure], list[dict[str, Figure]]]:
    """What a file holds, and a row of statistics per tensor."""
    matrix = read_imatrix(path)
    facts: dict[str, Figure] = {
        "tensors": len(matrix.entries), "chunks": matrix.chunks, "context": matrix.chunk_size,
        "texts": ", ".join(matrix.datasets),
    }  # fmt: skip
    return facts, _rows(matrix)


def _rows(matrix: Imatrix) -> list[dict[str, Figure]]:
    return [
        {
            "tensor": one.name, "total": one.total, "mean": one.mean, "maximum": one.maximum, "active": one.active,
            "evenness": one.evenness, "outliers": one.outliers, "similarity": one.similarity,
        }
        for one in statistics(matrix)
    ]  # fmt: skip


def _resumed(file: Path) -> Imatrix | None:
    try:
        return read_imatrix(file) if file.exists() else None
    except FormatError:
        return None
