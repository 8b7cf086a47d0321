"""What killed children do to a RAG store: build it, and say what was embedded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from lathe.engine.rag import building
from lathe.engine.rag.building import Builder
from lathe.store.rag.store import RagStore
from lathe.store.rag.values import SplitterSettings, StoreSettings
from support.rag_embedder import TextReader, WordEmbedder

BATCH = 8
SETTINGS = StoreSettings(name="k", splitter=SplitterSettings(tokens=16, overlap=0))


class Telling(WordEmbedder):
    """Says each text before it embeds it."""

    def __init__(self, report: Callable[[object], None]) -> None:
        super().__init__()
        self._report = report

    async def embed(self, texts, role):
        for text in texts:
            self._report(f"text {text}")
        return await super().embed(texts, role)


def build(report: Callable[[object], None], store: str, folder: str) -> None:
    """Build a store in small batches until done or killed."""
    building.BATCH, building.WINDOW = BATCH, 2 * BATCH

    async def work() -> None:
        with RagStore.create(Path(store), SETTINGS) as opened:
            done = await Builder(opened, Telling(report), TextReader()).run([folder])
            report(f"done {done.embedded}")

    asyncio.run(work())
