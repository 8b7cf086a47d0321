"""GGUF in, smaller GGUF out: llama.cpp's quantizer in this process, with checks before and after.

Native code: only ever called in a job's child. The bytes equal llama-quantize's for the same input, type, importances
and metadata. Invariant: the output appears whole and verified, or not at all; an unusable request fails before a byte
is written.
"""

from __future__ import annotations

import ctypes
import os
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from lathe.quantize import layout, libllama, plan
from lathe.quantize.artefact import file_sha256, new_artefact
from lathe.quantize.errors import GgufError, InputMissing, OutputError, QuantizeError, UnsupportedError
from lathe.quantize.gguf.header import read_header, read_sharded
from lathe.quantize.gguf.values import GgufHeader
from lathe.quantize.imatrix import Imatrix, read_imatrix
from lathe.quantize.plan import Override, QuantizeOptions, QuantPlan
from lathe.quantize.progress import Report, silent
from lathe.quantize.types import tensor_type

Importances = dict[str, npt.NDArray[np.float32]]
_LINE_OF_TENSOR = re.compile(r"\[\s*(\d+)/\s*\d+\] ")


class QuantizeReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was written."""

    files: tuple[Path, ...]
    sha256: tuple[str, ...]
    plan: QuantPlan
    seconds: float
    """In the quantizer itself, without checks and hashing."""


def plan_quantization(source: Path, options: QuantizeOptions) -> QuantPlan:
    """Ask llama.cpp for every tensor's type, and raise what would go wrong; nothing is written.

    Raises:
        QuantizeError: unknown types, missing importances, a quantized source, an architecture llama.cpp lacks.
    """
    headers = _headers(source)
    return _Request(source, headers, options).plan()


def quantize_gguf(
    source: Path, output: Path, options: QuantizeOptions, report: Report | None = None, *, force: bool = False
) -> QuantizeReport:
    """Quantize a model file; `force` replaces an existing output.

    With `keep_split` and a source of several shards, `output` names the set: `model.gguf` becomes
    `model-00001-of-00003.gguf` and so on.
    """
    headers = _headers(source)
    request = _Request(source, headers, options)
    planned = request.plan()
    inputs = [header.path for header in headers] + ([options.imatrix] if options.imatrix else [])
    names = _output_names(output, len(planned.files))
    with ExitStack() as stack:
        parts = [
            stack.enter_context(new_artefact(name, inputs=inputs, expected_bytes=size, force=force))
            for name, size in zip(names, planned.files, strict=True)
        ]
        started = time.monotonic()
        with _native_name(parts, options.keep_split) as target:
            request.run(target, _progress(planned, report or silent))
        seconds = time.monotonic() - started
        _verify(parts, planned)
        digests = tuple(file_sha256(part, report) for part in parts)
    return QuantizeReport(files=tuple(names), sha256=digests, plan=planned, seconds=seconds)


def _headers(source: Path) -> tuple[GgufHeader, ...]:
    headers = tuple(read_sharded(source))
    kind = headers[0].kind
    if kind not in ("model", "adapter"):
        raise UnsupportedError(f"{source.name} is a {kind} file, and only models are quantized")
    return headers


class _Request:
    """One call's parameters, with everything native code points to kept alive."""

    def __init__(self, source: Path, headers: Sequence[GgufHeader], options: QuantizeOptions) -> None:
        plan.check_options(options, headers[0])
        self._source = source
        self._headers = headers
        self._options = options
        self._imatrix = read_imatrix(options.imatrix) if options.imatrix is not None else None
        self._importances = _selected(self._imatrix, options)
        self._overrides = _imatrix_metadata(self._imatrix, self._importances, options) | options.metadata
        self._keep: list[object] = []
        self._native = self._parameters()

    def plan(self) -> QuantPlan:
        """Run dry and check the outcome."""
        options = self._options
        lines: list[str] = []
        self._native.dry_run = True
        with libllama.logged(lambda _level, line: lines.append(line)):
            self._call(b"")
        self._native.dry_run = False
        tensors = plan.read_dry_run(lines, self._headers, options.prune_layers)
        plan.refuse_requantizing(tensors, options)
        plan.require_importances(tensors, options, self._importances)
        unused = plan.unmatched(options.tensor_types, tensors)
        fallbacks = [line.split("WARNING: ")[-1] for line in lines if "fallback quantization" in line]
        return QuantPlan(
            type=options.type.upper(),
            tensors=tuple(tensors),
            source_bytes=sum(header.file_bytes for header in self._headers),
            files=layout.file_sizes(tensors, self._headers[0], self._overrides, options.keep_split),
            warnings=(*fallbacks, *(f"the pattern {pattern!r} matches no tensor" for pattern in unused)),
        )

    def run(self, target: Path, heard: libllama.LogCallback) -> None:
        """Write the output; `heard` gets each line of llama.cpp's log."""
        libllama.interruptible(lambda: self._call(os.fsencode(target)), heard)

    def _call(self, target: bytes) -> None:
        libllama.forget()
        failed = libllama.bindings().llama_model_quantize(os.fsencode(self._source), target, ctypes.byref(self._native))
        if failed:
            raise _explained(libllama.complaint(), self._source)

    def _parameters(self) -> Any:
        lib, options = libllama.bindings(), self._options
        params = lib.llama_model_quantize_default_params()
        recipe = plan.chosen_type(options)
        if recipe is None:
            params.only_copy = True
        else:
            params.ftype = recipe.id
        params.nthread = options.threads
        params.allow_requantize = options.allow_requantize
        params.quantize_output_tensor = not options.keep_output
        params.pure = options.pure
        params.keep_split = options.keep_split
        params.max_buf_size = options.buffer_bytes
        if options.output_tensor_type:
            params.output_tensor_type = tensor_type(options.output_tensor_type).id
        if options.token_embedding_type:
            params.token_embedding_type = tensor_type(options.token_embedding_type).id
        if options.tensor_types:
            params.tt_overrides = self._array(
                lib.llama_model_tensor_override,
                [(pattern.encode(), tensor_type(name).id) for pattern, name in options.tensor_types.items()],
                (None, lib.GGML_TYPE_COUNT),
            )
        if self._importances:
            floats = ctypes.POINTER(ctypes.c_float)
            params.imatrix = self._array(
                lib.llama_model_imatrix_data,
                [(name.encode(), data.ctypes.data_as(floats), data.size) for name, data in self._importances.items()],
                (None, None, 0),
            )
        if options.prune_layers:
            params.prune_layers = self._array(ctypes.c_int32, sorted(set(options.prune_layers)), -1)
        if self._overrides:
            params.kv_overrides = self._array(
                lib.llama_model_kv_override,
                [_override(lib, key, value) for key, value in self._overrides.items()],
                lib.llama_model_kv_override(),
            )
        return params

    def _array(self, kind: Any, items: Sequence[Any], end: Any) -> Any:
        """A C array with its terminator."""
        array = (kind * (len(items) + 1))(*items, end)
        self._keep += [array, items]
        return ctypes.cast(array, ctypes.POINTER(kind))


def _override(lib: Any, key: str, value: Override) -> Any:
    entry = lib.llama_model_kv_override(key=key.encode())
    match value:
        case bool():
            entry.tag, entry.value.val_bool = lib.LLAMA_KV_OVERRIDE_TYPE_BOOL, value
        case int():
            entry.tag, entry.value.val_i64 = lib.LLAMA_KV_OVERRIDE_TYPE_INT, value
        case float():
            entry.tag, entry.value.val_f64 = lib.LLAMA_KV_OVERRIDE_TYPE_FLOAT, value
        case str():
            entry.tag, entry.value.val_str = lib.LLAMA_KV_OVERRIDE_TYPE_STR, value.encode()
    return entry


def _selected(imatrix: Imatrix | None, options: QuantizeOptions) -> Importances:
    """The importances that are used, as llama-quantize chooses them."""
    if imatrix is None:
        return {}
    return {
        name: data
        for name, data in imatrix.importances().items()
        if not any(part in name for part in options.imatrix_except)
        and (not options.imatrix_only or any(part in name for part in options.imatrix_only))
    }


def _imatrix_metadata(imatrix: Imatrix | None, used: Importances, options: QuantizeOptions) -> dict[str, Override]:
    """What llama-quantize notes about the matrix; the file by name alone, so that no path leaks."""
    if imatrix is None or options.imatrix is None or not used:
        return {}
    notes: dict[str, Override] = {"quantize.imatrix.file": _clipped(options.imatrix.name)}
    if imatrix.datasets:
        notes["quantize.imatrix.dataset"] = _clipped(imatrix.datasets[0])
    notes["quantize.imatrix.entries_count"] = len(used)
    if imatrix.chunks > 0:
        notes["quantize.imatrix.chunks_count"] = imatrix.chunks
    return notes


def _clipped(text: str) -> str:
    """As much as fits the 127 bytes of a string override."""
    return text.encode()[:127].decode("utf-8", "ignore")


def _output_names(output: Path, count: int) -> list[Path]:
    if count == 1:
        return [output]
    stem = output.name.removesuffix(".gguf")
    return [output.with_name(f"{stem}-{index + 1:05d}-of-{count:05d}.gguf") for index in range(count)]


@contextmanager
def _native_name(parts: Sequence[Path], keep_split: bool) -> Iterator[Path]:
    """The name to give to llama.cpp; shards, which it names itself, reach their parts through links."""
    if not keep_split:
        yield parts[0]
        return
    with tempfile.TemporaryDirectory() as folder:
        for index, part in enumerate(parts):
            Path(folder, f"out-{index + 1:05d}-of-{len(parts):05d}.gguf").symlink_to(part.resolve())
        yield Path(folder, "out")


def _progress(planned: QuantPlan, report: Report) -> libllama.LogCallback:
    total = len(planned.tensors)
    report(planned.tensors[0].name, 0, total, "tensor")

    def heard(_level: libllama.Level, line: str) -> None:
        if found := _LINE_OF_TENSOR.match(line):
            done = int(found[1])
            report(planned.tensors[min(done, total - 1)].name, done, total, "tensor")

    return heard


def _verify(parts: Sequence[Path], planned: QuantPlan) -> None:
    """Read the headers again: names, types, sizes must be the planned ones."""
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for part, size in zip(parts, planned.files, strict=True):
        header = read_header(part)
        if header.file_bytes != size:
            raise GgufError(f"the quantizer wrote {header.file_bytes:,} bytes where {size:,} were planned")
        found |= {tensor.name: (tensor.type.name, _kept(tensor.shape)) for tensor in header.tensors}
    wanted = {tensor.name: (tensor.target, _kept(tensor.shape)) for tensor in planned.tensors}
    if found != wanted:
        name = next(iter(sorted(found.items() ^ wanted.items())))[0]
        raise GgufError(f"the quantizer wrote {name} as {found.get(name)}, planned was {wanted.get(name)}")


def _kept(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape as ggml keeps it: the last sizes of 1 are not written, as of the one row of a reranker's head."""
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _explained(reason: str, source: Path) -> QuantizeError:
    """llama.cpp's words as one of our errors."""
    reason = reason.removeprefix("failed to quantize: ")
    if "iostream" in reason:
        return OutputError("the output could not be written: no space left, or a size limit", code="E_DISK_FULL")
    if "unknown model architecture" in reason:
        return UnsupportedError(f"llama.cpp cannot quantize {source.name}: {reason}")
    if "invalid data" in reason or "data validation" in reason:
        return GgufError(f"{source.name} holds weights that are no numbers: {reason}", code="E_GGUF_TENSOR")
    if "importance" in reason or "imatrix" in reason:
        return InputMissing(f"the importance matrix does not serve {source.name}: {reason}", code="E_IMATRIX_NEEDED")
    return QuantizeError(f"llama.cpp cannot quantize {source.name}: {reason}")
