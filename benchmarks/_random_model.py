"""A model of a useful size without a download: random weights, the embedded model's vocabulary.

Text from it means nothing, but a batch costs what a batch of a real model of this size costs.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

CONTEXT, HEAD = 8192, 64
SHAPES = {"30m": (8, 512, 1408), "70m": (10, 768, 2112), "160m": (12, 1024, 2816), "470m": (16, 1536, 4096)}
"""Layers, width, hidden width; named by the parameters that come of them."""


def random_model(vocabulary: Path, path: Path, size: str = "160m") -> Path:
    """Write a Llama in F16 of one of the `SHAPES`, with the tokenizer of another GGUF; an existing file is kept."""
    if path.exists():
        return path
    layers, width, hidden = SHAPES[size]
    source = gguf.GGUFReader(str(vocabulary))
    writer = gguf.GGUFWriter(str(path), "llama")
    tokens = 0
    for field in source.fields.values():
        if field.name.startswith("tokenizer."):
            if field.types[0] == gguf.GGUFValueType.ARRAY:
                values = field.contents()
                tokens = len(values) if field.name == "tokenizer.ggml.tokens" else tokens
                writer.add_array(field.name, values)
            else:
                writer.add_key_value(field.name, field.contents(), field.types[0])
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(width // HEAD)
    writer.add_head_count_kv(width // HEAD)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HEAD)
    writer.add_vocab_size(tokens)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    random = np.random.default_rng(0)

    def matrix(name: str, rows: int, columns: int) -> None:
        values = random.standard_normal((rows, columns), dtype=np.float32) / np.sqrt(columns)
        writer.add_tensor(name, values.astype(np.float16))

    matrix("token_embd.weight", tokens, width)
    matrix("output.weight", tokens, width)
    writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
    for layer in range(layers):
        for part in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{part}.weight", np.ones(width, np.float32))
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            matrix(f"blk.{layer}.{part}.weight", width, width)
        matrix(f"blk.{layer}.ffn_gate.weight", hidden, width)
        matrix(f"blk.{layer}.ffn_up.weight", hidden, width)
        matrix(f"blk.{layer}.ffn_down.weight", width, hidden)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
