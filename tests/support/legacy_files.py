"""Models as they were written before GGUF, made here: a Llama out of a converted one, and a tiny GPT-2."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from lathe.quantize.convert import convert_checkpoint
from lathe.quantize.gguf.header import read_header
from support.families import RECIPES

OLD_NAMES = {
    "token_embd": "tok_embeddings",
    "output_norm": "norm",
    "output": "output",
    "attn_norm": "attention_norm",
    "attn_q": "attention.wq",
    "attn_k": "attention.wk",
    "attn_v": "attention.wv",
    "attn_output": "attention.wo",
    "ffn_norm": "ffn_norm",
    "ffn_gate": "feed_forward.w1",
    "ffn_down": "feed_forward.w2",
    "ffn_up": "feed_forward.w3",
}


def as_legacy(path: Path, output: Path, *, container: str = "ggjt", version: int = 3, drop: str = "") -> Path:
    """Write a GGUF's model as an older program would have."""
    header = read_header(path)
    tokens = header.array("tokenizer.ggml.tokens")
    scores = header.array("tokenizer.ggml.scores")
    assert tokens is not None
    assert scores is not None
    data = {"ggml": b"lmgg", "ggmf": b"fmgg", "ggjt": b"tjgg"}[container]
    data += b"" if container == "ggml" else struct.pack("<I", version)
    file_type = 1 if "f16" in path.name else 7
    data += struct.pack("<7I", len(tokens), 64, 256, 4, 2, 16, file_type)
    for text, score in zip(tokens.tolist(), scores.tolist(), strict=True):
        raw = bytes([int(text[3:5], 16)]) if text.startswith("<0x") else text.replace("▁", " ").encode()
        data += struct.pack("<I", len(raw)) + raw
        data += b"" if container == "ggml" else struct.pack("<f", score)
    content = path.read_bytes()
    for tensor in header.tensors:
        stem = tensor.name.removesuffix(".weight")
        layer, _, short = stem.removeprefix("blk.").rpartition(".")
        name = (f"layers.{layer}.{OLD_NAMES[short]}" if layer else OLD_NAMES[stem]) + ".weight"
        if drop and drop in name:
            continue
        data += struct.pack("<3I", len(tensor.shape), len(name), tensor.type.id)
        data += struct.pack(f"<{len(tensor.shape)}I", *tensor.shape) + name.encode()
        if container == "ggjt":
            data += bytes(-len(data) % 32)
        start = header.position(tensor)
        data += content[start : start + tensor.nbytes]
    output.write_bytes(data)
    return output


def old_llama(folder: Path) -> tuple[Path, Path]:
    """A first-generation Llama before GGUF, and the same model as GGUF.

    Every head has keys of its own, and the feed-forward width follows from the embedding's: files did not say either.
    """
    recipe = RECIPES["llama2"]
    changed = {
        "k_proj": (64, 64),
        "v_proj": (64, 64),
        "gate_proj": (256, 64),
        "up_proj": (256, 64),
        "down_proj": (64, 256),
    }
    shapes = {name: changed.get(name.split(".")[-2], shape) for name, shape in recipe.shapes.items()}
    config = {**recipe.config, "num_key_value_heads": 4, "intermediate_size": 256}
    recipe = replace(recipe, shapes=shapes, config=config)
    modern = convert_checkpoint(recipe.write(folder / "source"), folder / "f16.gguf", outtype="f16").output
    return as_legacy(modern, folder / "ggml-llama-f16.bin"), modern


def old_gpt2(path: Path, *, context: int = 64, width: int = 32, layers: int = 2) -> Path:
    """A GPT-2 of random weights whose vocabulary is the 256 bytes and an end of text."""
    random = np.random.default_rng(3)
    words = [bytes([byte]) for byte in range(256)] + [b"<|endoftext|>"]
    header = (len(words), context, width, 4, layers, 0)
    data = [b"lmgg", struct.pack("<6i", *header), struct.pack("<i", len(words))]
    data += [struct.pack("<I", len(word)) + word for word in words]
    for name, shape in _gpt2_tensors(len(words), context, width, layers):
        values = random.normal(0, 0.3, shape).astype("<f4")
        if name.endswith("/g"):
            values[:] = 1
        data.append(struct.pack("<3i", len(shape), len(name), 0))
        data.append(struct.pack(f"<{len(shape)}i", *reversed(shape)) + name.encode() + values.tobytes())
    path.write_bytes(b"".join(data))
    return path


def _gpt2_tensors(words: int, context: int, width: int, layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from (("model/ln_f/g", (width,)), ("model/ln_f/b", (width,)))
    yield from (("model/wte", (words, width)), ("model/wpe", (context, width)), ("model/lm_head", (words, width)))
    for layer in range(layers):
        at = f"model/h{layer}"
        for name, shape in (
            ("ln_1/g", (width,)), ("ln_1/b", (width,)), ("ln_2/g", (width,)), ("ln_2/b", (width,)),
            ("attn/c_attn/w", (3 * width, width)), ("attn/c_attn/b", (3 * width,)),
            ("attn/c_proj/w", (width, width)), ("attn/c_proj/b", (width,)),
            ("mlp/c_fc/w", (4 * width, width)), ("mlp/c_fc/b", (4 * width,)),
            ("mlp/c_proj/w", (width, 4 * width)), ("mlp/c_proj/b", (width,)),
        ):  # fmt: skip
            yield f"{at}/{name}", shape
