"""Ingest end to end beside a bare `SentenceTransformer.encode` loop over the same passages.

    python benchmarks/rag_ingest.py BEIR_FOLDER --reference MINILM_FOLDER EMBEDDER... [--documents 200] [--threads 2]

The bare loop embeds the passages' texts in the order of the corpus, 32 to a batch as sentence-transformers sorts them
itself, and keeps nothing. `ingest` splits, counts, embeds in a worker, stores, seals and indexes. Every round asks
each in turn, so that a busy machine slows all of them. An embedder may be a GGUF, an ONNX folder or the checkpoint
itself, which then runs in sentence-transformers: the same backend as the bare loop's.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

from lathe.engine.local import LocalWorkbench
from lathe.engine.paths import Home
from lathe.engine.rag.embedding import WorkbenchEmbedder, open_embedder
from lathe.engine.rag.evaluating import load_corpus
from lathe.store.rag import documents
from lathe.store.rag.store import RagStore
from lathe.store.rag.values import SplitterSettings, StoreSettings


def first_documents(folder: Path, part: Path, count: int) -> Path:
    """A set of the first documents of another."""
    part.mkdir()
    with (part / "corpus.jsonl").open("wb") as out, (folder / "corpus.jsonl").open("rb") as lines:
        out.writelines(islice(lines, count))
    return part


async def ingest(path: Path, folder: Path, embedder: WorkbenchEmbedder) -> tuple[float, list[str]]:
    """Build a store; returns the seconds and the texts that were embedded."""
    began = time.perf_counter()
    with RagStore.create(path, StoreSettings(name="bench", splitter=SplitterSettings(tokens=200))) as store:
        await load_corpus(store, folder, embedder)
        seconds = time.perf_counter() - began
        passages = store.read(lambda db: [p for batch in documents.every_passage(db) for p in batch])
    return seconds, [f"{p.heading} {p.text}" if p.heading else p.text for p in passages]


class Reference:
    """The loop of sentence-transformers itself."""

    def __init__(self, folder: str, threads: int) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(threads)
        self._model = SentenceTransformer(folder, device="cpu")

    def seconds(self, texts: list[str]) -> float:
        """Embed everything once."""
        began = time.perf_counter()
        self._model.encode(texts, batch_size=32, show_progress_bar=False)
        return time.perf_counter() - began


async def main() -> int:
    """Alternate all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("embedders", type=Path, nargs="+")
    parser.add_argument("--reference", required=True)
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    reference = Reference(arguments.reference, arguments.threads)
    seconds: dict[str, list[float]] = {"bare SentenceTransformer.encode": []}
    texts: list[str] = []
    with tempfile.TemporaryDirectory() as place:
        part = await asyncio.to_thread(first_documents, arguments.folder, Path(place, "part"), arguments.documents)
        flags = {"serving.threads": str(arguments.threads)}
        workbench = await LocalWorkbench.open(Home(Path(place, "home")), flags=flags)
        try:
            for turn in range(arguments.rounds):
                for path in arguments.embedders:
                    embedder = await open_embedder(workbench, str(path.absolute()))
                    took, texts = await ingest(Path(place, f"{turn}-{path.name}.db"), part, embedder)
                    seconds.setdefault(f"ingest, {path.name} ({embedder.identity.kind})", []).append(took)
                    await workbench.unload(str(path.absolute()))
                seconds["bare SentenceTransformer.encode"].append(await asyncio.to_thread(reference.seconds, texts))
        finally:
            await workbench.close()
    bare = statistics.median(seconds["bare SentenceTransformer.encode"])
    print(f"{len(texts)} passages, {arguments.threads} threads, medians of {arguments.rounds} rounds")
    print("| what | s | passages/s | beside the bare loop |\n|---|---|---|---|")
    for name, taken in seconds.items():
        median = statistics.median(taken)
        print(f"| {name} | {median:.1f} | {len(texts) / median:.1f} | {bare / median:.2f}x |")
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
