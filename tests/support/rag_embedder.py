"""An embedder for tests: each word has a fixed direction, a text the mean of its words; no model, no process."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import numpy as np
from lathe.engine.errors import DataError
from lathe.engine.rag.values import ParsedDocument, Piece, ReadLimits, assemble
from lathe.store.rag.values import EmbedderIdentity
from support.rag_stores import vector

IDENTITY = EmbedderIdentity(name="words-32", kind="scripted", sha256="ef" * 32, dimensions=32, max_tokens=64)


def count(texts: Sequence[str]) -> list[int]:
    """Tokens are words."""
    return [len(text.split()) for text in texts]


class WordEmbedder:
    """Embeds by words; `calls` holds every text it was given."""

    reserved = 2

    def __init__(
        self, identity: EmbedderIdentity = IDENTITY, before: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        self.identity = identity
        self.count = count
        self.calls: list[str] = []
        self._before = before

    async def embed(self, texts: Sequence[str], role: str) -> np.ndarray:
        """The mean of the words' directions."""
        if self._before is not None:
            await self._before()
        self.calls += texts
        rows = [self._mean(text) for text in texts]
        return np.stack(rows) if rows else np.zeros((0, self.identity.dimensions), np.float32)

    def _mean(self, text: str) -> np.ndarray:
        size = self.identity.dimensions
        words = re.findall(r"\w+", text.lower()) or ["nothing"]
        total = np.sum([np.frombuffer(vector(word, size), "<f4") for word in words], axis=0)
        return (total / (np.linalg.norm(total) or 1)).astype(np.float32)


async def read_text(path: Path, limits: ReadLimits) -> ParsedDocument:
    """Paragraphs of a text file; one that says BROKEN is refused."""
    whole = path.read_text("utf-8")
    if "BROKEN" in whole:
        raise DataError(f"{path.name} is broken")
    text, blocks = assemble([Piece(part) for part in whole.split("\n\n")])
    return ParsedDocument(path=str(path), media_type="text/plain", text=text, blocks=blocks)
