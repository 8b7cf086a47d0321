"""Golden questions: what a store should find, kept in the store itself."""

from __future__ import annotations

from lathe.store.errors import NotFound
from lathe.store.rag.values import Question
from lathe.store.rows import from_row, to_row
from sqlite_utils import Database as Connection


def put(db: Connection, question: Question) -> None:
    """Add a question, or replace the one with its id."""
    db.table("questions").insert(to_row(question, ("relevant",)), pk="id", replace=True)


def listing(db: Connection, *, drafts: bool = False) -> list[Question]:
    """Confirmed questions by id, with drafts when asked."""
    where = "" if drafts else "WHERE state = 'confirmed'"
    rows = db.query(f"SELECT id, text, relevant, answer, state FROM questions {where} ORDER BY id")  # noqa: S608
    return [from_row(Question, row, "questions", ("relevant",)) for row in rows]


def remove(db: Connection, question_id: str) -> None:
    """Forget a question."""
    if not db.execute("DELETE FROM questions WHERE id = ?", [question_id]).rowcount:
        raise NotFound(f"the store has no question {question_id!r}")
