"""Flipped bytes: whatever changes in a vector, a passage or a document is found."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lathe.store.errors import StoreError
from lathe.store.rag.seals import seal, vector_seal
from lathe.store.rag.store import RagStore
from support.rag_stores import make, vector

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]


def build(path: Path) -> dict[str, list[str]]:
    draw = random.Random(7)
    texts = {f"{d}.md": [" ".join(draw.choices(WORDS, k=12)) + f" {d}.{p}" for p in range(6)] for d in range(8)}
    make(path, texts).close()
    return texts


def found(path: Path) -> bool:
    """Whether verification notices anything; refusing to open is noticing."""
    try:
        with RagStore.open(path, read_only=True) as store:
            return not store.verify().sound
    except StoreError:
        return True


def test_every_flipped_byte_of_vectors_and_passages_is_found(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    texts = build(path)
    assert not found(path)
    whole = path.read_bytes()
    values = [vector(text) for passages in texts.values() for text in passages]
    values += [text.encode() for passages in texts.values() for text in passages]
    draw = random.Random(1)
    missed = []
    for value in draw.choices(values, k=200):
        assert value in whole, "a value lies in one piece in the file"
        flipped = bytearray(value)
        flipped[draw.randrange(len(value))] ^= 1 << draw.randrange(8)
        # All copies, because a page that was split keeps a dead one.
        path.write_bytes(whole.replace(value, flipped))
        if not found(path):
            missed.append(value)
    assert not missed


def test_swapped_vectors_are_found(tmp_path: Path) -> None:
    texts = build(tmp_path / "s.db")
    first, second = vector(texts["0.md"][0]), vector(texts["5.md"][3])
    whole = (tmp_path / "s.db").read_bytes()
    swapped = whole.replace(first, b"*" * 64).replace(second, first).replace(b"*" * 64, second)
    (tmp_path / "s.db").write_bytes(swapped)
    assert found(tmp_path / "s.db")


@pytest.mark.parametrize("statement", [
    "DELETE FROM vectors_1 WHERE passage = 3",
    "DELETE FROM passages WHERE id = 3",
    "UPDATE documents SET sha256 = 'x' WHERE id = 2",
    "UPDATE passages SET page = 7 WHERE id = 2",
    "UPDATE columns SET embedder = replace(embedder, 'ab', 'cd')",
    "INSERT INTO words (words, rowid, heading, text) VALUES ('delete', 1, '', 'nothing like it')",
])  # fmt: skip
def test_rows_changed_behind_our_back_are_found(tmp_path: Path, statement: str) -> None:
    build(tmp_path / "s.db")
    with RagStore.open(tmp_path / "s.db") as store:
        store.write(lambda db: db.execute(statement) and None)
        assert store.verify().problems


def test_random_bytes_anywhere_never_hang_or_kill(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    build(path)
    whole = path.read_bytes()
    draw = random.Random(3)
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(draw.randrange(1, 20)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        path.write_bytes(damaged)
        found(path)  # any answer will do; a signal or a foreign exception would end the test


@settings(deadline=None)
@given(st.lists(st.text(max_size=5), min_size=2, max_size=4))
def test_seals_tell_fields_apart(fields: list[str]) -> None:
    joined = ["".join(fields[:2]), *fields[2:]]
    assert seal(fields) != seal(joined)
    assert vector_seal("a", 1, b"s", b"v") != vector_seal("a", 2, b"s", b"v")
