"""GGUF files with real shapes and weights of zero, for what depends on shapes alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from lathe.quantize.card import ModelCard


def write(
    path: Path,
    *,
    architecture: str = "llama",
    layers: int = 2,
    embedding: int = 256,
    hidden: int = 768,
    heads: int = 8,
    kv_heads: int = 2,
    vocabulary: int = 4000,
    context: int = 4096,
    tied: bool = False,
    experts: int = 0,
    experts_used: int = 0,
) -> ModelCard:
    """Write the model and return its card."""
    import gguf

    head = embedding // heads
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_context_length(context)
    writer.add_embedding_length(embedding)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(head)
    writer.add_vocab_size(vocabulary)
    writer.add_tokenizer_model("no_vocab")
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(experts_used)
    total = count = size = 0

    def tensor(name: str, *shape: int) -> None:
        nonlocal total, count, size
        data = np.ones(shape, np.float32) if len(shape) == 1 else np.zeros(shape, np.float16)
        writer.add_tensor(name, data)
        total, count, size = total + data.size, count + 1, size + data.nbytes

    tensor("token_embd.weight", vocabulary, embedding)
    tensor("output_norm.weight", embedding)
    if not tied:
        tensor("output.weight", vocabulary, embedding)
    for layer in range(layers):
        block = f"blk.{layer}."
        tensor(f"{block}attn_norm.weight", embedding)
        tensor(f"{block}ffn_norm.weight", embedding)
        tensor(f"{block}attn_q.weight", embedding, embedding)
        tensor(f"{block}attn_k.weight", kv_heads * head, embedding)
        tensor(f"{block}attn_v.weight", kv_heads * head, embedding)
        tensor(f"{block}attn_output.weight", embedding, embedding)
        if experts:
            tensor(f"{block}ffn_gate_inp.weight", experts, embedding)
            tensor(f"{block}ffn_gate_exps.weight", experts, hidden, embedding)
            tensor(f"{block}ffn_up_exps.weight", experts, hidden, embedding)
            tensor(f"{block}ffn_down_exps.weight", experts, embedding, hidden)
        else:
            tensor(f"{block}ffn_gate.weight", hidden, embedding)
            tensor(f"{block}ffn_up.weight", hidden, embedding)
            tensor(f"{block}ffn_down.weight", embedding, hidden)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return ModelCard(
        format="gguf",
        architecture=architecture,
        parameters=total,
        bytes=size,
        tensors=count,
        context_length=context,
        embedding_length=embedding,
        feed_forward_length=hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        vocabulary=vocabulary,
        experts=experts or None,
        experts_used=experts_used or None,
    )
