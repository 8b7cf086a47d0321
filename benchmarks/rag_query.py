"""Query time of a large column beside plain sqlite-vec: the same vectors, the same machine, one thread each.

    python benchmarks/rag_query.py [--rows 200000] [--dimensions 384]

Vectors are drawn around cluster centres, as embeddings of a corpus are; queries are drawn from the same places. Every
way of searching answers the same queries; recall is against the exact scan. `cold` scans the signatures in the file
through vec0, `warm` those in memory.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
from lathe.store import driver
from lathe.store.rag import columns, documents, versions
from lathe.store.rag.knn import Nearest, calibrate
from lathe.store.rag.store import RagStore
from lathe.store.rag.values import EmbedderIdentity, NewDocument, NewPassage, StoreSettings

PER_DOCUMENT = 1000
K = 10


def draw(rows: int, dimensions: int, queries: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors around 1,000 centres with an effective dimension like that of sentence embeddings."""
    random = np.random.default_rng(0)
    mix = random.normal(size=(96, dimensions)).astype(np.float32)
    centres = random.normal(size=(1000, 96)).astype(np.float32)

    def some(count: int) -> np.ndarray:
        latent = centres[random.integers(1000, size=count)] + random.normal(size=(count, 96)).astype(np.float32)
        vectors = latent @ mix
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype("<f4")

    return some(rows), some(queries)


def build(path: Path, vectors: np.ndarray) -> RagStore:
    """A store of one-line passages with these vectors."""
    store = RagStore.create(path, StoreSettings(name="bench"))
    dimensions = vectors.shape[1]
    identity = EmbedderIdentity(name="b", kind="scripted", sha256="0" * 64, dimensions=dimensions, max_tokens=256)
    number = store.write(lambda db: columns.create(db, identity, 0.0))
    for first in range(0, len(vectors), PER_DOCUMENT):
        part = vectors[first : first + PER_DOCUMENT]
        row = NewDocument(path=f"{first:08}", source="", sha256="", size=0, mtime_ns=0, media_type="text/plain")
        passages = [
            NewPassage(ordinal=i, text=f"passage {first + i}", heading="", heading_path=(), start=0, end=1, page=None,
                       kind="paragraph", tokens=2)
            for i in range(len(part))
        ]  # fmt: skip

        def work(db, row=row, passages=passages, part=part, first=first) -> None:
            documents.put(db, row, passages, versions.begin(db, 0.0))
            columns.put(db, number, [(first + i + 1, vector.tobytes()) for i, vector in enumerate(part)])

        store.write(work)
    store.write(lambda db: columns.activate(db, number))
    return store


def plain_sqlite_vec(path: Path, vectors: np.ndarray) -> driver.Connection:
    """What a user of sqlite-vec has: one vec0 table of floats."""
    path.touch()
    connection = driver.connect(path, "rw")
    driver.load_vectors(connection)
    connection.execute(f"CREATE VIRTUAL TABLE plain USING vec0(id INTEGER PRIMARY KEY, v FLOAT[{vectors.shape[1]}])")
    connection.execute("BEGIN")
    connection.executemany(
        "INSERT INTO plain VALUES (?, ?)", ((i + 1, vector.tobytes()) for i, vector in enumerate(vectors))
    )
    connection.execute("COMMIT")
    return connection


def timed(name: str, search: Callable[[np.ndarray], list[int]], queries: np.ndarray, truth: list[set[int]]) -> float:
    """Time every query; print the row; return the median in milliseconds."""
    search(queries[0])
    times, hits = [], 0
    for query, expected in zip(queries, truth, strict=True):
        began = time.perf_counter()
        found = search(query)
        times.append((time.perf_counter() - began) * 1000)
        hits += len(expected & set(found))
    median = statistics.median(times)
    p95 = sorted(times)[int(len(times) * 0.95)]
    print(f"| {name} | {median:.2f} | {p95:.2f} | {hits / (K * len(queries)):.4f} |")
    return median


def main() -> int:
    """Build both, ask both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dimensions", type=int, default=384)
    parser.add_argument("--queries", type=int, default=100)
    arguments = parser.parse_args()
    vectors, queries = draw(arguments.rows, arguments.dimensions, arguments.queries)
    truth = [{int(i) + 1 for i in np.argpartition(-(vectors @ query), K)[:K]} for query in queries]
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        connection = plain_sqlite_vec(Path(folder, "plain.db"), vectors)
        plain_s = time.perf_counter() - began
        began = time.perf_counter()
        store = build(Path(folder, "store.db"), vectors)
        store_s = time.perf_counter() - began
        del vectors
        sizes = [Path(folder, name).stat().st_size / 1e6 for name in ("plain.db", "store.db")]
        print(f"{arguments.rows} x {arguments.dimensions}; build: plain {plain_s:.1f} s, store {store_s:.1f} s;"
              f" on disk: plain {sizes[0]:.0f} MB, store {sizes[1]:.0f} MB")  # fmt: skip
        began = time.perf_counter()
        prefilter = calibrate(store)
        print(f"calibration {time.perf_counter() - began:.1f} s: {msgspec.json.encode(prefilter).decode()}")
        if prefilter is not None:
            store.set_prefilter(prefilter)
        print("| search | p50 ms | p95 ms | recall@10 |\n|---|---|---|---|")

        def plain(query: np.ndarray) -> list[int]:
            statement = "SELECT id FROM plain WHERE v MATCH ? AND k = ?"
            return [row[0] for row in connection.execute(statement, [query.tobytes(), K])]

        baseline = timed("sqlite-vec, float KNN", plain, queries, truth)
        nearest = Nearest(store)
        cold = timed(
            "Lathe, cold (vec0 bits + rescore)", lambda q: [i for i, _ in nearest.search(q, K)], queries, truth
        )
        began = time.perf_counter()
        nearest.warm()
        warm_s = time.perf_counter() - began
        warm = timed("Lathe, warm (bits in memory + rescore)", lambda q: [i for i, _ in nearest.search(q, K)], queries,
                     truth)  # fmt: skip
        print(f"warming {warm_s:.2f} s; p50 beside plain: cold {cold / baseline:.3f}x, warm {warm / baseline:.3f}x;"
              f" peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")  # fmt: skip
        store.close()
        connection.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
