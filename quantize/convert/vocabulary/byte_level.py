"""Byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM): tokens are bytes written as printable characters, plus merges."""

from __future__ import annotations

from typing import Any

from lathe.quantize.convert.vocabulary.model import Vocabulary, encoded
from lathe.quantize.convert.vocabulary.pretokenizers import propose
from lathe.quantize.convert.vocabulary.source import TokenizerSource, padded_tokens
from lathe.quantize.errors import CheckpointError


def byte_level(source: TokenizerSource, size: int) -> Vocabulary:
    """Convert a byte-level BPE; `pre` is a proposal until conformance confirms it."""
    texts, types = padded_tokens(source, size)
    return Vocabulary(
        model="gpt2",
        pre=propose(source.pipeline.get("pre_tokenizer")),
        tokens=encoded(texts),
        types=types,
        merges=merge_list(source),
    )


def merge_list(source: TokenizerSource) -> list[str]:
    """Return the merges as GGUF wants them: two tokens with a space between, spaces inside written as `Ġ`."""
    return [f"{left} {right}" for left, right in merge_pairs(source, escape="Ġ")]


def merge_pairs(source: TokenizerSource, escape: str = " ") -> list[tuple[str, str]]:
    """Read the merges of either notation, first merge first."""
    merges = source.model.get("merges")
    if not isinstance(merges, list) or not merges:
        raise CheckpointError(f"{source.path} has no merges")
    return [_pair(merge, source, escape) for merge in merges]


def _pair(merge: Any, source: TokenizerSource, escape: str) -> tuple[str, str]:
    if isinstance(merge, str):
        left, space, right = merge.partition(" ")
        if space and left and right:
            return left, right
    elif isinstance(merge, list) and len(merge) == 2:
        left, right = merge
        if isinstance(left, str) and isinstance(right, str):
            return left.replace(" ", escape), right.replace(" ", escape)
    raise CheckpointError(f"{source.path} has a malformed merge: {merge!r:.80}")
