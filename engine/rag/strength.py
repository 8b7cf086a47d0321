"""Is what was found an answer at all? Retrieval always finds something; this tells when it is nothing.

By meaning: the best cosine must stand out from what the question has with passages drawn at random, further than the
best of as many random ones would by chance. By words: the best passage must hold most of the question's words, each
weighed by how rare it is. Invariant: no threshold in cosines, which mean something else for every embedder.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lathe.store.rag import columns, words

if TYPE_CHECKING:
    from lathe.engine.rag.embedding import Vector
    from lathe.store.rag.store import RagStore
    from sqlite_utils import Database as Connection

SAMPLE = 256
COVERAGE = 0.4
"""Share of the question's rarity that the best passage must cover."""
MARGIN = 0.5
"""Standard deviations beyond chance; the tail of cosines is heavier than a normal one."""


def stands_out(store: RagStore, query: Vector, best: float) -> bool:
    """Whether a cosine is more than the best of as many random passages would have."""
    import numpy as np

    def sample(db: Connection) -> list[bytes]:
        column = columns.active(db)
        if column is None or not column.vectors:
            return []
        last = db.execute(f"SELECT max(passage) FROM vectors_{column.number:d}").fetchone()[0]  # noqa: S608
        picked = np.random.default_rng(0).integers(1, last + 1, SAMPLE)
        return list(columns.read(db, column.number, sorted({int(passage) for passage in picked})).values())

    vectors = store.read(sample)
    if len(vectors) < 8:
        return True  # too few to know what chance is
    scores = np.frombuffer(b"".join(vectors), "<f4").reshape(len(vectors), -1) @ query
    column = store.read(columns.active)
    chance = math.sqrt(2 * math.log(max(2, column.vectors if column else len(vectors))))
    # The median and its deviation, because in a small store the sample holds the answer itself.
    middle = float(np.median(scores))
    spread = 1.4826 * float(np.median(np.abs(scores - middle)))
    return best > middle + (min(chance, 3.0) + MARGIN) * spread


def covered(store: RagStore, query: str, passage: int) -> float:
    """How much of a question's words, by rarity, one passage holds: 0 to 1."""

    def work(db: Connection) -> float:
        total = db.execute("SELECT count(*) FROM passages").fetchone()[0]
        held = asked = 0.0
        for term in words.terms(query):
            frequency, here = words.frequency(db, term, passage)
            weight = math.log(1 + (total - frequency + 0.5) / (frequency + 0.5))
            asked += weight
            held += weight if here else 0.0
        return held / asked if asked else 0.0

    return store.read(work)
