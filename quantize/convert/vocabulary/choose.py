"""Which kind of vocabulary a checkpoint has, and what its structure leaves open.

Invariant: a draft has as many tokens as the weights have rows, and everything in it but `settings` is settled.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from lathe.quantize.checkpoint import Checkpoint
from lathe.quantize.convert.hparams import Hparams
from lathe.quantize.convert.vocabulary.byte_level import byte_level
from lathe.quantize.convert.vocabulary.model import MAX_TOKENS, Vocabulary, checked
from lathe.quantize.convert.vocabulary.pieces import BPE, PieceModel, read_pieces
from lathe.quantize.convert.vocabulary.pretokenizers import candidates
from lathe.quantize.convert.vocabulary.reference import reference_json
from lathe.quantize.convert.vocabulary.sentencepiece import from_merges, from_pieces
from lathe.quantize.convert.vocabulary.source import (
    TokenizerSource,
    added_tokens,
    need_tokenizer,
    old_added_tokens,
    read_tokenizer,
)
from lathe.quantize.convert.vocabulary.specials import read_specials
from lathe.quantize.convert.vocabulary.unigram import unigram
from lathe.quantize.convert.vocabulary.wordpiece import wordpiece
from lathe.quantize.convert.writer import flag, u32
from lathe.quantize.errors import CheckpointError, UnsupportedError

Setting = dict[str, str | bool]
"""Keys below `tokenizer.ggml.` that a candidate sets."""


class Draft(msgspec.Struct, frozen=True, kw_only=True):
    """A vocabulary with open questions."""

    vocabulary: Vocabulary
    settings: list[Setting]
    """The possible answers, the likeliest first."""
    original: Path
    """tokenizer.json, or tokenizer.model where there is nothing else."""
    reference: dict[str, Any] | None = None
    """What stands for a tokenizer.model in the comparison."""
    warnings: tuple[str, ...] = ()


def draft_vocabulary(checkpoint: Checkpoint, hparams: Hparams) -> Draft:
    """Read the tokenizer of a checkpoint as a GGUF vocabulary."""
    source, model = read_tokenizer(checkpoint), _piece_model(checkpoint)
    if source is None and model is None:
        source = need_tokenizer(checkpoint)
    found = max(source.size if source else 0, len(model.pieces) if model else 0)
    size = hparams.count("vocab_size") or found
    if size > MAX_TOKENS:
        raise CheckpointError(f"config.json gives vocab_size as {size:,}; the limit is {MAX_TOKENS:,}")
    added = source.added if source else added_tokens({}, checkpoint.tokenizer, checkpoint.folder)
    added = old_added_tokens(checkpoint) | added
    homeless = [token.content for token in added.values() if token.id >= size]
    added = {number: token for number, token in added.items() if number < size}
    if source is not None:
        source = source.within(size)
    if model is not None:
        vocabulary = from_pieces(model, list(added.values()), checkpoint.tokenizer, size)
    else:
        assert source is not None
        vocabulary = _from_json(source, size)
    segments = hparams.count("type_vocab_size")
    vocabulary = msgspec.structs.replace(
        vocabulary,
        specials=read_specials(checkpoint, source, size),
        chat_template=checkpoint.chat_template,
        extra=vocabulary.extra | ({"token_type_count": u32(segments)} if segments else {}),
    )
    return Draft(
        vocabulary=checked(vocabulary),
        settings=_settings(vocabulary, source),
        original=source.path if source else checkpoint.folder / "tokenizer.model",
        reference=reference_json(model, list(added.values())) if model is not None and source is None else None,
        warnings=tuple(f"the added token {text!a} has no weights and was left out" for text in homeless[:8]),
    )


def _piece_model(checkpoint: Checkpoint) -> PieceModel | None:
    """Read tokenizer.model if it is a SentencePiece BPE; other programs use that name for other things."""
    path = checkpoint.file("tokenizer.model")
    if path is None:
        return None
    try:
        model = read_pieces(path)
    except CheckpointError:
        if checkpoint.file("tokenizer.json") is None:
            raise
        return None
    return model if model.kind == BPE else None


def _from_json(source: TokenizerSource, size: int) -> Vocabulary:
    match source.kind:
        case "BPE" if source.model.get("byte_fallback"):
            return from_merges(source, size)
        case "BPE":
            return byte_level(source, size)
        case "WordPiece":
            return wordpiece(source, size)
        case "Unigram":
            return unigram(source, size)
        case _:
            raise UnsupportedError(f"{source.path} has a tokenizer of the kind {source.kind}, which is not known here")


def _settings(vocabulary: Vocabulary, source: TokenizerSource | None) -> list[Setting]:
    match vocabulary.model:
        case "gpt2" if source is not None:
            return [{"pre": name} for name in candidates(source.pipeline.get("pre_tokenizer"))]
        case "llama" | "t5":
            likely = vocabulary.extra.get("add_space_prefix", flag(True)).data
            return [{}, {"add_space_prefix": not likely}]
        case "bert":
            likely = vocabulary.specials.normalizer.get("lowercase", True)
            return [{}, {"normalizer.lowercase": not likely}]
        case _:
            return [{}]
