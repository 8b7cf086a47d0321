"""Text to tokens and back, by a model's own tokenizer.

Invariant: no text can take the process down. llama.cpp looks up `<0x41>` and the like for characters that a
SentencePiece vocabulary lacks, and aborts where the vocabulary lacks those too; such text is refused here.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import numpy as np
from lathe.engine.errors import DataError
from lathe.engine.native.batch import Tokens

_SENTENCEPIECE = 1
"""LLAMA_VOCAB_TYPE_SPM."""
_BYTE_TOKEN = 1 << 5
"""LLAMA_TOKEN_ATTR_BYTE."""
_SPACE = "\u2581"
"""How SentencePiece writes a space."""


class Vocabulary:
    """The tokenizer of a loaded model; `LlamaModel` is one."""

    def __init__(self, lib: Any, handle: int, path: Path) -> None:
        self._lib = lib
        self.path = path
        self.vocab = lib.llama_model_get_vocab(handle)
        self.n_vocab: int = lib.llama_vocab_n_tokens(self.vocab)
        self.add_bos: bool = lib.llama_vocab_get_add_bos(self.vocab)
        self.add_eos: bool = lib.llama_vocab_get_add_eos(self.vocab)
        self.bos: int = lib.llama_vocab_bos(self.vocab)
        self.eos: int = lib.llama_vocab_eos(self.vocab)

    def tokenize(self, text: str | bytes, *, special: bool = False, add_special: bool = False) -> Tokens:
        """Text to token ids.

        Args:
            special: read `<|im_start|>` and the like as control tokens.
            add_special: add what the model wants at the ends, such as BOS.

        Raises:
            DataError: the vocabulary has no token for a character, and none for its bytes.
        """
        data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
        self._refuse_unknown(data)
        room = len(data) + 8
        for _ in range(2):
            tokens = np.empty(room, np.int32)
            pointer = tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
            count = self._lib.llama_tokenize(self.vocab, data, len(data), pointer, room, add_special, special)
            if count >= 0:
                return tokens[:count].copy()
            room = -count
        raise DataError(f"the tokenizer of {self.path.name} gave no stable result")

    def piece(self, token: int, *, special: bool = True) -> bytes:
        """The bytes of one token; with `special`, control tokens too."""
        for room in (32, 4096, 1 << 20):
            buffer = ctypes.create_string_buffer(room)
            size = self._lib.llama_token_to_piece(self.vocab, token, buffer, room, 0, special)
            if size >= 0:
                return buffer.raw[:size]
        raise DataError(f"token {token} of {self.path.name} has no text of sane length")

    def is_eog(self, token: int) -> bool:
        """Whether the token ends a generation."""
        return bool(self._lib.llama_vocab_is_eog(self.vocab, token))

    @functools.cached_property
    def _alphabet(self) -> frozenset[str] | None:
        """The characters a text may have; None: any, as bytes stand in for the rest."""
        if self._lib.llama_vocab_type(self.vocab) != _SENTENCEPIECE:
            return None
        attributes = [self._lib.llama_vocab_get_attr(self.vocab, token) for token in range(self.n_vocab)]
        if sum(1 for attribute in attributes if attribute & _BYTE_TOKEN) >= 256:
            return None
        texts = (self._lib.llama_vocab_get_text(self.vocab, token) for token in range(self.n_vocab))
        return frozenset(text for raw in texts if len(text := raw.decode("utf-8", "replace")) == 1)

    def _refuse_unknown(self, data: bytes) -> None:
        if self._alphabet is None:
            return
        unknown = set(data.decode("utf-8", "surrogateescape").replace(" ", _SPACE)) - self._alphabet
        if unknown:
            shown = ", ".join(repr(character) for character in sorted(unknown)[:5])
            raise DataError(
                f"the vocabulary of {self.path.name} cannot write {shown}"
                + (f" and {len(unknown) - 5} other characters" if len(unknown) > 5 else ""),
                hint="it has no tokens for single bytes; use text in its own alphabet",
                code="E_VOCABULARY",
            )
