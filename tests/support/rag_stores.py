"""RAG stores for tests: documents of chosen words, vectors that follow from the words."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from lathe.store.rag import columns, documents, versions
from lathe.store.rag.store import RagStore
from lathe.store.rag.values import EmbedderIdentity, NewDocument, NewPassage, StoreSettings

EMBEDDER = EmbedderIdentity(name="words-16", kind="scripted", sha256="ab" * 32, dimensions=16, max_tokens=64)


def vector(text: str, dimensions: int = 16) -> bytes:
    """A unit vector that only depends on the text."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    values = np.random.default_rng(seed).normal(size=dimensions).astype("<f4")
    return (values / np.linalg.norm(values)).astype("<f4").tobytes()


def document(path: str, text: str = "", **changes: object) -> NewDocument:
    """A document whose hash follows from its text."""
    fields: dict[str, object] = {
        "path": path, "source": "/src", "sha256": hashlib.sha256(text.encode()).hexdigest(), "size": len(text),
        "mtime_ns": 1, "media_type": "text/plain", "chars": len(text),
    }  # fmt: skip
    return NewDocument(**{**fields, **changes})


def cut(texts: Sequence[str], heading: str = "") -> list[NewPassage]:
    """Passages one after another."""
    found, position = [], 0
    for ordinal, text in enumerate(texts):
        found.append(NewPassage(
            ordinal=ordinal, text=text, heading=heading, heading_path=(heading,) if heading else (), start=position,
            end=position + len(text), page=None, kind="paragraph", tokens=len(text.split()),
        ))  # fmt: skip
        position += len(text) + 2
    return found


def make(path: Path, texts: dict[str, Sequence[str]], embedder: EmbedderIdentity | None = EMBEDDER) -> RagStore:
    """A finished store of documents given as path -> passages."""
    store = RagStore.create(path, StoreSettings(name=path.stem))

    def work(db) -> None:
        version = versions.begin(db, 1.0)
        for name, passages in texts.items():
            documents.put(db, document(name, "\n\n".join(passages)), cut(passages), version)
        versions.finish(db, version, 2.0)
        if embedder is not None:
            columns.create(db, embedder, 1.0)
            columns.activate(db, 1)

    store.write(work)
    embed(store)
    return store


def embed(store: RagStore) -> int:
    """Give every passage of every column its vector."""

    def work(db) -> int:
        done = 0
        for column in columns.all_columns(db):
            rows = columns.missing(db, column.number, 0, 100_000)
            size = column.embedder.dimensions
            done += columns.put(db, column.number, [(row.id, vector(row.heading + row.text, size)) for row in rows])
        return done

    return store.write(work)
