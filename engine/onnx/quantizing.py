"""ONNX models to smaller ones through ONNX Runtime's tools, compared with what they were made of.

    int8         weights, activations rounded as they come: no text needed
    int8-static  weights and activations, ranges taken from a calibration text
    int4         weights of matrix products in blocks (MatMulNBits), embeddings, too (GatherBlockQuantized)
    float16      weights and inner values

Invariant: the source is read into memory and never written beside, and the folder gets its name only when the new
graph loads, runs and answers the probe text with numbers.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from lathe.engine.checkup.install import extra
from lathe.engine.errors import DataError, UnavailableError, UsageError
from lathe.engine.measure.agreement import Agreement, compare
from lathe.engine.onnx.folder import GRAPH, copy_small, folder_bytes, graph_of, half, read_graph, write_graph
from lathe.engine.onnx.probe import open_session, rows_of, tokens_of
from lathe.quantize.artefact import require_space
from lathe.quantize.folder_artefact import new_folder
from lathe.quantize.progress import Report, silent

Mode = Literal["int8", "int8-static", "int4", "float16"]
Calibration = Literal["minmax", "entropy", "percentile"]

_STATIC_OPERATORS = ("MatMul", "Gemm")
"""Rounding the activations of anything else ruins transformers."""
_BLOCK_OPERATORS = ("MatMul", "Gather")
_SHAPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}


class OnnxQuantizeOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to quantize."""

    mode: Mode = "int8"
    per_channel: bool = True
    """int8: a scale for each column of a weight."""
    symmetric: bool = True
    """int4: no zero points."""
    block_size: int = 32
    """int4: weights that share a scale."""
    operators: tuple[str, ...] = ()
    """Operators to quantize; none: those that bear it."""
    exclude: tuple[str, ...] = ()
    """Regular expressions over names of nodes that stay as they are."""
    reduce_range: bool = False
    """int8: seven bits, for processors without VNNI."""
    calibration: Calibration = "minmax"
    samples: int = 32
    """int8-static: pieces of the text."""
    sample_tokens: int = 128


class OnnxQuantizeReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was made."""

    output: Path
    bytes: int
    source_bytes: int
    operators: dict[str, int]
    """Operators of the new graph that compute with quantized values -> their number."""
    agreement: Agreement
    """With the source, on the probe text."""
    seconds: float
    warnings: tuple[str, ...] = ()


def quantize(
    source: Path,
    output: Path,
    options: OnnxQuantizeOptions,
    *,
    text: bytes | None = None,
    threads: int = 1,
    force: bool = False,
    report: Report = silent,
) -> OnnxQuantizeReport:
    """Quantize a folder with a graph into another.

    Args:
        text: what to calibrate with; needed by int8-static alone.

    Raises:
        UnavailableError: onnx or onnxruntime is not installed.
        UsageError: no text where one is needed, or nothing in the graph fits the options.
        DataError: the result does not run, or answers with values that are no numbers.
    """
    began = time.monotonic()
    check_options(options, text=bool(text))
    graph = graph_of(source)
    before = folder_bytes(graph)
    require_space(output.parent, before)
    with new_folder(output, inputs=[source], force=force) as part:
        report("read", 0, 4, "step")
        model = read_graph(graph)
        excluded, warnings = _excluded(model, options.exclude)
        copy_small(graph.parent, part)
        report(options.mode, 1, 4, "step")
        _quantized(model, part / GRAPH, graph, options, excluded, text, threads)
        report("compare", 2, 4, "step")
        tokens = tokens_of(graph.parent)
        session = open_session(part / GRAPH, threads)
        kind, found = rows_of(session, tokens)
        agreement = compare(rows_of(open_session(graph, threads), tokens)[1], found, logits=kind == "decoder")
        operators = _quantized_operators(session.file.operators)
        if not np.isfinite(agreement.max_difference):
            raise DataError(f"{source.name} as {options.mode} answers with values that are no numbers", code="E_PARITY")
        if not operators and options.mode != "float16":
            raise UsageError(f"nothing in {source.name} was quantized: no node fits the operators and exclusions")
        size = folder_bytes(part)
        report("compare", 4, 4, "step")
    return OnnxQuantizeReport(
        output=output, bytes=size, source_bytes=before, operators=operators, agreement=agreement,
        seconds=time.monotonic() - began, warnings=tuple(warnings),
    )  # fmt: skip


def check_options(options: OnnxQuantizeOptions, *, text: bool) -> None:
    """Raise what would go wrong whatever the graph is; `text`: whether there is one to calibrate with."""
    try:
        import onnx
        import onnxruntime.quantization
    except ImportError as error:
        missing = error.name or str(error)
        raise UnavailableError(
            f"ONNX quantization needs {missing}, which is not installed", hint=extra("onnx")
        ) from error
    del onnx, onnxruntime
    if options.mode == "int8-static" and not text:
        raise UsageError("static quantization needs a calibration text", hint="pass --text FILE")
    _compiled(options.exclude)


def _compiled(patterns: Sequence[str]) -> list[re.Pattern[str]]:
    try:
        return [re.compile(pattern) for pattern in patterns]
    except re.error as error:
        raise UsageError(f"{error.pattern!r} is no regular expression: {error}") from error


def _excluded(model: Any, patterns: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names of nodes that patterns match, and the patterns that match none."""
    compiled = _compiled(patterns)
    names = [node.name for node in model.graph.node]
    found = [name for name in names if any(pattern.search(name) for pattern in compiled)]
    idle = [pattern.pattern for pattern in compiled if not any(pattern.search(name) for name in names)]
    return found, [f"no node is called like {pattern!r}" for pattern in idle]


def _quantized(
    model: Any, target: Path, source: Path, options: OnnxQuantizeOptions, excluded: list[str], text: bytes | None,
    threads: int,
) -> None:  # fmt: skip
    large = folder_bytes(source) > 1800 << 20
    match options.mode:
        case "float16":
            write_graph(half(model), target)
        case "int4":
            _blocks(model, target, options, excluded)
        case "int8":
            from onnxruntime.quantization import QuantType, quantize_dynamic

            quantize_dynamic(
                model, target, op_types_to_quantize=list(options.operators) or None, per_channel=options.per_channel,
                reduce_range=options.reduce_range, weight_type=QuantType.QInt8, nodes_to_exclude=excluded,
                use_external_data_format=large, extra_options={"MatMulConstBOnly": True, "WeightSymmetric": True},
            )  # fmt: skip
        case "int8-static":
            from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

            methods = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}
            quantize_static(
                model, target, _Reader(source, text or b"", options, threads), quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(options.operators or _STATIC_OPERATORS), per_channel=options.per_channel,
                reduce_range=options.reduce_range, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
                nodes_to_exclude=[*excluded, *_products_of_activations(model)], use_external_data_format=large,
                calibrate_method=getattr(CalibrationMethod, methods[options.calibration]),
                extra_options={"ActivationSymmetric": False, "WeightSymmetric": True},
            )  # fmt: skip


def _products_of_activations(model: Any) -> list[str]:
    """Names of matrix products without a weight: attention, and angles that grow with the position past any range."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [node.name for node in model.graph.node if node.op_type == "MatMul" and node.input[1] not in weights]


def _blocks(model: Any, target: Path, options: OnnxQuantizeOptions, excluded: list[str]) -> None:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    wanted = options.operators or _BLOCK_OPERATORS
    quantizer = MatMulNBitsQuantizer(
        model, bits=4, block_size=options.block_size, is_symmetric=options.symmetric, accuracy_level=4,
        nodes_to_exclude=excluded, op_types_to_quantize=tuple(wanted),
        quant_axes=(("MatMul", 0), ("Gather", 1)),
    )  # fmt: skip
    quantizer.process()
    write_graph(quantizer.model.model, target)


class _Reader:
    """Pieces of the calibration text as the graph's inputs."""

    def __init__(self, graph: Path, text: bytes, options: OnnxQuantizeOptions, threads: int) -> None:
        from lathe.engine.worker.backends.onnx.tokens import JsonVocabulary

        session = open_session(graph, threads)
        self._inputs = session.inputs
        tokens = JsonVocabulary(graph.parent, 0, 1 << 31).encode(text.decode("utf-8", "replace"))
        size = options.sample_tokens
        if len(tokens) < size:
            raise UsageError(f"the calibration text has {len(tokens)} tokens, and a sample takes {size}")
        starts = np.linspace(0, len(tokens) - size, min(options.samples, len(tokens) // size)).astype(int)
        self._pieces: Iterator[list[int]] = iter([tokens[at : at + size] for at in starts])

    def get_next(self) -> dict[str, Any] | None:
        """The next sample; None after the last."""
        piece = next(self._pieces, None)
        return None if piece is None else {name: _given(one, piece) for name, one in self._inputs.items()}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while (sample := self.get_next()) is not None:
            yield sample

    def set_range(self, start_index: int, end_index: int) -> None:
        """Part of the reader's protocol; a text has no ranges."""


def _given(one: Any, tokens: list[int]) -> Any:
    """One input's value for a text without a past."""
    match one.name:
        case "input_ids":
            return np.asarray([tokens], np.int64)
        case "attention_mask":
            return np.ones((1, len(tokens)), np.int64)
        case "position_ids":
            return np.arange(len(tokens), dtype=np.int64)[None]
        case "token_type_ids":
            return np.zeros((1, len(tokens)), np.int64)
        case "use_cache_branch":
            return np.asarray([False])
        case _:
            fixed = [size if isinstance(size, int) else 0 for size in one.shape]
            return np.zeros((1, *fixed[1:]), _SHAPES.get(one.type, np.float32))


def _quantized_operators(operators: dict[str, int]) -> dict[str, int]:
    marks = ("Quantize", "Integer", "NBits", "QLinear", "QGemm", "BlockQuantized")
    return {name: count for name, count in operators.items() if any(mark in name for mark in marks)}
