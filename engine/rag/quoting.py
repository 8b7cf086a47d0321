"""Answers in the documents' own words: a grammar that lets a model say nothing but sentences of the passages, cited.

For models too small to be trusted with phrasing, and for answers that must be verbatim: the sentences that share most
words with the question are offered, and the model decides among those that share equally many. Invariant: whatever it
prefers, every sentence of the answer stands in the passage whose number follows it, white space aside.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from lathe.engine.rag.fencing import neutral
from lathe.store.rag.values import StoredPassage
from lathe.store.rag.words import terms

_CHOICES = 6
"""Sentences to choose from."""
_LEAST, _LONGEST = 20, 320
"""Characters of a sentence that says something and can be read at once."""
_PARAGRAPH = re.compile(r"\n\s*\n|\"{3}|'{3}")
"""Where text begins anew; in source code, at a docstring's quotes."""
_SENTENCE = re.compile(r"(?<![\w.])[A-ZÀ-Þ\d“„«].*?[.!?…][\"'”’»)\]]*(?=\s+[^a-zß-ÿ\s]|\s*\Z)")
_WORDY = re.compile(r"[^\W\d_]{2,}")
_STEM = 5
"""Letters that two words must share to count as one."""


def quotations(question: str, passages: Sequence[StoredPassage]) -> list[tuple[int, str]]:
    """Sentences that can be quoted, each once, with the number of their passage; those nearest to the question."""
    asked = _stems(question)
    found: dict[str, tuple[int, int]] = {}
    for number, passage in enumerate(passages, 1):
        for paragraph in _PARAGRAPH.split(passage.text):
            for match in _SENTENCE.finditer(" ".join(neutral(paragraph).split())):
                text = match[0]
                if _LEAST <= len(text) <= _LONGEST and len(_WORDY.findall(text)) >= 3:
                    shared = len(asked & _stems(text))
                    found.setdefault(text, (shared, number))
    most = max((shared for shared, _ in found.values()), default=0)
    return [(number, text) for text, (shared, number) in found.items() if shared == most][:_CHOICES]


def _stems(text: str) -> set[str]:
    return {term.casefold()[:_STEM] for term in terms(text) if len(term) > 2}


def quoting_grammar(question: str, passages: Sequence[StoredPassage]) -> str | None:
    """The grammar (GBNF) of answers that are one quotation; None where there is nothing to quote."""
    choices = [_literal(f"{text} [{number}]") for number, text in quotations(question, passages)]
    return f"root ::= {' | '.join(choices)}\n" if choices else None


def _literal(text: str) -> str:
    escaped = "".join(f"\\{c}" if c in '\\"' else c if c.isprintable() else " " for c in text)
    return f'"{escaped}"'
