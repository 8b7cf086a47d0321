"""An embedder for tests: each word has a fixed direction, a text the mean of its words; no model, no process."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import numpy as np
from lathe.engine.catalogue.walk import printable
from lathe.engine.errors import DataError, describe
from lathe.engine.rag.ingest.protocol import Failed, Same
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


class TextReader:
    """Reads paragraphs of text files in this process; one that says BROKEN is refused."""

    def __init__(self) -> None:
        self.read_names: list[str] = []

    async def read(
        self, path: Path, limits: ReadLimits, known_sha256: str | None = None
    ) -> ParsedDocument | Same | Failed:
        """Answer as the limited process does."""
        self.read_names.append(path.name)
        data = path.read_bytes()
        facts = path.stat()
        sha256 = hashlib.sha256(data).hexdigest()
        if sha256 == known_sha256:
            return Same(sha256, facts.st_size, facts.st_mtime_ns)
        if b"BROKEN" in data:
            return Failed(describe(DataError(f"{path.name} is broken")))
        text, blocks = assemble([Piece(part) for part in data.decode("utf-8").split("\n\n")])
        return ParsedDocument(
            path=printable(path), media_type="text/plain", text=text, blocks=blocks, sha256=sha256,
            file_bytes=facts.st_size, modified_ns=facts.st_mtime_ns,
        )  # fmt: skip
