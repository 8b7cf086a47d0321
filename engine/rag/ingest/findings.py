"""What is conspicuous in one passage, for stores and screens that flag passages one by one.

A cleaned document carries its findings on its blocks, because hidden characters are gone from the text by then; a
passage has those of the blocks that it is made of. Text that was never cleaned is looked at with `passage_flags`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from lathe.engine.rag.ingest.injection import find_injection
from lathe.engine.rag.ingest.personal import find_personal
from lathe.engine.rag.values import Block

LABELS = {
    "hidden": "hidden text", "comment": "comments", "control": "control characters", "bidi": "direction overrides",
    "zero_width": "zero-width characters", "tag": "tag characters", "combining": "stacked accents",
    "replaced": "undecodable characters", "injection": "addresses the model", "template_token": "template tokens",
    "email": "e-mail addresses", "phone": "phone numbers", "card": "card numbers", "iban": "bank accounts",
    "identity": "identity numbers", "secret": "secrets",
}  # fmt: skip
"""Every kind of finding in the words of a report; the first nine are findings about the source, the rest about what it
says."""


def passage_flags(text: str, region: str | None = None) -> dict[str, int]:
    """Injection, personal data and secrets in a passage, kind -> count; empty where nothing is conspicuous."""
    found: Counter[str] = find_injection(text)
    found.update(finding.kind for finding in find_personal(text, region))
    return dict(found)


def inherited_flags(blocks: Iterable[Block]) -> dict[str, int]:
    """The findings of a passage that is made of these blocks, or of parts of them; a block counts once."""
    total: Counter[str] = Counter()
    last: Block | None = None
    for block in blocks:
        if block is not last and block.flags:
            total.update(block.flags)
        last = block
    return dict(total)
