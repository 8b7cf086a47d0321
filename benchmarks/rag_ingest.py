"""Ingest end to end beside a bare embedding loop over the same passages on the same backend.

    python benchmarks/rag_ingest.py EMBEDDER.gguf BEIR_FOLDER [--documents 200] [--threads 1]

`bare` hands the passages' texts to the model worker in requests of 32 in the order of the corpus, as a loop around
`SentenceTransformer.encode` does, and keeps nothing. `ingest` splits, counts, stores, seals and indexes besides.
The two alternate, so that a busy machine slows both. Where sentence-transformers is installed and `--reference` names
its folder, its own loop is timed too.
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

from lathe.engine.generation import EmbedRequest
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


async def bare(workbench: LocalWorkbench, model: str, texts: list[str]) -> float:
    """Embed texts in their order and keep nothing."""
    began = time.perf_counter()
    for first in range(0, len(texts), 32):
        await workbench.embed(EmbedRequest(model=model, texts=tuple(texts[first : first + 32])))
    return time.perf_counter() - began


def reference(folder: str, texts: list[str], threads: int) -> float:
    """The loop of sentence-transformers itself."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(threads)
    model = SentenceTransformer(folder, device="cpu")
    began = time.perf_counter()
    model.encode(texts, batch_size=32)
    return time.perf_counter() - began


async def main() -> int:
    """Alternate the two."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("embedder", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--reference")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        part = await asyncio.to_thread(first_documents, arguments.folder, Path(place, "part"), arguments.documents)
        flags = {"serving.threads": str(arguments.threads)}
        workbench = await LocalWorkbench.open(Home(Path(place, "home")), flags=flags)
        try:
            model = str(arguments.embedder.absolute())
            embedder = await open_embedder(workbench, model)
            whole, loop = [], []
            texts: list[str] = []
            for number in range(arguments.rounds):
                seconds, texts = await ingest(Path(place, f"{number}.db"), part, embedder)
                whole.append(seconds)
                loop.append(await bare(workbench, model, texts))
        finally:
            await workbench.close()
        one, other = statistics.median(whole), statistics.median(loop)
        print("| what | passages | s | passages/s | beside the bare loop |\n|---|---|---|---|---|")
        print(f"| bare embedding loop, llama.cpp | {len(texts)} | {other:.1f} | {len(texts) / other:.1f} | 1.00x |")
        print(
            f"| ingest end to end, llama.cpp | {len(texts)} | {one:.1f} | {len(texts) / one:.1f} | {other / one:.2f}x |"
        )
        if arguments.reference:
            seconds = reference(arguments.reference, texts, arguments.threads)
            print(f"| SentenceTransformer.encode, torch | {len(texts)} | {seconds:.1f} | {len(texts) / seconds:.1f} |"
                  f" {other / seconds:.2f}x |")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
