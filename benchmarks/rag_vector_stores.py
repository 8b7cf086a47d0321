"""Lathe's store beside Chroma, LanceDB and plain sqlite-vec: the same vectors, each in a fresh process.

    python benchmarks/rag_vector_stores.py --peers PYTHON [--rows 100000] [--only lathe]

PYTHON is the interpreter of an environment with `chromadb`, `lancedb`, `numpy`; the others run in this one. Every
engine gets the vectors in portions of 5,000 and is asked one query at a time after it was closed and opened again.
Lathe's figures include what the others do not do: passages with their text, seals and a keyword index.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

K = 10
PORTION = 5000
ENGINES = ("lathe", "sqlite-vec", "chroma", "lancedb", "lancedb-ivf-pq")
PEERS = ("chroma", "lancedb", "lancedb-ivf-pq")
Search = Callable[[np.ndarray], list[int]]


def lathe(folder: Path, vectors: np.ndarray) -> Callable[[], Search]:
    """A store with passages, words and vectors; searched as the engine does."""
    sys.path.insert(0, str(Path(__file__).parent))
    from rag_query import build

    store = build(folder / "store.db", vectors)
    from lathe.store.rag.knn import Nearest, calibrate
    from lathe.store.rag.store import RagStore

    prefilter = calibrate(store)
    if prefilter is not None:
        store.set_prefilter(prefilter)
    store.close()

    def opened() -> Search:
        nearest = Nearest(RagStore.open(folder / "store.db", read_only=True))
        nearest.warm()
        return lambda query: [passage - 1 for passage, _ in nearest.search(query, K)]

    return opened


def sqlite_vec(folder: Path, vectors: np.ndarray) -> Callable[[], Search]:
    """One vec0 table of floats."""
    sys.path.insert(0, str(Path(__file__).parent))
    from rag_query import plain_sqlite_vec

    plain_sqlite_vec(folder / "plain.db", vectors).close()
    from lathe.store import driver

    def opened() -> Search:
        connection = driver.connect(folder / "plain.db", "ro")
        driver.load_vectors(connection)
        statement = "SELECT id FROM plain WHERE v MATCH ? AND k = ?"
        return lambda query: [row[0] - 1 for row in connection.execute(statement, [query.tobytes(), K])]

    return opened


def chroma(folder: Path, vectors: np.ndarray) -> Callable[[], Search]:
    """A persistent collection with its own defaults (HNSW), cosine."""
    import chromadb

    client = chromadb.PersistentClient(str(folder / "chroma"))
    collection = client.create_collection("bench", configuration={"hnsw": {"space": "cosine"}})
    for first in range(0, len(vectors), PORTION):
        part = vectors[first : first + PORTION]
        collection.add(ids=[str(first + i) for i in range(len(part))], embeddings=part)

    def opened() -> Search:
        again = chromadb.PersistentClient(str(folder / "chroma")).get_collection("bench")
        return lambda query: [
            int(i) for i in again.query(query_embeddings=[query], n_results=K, include=["distances"])["ids"][0]
        ]

    return opened


def lancedb(folder: Path, vectors: np.ndarray, *, index: bool = False) -> Callable[[], Search]:
    """A table, scanned, or with its default index (IVF_PQ), results refined from ten times as many."""
    import lancedb as lance
    import pyarrow as pa

    schema = pa.schema([("id", pa.int64()), ("vector", pa.list_(pa.float32(), vectors.shape[1]))])
    table = lance.connect(folder / "lance").create_table("t", schema=schema)
    for first in range(0, len(vectors), PORTION):
        part = vectors[first : first + PORTION]
        flat = pa.FixedSizeListArray.from_arrays(pa.array(part.ravel()), part.shape[1])
        table.add(pa.table({"id": pa.array(range(first, first + len(part))), "vector": flat}, schema=schema))
    if index:
        table.create_index(metric="cosine", vector_column_name="vector")

    def opened() -> Search:
        again = lance.connect(folder / "lance").open_table("t")

        def search(query: np.ndarray) -> list[int]:
            asked = again.search(query).distance_type("cosine").limit(K).select(["id"])
            return [row["id"] for row in (asked.refine_factor(10) if index else asked).to_list()]

        return search

    return opened


def measure(engine: str, data: Path, folder: Path) -> dict[str, float | str]:
    """Build and ask one engine; runs in a process of its own."""
    vectors, queries, truth = (np.load(data / f"{name}.npy") for name in ("vectors", "queries", "truth"))
    makers: dict[str, Callable[..., Callable[[], Search]]] = {
        "lathe": lathe, "sqlite-vec": sqlite_vec, "chroma": chroma, "lancedb": lancedb,
        "lancedb-ivf-pq": lambda f, v: lancedb(f, v, index=True),
    }  # fmt: skip
    held = _memory()
    began = time.perf_counter()
    opened = makers[engine](folder, vectors)
    build_s = time.perf_counter() - began
    search = opened()
    search(queries[0])
    times, hits = [], 0
    for query, expected in zip(queries, truth, strict=True):
        began = time.perf_counter()
        found = search(query)
        times.append((time.perf_counter() - began) * 1000)
        hits += len(set(expected.tolist()) & set(found))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {
        "engine": engine, "build_s": build_s, "p50_ms": statistics.median(times),
        "p95_ms": sorted(times)[int(len(times) * 0.95)], "recall": hits / (K * len(queries)), "mb": size / 1e6,
        "memory_mb": _memory() - held,
    }  # fmt: skip


def _memory() -> float:
    """Peak of this process so far, MB; what an engine adds to the vectors that are in memory anyway."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


def main() -> int:
    """Draw the vectors, then measure each engine in a child."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", help="interpreter with chromadb and lancedb")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--only", choices=ENGINES, action="append", help="repeatable; default: all")
    parser.add_argument("--engine", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path)
    arguments = parser.parse_args()
    if arguments.engine:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure(arguments.engine, arguments.data, Path(folder))))
            sys.stdout.flush()
            shutil.rmtree(folder, ignore_errors=True)
            os._exit(0)  # some engines keep threads that never end
    sys.path.insert(0, str(Path(__file__).parent))
    from rag_query import draw

    with tempfile.TemporaryDirectory() as place:
        vectors, queries = draw(arguments.rows, 384, arguments.queries)
        truth = np.stack([np.argpartition(-(vectors @ query), K)[:K] for query in queries])
        for name, array in (("vectors", vectors), ("queries", queries), ("truth", truth)):
            np.save(Path(place, f"{name}.npy"), array)
        del vectors
        print(f"{arguments.rows} x 384, {arguments.queries} queries")
        print(
            "| engine | build s | p50 ms | p95 ms | recall@10 | on disk MB | memory MB |\n|---|---|---|---|---|---|---|"
        )
        for engine in arguments.only or ENGINES:
            python = arguments.peers if engine in PEERS else sys.executable
            if python is None:
                continue
            command = [python, __file__, "--engine", engine, "--data", place]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"| {engine} | failed: {done.stderr.strip().splitlines()[-1:]} |")
                continue
            row = json.loads(done.stdout.strip().splitlines()[-1])
            print(f"| {row['engine']} | {row['build_s']:.1f} | {row['p50_ms']:.1f} | {row['p95_ms']:.1f} |"
                  f" {row['recall']:.4f} | {row['mb']:.0f} | {row['memory_mb']:.0f} |")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
