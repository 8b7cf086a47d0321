"""The proof that a converted vocabulary reads text as its original does, and the choice among candidates.

What structure cannot tell (the pre-tokenizer, a leading space) is decided by the tokenizers themselves. Invariant: a
vocabulary that reads ordinary text differently from its original is refused.
"""

from __future__ import annotations

import tempfile
import unicodedata
from pathlib import Path

import msgspec
from lathe.quantize.convert.conformance.conform import Conformance, Difference, conform
from lathe.quantize.convert.vocabulary.choose import Draft, Setting
from lathe.quantize.convert.vocabulary.model import TokenType, Vocabulary
from lathe.quantize.convert.writer import Metadata, flag, write_gguf
from lathe.quantize.errors import UnsupportedError
from lathe.quantize.gguf.header import read_header

MAX_MARKED = 64
"""Control tokens that are tried inside a text."""


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


def _with(vocabulary: Vocabulary, setting: Setting) -> Vocabulary:
    """Give a vocabulary the settings of a candidate."""
    replace = msgspec.structs.replace
    for key, value in setting.items():
        match key.partition("normalizer."), value:
            case ("pre", _, _), str():
                vocabulary = replace(vocabulary, pre=value)
            case ("", _, name), bool() if name:
                specials = vocabulary.specials
                specials = replace(specials, normalizer=specials.normalizer | {name: value})
                vocabulary = replace(vocabulary, specials=specials)
            case _:
                vocabulary = replace(vocabulary, extra=vocabulary.extra | {key: flag(bool(value))})
    return vocabulary


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
