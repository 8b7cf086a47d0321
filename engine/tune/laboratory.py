"""The whole of tuning for one model: text, importances, moments, search, comparison, speeds; one point per file.

Everything here works in one folder that outlives the job, so a second wish about the same model and text begins where
the first one ended. Invariant: the folder's name tells model, text and settings apart, so nothing in it is ever stale.
"""

from __future__ import annotations

import functools
import re
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from lathe.engine.errors import DataError, UsageError
from lathe.engine.measure import chunks as chunked
from lathe.engine.measure import imatrix, moments, vectors
from lathe.engine.native.llama import LlamaContext, LlamaModel
from lathe.engine.native.vectors import ranks
from lathe.engine.tune.clock import Clock
from lathe.engine.tune.frontier import Measure, Point
from lathe.engine.tune.halving import SHORTEST, Run, halve
from lathe.engine.tune.search import Found, Search, read_measurements
from lathe.engine.tune.sensitivity import KINDS
from lathe.engine.tune.token_yardstick import TokenYardstick
from lathe.engine.tune.trial import Timing, Trial, Way, run
from lathe.engine.tune.vector_yardstick import VectorYardstick
from lathe.engine.tune.yardstick import Reading, Yardstick
from lathe.quantize.gguf.header import read_sharded
from lathe.quantize.imatrix import Imatrix, read_imatrix, write_imatrix
from lathe.quantize.moments import MomentFolder
from lathe.quantize.plan import QuantizeOptions
from lathe.quantize.quantizer import plan_quantization, quantize_gguf
from lathe.quantize.types import FILE_TYPES, tensor_type
from lathe.quantize.variants import Variants
from msgspec.structs import asdict, replace

_SIZE = re.compile(r"([\d.]+) *([KMGT]?)(i?)B?", re.IGNORECASE)
_HEAD_ROOM = 1024
"""Bytes kept free for the provenance that is written into a file."""
_PADDING = 32
_IMATRIX_CHUNKS = 100
_FEWEST_CHUNKS = 8
"""Of a reading."""
_FOR_READINGS = 0.35
"""Of the time, for readings of single tensors."""
_READ_TOKENS = 2048
"""Of the texts that an embedder reads in a trial, at least."""
_LATE = 2.0
"""Times its share after which a part that always finishes a step is broken off."""

Report = Callable[[str, float, float | None, str], None]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How to tune."""

    kinds: tuple[str, ...] = KINDS
    imatrix: Path | None = None
    feedback: bool = True
    n_ctx: int = 256
    n_chunks: int = 48
    seconds: float = 1800
    threads: int = 0
    gpu_layers: int = 0
    wished: Measure | None = None
    """The measure that the result is asked to be close by."""


class Laboratory:
    """One model and one text."""

    def __init__(self, source: Path, text: bytes, label: str, folder: Path, settings: Settings, report: Report) -> None:
        """Load the tokenizer and cut the text; `label` names the text in what is written.

        Raises:
            DataError: the text is too short, or the model neither predicts tokens nor gives vectors.
            UsageError: the wish is in the other measure.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._source = source
        self._folder = folder
        self._settings = settings
        self._report = report
        self._label = label
        self._timed = 0
        self.clock = Clock(settings.seconds)
        self.headers = read_sharded(source)
        self._files = [header.path for header in self.headers]
        with self._original() as model:
            if ranks(model):
                raise DataError(f"{source.name} scores pairs of texts: it has neither next tokens nor vectors to keep")
            self.measure: Measure = "distance" if model.embeds else "kld"
            if settings.wished not in (None, self.measure):
                raise _wrong_measure(source.name, self.measure)
            calibration = chunked.cut(model, text, settings.n_ctx, embedders=True)
            # An embedder reads passages as they are asked of it, from their first word to their last.
            self._passages = vectors.passages(text, settings.n_ctx, max(2, settings.n_chunks)) if model.embeds else []
            self.imatrix = self._importances(model, calibration.limited(_IMATRIX_CHUNKS))
            self._moments = self._second_moments(model, calibration.limited(_IMATRIX_CHUNKS))
            state = folder / "measured.json"
            depth = read_measurements(state).chunks or self._depth(model, calibration)
        self.variants = Variants(self.headers, folder / "variants", self.imatrix, self._moments, settings.threads or 1)
        available = len(self._passages) or calibration.limited(settings.n_chunks).n_chunks
        if depth < available:
            self.clock.leave_out(f"readings of more than {depth} of {settings.n_chunks} {self._pieces}")
        with self.clock.part("original"):
            self._yardstick = self._measuring(calibration.limited(depth), self._passages[: max(2, depth)])
        self.search = Search(
            self.variants,
            self._yardstick,
            state,
            kinds=settings.kinds,
            clock=self.clock,
            progress=lambda label, done, total: report(label, done, total, "reading"),
        )
        self.search.measured.chunks = depth

    # -- points ------------------------------------------------------------------------------------------------------
    def mix(self, budget: int) -> Point:
        """The best mix for a file of at most `budget` bytes."""
        return self._mix_point(self.search.find(budget - self._overhead() - _PADDING * len(self.search.names)))

    def within(self, divergence: float) -> Point:
        """The smallest mix whose measured divergence is at most this, found by asking for less and less."""
        wanted = divergence
        for _ in range(4):
            found = self.search.closest(wanted)
            if found.reading.divergence <= divergence:
                break
            if not self.clock.fits("mix"):
                self.clock.leave_out("closer mixes for the divergence wished")
                break
            wanted *= 0.97 * divergence / found.reading.divergence
        return self._mix_point(found)

    def given(self, mix: dict[str, str]) -> Point:
        """A mix that was found before, measured again."""
        unknown = mix.keys() - self.variants.tensors.keys()
        if unknown:
            raise UsageError(f"{self._source.name} has no tensor {min(unknown)}", hint="the mix is of another model")
        found = Found(budget=0, mix=mix, bytes=0, predicted=0.0, reading=self.search.read(mix), passes=0)
        return msgspec.structs.replace(self._mix_point(found), predicted=None)

    def recipe(self, kind: str) -> Point:
        """One of llama.cpp's own recipes with the same importances."""
        path = self._folder / f"{kind}.gguf"
        options = QuantizeOptions(type=kind, imatrix=self.imatrix_path, threads=self._settings.threads)
        with self.clock.cost("recipe"):
            report = quantize_gguf(self._source, path, options, force=True)
            return self._point(kind, None, None, report.plan.bytes, self._yardstick.read([path]))

    def bytes_of(self, size: str) -> int:
        """A size as users write it, in bytes; a file type stands for its own size."""
        if size.upper() in FILE_TYPES:
            options = QuantizeOptions(type=size, imatrix=self.imatrix_path)
            return plan_quantization(self._source, options).bytes
        found = _SIZE.fullmatch(size.strip())
        if not found:
            raise UsageError(f"{size!r} is no size", hint="write 4GB, 2.5GiB, a number of bytes or a file type")
        power = "KMGT".find(found[2].upper()) + 1 if found[2] else 0
        return int(float(found[1]) * (1024 if found[3] else 1000) ** power)

    def write(self, path: Path, mix: dict[str, str], metadata: dict[str, str | int]) -> None:
        """Write a mix as one file."""
        self.variants.write(path, mix, metadata | {"general.file_type": _nearest_file_type(mix, self.variants)})

    @property
    def imatrix_path(self) -> Path:
        """Where the importances are."""
        return self._folder / "imatrix.gguf"

    @property
    def exact(self) -> bool:
        """Whether divergence leaves nothing out, such as improbable tokens."""
        return self._yardstick.exact

    def tidy(self) -> None:
        """Drop what is large and can be made again; what was measured stays."""
        for path in self._folder.glob("*.gguf"):
            if path.stem in FILE_TYPES:
                path.unlink()
        shutil.rmtree(self._folder / "variants", ignore_errors=True)
        shutil.rmtree(self._folder / "moments", ignore_errors=True)

    # -- running -----------------------------------------------------------------------------------------------------
    def ways_to_run(self, point: Point, candidates: Sequence[Way]) -> list[Run]:
        """Compare ways to run a point by successive halving, the best first; each KV cache's divergence is measured."""
        clock = self.clock
        files = [str(path) for path in self.files(point)]
        done = 0

        def attempt(way: Way, prompt: int, generate: int) -> Timing:
            nonlocal done
            done += 1
            self._report(f"ways to run {point.label}", done, None, "trial")
            with clock.cost("trial"):
                return run(self._trial(files, way, prompt, generate))

        with clock.part("ways"):
            shortest = (_READ_TOKENS, 0) if self._passages else SHORTEST
            fits = functools.partial(clock.fits, "trial")
            runs = halve(point.label, candidates, attempt, shortest=shortest, in_time=fits)
            if len(runs) < len(candidates):
                clock.leave_out(f"{len(candidates) - len(runs)} of {len(candidates)} ways to run")
            # Points are measured with an F16 cache, or with none.
            readings = dict.fromkeys(("f16", ""), (point.divergence, point.divergence_99_9))
            for kv_type in dict.fromkeys(one.kv_type for one in runs if not one.problem):
                if kv_type not in readings and not clock.fits("mix"):
                    clock.leave_out(f"divergence with a KV cache of {kv_type}")
                elif kv_type not in readings:
                    reading = self._yardstick.read(self.files(point), kv_type=kv_type)
                    readings[kv_type] = (reading.divergence, reading.divergence_99_9)
        return [
            replace(one, divergence=readings[one.kv_type][0], divergence_99_9=readings[one.kv_type][1])
            if one.kv_type in readings
            else one
            for one in runs
        ]

    def timed(self, point: Point, way: Way) -> Point:
        """The point with its speed and memory when run that way; as it is where there is no time."""
        if self._timed and not self.clock.fits("timing"):
            self.clock.leave_out(f"the speed of {point.label}")
            return point
        self._timed += 1
        self._report("speed of every point", self._timed, None, "point")
        with self.clock.cost("timing"):
            files = [str(path) for path in self.files(point)]
            prompt, generate = (_READ_TOKENS, 0) if self._passages else (128, 32)
            return replace(point, **asdict(run(self._trial(files, way, prompt, generate))))

    # -- inside ------------------------------------------------------------------------------------------------------
    def _mix_point(self, found: Found) -> Point:
        size = self.headers[0].data_offset + self.variants.size(found.mix) + _HEAD_ROOM
        return self._point(f"mix {size / 1e6:,.2f} MB", found.mix, found.predicted, size, found.reading)

    def _point(
        self, label: str, mix: dict[str, str] | None, predicted: float | None, size: int, reading: Reading
    ) -> Point:
        elements = sum(tensor.elements for tensor in self.variants.tensors.values())
        return Point(
            label=label,
            mix=mix,
            bytes=size,
            bits_per_weight=8 * size / elements,
            predicted=predicted,
            divergence=reading.divergence,
            error=reading.error,
            divergence_99_9=reading.divergence_99_9,
            agreement=reading.agreement,
            perplexity=reading.perplexity,
            neighbours=reading.neighbours,
        )

    def files(self, point: Point) -> list[Path]:
        """The files of a point, made where they are not there."""
        if point.mix is not None:
            return self.variants.paths(point.mix)
        path = self._folder / f"{point.label}.gguf"
        if not path.exists():
            options = QuantizeOptions(type=point.label, imatrix=self.imatrix_path, threads=self._settings.threads)
            quantize_gguf(self._source, path, options)
        return [path]

    def _overhead(self) -> int:
        """Bytes of a file besides the tensors that are chosen for."""
        chosen = sum(self.variants.tensors[name].nbytes for name in self.search.names)
        return self.headers[0].data_offset + self.variants.size({}) - chosen + _HEAD_ROOM

    def _original(self) -> LlamaModel:
        return LlamaModel(self._source, gpu_layers=self._settings.gpu_layers)

    def _importances(self, model: LlamaModel, chunks: chunked.Chunks) -> Imatrix:
        path = self.imatrix_path
        if path.exists():
            self.clock.drop("importances")
            return self._weighed(read_imatrix(path), chunks)
        if self._settings.imatrix is not None:
            self.clock.drop("importances")
            matrix = read_imatrix(self._settings.imatrix)
        else:
            with self.clock.part("importances"):
                matrix = imatrix.collect(
                    model,
                    chunks,
                    self._label,
                    threads=self._settings.threads,
                    progress=lambda done, total, _: self._report("importance matrix", done, total, "chunk"),
                    enough=lambda: not self.clock.left,
                )
        write_imatrix(path, matrix)
        return self._weighed(matrix, chunks)

    def _weighed(self, matrix: Imatrix, chunks: chunked.Chunks) -> Imatrix:
        """A matrix, with a note where the text had more to give."""
        if self._settings.imatrix is None and matrix.chunks < chunks.n_chunks:
            self.clock.leave_out(f"importances from more than {matrix.chunks} of {chunks.n_chunks} chunks")
        return matrix

    @property
    def _pieces(self) -> str:
        """What a reading is of."""
        return "passages" if self._passages else "chunks"

    def _measuring(self, chunks: chunked.Chunks, passages: Sequence[bytes]) -> Yardstick:
        settings = self._settings
        ways = {"threads": settings.threads, "gpu_layers": settings.gpu_layers}
        if passages:
            return VectorYardstick(self._files, passages, settings.n_ctx, **ways)
        return TokenYardstick(self._files, chunks, **ways)

    def _trial(self, files: Sequence[str], way: Way, prompt: int, generate: int) -> Trial:
        text = self._settings.n_ctx if self._passages else 0
        return Trial(files=tuple(files), way=way, prompt_tokens=prompt, generate_tokens=generate, text_tokens=text)

    def _depth(self, model: LlamaModel, chunks: chunked.Chunks) -> int:
        """How much text a reading can have, so that every tensor can have its own; judged by the beginning."""
        first, passages = chunks.limited(1), self._passages[:_FEWEST_CHUNKS]
        began = time.monotonic()
        if passages:
            vectors.embed(model, passages, first.n_ctx, threads=self._settings.threads)
        else:
            with LlamaContext(model, first.options(threads=self._settings.threads)) as context:
                for _ in chunked.run(context, first):
                    pass
        each = max(1e-4, time.monotonic() - began) / max(1, len(passages))
        tensors = sum(len(tensor.shape) > 1 for header in self.headers for tensor in header.tensors)
        affordable = int(_FOR_READINGS * (self.clock.asked - self.clock.seconds) / (each * 3 * (tensors + 4)))
        return min(self._settings.n_chunks, max(_FEWEST_CHUNKS, affordable))

    def _second_moments(self, model: LlamaModel, chunks: chunked.Chunks) -> MomentFolder | None:
        if not self._settings.feedback:
            self.clock.drop("second moments")
            return None
        kept = MomentFolder(self._folder / "moments")
        channels = {
            tensor.name: tensor.shape[0]
            for header in self.headers
            for tensor in header.tensors
            if len(tensor.shape) == 2 and tensor.name.endswith("weight") and tensor.name not in kept
        }
        watched = {
            name: count
            for name, count in channels.items()
            if name.startswith("blk.") or (model.generates and _is_output(name, self))
        }
        with self.clock.part("second moments"):
            budget, began = self.clock.left, time.monotonic()

            def in_time(share: float) -> bool:
                return time.monotonic() - began < share * budget

            for names, second in moments.collect(
                model,
                chunks,
                watched,
                threads=self._settings.threads,
                progress=lambda done, total: self._report("second moments", done, total, "chunk"),
                in_time=in_time,
            ):
                kept.save(names, second)
                if time.monotonic() - began > max(1.0, _LATE * budget):
                    # Every pass over the text costs at least a batch: with many of them, rounding must do without.
                    self.clock.leave_out("rounding with second moments of some tensors")
                    break
        return kept


def _wrong_measure(name: str, measure: Measure) -> UsageError:
    if measure == "distance":
        return UsageError(
            f"{name} is an embedder, and its files have no KLD", hint="--max-distance bounds how far vectors may turn"
        )
    return UsageError(f"{name} is no embedder, and its files have no distance", hint="--max-kld bounds its divergence")


def _is_output(name: str, laboratory: Laboratory) -> bool:
    """Whether a tensor is multiplied with the last layer's output; embeddings are, where they are tied."""
    tied = all(tensor.name != "output.weight" for header in laboratory.headers for tensor in header.tensors)
    return name == "output.weight" or (tied and name == "token_embd.weight")


def _nearest_file_type(mix: dict[str, str], variants: Variants) -> int:
    """The recipe whose base type holds most of the bytes, for readers that show general.file_type."""
    held: dict[str, int] = {}
    for name, kind in mix.items():
        held[kind] = held.get(kind, 0) + tensor_type(kind).size(variants.tensors[name].shape)
    most = max(held, key=lambda kind: held[kind])
    return next((kind.id for kind in FILE_TYPES.values() if kind.base == most), 0)
