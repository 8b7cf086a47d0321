"""Which kind of vocabulary a checkpoint has, and the proof that it reads text as the original does.

Structure decides the kind. What structure cannot tell (the pre-tokenizer, a leading space) becomes a list of
candidates, among which the tokenizers themselves decide. Invariant: a vocabulary that reads ordinary text differently
from its original is refused.
"""

from __future__ import annotations

import tempfile
import unicodedata
from pathlib import Path
from typing import Any

import msgspec
from lathe.quantize.checkpoint import Checkpoint
from lathe.quantize.convert.conformance.conform import Conformance, Difference, conform
from lathe.quantize.convert.hparams import Hparams
from lathe.quantize.convert.vocabulary.byte_level import byte_level
from lathe.quantize.convert.vocabulary.model import MAX_TOKENS, TokenType, Vocabulary, checked
from lathe.quantize.convert.vocabulary.pieces import BPE, read_pieces
from lathe.quantize.convert.vocabulary.pretokenizers import candidates
from lathe.quantize.convert.vocabulary.reference import reference_json
from lathe.quantize.convert.vocabulary.sentencepiece import from_merges, from_pieces, gather_added
from lathe.quantize.convert.vocabulary.source import TokenizerSource, need_tokenizer, read_tokenizer
from lathe.quantize.convert.vocabulary.unigram import unigram
from lathe.quantize.convert.vocabulary.wordpiece import wordpiece
from lathe.quantize.convert.writer import Metadata, flag, u32, write_gguf
from lathe.quantize.errors import CheckpointError, UnsupportedError
from lathe.quantize.gguf.header import read_header

MAX_MARKED = 64
"""Control tokens that are tried inside a text."""

Setting = dict[str, str | bool]
"""Keys below `tokenizer.ggml.` that a candidate sets."""


def _tied(difference: Difference) -> bool:
    """Tell whether the same tokens came in another order, which is as likely to a Unigram model."""
    return difference.converted is not None and sorted(difference.original) == sorted(difference.converted)


def _starts_with_space(difference: Difference) -> bool:
    """Tell whether the text brings a space of its own, which newer originals count as the leading one."""
    return difference.text.startswith(" ")


def _has_marks(difference: Difference) -> bool:
    """Tell whether the text has vowel signs or Hangul, which BERT takes apart otherwise than llama.cpp does."""
    return any(unicodedata.category(char).startswith("M") or "가" <= char <= "힣" for char in difference.text)


_EXCUSED = {"t5": _tied, "llama": _starts_with_space, "bert": _has_marks}
"""Differences on ordinary text that llama.cpp makes with every model of a kind, and that are reported only."""


class Draft(msgspec.Struct, frozen=True, kw_only=True):
    """A vocabulary with open questions."""

    vocabulary: Vocabulary
    settings: list[Setting]
    """The possible answers, the likeliest first."""
    original: Path
    """tokenizer.json, or tokenizer.model where there is nothing else."""
    reference: dict[str, Any] | None = None
    """What stands for a tokenizer.model in the comparison."""


def draft_vocabulary(checkpoint: Checkpoint, hparams: Hparams) -> Draft:
    """Read the tokenizer of a checkpoint as a GGUF vocabulary."""
    pieces = checkpoint.file("tokenizer.model")
    source = read_tokenizer(checkpoint) if pieces else need_tokenizer(checkpoint)
    reference = None
    if pieces and (model := read_pieces(pieces)).kind == BPE:
        size = _size(hparams, max(len(model.pieces), source.size if source else 0))
        added = gather_added(checkpoint, source)
        vocabulary = from_pieces(checkpoint, model, source, added, size)
        reference = None if source else reference_json(model, added)
    else:
        source = source or need_tokenizer(checkpoint)
        vocabulary = _from_json(checkpoint, source, hparams)
    if segments := hparams.count("type_vocab_size"):
        extra = vocabulary.extra | {"token_type_count": u32(segments)}
        vocabulary = msgspec.structs.replace(vocabulary, extra=extra)
    return Draft(
        vocabulary=checked(vocabulary),
        settings=_settings(vocabulary, source),
        original=source.path if source else checkpoint.folder / "tokenizer.model",
        reference=reference,
    )


def settle(draft: Draft, metadata: Metadata) -> tuple[Vocabulary, Conformance]:
    """Let both tokenizers read the probe text; return the vocabulary that agrees with its original.

    `metadata` is the rest of the GGUF's: llama.cpp looks at the model's name too. Raises `UnsupportedError` with
    examples when no candidate agrees on ordinary text.
    """
    result = _compared(draft.vocabulary, draft.settings, draft, metadata)
    if not result.agrees:
        raise UnsupportedError(
            f"no tokenizer of llama.cpp reads text as {draft.original} does; the nearest of {len(draft.settings)} "
            f"differs in {len(result.ordinary)} of {result.texts} texts: "
            f"{'; '.join(map(_shown, result.ordinary[:3]))}",
            hint="llama.cpp has no pre-tokenizer for this model: a converted file would read its input wrongly",
            code="E_TOKENIZER",
        )
    vocabulary = _with(draft.vocabulary, draft.settings[result.chosen])
    if draft.reference is not None:  # made of pieces alone, it cannot tell what surrounds a text
        return vocabulary, msgspec.structs.replace(result, surrounded=None)
    corrected = _surrounded_alike(vocabulary, result.surrounded)
    if corrected == vocabulary:
        return vocabulary, result
    return corrected, _compared(corrected, [{}], draft, metadata)


def _compared(vocabulary: Vocabulary, settings: list[Setting], draft: Draft, metadata: Metadata) -> Conformance:
    overrides = [{f"tokenizer.ggml.{key}": value for key, value in setting.items()} for setting in settings]
    with tempfile.TemporaryDirectory(prefix="lathe-vocabulary-") as folder:
        gguf = Path(folder) / "vocabulary.gguf"
        write_gguf(gguf, metadata | vocabulary.metadata(), [], [])
        read_header(gguf)  # llama.cpp aborts on what this refuses
        original = draft.original
        if draft.reference is not None:
            original = Path(folder) / "reference.json"
            original.write_bytes(msgspec.json.encode(draft.reference))
        return conform(gguf, original, overrides, _marked(vocabulary), excused=_EXCUSED.get(vocabulary.model))


def _surrounded_alike(vocabulary: Vocabulary, around: Difference | None) -> Vocabulary:
    """Correct which tokens are added around a text; llama.cpp adds some unless it is told not to."""
    if around is None or vocabulary.model == "bert":  # whose tokens are always added
        return vocabulary
    add, ids = dict(vocabulary.specials.add), vocabulary.specials.ids
    converted = around.converted or []
    for role, end in (("bos", slice(0, 1)), ("eos", slice(-1, None))):
        if around.original[end] != converted[end]:
            add[role] = around.original[end] == [ids.get(role)]
    specials = msgspec.structs.replace(vocabulary.specials, add=add)
    return msgspec.structs.replace(vocabulary, specials=specials)


def _from_json(checkpoint: Checkpoint, source: TokenizerSource, hparams: Hparams) -> Vocabulary:
    size = _size(hparams, source.size)
    match source.kind:
        case "BPE" if source.model.get("byte_fallback"):
            return from_merges(checkpoint, source, size)
        case "BPE":
            return byte_level(checkpoint, source, size)
        case "WordPiece":
            return wordpiece(checkpoint, source, size)
        case "Unigram":
            return unigram(checkpoint, source, size)
        case _:
            raise UnsupportedError(f"{source.path} has a tokenizer of the kind {source.kind}, which is not known here")


def _size(hparams: Hparams, found: int) -> int:
    """The number of tokens the weights have rows for; what the tokenizer has when config.json does not say."""
    size = hparams.count("vocab_size") or found
    if size > MAX_TOKENS:
        raise CheckpointError(f"config.json gives vocab_size as {size:,}; the limit is {MAX_TOKENS:,}")
    return size


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


def _with(vocabulary: Vocabulary, setting: Setting) -> Vocabulary:
    extra = dict(vocabulary.extra)
    for key, value in setting.items():
        if key == "pre":
            vocabulary = msgspec.structs.replace(vocabulary, pre=str(value))
        else:
            extra[key] = flag(bool(value))
    return msgspec.structs.replace(vocabulary, extra=extra)


def _marked(vocabulary: Vocabulary) -> list[str]:
    """Make texts with each control token at the start, in the middle and at the end."""
    kinds = (TokenType.CONTROL, TokenType.USER_DEFINED)
    pairs = zip(vocabulary.tokens, vocabulary.types, strict=True)
    tokens = [token.decode() for token, kind in pairs if kind in kinds][:MAX_MARKED]
    return [f"{token}user\nHello, {token}world{token}" for token in tokens]


def _shown(difference: Difference) -> str:
    """Show a difference in the smallest window that has it."""
    original, converted = difference.original, difference.converted
    if converted is None:
        return f"{difference.text[:40]!a} makes llama.cpp abort"
    start = next(
        (index for index, pair in enumerate(zip(original, converted, strict=False)) if pair[0] != pair[1]),
        min(len(original), len(converted)),
    )
    window = slice(max(0, start - 1), start + 4)
    return f"{difference.text[:40]!a} gives ... {original[window]} originally, {converted[window]} converted"
