"""The vocabulary as the serving loop needs it: ids, pieces, ends, with limits. Usable from any thread.

Invariant: text of users is tokenised with control tokens as plain text; only templates and callers who ask for it get
control tokens.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

from lathe.engine.errors import UsageError
from lathe.engine.native.llama import LlamaModel
from lathe.engine.worker.fitting import overflow
from lathe.quantize.libllama import bindings

_CONTROL = (1 << 3) | (1 << 0)
"""LLAMA_TOKEN_ATTR_CONTROL and _UNKNOWN: what llama.cpp reads as special only when it is told to."""
_LEFT_STRIP, _RIGHT_STRIP = 1 << 7, 1 << 8
"""LLAMA_TOKEN_ATTR_LSTRIP and _RSTRIP: such a token swallows the spaces on that side."""
_UNBOUNDED_BYTES = 1 << 20
"""Texts up to this size are tokenised without asking whether they can fit."""


class Lexicon:
    """Text to tokens and back for one model."""

    def __init__(self, model: LlamaModel, context: int) -> None:
        self.model = model
        self._context = context
        self.size = model.n_vocab
        self.ends = frozenset(token for token in range(model.n_vocab) if model.is_eog(token))
        """Tokens that end a generation."""
        self._pieces: list[bytes | None] = [None] * model.n_vocab

    def encode(self, text: str, *, special: bool = False, ends: bool = False) -> list[int]:
        """Text to token ids.

        Args:
            special: read the names of control tokens as control tokens.
            ends: add what the model wants around a text, such as BOS.

        Raises:
            UsageError: the text cannot fit the context, whatever its tokens are.
        """
        data = text.encode()
        if len(data) > _UNBOUNDED_BYTES:
            least = len(data) // self._longest_piece
            if least > self._context:
                raise overflow(least, None, self._context, at_least=True)
        tokens: list[int] = self.model.tokenize(data, special=special, add_special=ends).tolist()
        return tokens

    def checked(self, tokens: Sequence[int]) -> list[int]:
        """Ids from outside, refused where the vocabulary has none of them."""
        for token in tokens:
            if not 0 <= token < self.size:
                raise UsageError(f"token {token} is not in the vocabulary of {self.size}")
        return list(tokens)

    def piece(self, token: int) -> bytes:
        """The bytes that a generated token shows; control tokens show nothing."""
        piece = self._pieces[token]
        if piece is None:
            piece = self._pieces[token] = self.model.piece(token, special=False)
        return piece

    def name(self, token: int) -> bytes:
        """The bytes of any token, control tokens by their name."""
        return self.piece(token) or self.model.piece(token)

    def decode(self, tokens: Sequence[int]) -> str:
        """Ids to text, control tokens by their name."""
        return b"".join(map(self.name, self.checked(tokens))).decode("utf-8", "replace")

    @functools.cached_property
    def controls(self) -> dict[str, int]:
        """Names of control tokens, and their attributes."""
        found = {}
        for token in range(self.size):
            attributes: int = bindings().llama_vocab_get_attr(self.model.vocab, token)
            if attributes & _CONTROL and (name := self.model.piece(token).decode("utf-8", "replace")):
                found[name] = attributes
        return found

    @functools.cached_property
    def bos_name(self) -> str:
        """The name of the token that begins a text; empty where there is none."""
        return self._name_of(self.model.bos)

    @functools.cached_property
    def eos_name(self) -> str:
        """The name of the token that ends one."""
        return self._name_of(self.model.eos)

    @property
    def affixes(self) -> tuple[list[int], list[int]]:
        """The tokens that the model wants before and after a text."""
        model = self.model
        return [model.bos] if model.add_bos else [], [model.eos] if model.add_eos else []

    def _name_of(self, token: int) -> str:
        return "" if token < 0 else self.model.piece(token).decode("utf-8", "replace")

    def strips(self, name: str) -> tuple[bool, bool]:
        """Whether a control token swallows spaces on its left and on its right; other text does not."""
        attributes = self.controls.get(name, 0)
        return bool(attributes & _LEFT_STRIP), bool(attributes & _RIGHT_STRIP)

    @property
    def bos(self) -> int:
        """The token that begins a text; -1 where there is none."""
        return self.model.bos

    @property
    def eos(self) -> int:
        """The token that ends one; -1 where there is none."""
        return self.model.eos

    def pair(self, query: str, text: str) -> list[int]:
        """A query and a text as llama.cpp gives them to a reranker.

        Newer files carry a template for it; for cross-encoders without one it is BOS query EOS SEP text EOS, as far as
        the vocabulary has them.
        """
        model, lib = self.model, bindings()
        template: bytes | None = lib.llama_model_chat_template(model.handle, b"rerank")
        if template is not None:
            return self._filled(template.decode("utf-8", "replace"), query, text)
        separator = lib.llama_vocab_sep(model.vocab)
        end = model.eos if model.eos >= 0 else separator
        before, after = [model.bos] if model.add_bos else [], [end] if model.add_eos else []
        between = [separator] if lib.llama_vocab_get_add_sep(model.vocab) else []
        return before + self.encode(query) + after + between + self.encode(text) + after

    def _filled(self, template: str, query: str, text: str) -> list[int]:
        if not any(name in query or name in text for name in self.controls):
            return self.encode(template.replace("{query}", query).replace("{document}", text), special=True)
        given = {"{query}": query, "{document}": text}
        tokens = []
        for part in re.split(r"(\{query\}|\{document\})", template):
            tokens += self.encode(given[part]) if part in given else self.encode(part, special=True)
        return tokens

    @functools.cached_property
    def _longest_piece(self) -> int:
        return max(1, max(len(self.name(token)) for token in range(self.size)))
