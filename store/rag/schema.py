"""The tables of a RAG store. Everything here is truth; what can be computed again is marked so.

    documents 1--n passages 1--1 vectors_N   (one table of vectors per embedder, made by `columns`)
                        |           '--> index_N   vec0, rebuilt from vectors_N
                        |'--> words   FTS5 over passages, rebuilt from them
                        '--> copies   what repeats what, found again by every exploration
Invariant: each row of documents, passages, columns and vectors carries a seal, a SHA-256 over all of its other fields
and its key, because SQLite's own checks do not notice most flipped bytes.
"""

from __future__ import annotations

from lathe.store.migrations import Schema
from sqlite_utils import Database as Connection

TOKENIZER = "porter unicode61 remove_diacritics 2"
"""Stemming is worth 0.014 nDCG@10 on SciFact, and costs nothing in other languages but English's own endings."""


def m001_corpus(db: Connection) -> None:
    """Documents, their passages, and the files that failed."""
    db.execute("CREATE TABLE meta (key TEXT PRIMARY KEY NOT NULL, value TEXT NOT NULL) STRICT")
    db.execute("""
        CREATE TABLE documents (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            path TEXT NOT NULL UNIQUE, source TEXT NOT NULL, sha256 TEXT NOT NULL,
            size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, media_type TEXT NOT NULL, title TEXT NOT NULL,
            language TEXT, partition TEXT NOT NULL, parser TEXT NOT NULL, metadata TEXT NOT NULL,
            flags TEXT NOT NULL, passages INTEGER NOT NULL, chars INTEGER NOT NULL, version INTEGER NOT NULL,
            seal BLOB NOT NULL
        ) STRICT""")
    db.execute("CREATE INDEX documents_partition ON documents (partition)")
    db.execute("""
        CREATE TABLE passages (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            document INTEGER NOT NULL REFERENCES documents (id) ON DELETE CASCADE,
            ordinal INTEGER NOT NULL, text TEXT NOT NULL, heading TEXT NOT NULL, heading_path TEXT NOT NULL,
            start INTEGER NOT NULL, "end" INTEGER NOT NULL, page INTEGER, kind TEXT NOT NULL,
            tokens INTEGER NOT NULL, flags TEXT NOT NULL, seal BLOB NOT NULL,
            UNIQUE (document, ordinal)
        ) STRICT""")
    db.execute("""
        CREATE TABLE errors (
            path TEXT PRIMARY KEY NOT NULL, code TEXT NOT NULL, message TEXT NOT NULL, hint TEXT NOT NULL,
            size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, version INTEGER NOT NULL
        ) STRICT""")


def m002_columns(db: Connection) -> None:
    """The sets of vectors, one per embedder; the vectors themselves are in `vectors_N`."""
    db.execute("""
        CREATE TABLE columns (
            number INTEGER PRIMARY KEY AUTOINCREMENT, embedder TEXT NOT NULL, state TEXT NOT NULL,
            created_at REAL NOT NULL, seal BLOB NOT NULL
        ) STRICT""")


def m003_words(db: Connection) -> None:
    """The keyword index over passages."""
    db.execute(f"""
        CREATE VIRTUAL TABLE words USING fts5(
            heading, text, content='passages', content_rowid='id', tokenize='{TOKENIZER}'
        )""")


def m004_versions(db: Connection) -> None:
    """What each build changed."""
    db.execute("""
        CREATE TABLE versions (
            number INTEGER PRIMARY KEY AUTOINCREMENT, started_at REAL NOT NULL, finished_at REAL,
            documents INTEGER NOT NULL, passages INTEGER NOT NULL
        ) STRICT""")
    db.execute("""
        CREATE TABLE changes (
            version INTEGER NOT NULL REFERENCES versions (number) ON DELETE CASCADE, path TEXT NOT NULL,
            what TEXT NOT NULL, before TEXT NOT NULL, after TEXT NOT NULL,
            PRIMARY KEY (version, path)
        ) STRICT, WITHOUT ROWID""")


def m005_questions(db: Connection) -> None:
    """Golden questions with their judgements."""
    db.execute("""
        CREATE TABLE questions (
            id TEXT PRIMARY KEY NOT NULL, text TEXT NOT NULL, answer TEXT NOT NULL, state TEXT NOT NULL,
            relevant TEXT NOT NULL
        ) STRICT""")


def m006_copies(db: Connection) -> None:
    """Passages that repeat others, made from the passages; and which files are no documents."""
    db.execute("ALTER TABLE errors ADD COLUMN skipped INTEGER NOT NULL DEFAULT 0")
    db.execute("""
        CREATE TABLE copies (
            passage INTEGER PRIMARY KEY REFERENCES passages (id) ON DELETE CASCADE,
            original INTEGER NOT NULL REFERENCES passages (id) ON DELETE CASCADE,
            kind TEXT NOT NULL, similarity REAL NOT NULL
        ) STRICT""")
    db.execute("CREATE INDEX copies_original ON copies (original)")


RAG = Schema(
    "Lathe RAG store",
    0x4C524147,
    (m001_corpus, m002_columns, m003_words, m004_versions, m005_questions, m006_copies),
)
"""One store: `stores/NAME.db`."""
