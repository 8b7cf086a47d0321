"""SentencePiece-style BPE (Llama 1 and 2, Mistral, Gemma, Phi-3): raw text with `▁` for spaces, and byte fallback.

llama.cpp merges the neighbours whose joined token scores highest. A tokenizer.model brings scores; from a
tokenizer.json the order of the merges becomes the score, which merges in the same order.
"""

from __future__ import annotations

import re
from typing import Any

from lathe.quantize.convert.vocabulary.byte_level import joined, read_merges
from lathe.quantize.convert.vocabulary.model import TokenType, Vocabulary, encoded
from lathe.quantize.convert.vocabulary.pieces import PieceModel
from lathe.quantize.convert.vocabulary.source import AddedToken, TokenizerSource, looks_special, padded_tokens, steps
from lathe.quantize.convert.writer import Value, flag
from lathe.quantize.errors import CheckpointError

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_UNMERGED = -1_000_000.0
"""Score of a token that no merge makes; below every rank."""
_ADDED, _PADDING = -1000.0, -10_000.0
"""Scores of tokens that are matched before merging starts, and of placeholders."""


def from_merges(source: TokenizerSource, size: int) -> Vocabulary:
    """Convert a BPE with byte fallback from tokenizer.json."""
    texts, types = padded_tokens(source, size)
    for number, text in enumerate(texts):
        if types[number] == TokenType.NORMAL and _BYTE.fullmatch(text):
            types[number] = int(TokenType.BYTE)
    rank: dict[str, int] = {}
    for position, merge in enumerate(read_merges(source)):
        rank.setdefault(joined(merge), position)
    return Vocabulary(
        model="llama",
        tokens=encoded(texts),
        types=types,
        scores=[-float(rank[text]) if text in rank else _UNMERGED for text in texts],
        extra=_space_prefix(source.settings, _adds_prefix(source.pipeline)),
    )


def from_pieces(model: PieceModel, added: list[AddedToken], settings: dict[str, Any], size: int) -> Vocabulary:
    """Convert a tokenizer.model, the tokens that the files beside it add, and the settings of tokenizer_config.json."""
    if len(model.pieces) > size:
        raise CheckpointError(
            f"tokenizer.model has {len(model.pieces):,} pieces, config.json says vocab_size {size:,}",
            hint="tokenizer and weights belong to different versions of the model",
        )
    padding = range(len(model.pieces), size)
    texts = [piece.text for piece in model.pieces] + [f"[PAD{number}]" for number in padding]
    scores = [piece.score for piece in model.pieces] + [_PADDING] * len(padding)
    types = [piece.type for piece in model.pieces] + [int(TokenType.UNUSED)] * len(padding)
    for token in added:
        texts[token.id], scores[token.id] = token.content, _ADDED
        control = token.special or looks_special(token.content)
        types[token.id] = int(TokenType.CONTROL if control else TokenType.USER_DEFINED)
    for number, kind in enumerate(types):
        if kind == TokenType.USER_DEFINED:  # matched in the text itself, where a space is a space
            texts[number] = texts[number].replace("▁", " ")
    return Vocabulary(
        model="llama",
        tokens=encoded(texts),
        types=types,
        scores=scores,
        extra=_space_prefix(settings, model.add_prefix),
    )


def _space_prefix(settings: dict[str, Any], adds: bool) -> dict[str, Value]:
    """Say whether a text starts with a space of its own; nothing where llama.cpp's default (it does) is right."""
    given = settings.get("add_prefix_space")
    if isinstance(given, bool):
        return {"add_space_prefix": flag(given)}
    return {} if adds else {"add_space_prefix": flag(False)}


def _adds_prefix(pipeline: dict[str, Any]) -> bool:
    """Look for the two ways in which tokenizer.json prepends `▁`: a normalizer, or a Metaspace pre-tokenizer."""
    for step in (*steps(pipeline.get("normalizer")), *steps(pipeline.get("pre_tokenizer"))):
        if step.get("type") == "Prepend":
            return True
        if step.get("type") == "Metaspace":
            return step.get("prepend_scheme", "always") != "never" and step.get("add_prefix_space", True) is True
    return False
