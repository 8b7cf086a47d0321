"""ONNX models made here, node by node: the embedded language model as optimum would export it, and a tiny encoder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from lathe.engine.embedded import CHECKPOINT
from lathe.quantize.safetensors import SafetensorsFile

FLOAT, INT64, BOOL = 1, 7, 9


class Graph:
    """Nodes and constants; `op` returns the name of its output."""

    def __init__(self) -> None:
        import onnx

        self._onnx = onnx
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, value: npt.NDArray[Any] | list[int] | float) -> str:
        array = np.asarray(value, np.float32) if isinstance(value, float) else np.asarray(value)
        name = f"c{len(self.constants)}"
        self.constants.append(self._onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def op(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        name = output or f"n{len(self.nodes)}"
        self.nodes.append(self._onnx.helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def save(
        self, path: Path, inputs: dict[str, tuple[int, list[Any]]], outputs: dict[str, tuple[int, list[Any]]]
    ) -> None:
        helper = self._onnx.helper
        graph = helper.make_graph(
            self.nodes, "lathe",
            [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()],
            [helper.make_tensor_value_info(name, *kind) for name, kind in outputs.items()],
            self.constants,
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        self._onnx.checker.check_model(model)
        path.write_bytes(model.SerializeToString())


def weights() -> dict[str, npt.NDArray[np.float32]]:
    """The embedded checkpoint as float32."""
    found = {}
    with SafetensorsFile(CHECKPOINT / "model.safetensors") as file:
        for name in file.tensors:
            raw = np.asarray(file.read(name))
            found[name] = (raw.astype(np.uint32) << 16).view(np.float32) if raw.dtype == np.uint16 else raw
    return found


def embedded_decoder(folder: Path, *, positions: bool = True, merged: bool = False) -> Path:
    """The embedded model with its past, in a folder with its tokenizer.

    `positions`: with `position_ids` among its inputs, as exports have them today; without, positions follow from the
    past alone, as in old ones, and rows of different length cannot be padded. `merged`: with the switch that files of
    two branches have.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
                 "chat_template.jinja"):  # fmt: skip
        shutil.copy(CHECKPOINT / name, folder / name)
    config = json.loads((CHECKPOINT / "config.json").read_text())
    heads, kv, width = config["num_attention_heads"], config["num_key_value_heads"], config["hidden_size"]
    size, layers = width // heads, config["num_hidden_layers"]
    tensors, g = weights(), Graph()
    angles = np.outer(np.arange(config["max_position_embeddings"]),
                      config["rope_theta"] ** (-np.arange(0, size, 2) / size)).astype(np.float32)  # fmt: skip
    angles = np.concatenate([angles, angles], axis=1)
    count = g.op("Gather", g.op("Shape", "input_ids"), g.constant([1]), axis=0)
    width_of_past = g.op("Gather", g.op("Shape", "past_key_values.0.key"), g.constant([2]), axis=0)
    total = g.op("Add", count, width_of_past)
    zero, one = g.constant(np.int64(0)), g.constant(np.int64(1))
    columns = g.op("Range", zero, g.op("Squeeze", total), one)
    rows = g.op("Range", g.op("Squeeze", width_of_past), g.op("Squeeze", total), one)
    place = "position_ids" if positions else g.op("Unsqueeze", rows, g.constant([0]))
    turns = [g.op("Unsqueeze", g.op("Gather", g.constant(table), place), g.constant([1]))
             for table in (np.cos(angles), np.sin(angles))]  # fmt: skip
    causal = g.op("LessOrEqual", g.op("Unsqueeze", columns, g.constant([0])), g.op("Unsqueeze", rows, g.constant([1])))
    seen = g.op("Cast", g.op("Unsqueeze", "attention_mask", g.constant([1, 2])), to=9)
    allowed = g.op("And", g.op("Unsqueeze", causal, g.constant([0, 1])), seen)
    mask = g.op("Where", allowed, g.constant(0.0), g.constant(-1e9))

    def norm(x: str, name: str) -> str:
        mean = g.op("ReduceMean", g.op("Mul", x, x), axes=[-1], keepdims=1)
        scale = g.op("Sqrt", g.op("Add", mean, g.constant(float(config["rms_norm_eps"]))))
        return g.op("Mul", g.op("Div", x, scale), g.constant(tensors[name]))

    def linear(x: str, name: str) -> str:
        return g.op("MatMul", x, g.constant(tensors[name].T))

    def split(x: str, parts: int) -> str:
        return g.op("Transpose", g.op("Reshape", x, g.constant([0, 0, parts, size])), perm=[0, 2, 1, 3])

    def turned(x: str) -> str:
        left, right = (g.op("Slice", x, g.constant([low]), g.constant([high]), g.constant([3]))
                       for low, high in ((0, size // 2), (size // 2, size)))  # fmt: skip
        other = g.op("Concat", g.op("Neg", right), left, axis=3)
        return g.op("Add", g.op("Mul", x, turns[0]), g.op("Mul", other, turns[1]))

    def spread(x: str) -> str:
        wide = g.op("Expand", g.op("Unsqueeze", x, g.constant([2])), g.constant([1, 1, heads // kv, 1, 1]))
        return g.op("Reshape", wide, g.constant([0, heads, -1, size]))

    x = g.op("Gather", g.constant(tensors["model.embed_tokens.weight"]), "input_ids")
    for layer in range(layers):
        at = f"model.layers.{layer}"
        h = norm(x, f"{at}.input_layernorm.weight")
        q, k, v = (split(linear(h, f"{at}.self_attn.{one}_proj.weight"), parts)
                   for one, parts in (("q", heads), ("k", kv), ("v", kv)))  # fmt: skip
        k = g.op("Concat", f"past_key_values.{layer}.key", turned(k), axis=2, output=f"present.{layer}.key")
        v = g.op("Concat", f"past_key_values.{layer}.value", v, axis=2, output=f"present.{layer}.value")
        scores = g.op("MatMul", turned(q), g.op("Transpose", spread(k), perm=[0, 1, 3, 2]))
        scores = g.op("Add", g.op("Mul", scores, g.constant(float(size**-0.5))), mask)
        mixed = g.op("MatMul", g.op("Softmax", scores, axis=-1), spread(v))
        joined = g.op("Reshape", g.op("Transpose", mixed, perm=[0, 2, 1, 3]), g.constant([0, 0, heads * size]))
        x = g.op("Add", x, linear(joined, f"{at}.self_attn.o_proj.weight"))
        h = norm(x, f"{at}.post_attention_layernorm.weight")
        gate = linear(h, f"{at}.mlp.gate_proj.weight")
        gate = g.op("Mul", gate, g.op("Sigmoid", gate))
        x = g.op(
            "Add", x, linear(g.op("Mul", gate, linear(h, f"{at}.mlp.up_proj.weight")), f"{at}.mlp.down_proj.weight")
        )
    head = "lm_head.weight" if "lm_head.weight" in tensors else "model.embed_tokens.weight"
    g.op("MatMul", norm(x, "model.norm.weight"), g.constant(tensors[head].T), output="logits")
    past = {f"past_key_values.{n}.{kind}": (FLOAT, ["batch", kv, "past", size])
            for n in range(layers) for kind in ("key", "value")}  # fmt: skip
    present = {f"present.{n}.{kind}": (FLOAT, ["batch", kv, "total", size])
               for n in range(layers) for kind in ("key", "value")}  # fmt: skip
    inputs = {"input_ids": (INT64, ["batch", "tokens"]), "attention_mask": (INT64, ["batch", "total"])}
    if merged:
        inputs["use_cache_branch"] = (BOOL, [1])
    if positions:
        inputs["position_ids"] = (INT64, ["batch", "tokens"])
    g.save(
        folder / "model.onnx", inputs | past, {"logits": (FLOAT, ["batch", "tokens", config["vocab_size"]])} | present
    )
    return folder


def tiny_encoder(folder: Path, *, scores: bool = False, pooling: str | None = None) -> Path:
    """A graph whose hidden states are rows of the embedded model's token table, so that poolings can be computed.

    `scores`: one logit per text instead, the sum of the first column over the tokens that count.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(CHECKPOINT / name, folder / name)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "max_position_embeddings": 64}))
    if pooling is not None:
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{pooling}": True}))
    table, g = weights()["model.embed_tokens.weight"], Graph()
    rows = g.op("Gather", g.constant(table), "input_ids", output=None if scores else "last_hidden_state")
    if scores:
        counted = g.op("Mul", rows, g.op("Cast", g.op("Unsqueeze", "attention_mask", g.constant([2])), to=FLOAT))
        summed = g.op("ReduceSum", counted, g.constant([1]), keepdims=0)
        g.op("Slice", summed, g.constant([0]), g.constant([1]), g.constant([1]), output="logits")
    inputs = {name: (INT64, ["batch", "tokens"]) for name in ("input_ids", "attention_mask")}
    width = table.shape[1]
    outputs = (
        {"logits": (FLOAT, ["batch", 1])} if scores else {"last_hidden_state": (FLOAT, ["batch", "tokens", width])}
    )
    if not scores:
        g.op("Identity", "attention_mask", output="unused")
    g.save(folder / "model.onnx", inputs, outputs)
    return folder
