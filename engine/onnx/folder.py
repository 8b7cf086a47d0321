"""The folder of an ONNX model: the graph, its external data, and the small files that say how to use it.

Invariant: what is written was read back and checked as a stranger's would be, before the folder gets its name.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from lathe.engine.errors import DataError, MissingError
from lathe.quantize.onnx_files import OnnxFile, read_onnx

GRAPH = "model.onnx"
_EXTERNAL_BYTES = 1800 << 20
"""Beyond this the weights go to a file beside the graph: a protocol buffer ends at 2 GiB."""
_SMALL_BYTES = 128 << 20
_SMALL = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt", "tokenizer.model", "spiece.model",
    "sentencepiece.bpe.model", "chat_template.jinja", "chat_template.json", "modules.json",
    "sentence_bert_config.json", "config_sentence_transformers.json", "1_Pooling/config.json",
)  # fmt: skip
"""Data that runners read; Python files are not among it, so none is ever carried on."""


def graph_of(folder: Path) -> Path:
    """The graph in a model's folder.

    Raises:
        MissingError: there is none.
        DataError: there are several, and none has the usual name.
    """
    if folder.is_file():
        return folder
    found = sorted(folder.glob("*.onnx"))
    usual = folder / GRAPH
    if usual in found or len(found) == 1:
        return usual if usual in found else found[0]
    if not found:
        raise MissingError(f"{folder} holds no ONNX graph")
    raise DataError(f"{folder} holds {len(found)} graphs and none is {GRAPH}", hint="name one of the files")


def copy_small(source: Path, target: Path) -> None:
    """Copy what says how to use a model; files that are there already stay."""
    for name in _SMALL:
        path = source / name
        if path.is_file() and path.stat().st_size <= _SMALL_BYTES and not (target / name).exists():
            (target / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target / name)


def write_graph(model: Any, path: Path) -> OnnxFile:
    """Write a graph, with its weights in a file beside it where it is large; read it back."""
    import onnx

    if model.ByteSize() > _EXTERNAL_BYTES:
        onnx.save_model(
            model, str(path), save_as_external_data=True, all_tensors_to_one_file=True, location=f"{path.name}_data",
            size_threshold=1024,
        )  # fmt: skip
    else:
        onnx.save_model(model, str(path))
    return read_onnx(path)


def read_graph(path: Path) -> Any:
    """Load a graph with its weights, after the check of everything it names."""
    import onnx

    read_onnx(path)
    return onnx.load(str(path))


def half(model: Any) -> Any:
    """The same model with float16 weights and inner values; inputs and outputs stay float32."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    return convert_float_to_float16(model, keep_io_types=True, disable_shape_infer=model.ByteSize() > _EXTERNAL_BYTES)


def folder_bytes(folder: Path) -> int:
    """Bytes of the graph and its external data."""
    checked = read_onnx(graph_of(folder))
    return checked.file_bytes + sum(path.stat().st_size for path in checked.external)
