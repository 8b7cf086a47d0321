"""Unigram (XLM-RoBERTa, BGE-M3 and its rerankers): pieces with log probabilities, and compiled normalization rules."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from lathe.quantize.convert.vocabulary.model import TokenType, Vocabulary, encoded
from lathe.quantize.convert.vocabulary.source import TokenizerSource, padded_tokens, steps
from lathe.quantize.convert.writer import Value, array, flag
from lathe.quantize.errors import CheckpointError
from lathe.quantize.gguf.types import ValueType

_PADDING = -10_000.0


def unigram(source: TokenizerSource, size: int) -> Vocabulary:
    """Convert a Unigram tokenizer from tokenizer.json."""
    texts, types = padded_tokens(source, size)
    scores = source.scores + [_PADDING] * (size - len(source.scores))
    unknown = source.model.get("unk_id")
    if type(unknown) is int and 0 <= unknown < size:
        types[unknown] = int(TokenType.UNKNOWN)
    normalizer = list(steps(source.pipeline.get("normalizer")))
    metaspace = [step for step in steps(source.pipeline.get("pre_tokenizer")) if step.get("type") == "Metaspace"]
    prefix = any(step.get("prepend_scheme", "always") != "never" for step in metaspace)
    extra: dict[str, Value] = {"add_space_prefix": flag(prefix), "remove_extra_whitespaces": flag(True)}
    if rules := next((step["precompiled_charsmap"] for step in normalizer if step.get("precompiled_charsmap")), None):
        extra["precompiled_charsmap"] = array(ValueType.UINT8, _decoded(rules, source))
    return Vocabulary(
        model="t5",
        tokens=encoded(texts),
        types=types,
        scores=scores,
        extra=extra,
    )


def _decoded(rules: Any, source: TokenizerSource) -> bytes:
    try:
        return base64.b64decode(rules, validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise CheckpointError(f"{source.path} has a precompiled_charsmap that is no base64") from error
