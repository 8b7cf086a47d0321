"""Real GGUF files with one scalar made absurd: what a preflight must not let through to native code."""

from __future__ import annotations

import math
import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path

from lathe.quantize.gguf.header import GgufHeader, read_header
from lathe.quantize.gguf.types import ValueType
from support.gguf_writer import Raw, f32, raw_of, scalar, text, u32

_NUMBERS = (
    0,
    1,
    2,
    3,
    5,
    7,
    8,
    16,
    31,
    33,
    64,
    127,
    255,
    256,
    512,
    513,
    1024,
    1 << 16,
    1 << 20,
    (1 << 31) - 1,
    1 << 31,
)
_FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-38, 1e38, math.nan, math.inf, -math.inf)
_WORDS = ("", "none", "llama", "bert", "gpt2", "t5", "rwkv", "plamo2", "gemma4", "clip", "yarn", "longrope", "model",
          "adapter", "imatrix", "\u202e", "x" * 5000)  # fmt: skip

_ABSENT_U32 = (
    "attention.key_length", "attention.value_length", "attention.key_length_swa", "attention.head_count_kv",
    "attention.sliding_window", "expert_count", "expert_used_count", "expert_group_count", "expert_group_used_count",
    "expert_shared_count", "expert_feed_forward_length", "nextn_predict_layers", "pooling_type", "vocab_size",
    "rope.dimension_count", "rope.dimension_count_swa", "rope.scaling.original_context_length",
    "embedding_length_out", "leading_dense_block_count", "attention.q_lora_rank", "attention.kv_lora_rank",
    "attention.group_norm_groups", "ssm.state_size", "ssm.conv_kernel", "wkv.head_size", "n_deepstack_layers",
)  # fmt: skip
_ABSENT_F32 = (
    "rope.scaling.factor", "rope.scaling.attn_factor", "rope.freq_base", "rope.freq_base_swa", "logit_scale",
    "attention.clamp_kqv", "attention.max_alibi_bias", "attention.scale", "residual_scale", "embedding_scale",
    "attn_logit_softcapping", "final_logit_softcapping", "expert_weights_scale", "rope.scaling.yarn_beta_fast",
    "attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon",
)  # fmt: skip


def mutants(source: Path, folder: Path, count: int, seed: int) -> Iterator[Path]:
    """Write `count` copies of a model, each with one scalar replaced or added; the weights are a hole of zeros."""
    header = read_header(source)
    data_bytes = header.file_bytes - header.data_offset
    dice = random.Random(seed)
    for index in range(count):
        raw = raw_of(header)
        _mutate(raw, header, dice)
        path = folder / f"mutant-{seed}-{index}.gguf"
        head = raw.header()
        path.write_bytes(head)
        os.truncate(path, len(head) + -len(head) % header.alignment + data_bytes)
        yield path


def _mutate(raw: Raw, header: GgufHeader, dice: random.Random) -> None:
    scalars = [key for key, kind in header.value_types.items() if kind is not ValueType.ARRAY]
    choice = dice.random()
    if choice < 0.6:
        key = dice.choice(scalars)
        raw.put(key, _absurd(header, key, dice))
    elif choice < 0.85:
        raw.put(f"{header.architecture}.{dice.choice(_ABSENT_U32)}", u32(_number(32, dice)))
    elif choice < 0.95:
        raw.put(f"{header.architecture}.{dice.choice(_ABSENT_F32)}", f32(_float(dice)))
    else:
        raw.put(f"{header.architecture}.rope.scaling.type", text(dice.choice(_WORDS)))


def _absurd(header: GgufHeader, key: str, dice: random.Random) -> bytes:
    kind = header.value_types[key]
    if kind is ValueType.STRING:
        return text(dice.choice(_WORDS))
    if kind is ValueType.BOOL:
        return scalar(kind, not header.metadata[key])
    if kind is ValueType.FLOAT32:
        return f32(_float(dice))
    original = header.number(key)
    assert original is not None
    near = dice.choice((original + 1, original - 1, original * 2, original // 2, _number(32, dice)))
    return scalar(kind, max(0, min(near, (1 << 16) - 1 if kind is ValueType.UINT16 else (1 << 32) - 1)))


def _number(bits: int, dice: random.Random) -> int:
    return dice.choice((*_NUMBERS, (1 << bits) - 1, dice.getrandbits(bits), dice.getrandbits(10)))


def _float(dice: random.Random) -> float:
    return dice.choice((*_FLOATS, *struct.unpack("<f", struct.pack("<I", dice.getrandbits(32)))))
