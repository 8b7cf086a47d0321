"""`Vocabulary`: a tokenizer in GGUF's terms, whatever it was made from.

Invariant: token texts are unique (llama.cpp aborts on a duplicate), ids are positions, and every special id exists.
"""

from __future__ import annotations

from enum import IntEnum

import msgspec
from lathe.quantize.convert.writer import Metadata, Value, array, flag, text, u32
from lathe.quantize.errors import CheckpointError
from lathe.quantize.gguf.types import ValueType

MAX_TOKENS = 2_000_000
MAX_TOKEN_BYTES = 4096


class TokenType(IntEnum):
    """What a token is to llama.cpp."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class Specials(msgspec.Struct, frozen=True, kw_only=True):
    """Special tokens by role, and which of them a text gets added."""

    ids: dict[str, int] = {}
    """Role (`bos`, `eos`, `unk`, `sep`, `pad`, `cls`, `mask`, `eot`, `eom`) -> token id."""
    add: dict[str, bool] = {}
    """Role -> whether it is added around every text."""
    normalizer: dict[str, bool] = {}
    """`lowercase`, `strip_accents`."""


_ID_KEYS = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "unk": "unknown_token_id",
    "sep": "seperator_token_id",  # the format's own spelling
    "pad": "padding_token_id",
    "mask": "mask_token_id",
    "eot": "eot_token_id",
    "eom": "eom_token_id",
}
_ADDABLE = ("bos", "eos", "sep")


class Vocabulary(msgspec.Struct, frozen=True, kw_only=True):
    """Everything below `tokenizer.` in the metadata."""

    model: str
    """llama.cpp's tokenizer: `gpt2` (byte-level BPE), `llama` (SentencePiece BPE), `bert`, `t5` (Unigram)."""
    pre: str = "default"
    tokens: list[bytes]
    types: list[int]
    scores: list[float] | None = None
    merges: list[str] = []
    specials: Specials = Specials()
    chat_template: str | list[dict[str, str]] | None = None
    extra: dict[str, Value] = {}
    """Further keys below `tokenizer.ggml.`."""

    def metadata(self) -> Metadata:
        """Lay the vocabulary out as GGUF metadata."""
        facts: Metadata = {
            "model": text(self.model),
            "pre": text(self.pre),
            "tokens": array(ValueType.STRING, self.tokens),
        }
        if self.scores is not None:
            facts["scores"] = array(ValueType.FLOAT32, self.scores)
        facts["token_type"] = array(ValueType.INT32, self.types)
        facts |= self.extra
        if self.merges:
            facts["merges"] = array(ValueType.STRING, self.merges)
        facts |= {_ID_KEYS[role]: u32(number) for role, number in self.specials.ids.items() if role in _ID_KEYS}
        facts |= {f"add_{role}_token": flag(yes) for role, yes in self.specials.add.items() if role in _ADDABLE}
        facts |= {f"normalizer.{name}": flag(yes) for name, yes in self.specials.normalizer.items()}
        return {f"tokenizer.ggml.{key}": value for key, value in facts.items()} | self._templates()

    def _templates(self) -> Metadata:
        if self.chat_template is None or isinstance(self.chat_template, str):
            return {"tokenizer.chat_template": text(self.chat_template)} if self.chat_template else {}
        named = {
            "".join(char if char.isascii() and char.isalnum() else "_" for char in entry["name"]): entry["template"]
            for entry in self.chat_template
            if entry.get("name") and entry.get("template")
        }
        facts = {f"tokenizer.chat_template.{name}": text(body) for name, body in named.items() if name != "default"}
        if facts:
            facts["tokenizer.chat_templates"] = array(ValueType.STRING, [name for name in named if name != "default"])
        if "default" in named:
            facts["tokenizer.chat_template"] = text(named["default"])
        return facts


def encoded(texts: list[str]) -> list[bytes]:
    """Encode token texts; half a surrogate pair, which JSON can smuggle in, becomes a question mark."""
    return [text.encode("utf-8", "replace") for text in texts]


def checked(vocabulary: Vocabulary) -> Vocabulary:
    """Return the vocabulary if llama.cpp can load it; raise `CheckpointError` with the token at fault if not."""
    count = len(vocabulary.tokens)
    if not 0 < count <= MAX_TOKENS:
        raise CheckpointError(f"the tokenizer has {count:,} tokens; 1 to {MAX_TOKENS:,} are possible")
    if len(vocabulary.types) != count or (vocabulary.scores is not None and len(vocabulary.scores) != count):
        raise CheckpointError("the tokenizer's tokens, types and scores differ in number")
    seen: dict[bytes, int] = {}
    for number, token in enumerate(vocabulary.tokens):
        if len(token) > MAX_TOKEN_BYTES:
            raise CheckpointError(f"token {number} is {len(token):,} bytes long; the limit is {MAX_TOKEN_BYTES:,}")
        if (other := seen.setdefault(token, number)) != number:
            raise CheckpointError(f"tokens {other} and {number} are both {token[:80]!r}")
    for role, number in vocabulary.specials.ids.items():
        if not 0 <= number < count:
            raise CheckpointError(f"the {role} token has id {number}, the tokenizer has {count:,} tokens")
    return vocabulary
