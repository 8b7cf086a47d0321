"""A `tokenizer.json` as the serving loop's vocabulary, through the `tokenizers` library.

Two tokenizers read the same file: one knows control tokens, the other takes their names for plain text. The bytes of a
token follow from how the tokenizer decodes: a byte alphabet, sentencepiece's marks with byte tokens, or word pieces.
Invariant: text of users is tokenised with control tokens as plain text.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lathe.engine.errors import DataError, MissingError, UsageError
from lathe.engine.worker.fitting import overflow
from lathe.quantize.checkpoint import MAX_TOKENIZER_BYTES, decode_json, read_bytes, read_json
from lathe.quantize.convert.vocabulary.source import looks_special

_LEFT, _RIGHT = 1, 2
_ENDS = frozenset({
    "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|end_of_text|>", "<end_of_turn>", "</s>",
    "<|EOT|>", "<|return|>", "<EOT>", "<|eot|>", "<|end_of_turn|>",
})  # fmt: skip
"""Control tokens that end a turn in one family or another, whatever the configuration names."""
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_UNBOUNDED_CHARS = 1 << 20
"""Texts up to this size are tokenised without asking whether they can fit."""
_SPACE_MARK = "\u2581"


class JsonVocabulary:
    """Text to tokens and back, by a folder's tokenizer.json."""

    def __init__(self, folder: Path, size: int, context: int) -> None:
        """Read the tokenizer and what the configuration says of its ends.

        Args:
            size: rows of logits; ids beyond it do not exist for the model. 0: as many as the tokenizer has.
            context: tokens that a text may have.

        Raises:
            MissingError: there is no tokenizer.json.
            DataError: the library does not take it.
        """
        path = next((place for place in (folder / "tokenizer.json", folder.parent / "tokenizer.json")
                     if place.is_file()), None)  # fmt: skip
        if path is None:
            hint = "export the model with its tokenizer, or copy tokenizer.json beside it"
            raise MissingError(f"{folder} has no tokenizer.json", hint=hint)
        data = read_bytes(path, MAX_TOKENIZER_BYTES)
        self._document: dict[str, Any] = decode_json(data, dict[str, Any], path)
        self._plain = _tokenizer(data, path)
        self._plain.encode_special_tokens = True
        self._special = _tokenizer(data, path)
        self._context = context
        self._texts: dict[int, str] = {
            number: token for token, number in self._special.get_vocab(with_added_tokens=True).items()
        }
        self.size: int = size or max(self._texts, default=-1) + 1
        self._settings = _json(path.parent / "tokenizer_config.json")
        self._byte_alphabet = any(step.get("type") == "ByteLevel" for part in ("pre_tokenizer", "decoder")
                                  for step in _steps(self._document.get(part)))  # fmt: skip
        self._pieces: dict[int, bytes] = {}
        self.bos: int = self._number("bos_token")
        self.eos: int = self._number("eos_token")
        self.ends: frozenset[int] = self._all_ends(folder)

    # -- text to tokens ------------------------------------------------------------------------------------------
    def encode(self, text: str, *, special: bool = False, ends: bool = False) -> list[int]:
        """Text to token ids.

        Args:
            special: read the names of control tokens as control tokens.
            ends: add what the model wants around a text, such as BOS.

        Raises:
            UsageError: the text cannot fit the context, whatever its tokens are.
        """
        if len(text) > _UNBOUNDED_CHARS:
            least = len(text) // self._longest_piece
            if least > self._context:
                raise overflow(least, None, self._context, at_least=True)
        tokenizer = self._special if special else self._plain
        ids: list[int] = tokenizer.encode(text, add_special_tokens=ends).ids
        return ids

    def pair(self, query: str, text: str) -> list[int]:
        """A query and a text as the tokenizer's own template joins them."""
        ids: list[int] = self._plain.encode(query, text).ids
        return ids

    def checked(self, tokens: Sequence[int]) -> list[int]:
        """Ids from outside, refused where the vocabulary has none of them."""
        for token in tokens:
            if not 0 <= token < self.size:
                raise UsageError(f"token {token} is not in the vocabulary of {self.size}")
        return list(tokens)

    # -- tokens to text ------------------------------------------------------------------------------------------
    def piece(self, token: int) -> bytes:
        """The bytes that a generated token shows; control tokens show nothing."""
        found = self._pieces.get(token)
        if found is None:
            found = self._pieces[token] = b"" if self._text(token) in self.controls else self._bytes(token)
        return found

    def name(self, token: int) -> bytes:
        """The bytes of any token, control tokens by their name."""
        return self.piece(token) or self._text(token).encode("utf-8", "replace")

    def decode(self, tokens: Sequence[int]) -> str:
        """Ids to text, control tokens by their name."""
        return b"".join(map(self.name, self.checked(tokens))).decode("utf-8", "replace")

    def _text(self, token: int) -> str:
        return self._texts.get(token, "")

    def _bytes(self, token: int) -> bytes:
        text = self._text(token)
        if token in self._added:
            return text.encode("utf-8", "replace")
        if self._byte_alphabet:
            table = _byte_alphabet()
            return b"".join(bytes((table[one],)) if one in table else one.encode("utf-8", "replace") for one in text)
        if found := _BYTE_TOKEN.fullmatch(text):
            return bytes((int(found[1], 16),))
        if self._document.get("model", {}).get("type") == "WordPiece":
            return (text[2:] if text.startswith("##") else f" {text}").encode("utf-8", "replace")
        return text.replace(_SPACE_MARK, " ").encode("utf-8", "replace")

    # -- control tokens ------------------------------------------------------------------------------------------
    @functools.cached_property
    def _added(self) -> dict[int, dict[str, Any]]:
        entries = self._document.get("added_tokens") or []
        return {entry["id"]: entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("id"), int)}

    @functools.cached_property
    def controls(self) -> Mapping[str, int]:
        """Names of control tokens, and whether they swallow spaces on a side."""
        return {
            str(entry.get("content")): _LEFT * bool(entry.get("lstrip")) | _RIGHT * bool(entry.get("rstrip"))
            for entry in self._added.values()
            if entry.get("special") or looks_special(str(entry.get("content")))
        }

    def strips(self, name: str) -> tuple[bool, bool]:
        """Whether a control token swallows spaces on its left and on its right; other text does not."""
        attributes = self.controls.get(name, 0)
        return bool(attributes & _LEFT), bool(attributes & _RIGHT)

    @property
    def bos_name(self) -> str:
        """The name of the token that begins a text; empty where there is none."""
        return self._text(self.bos)

    @property
    def eos_name(self) -> str:
        """The name of the token that ends one."""
        return self._text(self.eos)

    @functools.cached_property
    def affixes(self) -> tuple[list[int], list[int]]:
        """The tokens that the model wants before and after a text."""
        bare, whole = self.encode("a"), self.encode("a", ends=True)
        for start in range(len(whole) - len(bare) + 1):
            if whole[start : start + len(bare)] == bare:
                return whole[:start], whole[start + len(bare) :]
        return [], []

    @property
    def separator(self) -> int:
        """The token between the texts of a pair; -1 where there is none."""
        return self._number("sep_token")

    def _number(self, setting: str) -> int:
        entry = self._settings.get(setting)
        name = entry.get("content") if isinstance(entry, dict) else entry
        number = self._special.token_to_id(name) if isinstance(name, str) else None
        return -1 if number is None or number >= self.size else number

    def _all_ends(self, folder: Path) -> frozenset[int]:
        ends = {self.eos}
        for name in ("generation_config.json", "config.json"):
            found = _json(folder / name).get("eos_token_id")
            ends |= {one for one in (found if isinstance(found, list) else [found]) if isinstance(one, int)}
        ends |= {number for number in self._added if self._text(number) in _ENDS}
        return frozenset(one for one in ends if 0 <= one < self.size)

    @functools.cached_property
    def _longest_piece(self) -> int:
        return max(1, max(map(len, self._texts.values()), default=1))


def _tokenizer(data: bytes, path: Path) -> Any:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_buffer(data)
    except Exception as error:
        raise DataError(f"{path} is no tokenizer that can be used: {error}", code="E_TOKENIZER") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _steps(part: Any) -> Iterator[dict[str, Any]]:
    """The steps of a pre-tokenizer or decoder, out of any nesting."""
    if isinstance(part, dict):
        yield part
        for name in ("pretokenizers", "decoders"):
            for inner in part.get(name) or ():
                yield from _steps(inner)


@functools.cache
def _byte_alphabet() -> dict[str, int]:
    """The printable stand-ins of byte-level tokenizers: printable bytes stand for themselves, others follow U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in printable)
    return table | {chr(0x100 + place): byte for place, byte in enumerate(others)}
