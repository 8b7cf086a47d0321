"""Documents, passages and failed files: rows in, rows out. Functions run inside a transaction of the caller.

Invariant: a document and its passages change together; vectors of passages whose embedded text stays the same are
kept, so that a changed file costs only its changed passages.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from lathe.store.rag import columns, words
from lathe.store.rag.seals import DOCUMENT_FIELDS, PASSAGE_FIELDS, seal
from lathe.store.rag.values import FileError, NewDocument, NewPassage, StoredDocument, StoredPassage
from lathe.store.rows import from_row, to_row
from sqlite_utils import Database as Connection

_DOCUMENT_COLUMNS = ", ".join(DOCUMENT_FIELDS)
_PASSAGE_SELECT = (
    'SELECT p.id, p.document, d.path, p.ordinal, p.text, p.heading, p.heading_path, p.start, p."end", p.page, p.kind,'
    " p.tokens, p.flags FROM passages p JOIN documents d ON d.id = p.document"
)
_PASSAGE_NAMES = (
    "id", "document", "path", "ordinal", "text", "heading", "heading_path", "start", "end", "page", "kind", "tokens",
    "flags",
)  # fmt: skip
_MANY = 500
"""Rows asked for in one statement."""


def put(db: Connection, document: NewDocument, passages: Sequence[NewPassage], version: int) -> int:
    """Put a document in place of the one of the same path, if any; returns its id."""
    former = by_path(db, document.path)
    kept = columns.detach(db, former.id) if former else {}
    if former:
        _drop(db, former.id)
    row = to_row(document, ("metadata", "flags")) | {"passages": len(passages), "version": version}
    # The seal covers the id, which the database gives; both statements are one transaction.
    names = [name for name in DOCUMENT_FIELDS if name != "id"]
    cursor = db.execute(
        f"INSERT INTO documents ({', '.join(names)}, seal) VALUES ({', '.join('?' * len(names))}, x'')",  # noqa: S608
        [row[name] for name in names],
    )
    document_id = int(cursor.lastrowid)
    db.execute(
        "UPDATE documents SET seal = ? WHERE id = ?",
        [seal([document_id, *(row[name] for name in names)]), document_id],
    )
    _insert(db, document_id, passages, kept)
    db.execute("DELETE FROM errors WHERE path = ?", [document.path])
    record(db, version, document.path, "changed" if former else "added", former.sha256 if former else "",
           document.sha256)  # fmt: skip
    return document_id


def _insert(db: Connection, document_id: int, passages: Sequence[NewPassage], kept: columns.Detached) -> None:
    if not passages:
        return
    # AUTOINCREMENT ids are given here, because the seal covers them and an update would write every row twice.
    row = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'passages'").fetchone()
    first = (row[0] if row else 0) + 1
    rows: list[list[Any]] = []
    for passage_id, passage in enumerate(passages, first):
        fields = to_row(passage, ("heading_path", "flags")) | {"id": passage_id, "document": document_id}
        values = [fields[name] for name in PASSAGE_FIELDS]
        rows.append([*values, seal(values)])
    names = ", ".join(f'"{name}"' for name in PASSAGE_FIELDS)
    marks = ", ".join("?" * (len(PASSAGE_FIELDS) + 1))
    db.conn.executemany(f"INSERT INTO passages ({names}, seal) VALUES ({marks})", rows)  # noqa: S608
    words.add(db, [(row[0], row[4], row[3]) for row in rows])
    if kept:
        columns.attach(db, kept, [(row[0], columns.content_key(row[4], row[3]), row[-1]) for row in rows])


def remove(db: Connection, path: str, version: int) -> bool:
    """Take a document out with everything made from it; tells whether it was there."""
    former = by_path(db, path)
    db.execute("DELETE FROM errors WHERE path = ?", [path])
    if former is None:
        return False
    _drop(db, former.id)
    record(db, version, path, "removed", former.sha256, "")
    return True


def _drop(db: Connection, document_id: int) -> None:
    rows = db.execute("SELECT id, heading, text FROM passages WHERE document = ?", [document_id]).fetchall()
    words.remove(db, rows)
    columns.forget(db, [row[0] for row in rows])
    db.execute("DELETE FROM documents WHERE id = ?", [document_id])


def touch(db: Connection, path: str, mtime_ns: int) -> None:
    """Remember a new time of a document whose content is as it was."""
    row = db.execute(f"SELECT {_DOCUMENT_COLUMNS} FROM documents WHERE path = ?", [path]).fetchone()  # noqa: S608
    place = DOCUMENT_FIELDS.index("mtime_ns")
    if row is not None and row[place] != mtime_ns:
        fields = [*row[:place], mtime_ns, *row[place + 1 :]]
        db.execute("UPDATE documents SET mtime_ns = ?, seal = ? WHERE path = ?", [mtime_ns, seal(fields), path])


def fail(db: Connection, error: FileError) -> None:
    """Note a file that could not be read; what it held before goes, because it is no longer what the file says."""
    former = by_path(db, error.path)
    if former:
        _drop(db, former.id)
    same = db.execute("SELECT 1 FROM errors WHERE path = ? AND code = ? AND message = ? AND size = ?",
                      [error.path, error.code, error.message, error.size]).fetchone()  # fmt: skip
    if same and not former:
        return
    db.table("errors").insert(to_row(error), pk="path", replace=True)
    record(db, error.version, error.path, "failed", former.sha256 if former else "", "")


def record(db: Connection, version: int, path: str, what: str, before: str, after: str) -> None:
    """Note a document's fate in a version; of several within one version, what it comes to."""
    row = db.execute("SELECT what, before FROM changes WHERE version = ? AND path = ?", [version, path]).fetchone()
    if row is not None:
        before = row[1]
        if what == "changed" and row[0] == "added":
            what = "added"
    db.execute("INSERT OR REPLACE INTO changes VALUES (?, ?, ?, ?, ?)", [version, path, what, before, after])


def by_path(db: Connection, path: str) -> StoredDocument | None:
    """One document."""
    row = db.execute(f"SELECT {_DOCUMENT_COLUMNS} FROM documents WHERE path = ?", [path]).fetchone()  # noqa: S608
    return _document(row) if row else None


def listing(db: Connection, limit: int = -1, after: str = "") -> list[StoredDocument]:
    """Documents by path, those after a path."""
    rows = db.execute(
        f"SELECT {_DOCUMENT_COLUMNS} FROM documents WHERE path > ? ORDER BY path LIMIT ?",  # noqa: S608
        [after, limit],
    )
    return [_document(row) for row in rows.fetchall()]


def known(db: Connection, source: str) -> dict[str, tuple[int, int, str]]:
    """path -> (size, mtime_ns, sha256) of what a source has given, failed files with an empty hash."""
    rows = db.execute("SELECT path, size, mtime_ns, sha256 FROM documents WHERE source = ?", [source]).fetchall()
    return {path: (size, mtime, sha256) for path, size, mtime, sha256 in rows}


def failures(db: Connection) -> list[FileError]:
    """Files that could not be read, by path."""
    rows = db.query("SELECT * FROM errors ORDER BY path")
    return [from_row(FileError, row, "errors") for row in rows]


def passages(db: Connection, ids: Iterable[int]) -> dict[int, StoredPassage]:
    """Passages by id; unknown ids are left out."""
    wanted = list(ids)
    found: dict[int, StoredPassage] = {}
    for first in range(0, len(wanted), _MANY):
        part = wanted[first : first + _MANY]
        marks = ", ".join("?" * len(part))
        for row in db.execute(f"{_PASSAGE_SELECT} WHERE p.id IN ({marks})", part).fetchall():
            passage = _passage(row)
            found[passage.id] = passage
    return found


def passages_of(
    db: Connection, document_id: int, first: int = 0, last: int | None = None, limit: int = -1
) -> list[StoredPassage]:
    """A document's passages in order, from one ordinal to another, both included."""
    rows = db.execute(
        f"{_PASSAGE_SELECT} WHERE p.document = ? AND p.ordinal BETWEEN ? AND ? ORDER BY p.ordinal LIMIT ?",
        [document_id, first, 2**62 if last is None else last, limit],
    )
    return [_passage(row) for row in rows.fetchall()]


def every_passage(db: Connection, batch: int = _MANY) -> Iterator[list[StoredPassage]]:
    """All passages by id, a batch at a time; to be used up within the transaction."""
    last = 0
    while rows := db.execute(f"{_PASSAGE_SELECT} WHERE p.id > ? ORDER BY p.id LIMIT ?", [last, batch]).fetchall():
        found = [_passage(row) for row in rows]
        last = found[-1].id
        yield found


def flag_totals(db: Connection) -> dict[str, int]:
    """Kind of finding -> passages that have it."""
    rows = db.execute(
        "SELECT j.key, count(*) FROM passages p, json_each(p.flags) j WHERE p.flags <> '{}' GROUP BY j.key"
    )
    return dict(rows.fetchall())


def text_around(passages: Sequence[StoredPassage]) -> tuple[int, str]:
    """The text that consecutive passages cover, put together from their spans, and where it starts.

    Text between blocks is white space, which no passage holds; it comes back as spaces of the same length.
    """
    if not passages:
        return 0, ""
    start, end = min(p.start for p in passages), max(p.end for p in passages)
    text = [" "] * (end - start)
    for passage in passages:
        text[passage.start - start : passage.end - start] = passage.text
    return start, "".join(text)


def _document(row: Sequence[Any]) -> StoredDocument:
    return from_row(StoredDocument, dict(zip(DOCUMENT_FIELDS, row, strict=True)), "documents", ("metadata", "flags"))


def _passage(row: Sequence[Any]) -> StoredPassage:
    fields = dict(zip(_PASSAGE_NAMES, row, strict=True))
    return from_row(StoredPassage, fields, "passages", ("heading_path", "flags"))
