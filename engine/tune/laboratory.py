"""The whole of tuning for one model: calibration, search, comparison, speeds; one point per file.

Everything here works in one folder that outlives the job, so a second wish about the same model and text begins where
the first one ended. Invariant: the folder's name tells model, text and settings apart, so nothing in it is ever stale.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
from lathe.engine import sizes
from lathe.engine.errors import UsageError
from lathe.engine.native.llama import LlamaModel
from lathe.engine.tune.calibration import Calibration
from lathe.engine.tune.clock import Clock
from lathe.engine.tune.frontier import Closeness, Point
from lathe.engine.tune.running import Running
from lathe.engine.tune.search import Found, Search, read_measurements
from lathe.engine.tune.sensitivity import tensors_of
from lathe.engine.tune.settings import Report, Settings
from lathe.engine.tune.yardstick import Reading
from lathe.quantize.gguf.header import read_sharded
from lathe.quantize.plan import QuantizeOptions
from lathe.quantize.quantizer import plan_quantization, quantize_gguf
from lathe.quantize.types import FILE_TYPES, tensor_type
from lathe.quantize.variants import Variants

_HEAD_ROOM = 1024
"""Bytes kept free for the provenance that is written into a file."""
_PADDING = 32
_TRIES, _NEAR = 4, 0.95
"""Mixes read for a divergence, and the share of it that is near enough."""


class Laboratory:
    """One model and one text."""

    def __init__(self, source: Path, text: bytes, label: str, folder: Path, settings: Settings, report: Report) -> None:
        """Calibrate; `label` names the text in what is written.

        Raises:
            DataError: the text is too short, or the model neither predicts tokens nor gives vectors.
            UsageError: the wish is in the other measure, or the model is quantized already.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._source = source
        self._folder = folder
        self._settings = settings
        self.clock = Clock(settings.seconds)
        self.headers = read_sharded(source)
        if not tensors_of(Variants(self.headers, folder / "variants")):
            raise UsageError(
                f"{source.name} has no tensor to choose a type for: every one is quantized already",
                hint="start from the F16, BF16 or F32 file",
            )
        state = folder / "measured.json"
        with LlamaModel(source, gpu_layers=settings.gpu_layers) as model:
            self._calibration = found = Calibration(model, self.headers, folder, settings, self.clock, report)
            found.collect(text, label)
            depth = read_measurements(state).chunks or found.affordable()
        self.measure = found.measure
        threads = settings.threads or 1
        self.variants = Variants(self.headers, folder / "variants", found.imatrix, found.moments, threads)
        self._yardstick = found.yardstick(depth)
        self.search = Search(
            self.variants,
            self._yardstick,
            state,
            kinds=settings.kinds,
            clock=self.clock,
            progress=lambda label, done, total: report(label, done, total, "reading"),
        )
        self.search.measured.chunks = depth
        text_tokens = settings.n_ctx if self.measure == "distance" else 0
        self.running = Running(self.files, self._yardstick, text_tokens, self.clock, report)

    # -- points ------------------------------------------------------------------------------------------------------
    def mix(self, budget: int) -> Point:
        """The best mix for a file of at most `budget` bytes."""
        return self._mix_point(self.search.find(budget - self._overhead() - _PADDING * len(self.search.names)))

    def within(self, divergence: float) -> Point:
        """The smallest mix whose measured divergence is at most this: asks for less, or more, by what each one had."""
        wanted, tried, granted = divergence, list[Found](), list[Found]()
        chosen = self.search.closest(wanted)
        # An answer comes before the comparisons that follow; a smaller one does not.
        while not tried or self.search.affords(chosen, urgent=not granted):
            tried.append(self.search.measured_as(chosen))
            measured = tried[-1].reading.divergence
            granted += [tried[-1]] if measured <= divergence else []
            if _NEAR * divergence <= measured <= divergence or len(tried) == _TRIES or not measured:
                break
            wanted *= (1 + _NEAR) / 2 * divergence / measured
            before, chosen = chosen, self.search.closest(wanted)
            if chosen == before:
                break
        else:
            self.clock.leave_out("nearer mixes for the divergence wished")
        return self._mix_point(min(granted, key=lambda found: found.bytes, default=tried[-1]))

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
        return sizes.bytes_of(size)

    def write(self, path: Path, mix: dict[str, str], metadata: dict[str, str | int]) -> None:
        """Write a mix as one file."""
        self.variants.write(path, mix, metadata | {"general.file_type": _nearest_file_type(mix, self.variants)})

    def files(self, point: Point) -> list[Path]:
        """The files of a point, made where they are not there."""
        if point.mix is not None:
            return self.variants.paths(point.mix)
        path = self._folder / f"{point.label}.gguf"
        if not path.exists():
            options = QuantizeOptions(type=point.label, imatrix=self.imatrix_path, threads=self._settings.threads)
            quantize_gguf(self._source, path, options)
        return [path]

    @property
    def imatrix_path(self) -> Path:
        """Where the importances are."""
        return self._calibration.imatrix_path

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
        shutil.rmtree(self._calibration.moments_path, ignore_errors=True)

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
            **{name: getattr(reading, name) for name in Closeness.__struct_fields__},
        )

    def _overhead(self) -> int:
        """Bytes of a file besides the tensors that are chosen for."""
        chosen = sum(self.variants.tensors[name].nbytes for name in self.search.names)
        return self.headers[0].data_offset + self.variants.size({}) - chosen + _HEAD_ROOM


def _nearest_file_type(mix: dict[str, str], variants: Variants) -> int:
    """The recipe whose base type holds most of the bytes, for readers that show general.file_type."""
    held: dict[str, int] = {}
    for name, kind in mix.items():
        held[kind] = held.get(kind, 0) + tensor_type(kind).size(variants.tensors[name].shape)
    most = max(held, key=lambda kind: held[kind])
    return next((kind.id for kind in FILE_TYPES.values() if kind.base == most), 0)
