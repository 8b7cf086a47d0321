"""SentencePiece-style BPE (Llama 1 and 2, Mistral, Gemma, Phi-3): raw text with `▁` for spaces, and byte fallback.

llama.cpp merges the neighbours whose joined token scores highest. A tokenizer.model brings scores; from a
tokenizer.json the order of the merges becomes the score, which merges in the same order.
"""

from __future__ import annotations

import re
from typing import Any

from lathe.quantize.checkpoint import Checkpoint
from lathe.quantize.convert.vocabulary.byte_level import merge_pairs
from lathe.quantize.convert.vocabulary.model import TokenType, Vocabulary
from lathe.quantize.convert.vocabulary.source import TokenizerSource, padded_tokens
from lathe.quantize.convert.vocabulary.specials import read_specials
from lathe.quantize.convert.writer import Value, flag

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_UNMERGED = -1_000_000.0
"""Score of a token that no merge makes; below every rank."""


def from_merges(checkpoint: Checkpoint, source: TokenizerSource, size: int) -> Vocabulary:
    """Convert a BPE with byte fallback from tokenizer.json."""
    texts, types = padded_tokens(source, size)
    for number, text in enumerate(texts):
        if types[number] == TokenType.NORMAL and _BYTE.fullmatch(text):
            types[number] = int(TokenType.BYTE)
    rank: dict[str, int] = {}
    for position, (left, right) in enumerate(merge_pairs(source)):
        rank.setdefault(left + right, position)
    return Vocabulary(
        model="llama",
        tokens=[text.encode() for text in texts],
        types=types,
        scores=[-float(rank[text]) if text in rank else _UNMERGED for text in texts],
        specials=read_specials(checkpoint, source),
        chat_template=checkpoint.chat_template,
        extra=_space_prefix(source),
    )


def _space_prefix(source: TokenizerSource) -> dict[str, Value]:
    """Say whether a text starts with a space of its own; nothing where llama.cpp's default (it does) is right."""
    given = source.settings.get("add_prefix_space")
    adds = given if isinstance(given, bool) else _adds_prefix(source.pipeline)
    return {} if adds and not isinstance(given, bool) else {"add_space_prefix": flag(adds)}


def _adds_prefix(pipeline: dict[str, Any]) -> bool:
    """Look for the two ways in which tokenizer.json prepends `▁`: a normalizer, or a Metaspace pre-tokenizer."""
    pending = [pipeline.get("normalizer"), pipeline.get("pre_tokenizer")]
    while pending:
        step = pending.pop()
        if not isinstance(step, dict):
            continue
        if step.get("type") == "Prepend":
            return True
        if step.get("type") == "Metaspace":
            return step.get("prepend_scheme", "always") != "never" and step.get("add_prefix_space", True) is True
        pending += step.get("normalizers") or []
        pending += step.get("pretokenizers") or []
    return False
