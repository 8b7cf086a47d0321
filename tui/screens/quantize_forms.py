"""The forms of the Quantize place: what can be made of a model, which fields that takes, and the step they make.

Values in, values out. Invariant: a form shows the fields that its step reads and no others, so nobody fills in what
counts for nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, cast

import msgspec
from lathe.engine.sizes import bytes_of
from lathe.engine.steps import ConvertStep, OnnxQuantizeStep, QuantizeStep
from lathe.store.models import ModelEntry
from lathe.tui.views import quantize as view
from lathe.tui.views.models import card_of
from lathe.tui.widgets.fields import Field, number

Making = ConvertStep | QuantizeStep | OnnxQuantizeStep
Kind = Literal["gguf", "adapter", "legacy", "onnx", "safetensors", "quantize", "onnx-quantize"]
"""Forms, by what they make."""

_YES_NO = ("no", "yes")
FIELDS = (
    Field("source", "source", hint="enter lists all: checkpoints, adapters, GGUF, old GGML, ONNX"),
    Field("make", "make", hint="what can be made of it"),
    Field("outtype", "weights as", "auto", ("auto", "f32", "f16", "bf16", "q8_0"), "auto: the checkpoint's own type"),
    Field("dtype", "weights as", "auto", ("auto", "f32", "f16", "bf16"), "auto: what it was made of, f16 if quantized"),
    Field("precision", "weights as", "f32", ("f32", "f16"), "of the graph; smaller ones are made of it afterwards"),
    Field("base", "base", hint="the checkpoint it was trained on; its config.json is read"),
    Field("task", "task", "auto", ("auto", "text-generation-with-past", "feature-extraction", "text-classification"),
          "what the graph gives; auto: by the architecture"),
    Field("opset", "opset", hint="empty: the usual one", check=number(14, 23, whole=True, optional=True)),
    Field("context", "context", "2048", hint="tokens; old files do not say it: Llama 2 has 4096",
          check=number(8, 1 << 20, whole=True)),
    Field("epsilon", "epsilon", "5e-6", hint="of the norms; Llama 2 has 1e-5", check=number(1e-12, 1)),
    Field("type", "type", hint="enter lists every recipe with its bits and what it is good for"),
    Field("mode", "type", hint="enter lists what ONNX Runtime can do"),
    Field("name", "name", hint="empty: the source's with the type"),
    Field("split", "split at", hint="largest file, such as 4GB; empty: one file", check=view.size_check),
    Field("parity", "compare", "yes", ("yes", "no"), "outputs with the checkpoint's, where transformers is installed"),
    Field("imatrix", "imatrix", hint="path; i collects one from a text"),
    Field("overrides", "overrides", hint="ffn_down=q6_K, attn_v=q5_K: a pattern of tensor names and its type"),
    Field("output", "output as", hint="type of the output matrix"),
    Field("words", "words as", hint="type of the token embeddings"),
    Field("pure", "pure", "no", _YES_NO, "yes: one type for every tensor, without the recipe's exceptions"),
    Field("prune", "leave out", hint="layers, such as 12, 13", check=view.layers_check),
    Field("keep", "keep split", "no", _YES_NO, "yes: as many shards as the source has"),
    Field("again", "requantize", "no", _YES_NO, "yes allows a quantized source: loss is added to loss"),
    Field("calibrate", "calibrate", hint="path of a text like the model's use: it sets the ranges"),
    Field("ranges", "ranges", "minmax", ("minmax", "entropy", "percentile"), "how they are found in the text"),
    Field("samples", "samples", "32", hint="pieces of the text", check=number(1, 100_000, whole=True)),
    Field("length", "of tokens", "128", hint="length of a piece", check=number(1, 1 << 20, whole=True)),
    Field("scale", "scale per", "column", ("column", "tensor"), "column: closer; tensor: smaller and simpler"),
    Field("bits", "range", "8 bits", ("8 bits", "7 bits"), "7 bits: for processors without VNNI"),
    Field("block", "block", "32", ("16", "32", "64", "128", "256"), "weights that share a scale"),
    Field("zero", "zero point", "no", _YES_NO, "no: symmetric, smaller; yes: closer"),
    Field("operators", "operators", hint="MatMul, Gather: those alone; empty: those that bear it"),
    Field("exclude", "exclude", hint="patterns of node names that stay as they are, such as lm_head"),
    Field("text", "measure on", hint="path of a text; empty: the shipped one"),
)  # fmt: skip
PICKS = ("source", "make", "base", "type", "mode", "output", "words")
MODES = {
    "int8": "half of f16 and less; activations as they come, no text needed",
    "int8-static": "fastest; ranges come from a text",
    "int4": "smallest; matrices and tables in blocks",
    "float16": "no loss to speak of; GPUs like it",
}
_TARGETS: dict[str, tuple[tuple[Kind, str], ...]] = {
    "safetensors": (("gguf", "GGUF"), ("onnx", "ONNX")),
    "adapter": (("adapter", "GGUF adapter"),),
    "ggml": (("legacy", "GGUF"),),
    "gguf": (("quantize", "smaller GGUF"), ("safetensors", "safetensors")),
    "onnx": (("onnx-quantize", "smaller ONNX"),),
}
_NAMES = {
    "gguf": "Convert", "adapter": "Convert", "legacy": "Convert", "onnx": "Export", "safetensors": "Convert back",
    "quantize": "Quantize", "onnx-quantize": "Quantize",
}  # fmt: skip
_FIELDS: dict[str, tuple[str, ...]] = {
    "gguf": ("outtype", "name", "split", "parity", "text"),
    "adapter": ("base", "outtype", "name"),
    "legacy": ("context", "epsilon", "name", "text"),
    "onnx": ("precision", "task", "opset", "name", "text"),
    "safetensors": ("dtype", "name"),
    "quantize": ("type", "name", "imatrix", "overrides", "output", "words", "pure", "prune", "again", "text"),
}
_ONNX_FIELDS = {
    "int8": ("scale", "bits", "operators", "exclude"),
    "int8-static": ("calibrate", "ranges", "samples", "length", "scale", "bits", "operators", "exclude"),
    "int4": ("block", "zero", "operators", "exclude"),
    "float16": (),
}


def targets(source: ModelEntry | None) -> tuple[tuple[Kind, str], ...]:
    """What can be made of a model, as (form, words)."""
    if source is None:
        return ()
    return _TARGETS.get("adapter" if card_of(source).adapter else source.format, ())


def title(form: str) -> str:
    """What a form does."""
    return _NAMES.get(form, "Quantize")


def shown(form: str, mode: str, source: ModelEntry | None) -> tuple[str, ...]:
    """The keys of the fields that a form shows."""
    if form == "onnx-quantize":
        return ("source", "make", "mode", "name", *_ONNX_FIELDS.get(mode, ()), "text")
    keys = ("source", "make", *_FIELDS.get(form, ()))
    if form == "quantize" and source is not None and card_of(source).shards > 1:
        keys = (*keys, "keep")
    return keys


def step_of(form: str, source: ModelEntry, value: Callable[[str], str]) -> Making:
    """The step that the fields make.

    Raises:
        ValueError: a field that cannot be read, with what is wrong."""
    name = value("name") or None
    if form == "quantize":
        return QuantizeStep(
            model=source.id, type=value("type"), name=name, imatrix=value("imatrix") or None,
            tensor_types=view.overrides(value("overrides")), output_tensor_type=value("output") or None,
            token_embedding_type=value("words") or None, pure=value("pure") == "yes",
            prune_layers=view.layers(value("prune")), allow_requantize=value("again") == "yes",
            keep_split=card_of(source).shards > 1 and value("keep") == "yes",
        )  # fmt: skip
    if form == "onnx-quantize":
        return _onnx_step(source, name, value)
    step = ConvertStep(model=source.id, name=name)
    fields: dict[str, Any] = {}
    match form:
        case "gguf":
            size = value("split")
            fields = {"outtype": value("outtype"), "parity": value("parity") == "yes",
                      "split_max_bytes": bytes_of(size) if size else None}  # fmt: skip
        case "adapter":
            fields = {"outtype": value("outtype"), "base": value("base") or None}
        case "legacy":
            fields = {"legacy_context": int(value("context")), "legacy_epsilon": float(value("epsilon"))}
        case "onnx":
            opset = value("opset")
            fields = {"to": "onnx", "outtype": value("precision"), "task": value("task"),
                      "opset": int(opset) if opset else None}  # fmt: skip
        case _:
            fields = {"to": "safetensors", "outtype": value("dtype")}
    return msgspec.structs.replace(step, **fields)


def _onnx_step(source: ModelEntry, name: str | None, value: Callable[[str], str]) -> OnnxQuantizeStep:
    mode = value("mode")
    keys = _ONNX_FIELDS.get(mode, ())
    defaults = OnnxQuantizeStep(model=source.id)
    return OnnxQuantizeStep(
        model=source.id, name=name, mode=cast(Any, mode),
        text=(value("calibrate") or None) if "calibrate" in keys else None,
        calibration=cast(Any, value("ranges")) if "ranges" in keys else defaults.calibration,
        samples=int(value("samples")) if "samples" in keys else defaults.samples,
        sample_tokens=int(value("length")) if "length" in keys else defaults.sample_tokens,
        per_channel=value("scale") == "column" if "scale" in keys else defaults.per_channel,
        reduce_range=value("bits") == "7 bits" if "bits" in keys else defaults.reduce_range,
        block_size=cast(Any, int(value("block"))) if "block" in keys else defaults.block_size,
        symmetric=value("zero") == "no" if "zero" in keys else defaults.symmetric,
        operators=view.listed(value("operators")) if "operators" in keys else (),
        exclude=view.listed(value("exclude")) if "exclude" in keys else (),
    )  # fmt: skip
