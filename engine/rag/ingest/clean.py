"""A document as it was read becomes a document as it is indexed: normal form, hidden characters, findings, language.

Invariant: cleaning is a pure function of document and policy, and clean text cleaned again is unchanged; every
finding is counted on its block and on the document, whether the policy removes it or not.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

import msgspec
from lathe.engine.rag.ingest.characters import scrub
from lathe.engine.rag.ingest.errors import NoText
from lathe.engine.rag.ingest.injection import find_injection
from lathe.engine.rag.ingest.language import guess_language
from lathe.engine.rag.ingest.personal import find_personal, mask
from lathe.engine.rag.ingest.values import Cleaning
from lathe.engine.rag.values import SEPARATOR, Block, ParsedDocument

_SPACES = re.compile(r"[ \t\u00a0\u2000-\u200a\u202f\u205f\u3000]{2,}")
_LINE_END = re.compile(r"(?<![ \t\u00a0])[ \t\u00a0]+$", re.MULTILINE)
"""Looks behind, so that a run inside a line is tried once and not from each of its blanks."""
_BLANK_LINES = re.compile(r"\n{3,}")


def clean(document: ParsedDocument, cleaning: Cleaning) -> ParsedDocument:
    """Clean one document.

    Raises:
        NoText: the policy left nothing of it.
    """
    total = Counter(document.flags)
    tidy = _tidier(cleaning)
    texts: list[str] = []
    blocks: list[Block] = []
    position = 0
    for block in document.blocks:
        flags: Counter[str] = Counter()
        text = _block_text(document.text_of(block), block, cleaning, flags)
        total.update(flags)
        if not text.strip():
            continue
        if texts:
            texts.append(SEPARATOR)
            position += len(SEPARATOR)
        path = tuple(map(tidy, block.heading_path))
        counts = dict(flags) if flags else block.flags
        blocks.append(Block(position, position + len(text), block.kind, block.page, path, counts))
        texts.append(text)
        position += len(text)
    if not blocks:
        raise NoText("cleaning left no text of the document", hint="see what was found in it, or change the policy")
    text = "".join(texts)
    return msgspec.structs.replace(
        document,
        text=text,
        blocks=tuple(blocks),
        title=tidy(document.title),
        metadata={tidy(name): tidy(value) for name, value in document.metadata.items()},
        skipped=tuple(map(tidy, document.skipped)),
        language=_language(document, text),
        flags=dict(total),
    )


def _block_text(text: str, block: Block, cleaning: Cleaning, flags: Counter[str]) -> str:
    """One block's text after every rule; empty where a rule drops it."""
    text = scrub(text, flags, cleaning.form, strip=cleaning.hidden == "strip")
    text = _LINE_END.sub("", text)
    if block.kind != "code":
        text = _BLANK_LINES.sub(SEPARATOR, _SPACES.sub(" ", text)).strip()
    spoken = find_injection(text)
    flags.update(spoken)
    if spoken["injection"] and cleaning.injection == "drop":
        return ""
    personal = find_personal(text, cleaning.phone_region)
    flags.update(finding.kind for finding in personal)
    if personal and cleaning.personal == "drop":
        return ""
    return mask(text, personal) if personal and cleaning.personal == "mask" else text


def _tidier(cleaning: Cleaning) -> Callable[[str], str]:
    """Titles and headings: on one line, without hidden characters, personal data as in the text; each only once."""
    known: dict[str, str] = {}

    def tidy(text: str) -> str:
        if text not in known:
            cleared = " ".join(scrub(text, Counter(), cleaning.form).split())
            if cleaning.personal != "keep":
                cleared = mask(cleared, find_personal(cleared, cleaning.phone_region))
            known[text] = cleared
        return known[text]

    return tidy


def _language(document: ParsedDocument, text: str) -> str | None:
    """What the prose says, past its front, which is often boilerplate; else what the file says of itself."""
    declared = document.language if document.language and re.fullmatch(r"[a-z]{2}", document.language) else None
    prose = [document.text_of(block) for block in document.blocks if block.kind not in ("code", "row", "record")]
    if not prose:
        return declared
    joined = " ".join(prose[len(prose) // 4 :])[:8_000]
    return guess_language(joined) or guess_language(text) or declared
