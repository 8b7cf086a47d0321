"""What is conspicuous in one passage, for stores and screens that flag passages one by one."""

from __future__ import annotations

from collections import Counter

from lathe.engine.rag.ingest.injection import find_injection
from lathe.engine.rag.ingest.personal import find_personal

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
