"""Layers of an embedder that come after pooling: sentence-transformers' Dense modules, as far as llama.cpp has them.

Only EmbeddingGemma's graph goes on behind the pooled vector, through up to two matrices. Invariant: a module that is
not taken over is named; vectors are never different without a word.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lathe.quantize.checkpoint import Checkpoint, plain_name, read_json
from lathe.quantize.convert.encode import Floats, to_float32
from lathe.quantize.convert.family import Family
from lathe.quantize.convert.hparams import Hparams
from lathe.quantize.convert.plan import refuse_stored
from lathe.quantize.convert.writer import Metadata, u32
from lathe.quantize.errors import CheckpointError, UnsupportedError
from lathe.quantize.safetensors import SafetensorsFile

_NAMES = ("dense_2.weight", "dense_3.weight")
"""In the order of the modules."""
_WEIGHT = "linear.weight"
_COMPUTED = ("Transformer", "Pooling", "Normalize")


def dense_layers(checkpoint: Checkpoint, family: Family, hparams: Hparams) -> dict[str, Floats]:
    """Read the matrices behind the pooled vector: GGUF name -> out x in; none where the family has no place for them.

    They are a few million values, so they are read whole.

    Raises:
        UnsupportedError: a bias, an activation, or more or other matrices than llama.cpp multiplies by.
    """
    modules = [module for module in checkpoint.modules if _kind(module) == "Dense"] if family.dense else []
    if len(modules) > len(_NAMES):
        raise UnsupportedError(f"modules.json has {len(modules)} Dense layers; llama.cpp computes {len(_NAMES)}")
    layers = {name: _matrix(checkpoint, module) for name, module in zip(_NAMES, modules, strict=False)}
    width = hparams.width
    for name, matrix in layers.items():
        if matrix.shape[1] != width:
            raise CheckpointError(f"{name} takes {matrix.shape[1]:,} values, and {width:,} come to it")
        width = matrix.shape[0]
    if layers and width != hparams.width:
        raise UnsupportedError(
            f"the Dense layers make vectors of {width:,} values; llama.cpp's have the model's {hparams.width:,}"
        )
    return layers


def dense_facts(layers: Mapping[str, Floats]) -> Metadata:
    """The sizes that llama.cpp asks for."""
    facts: Metadata = {}
    for name, matrix in layers.items():
        stem = name.removesuffix(".weight")
        facts |= {f"{stem}_feat_in": u32(matrix.shape[1]), f"{stem}_feat_out": u32(matrix.shape[0])}
    return facts


def module_cautions(checkpoint: Checkpoint, family: Family) -> Iterator[str]:
    """Name the modules that come after pooling and are no part of the GGUF."""
    for module in checkpoint.modules:
        if (kind := _kind(module)) not in (*_COMPUTED, *(["Dense"] * family.dense)):
            yield f"modules.json has a {kind[:40]} layer, which is left out: vectors differ from sentence-transformers'"


def _kind(module: Mapping[str, Any]) -> str:
    return str(module.get("type", "")).rpartition(".")[2]


def _matrix(checkpoint: Checkpoint, module: Mapping[str, Any]) -> Floats:
    folder = checkpoint.folder / plain_name(module.get("path"), checkpoint.folder / "modules.json")
    config = read_json(folder / "config.json")
    activation = str(config.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")[2]
    unknown = "a bias" if config.get("bias", True) else f"the activation {activation[:40]}"
    if unknown != "the activation Identity":
        raise UnsupportedError(
            f"{folder / 'config.json'} has {unknown}, which llama.cpp does not compute behind the pooled vector"
        )
    with SafetensorsFile(folder / "model.safetensors") as file:
        info = file.tensors.get(_WEIGHT)
        if info is None or len(info.shape) != 2 or 0 in info.shape:
            raise CheckpointError(f"{folder / 'model.safetensors'} has no matrix {_WEIGHT}")
        refuse_stored(info)
        return to_float32(file.read(_WEIGHT), info.dtype).copy()
