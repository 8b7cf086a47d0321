"""kill -9 at any moment of an ingest: at most one batch is lost, nothing is repeated, nothing is torn."""

from __future__ import annotations

import random
import time
from collections import Counter
from itertools import takewhile
from pathlib import Path

from lathe.store.rag.store import RagStore
from support.nursery import Nursery
from support.rag_work import BATCH, SETTINGS


def test_f25_killed_builds_lose_at_most_a_batch_each_and_repeat_nothing_else(tmp_path: Path) -> None:
    folder, path = tmp_path / "docs", tmp_path / "k.db"
    folder.mkdir()
    for number in range(40):
        parts = [f"file {number} part {part} with words enough to fill one passage alone" for part in range(6)]
        (folder / f"{number:02}").write_text("\n\n".join(parts))
    draw = random.Random(5)
    embedded: Counter[str] = Counter()
    kills = 0
    with Nursery("support.rag_work:build") as nursery:
        for _ in range(200):
            child = nursery.spawn(str(path), str(folder))
            # By what it has reported, not by the clock: every machine's builds are met at every stage.
            lines = list(takewhile(bool, (child.read() for _ in range(draw.randrange(60)))))
            time.sleep(draw.uniform(0, 0.01))
            lines += child.kill()
            embedded.update(line for line in lines if line.startswith("text "))
            assert not [line for line in lines if not line.startswith(("text ", "done "))]
            if path.exists():
                with RagStore.create(path, SETTINGS) as store:
                    verdict = store.verify()
                    assert verdict.sound, verdict.problems
            if any(line.startswith("done") for line in lines):
                break
            kills += 1
        else:
            raise AssertionError("no build came to its end in 200 tries")
    with RagStore.open(path) as store:
        stats, verdict = store.stats(), store.verify()
        assert (stats.documents, stats.passages) == (40, 240)
        assert stats.active is not None and stats.active.vectors == 240
        assert verdict.sound and verdict.pending == 0
        assert stats.version is not None and (stats.version.number, stats.version.added) == (1, 40)
    assert kills >= 2, "the builds were too fast to be killed"
    assert len(embedded) == 240
    assert sum(embedded.values()) - 240 <= kills * BATCH
