"""What the original says on the calibration text before anything is searched: measure, importances, second moments.

The text is cut as the model is used: into chunks where tokens are predicted, into passages where vectors are wanted;
importances and moments come from chunks either way. Invariant: everything here is of the same text, and what was
collected before in the same folder is not collected again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from lathe.engine.errors import DataError, UsageError
from lathe.engine.measure import chunks as chunked
from lathe.engine.measure import imatrix, moments, vectors
from lathe.engine.native.llama import LlamaContext, LlamaModel
from lathe.engine.native.vectors import ranks
from lathe.engine.tune.clock import Clock
from lathe.engine.tune.frontier import Measure
from lathe.engine.tune.settings import Report, Settings
from lathe.engine.tune.token_yardstick import TokenYardstick
from lathe.engine.tune.vector_yardstick import VectorYardstick
from lathe.engine.tune.yardstick import Yardstick
from lathe.quantize.gguf.values import GgufHeader
from lathe.quantize.imatrix import Imatrix, read_imatrix, write_imatrix
from lathe.quantize.moments import MomentFolder

_IMATRIX_CHUNKS = 100
_FEWEST_CHUNKS = 8
"""Of a reading."""
_FOR_READINGS = 0.35
"""Of the time, for readings of single tensors."""
_LATE = 2.0
"""Times its share after which a part that always finishes a step is broken off."""


class Calibration:
    """One model on one text."""

    def __init__(
        self, model: LlamaModel, headers: Sequence[GgufHeader], folder: Path, settings: Settings, clock: Clock,
        report: Report,
    ) -> None:  # fmt: skip
        """Settle what is measured.

        Args:
            headers: of the model's file, all shards.
            folder: where importances and moments are kept.

        Raises:
            DataError: the model neither predicts tokens nor gives vectors.
            UsageError: the wish is in the other measure.
        """
        if ranks(model):
            raise DataError(f"{model.path.name} scores pairs of texts: it has neither next tokens nor vectors to keep")
        self.measure: Measure = "distance" if model.embeds else "kld"
        if settings.wished not in (None, self.measure):
            raise _wrong_measure(model.path.name, self.measure)
        self._model = model
        self._headers = headers
        self._folder = folder
        self._settings = settings
        self._clock = clock
        self._report = report

    def collect(self, text: bytes, label: str) -> None:
        """Cut the text, and collect importances and moments; `label` names the text in what is written.

        Raises:
            DataError: the text is too short, or longer pieces are asked for than the model reads.
            ImatrixError: the importances given are another model's.
        """
        n_ctx, most = self._settings.n_ctx, self._settings.n_chunks
        self._chunks = chunked.cut(self._model, text, n_ctx, embedders=True)
        self._passages = vectors.passages(text, n_ctx, max(2, most)) if self.measure == "distance" else []
        self.imatrix = self._importances(label)
        self.moments = self._second_moments()

    def affordable(self) -> int:
        """How much text a reading can have, so that every tensor can have its own; judged by the beginning."""
        first, passages = self._chunks.limited(1), self._passages[:_FEWEST_CHUNKS]
        began = time.monotonic()
        if passages:
            vectors.embed(self._model, passages, first.n_ctx, threads=self._settings.threads)
        else:
            with LlamaContext(self._model, first.options(threads=self._settings.threads)) as context:
                for _ in chunked.run(context, first):
                    pass
        each = max(1e-4, time.monotonic() - began) / max(1, len(passages))
        tensors = sum(len(tensor.shape) > 1 for header in self._headers for tensor in header.tensors)
        count = int(_FOR_READINGS * (self._clock.asked - self._clock.seconds) / (each * 3 * (tensors + 4)))
        return min(self._settings.n_chunks, max(_FEWEST_CHUNKS, count))

    def yardstick(self, depth: int) -> Yardstick:
        """Run the original over the first `depth` chunks or passages, which readings are then of."""
        settings, files = self._settings, [header.path for header in self._headers]
        most = len(self._passages) or self._chunks.limited(settings.n_chunks).n_chunks
        if depth < most:
            pieces = "passages" if self._passages else "chunks"
            self._clock.leave_out(f"readings of more than {depth} of {settings.n_chunks} {pieces}")
        threads, layers = settings.threads, settings.gpu_layers
        with self._clock.part("original"):
            if self._passages:
                passages = self._passages[: max(2, depth)]
                return VectorYardstick(files, passages, settings.n_ctx, threads=threads, gpu_layers=layers)
            return TokenYardstick(files, self._chunks.limited(depth), threads=threads, gpu_layers=layers)

    @property
    def imatrix_path(self) -> Path:
        """Where the importances are."""
        return self._folder / "imatrix.gguf"

    @property
    def moments_path(self) -> Path:
        """Where the second moments are."""
        return self._folder / "moments"

    # -- inside ------------------------------------------------------------------------------------------------------
    def _importances(self, label: str) -> Imatrix:
        clock, path = self._clock, self.imatrix_path
        chunks = self._chunks.limited(_IMATRIX_CHUNKS)
        if path.exists() or self._settings.imatrix is not None:
            clock.drop("importances")
            matrix = read_imatrix(path if path.exists() else self._settings.imatrix or path)
            matrix.check_serves(
                (tensor for header in self._headers for tensor in header.tensors), self._model.path.name
            )
        else:
            with clock.part("importances"):
                matrix = imatrix.collect(
                    self._model,
                    chunks,
                    label,
                    threads=self._settings.threads,
                    progress=lambda done, total, _: self._report("importance matrix", done, total, "chunk"),
                    enough=lambda: not clock.left,
                )
        if not path.exists():
            write_imatrix(path, matrix)
        if self._settings.imatrix is None and matrix.chunks < chunks.n_chunks:
            clock.leave_out(f"importances from more than {matrix.chunks} of {chunks.n_chunks} chunks")
        return matrix

    def _second_moments(self) -> MomentFolder | None:
        clock = self._clock
        if not self._settings.feedback:
            clock.drop("second moments")
            return None
        kept = MomentFolder(self.moments_path)
        with clock.part("second moments"):
            budget, began = clock.left, time.monotonic()

            def in_time(share: float) -> bool:
                return time.monotonic() - began < share * budget

            for names, second in moments.collect(
                self._model,
                self._chunks.limited(_IMATRIX_CHUNKS),
                {name: channels for name, channels in self._watched().items() if name not in kept},
                threads=self._settings.threads,
                progress=lambda done, total: self._report("second moments", done, total, "chunk"),
                in_time=in_time,
            ):
                kept.save(names, second)
                if time.monotonic() - began > max(1.0, _LATE * budget):
                    # Every pass over the text costs at least a batch: with many of them, rounding must do without.
                    clock.leave_out("rounding with second moments of some tensors")
                    break
        return kept

    def _watched(self) -> dict[str, int]:
        """The matrices that something is multiplied with, and their input channels."""
        tensors = {tensor.name: tensor for header in self._headers for tensor in header.tensors}
        # The last layer's output goes into the output matrix, or into the embeddings where they are tied.
        last = next((name for name in ("output.weight", "token_embd.weight") if name in tensors), "")
        outputs = (last,) if self._model.generates else ()
        return {
            name: tensor.shape[0]
            for name, tensor in tensors.items()
            if len(tensor.shape) == 2 and name.endswith("weight") and (name.startswith("blk.") or name in outputs)
        }


def _wrong_measure(name: str, measure: Measure) -> UsageError:
    if measure == "distance":
        return UsageError(
            f"{name} is an embedder, and its files have no KLD", hint="--max-distance bounds how far vectors may turn"
        )
    return UsageError(f"{name} is no embedder, and its files have no distance", hint="--max-kld bounds its divergence")
