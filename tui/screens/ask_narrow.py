"""Where Ask searches and how it chooses: filters, the reranker, novelty. A value, and the form that asks for it.

Invariant: what the form takes is what the shell's options take, so that the command of a search does the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
from lathe.store.rag.values import Filter
from lathe.tui.screens.forms import Field, Form, number
from lathe.tui.screens.store_work import rerankers

if TYPE_CHECKING:
    from lathe.tui.app import LatheApp

NONE = "none"
_LISTS = (
    ("paths", "--path", "documents", "globs over the path, with blanks: handbook/* *.pdf"),
    ("partitions", "--partition", "partitions", "words that were given when documents were added"),
    ("media_types", "--type", "types", "such as application/pdf text/markdown"),
    ("languages", "--language", "languages", "such as en de"),
    ("without_flags", "--without", "not with", "findings, such as injection email"),
)
"""Field of a filter, option of the shell, label, hint."""


class Narrowing(msgspec.Struct, frozen=True, kw_only=True):
    """What a question is kept to."""

    filter: Filter = Filter()
    reranker: str | None = None
    mmr: float | None = None

    def words(self) -> list[str]:
        """The options of the shell that say the same."""
        found: list[str] = []
        for field, option, _, _ in _LISTS:
            found += [word for value in getattr(self.filter, field) for word in (option, value)]
        found += [word for key, value in self.filter.metadata.items() for word in ("--meta", f"{key}={value}")]
        found += ["--reranker", self.reranker] if self.reranker else []
        return found + (["--mmr", f"{self.mmr:g}"] if self.mmr is not None else [])

    def describe(self) -> list[str]:
        """Parts of a title; none where nothing is narrowed."""
        parts = [" ".join(getattr(self.filter, field)) for field, _, _, _ in _LISTS]
        parts += [f"{key}={value}" for key, value in self.filter.metadata.items()]
        parts += [f"reranked by {self.reranker}" if self.reranker else ""]
        parts += [f"novelty {1 - self.mmr:g}" if self.mmr is not None else ""]
        return [part for part in parts if part]


def ask_how(app: LatheApp, now: Narrowing, then: Callable[[Narrowing | None], None]) -> None:
    """Open the form."""
    able = rerankers(app.board)
    chosen = () if now.reranker is None or now.reranker in able else (now.reranker,)
    form = Form(
        "Narrow the search",
        (
            *(
                Field(field, label, " ".join(getattr(now.filter, field)), hint=hint)
                for field, _, label, hint in _LISTS
            ),
            Field("meta", "metadata", " ".join(f"{k}={v}" for k, v in now.filter.metadata.items()),
                  hint="what documents say about themselves: author=Ann", check=_pairs_check),
            Field("reranker", "reranker", now.reranker or NONE, (NONE, *chosen, *able),
                  "a cross-encoder that reads each passage"),
            Field("mmr", "relevance", f"{now.mmr:g}" if now.mmr is not None else "",
                  hint="0.7 trades some for novelty; empty or 1: relevance alone", check=_share_check),
        ),
        yes="Narrow",
        intro="Empty fields narrow nothing.",
    )  # fmt: skip

    def take(values: dict[str, str] | None) -> None:
        if values is None:
            then(None)
            return
        lists = {field: tuple(values[field].split()) for field, _, _, _ in _LISTS}
        pairs = dict(word.split("=", 1) for word in values["meta"].split())
        then(
            Narrowing(
                filter=Filter(**lists, metadata=pairs),
                reranker=None if values["reranker"] == NONE else values["reranker"],
                mmr=float(values["mmr"]) if values["mmr"].strip() else None,
            )
        )

    app.push_screen(form, take)


def _pairs_check(text: str) -> str:
    return "" if all("=" in word.strip("=") for word in text.split()) else "write author=Ann"


def _share_check(text: str) -> str:
    return number(0, 1)(text) if text.strip() else ""
