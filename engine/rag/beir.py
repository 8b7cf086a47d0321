"""Retrieval test sets in BEIR's layout: `corpus.jsonl`, `queries.jsonl`, `qrels/SPLIT.tsv`.

Invariant: files are read line by line and checked; a corpus larger than memory is never held whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec
from lathe.engine.errors import DataError, MissingError
from lathe.engine.rag.metrics import Judgements
from lathe.engine.rag.values import ParsedDocument, Piece, assemble


class CorpusLine(msgspec.Struct, frozen=True):
    """One document of the corpus."""

    id: str = msgspec.field(name="_id")
    text: str = ""
    title: str = ""


class _QueryLine(msgspec.Struct, frozen=True):
    id: str = msgspec.field(name="_id")
    text: str


class BeirSet(msgspec.Struct, frozen=True, kw_only=True):
    """A test set: its questions and judgements; the corpus stays on disk."""

    folder: str
    queries: dict[str, str]
    """Only those that are judged."""
    judgements: Judgements


Line = TypeVar("Line", CorpusLine, _QueryLine)


def read_set(folder: Path, split: str = "test") -> BeirSet:
    """Read the questions and judgements of a set.

    Raises:
        MissingError: a file of the layout is not there. DataError: a line is not what it should be.
    """
    for file in ("corpus.jsonl", "queries.jsonl", f"qrels/{split}.tsv"):
        if not (folder / file).is_file():
            raise MissingError(f"{folder} has no {file}", hint="a BEIR set has corpus.jsonl, queries.jsonl and qrels/")
    judgements = _judgements(folder / "qrels" / f"{split}.tsv")
    queries = {line.id: line.text for line in _lines(folder / "queries.jsonl", _QueryLine)}
    if missing := judgements.keys() - queries.keys():
        raise DataError(f"{folder}: {len(missing)} judged queries are not in queries.jsonl")
    return BeirSet(folder=str(folder), queries={query: queries[query] for query in judgements}, judgements=judgements)


def corpus(folder: Path) -> Iterator[CorpusLine]:
    """The documents of a set."""
    return _lines(folder / "corpus.jsonl", CorpusLine)


def as_document(line: CorpusLine) -> ParsedDocument:
    """A document of a set as if it had been a file."""
    text, blocks = assemble([Piece(line.text)])
    return ParsedDocument(path=line.id, media_type="text/plain", text=text, blocks=blocks, title=line.title)


def _judgements(path: Path) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            parts = line.rstrip("\n").split("\t")
            if number == 1 and not parts[-1].lstrip("-").isdigit():
                continue  # the heading
            try:
                query, document, grade = parts
                found.setdefault(query, {})[document] = int(grade)
            except ValueError:
                raise DataError(f"{path}:{number}: a judgement is query, document and grade, with tabs") from None
    return found


def _lines(path: Path, kind: type[Line]) -> Iterator[Line]:
    decoder = msgspec.json.Decoder(kind)
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield decoder.decode(line)
            except msgspec.MsgspecError as error:
                raise DataError(f"{path}:{number}: {error}") from error
