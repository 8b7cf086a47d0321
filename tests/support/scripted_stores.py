"""The RAG stores of the scripted workbench: two stores, their passages, answers that cite."""

from __future__ import annotations

from lathe.engine.rag.ingest.report import Bar, DuplicateSample, FlaggedSample, Lengths, QualityReport
from lathe.engine.rag.requests import (
    Answered,
    AskEvent,
    Checked,
    Citation,
    Hit,
    PassageView,
    Retrieved,
    Said,
    SearchRequest,
    SearchResult,
    SentenceSupport,
    SourceScore,
    StoreDetails,
)
from lathe.store.rag.values import (
    Change,
    Column,
    CorpusVersion,
    EmbedderIdentity,
    FileError,
    Question,
    Relevant,
    StoredDocument,
    StoredPassage,
    StoreSettings,
    StoreStats,
)

T0 = 1_763_600_000.0
MINILM = EmbedderIdentity(
    name="all-minilm-l6-v2", kind="gguf", sha256="a1" * 32, dimensions=384, max_tokens=256, pooling="mean"
)
TEXTS = (
    ("handbook/vpn.md", ("Network", "VPN"), "Reset the token in the portal, then sign in again."),
    ("handbook/vpn.md", ("Network", "VPN"), "The token is valid for eight hours."),
    ("handbook/printers.pdf", ("Printers",), "Printers are found by their room number."),
)
ANSWER = "Reset the token in the portal [1]. It is valid for eight hours [2]."


def passages() -> list[StoredPassage]:
    """Every passage of the store `handbook`."""
    return [
        StoredPassage(
            id=number, document=1 if path.endswith("md") else 2, path=path, ordinal=number - 1, text=text,
            heading=" › ".join(headings), heading_path=headings, start=0, end=len(text),
            page=3 if path.endswith("pdf") else None, kind="paragraph", tokens=len(text.split()), flags={},
        )
        for number, (path, headings, text) in enumerate(TEXTS, 1)
    ]  # fmt: skip


def stats() -> list[StoreStats]:
    """Two stores: one embedded, one with words only."""
    version = CorpusVersion(
        number=2, started_at=T0, finished_at=T0 + 61, added=1, changed=1, failed=1, documents=2, passages=3
    )
    return [
        StoreStats(
            settings=StoreSettings(name="handbook", description="how things are done", sources=("/srv/handbook",)),
            documents=2, passages=3, errors=1, version=version, questions=0, bytes=172_032, index="ready",
            columns=(Column(number=1, embedder=MINILM, state="active", created_at=T0, vectors=3),),
        ),
        StoreStats(
            settings=StoreSettings(name="notes", sources=("/home/ann/notes",)), documents=0, passages=0, errors=0,
            columns=(), version=None, questions=0, bytes=86_016, index="no vectors",
        ),
    ]  # fmt: skip


def details(store: StoreStats) -> StoreDetails:
    """A store with its documents, errors and versions."""
    if not store.documents:
        return StoreDetails(stats=store)
    common = {
        "source": "/srv/handbook", "size": 900, "mtime_ns": 1, "language": "en", "partition": "", "metadata": {},
        "flags": {}, "chars": 90,
    }  # fmt: skip
    rows = (
        StoredDocument(id=2, path="handbook/printers.pdf", sha256="c3" * 32, media_type="application/pdf", version=2,
                       title="Printers", parser="pypdf 6.14", passages=1, **common),
        StoredDocument(id=1, path="handbook/vpn.md", sha256="b2" * 32, media_type="text/markdown", version=1,
                       title="VPN", parser="markdown", passages=2, **common),
    )  # fmt: skip
    error = FileError(path="handbook/old.doc", code="E_DATA", message="the file is encrypted", version=2)
    assert store.version is not None
    return StoreDetails(
        stats=store, documents=rows, errors=(error,), versions=(store.version,),
        changes=(Change(version=2, path="handbook/printers.pdf", what="added", after="c3" * 32),),
    )  # fmt: skip


def questions() -> list[Question]:
    """One confirmed, one draft."""
    return [
        Question(id="draft-3", text="How are printers found?", relevant=(Relevant("handbook/printers.pdf", 0, 43),),
                 state="draft"),
        Question(id="q1", text="How long is the token valid?", relevant=(Relevant("handbook/vpn.md"),)),
    ]  # fmt: skip


def search(request: SearchRequest) -> SearchResult:
    """Passages that share a word with the query, in their order."""
    words = set(request.query.lower().split())
    found = [p for p in passages() if words & set(p.text.lower().rstrip(".").replace(",", "").split())]
    hits = tuple(
        Hit(rank=rank, score=1 / (60 + rank), passage=passage,
            sources={"dense": SourceScore(rank, 0.8 - rank / 10), "bm25": SourceScore(rank, 9.0 - rank)})
        for rank, passage in enumerate(found[: request.k], 1)
    )  # fmt: skip
    return SearchResult(hits=hits, mode=request.mode, timings={"embed": 0.004, "dense": 0.001, "total": 0.006})


def answer(result: SearchResult) -> list[AskEvent]:
    """What an ask streams: the answer in words, and support that the second sentence has only from [2]."""
    if not result.hits:
        text = "Not in the documents."
        return [Retrieved(result=result, given=(), weak=True), Said(text), Answered(text=text, in_documents=False)]
    given = tuple(Citation(number=hit.rank, passage=hit.passage) for hit in result.hits)
    pieces: list[AskEvent] = [Said(word) for word in ANSWER.replace(" ", " \0").split("\0")]
    middle = ANSWER.index(" It ")
    sentences = (
        SentenceSupport(text=ANSWER[:middle], start=0, end=middle, gain=2.1, passages=(1.8, 0.1), supported=True),
        SentenceSupport(
            text=ANSWER[middle:].strip(), start=middle, end=len(ANSWER), gain=0.9, passages=(0.0, 0.8), supported=True
        ),
    )
    return [
        Retrieved(result=result, given=given), *pieces, Answered(text=ANSWER, cited=(1, 2)),
        Checked(sentences=sentences),
    ]  # fmt: skip


def view(passage: StoredPassage) -> PassageView:
    """A passage that stands alone."""
    return PassageView(passage=passage, text=passage.text, start=0, end=len(passage.text), source="/srv/handbook")


def report(store: StoreStats) -> QualityReport | None:
    """The exploration of a store that has documents."""
    if not store.documents:
        return None
    return QualityReport(
        version=2, made_at=T0 + 62, seconds=0.01, documents=2, passages=3, characters=130, tokens=24,
        formats={"text/markdown": 1, "application/pdf": 1}, languages={"en": 2}, encodings={"utf-8": 1},
        flags={"email": 1, "zero_width": 4}, flagged_passages={"email": 1}, problems={"E_DATA": 1},
        lengths=Lengths(histogram=(Bar(0, 8, 1), Bar(8, 16, 2), Bar(16, None, 0)), least=7, p50=8, p95=9, most=9),
        near_duplicates=1, similar_duplicates=0, dropped=0, compared=3,
        duplicate_samples=(
            DuplicateSample("handbook/vpn.md", 1, "handbook/vpn.md", 0, "near", 0.86, TEXTS[1][2]),
        ),
        flagged_samples=(FlaggedSample("handbook/printers.pdf", 0, "email", TEXTS[2][2]),),
    )  # fmt: skip
