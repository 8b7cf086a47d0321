"""Is what was found an answer at all? Retrieval always finds something; this tells when it is nothing.

By meaning: the best passage must be far nearer to the question than sentences about everything else in the world are.
(Comparing with the store's own passages fails: in a handbook on one subject, all of them are near.) By words: the best
passage must hold most of the question's words, each weighed by how rare it is in the store. Invariant: no threshold in
cosines, which mean something else for every embedder: distances are counted in standard deviations of the background.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lathe.store.rag import words

if TYPE_CHECKING:
    from lathe.engine.rag.embedding import Embedder, Matrix, Vector
    from lathe.store.rag.store import RagStore
    from sqlite_utils import Database as Connection

COVERAGE = 0.5
"""Share of the question's rarity that the best passage must cover."""
DEVIATIONS = 3.5
"""How far above the background the best cosine must be."""
BACKGROUND = (
    "The goalkeeper saved a penalty in the last minute of the match.",
    "Simmer the sauce for an hour and stir in the grated cheese.",
    "The capital lies on the river and has two million inhabitants.",
    "The central bank raised interest rates to slow inflation.",
    "She took the train to the coast and rented a small house.",
    "The parliament passed the law with a narrow majority.",
    "Water the seedlings twice a week and keep them in the shade.",
    "The doctor prescribed antibiotics for the infection.",
    "The orchestra played the symphony's slow movement beautifully.",
    "Dinosaurs died out about sixty-six million years ago.",
    "The engine needs new spark plugs and an oil change.",
    "He painted the portrait in oils over three winters.",
    "The contract ends thirty days after written notice.",
    "Heavy rain and strong winds are expected tomorrow.",
    "The teacher asked the class to read the second chapter.",
    "Astronomers found a planet that orbits a distant star.",
    "The company's profits rose by ten percent last year.",
    "The dog ran across the field to fetch the ball.",
    "The cathedral was built in the thirteenth century.",
    "Press the button twice to reset the device.",
    "The novel tells the story of two sisters in the war.",
    "Cells copy their DNA before they divide.",
    "The flight was delayed because of fog.",
    "Sort the list and remove the duplicate entries.",
    "The recipe calls for two eggs and a cup of flour.",
    "The mountain was first climbed in 1953.",
    "The jury found him not guilty on all counts.",
    "Bake the bread until the crust is golden brown.",
    "The museum opens at nine and is closed on Mondays.",
    "The vaccine protects most people for several years.",
    "They married in spring and moved to the countryside.",
    "The bridge was closed for repairs after the storm.",
    "The striker signed for the club on a free transfer.",
    "A triangle's angles add up to one hundred and eighty degrees.",
    "The soldiers crossed the border at dawn.",
    "The baby slept through the night for the first time.",
    "Whales sing to each other over hundreds of kilometres.",
    "The shop gives a refund within fourteen days.",
    "The actor won an award for his role in the film.",
    "The farmers harvested the wheat before the rain came.",
)  # fmt: skip


async def background(embedder: Embedder) -> Matrix:
    """What unrelated text looks like to an embedder."""
    return await embedder.embed(BACKGROUND, "passage")


def stands_out(query: Vector, best: float, unrelated: Matrix) -> bool:
    """Whether a cosine is far above those with unrelated text."""
    scores = unrelated @ query
    return bool(best > float(scores.mean()) + DEVIATIONS * float(scores.std()))


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
