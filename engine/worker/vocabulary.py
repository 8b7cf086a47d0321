"""What the serving loop needs of a vocabulary, whichever library holds it.

llama.cpp's own is `lathe.engine.worker.backends.llama.lexicon`, that of a `tokenizer.json` is in `backends.onnx`.
Invariant: text of users is tokenised with control tokens as plain text; only templates and callers who ask for it get
control tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from lathe.engine.worker.templates import Encoder


class Vocabulary(Encoder, Protocol):
    """Text to tokens and back. Any thread."""

    size: int

    @property
    def ends(self) -> frozenset[int]:
        """Tokens that end a generation."""

    @property
    def bos(self) -> int:
        """The token that begins a text; -1 where there is none."""

    @property
    def eos(self) -> int:
        """The token that ends one; -1 where there is none."""

    def checked(self, tokens: Sequence[int]) -> list[int]:
        """Ids from outside, refused where the vocabulary has none of them."""

    def piece(self, token: int) -> bytes:
        """The bytes that a generated token shows; control tokens show nothing."""

    def name(self, token: int) -> bytes:
        """The bytes of any token, control tokens by their name."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Ids to text, control tokens by their name."""

    def pair(self, query: str, text: str) -> list[int]:
        """A query and a text as a reranker wants them."""
