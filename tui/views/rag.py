"""Stores of documents as rows and lines: the list, one store's facts, documents, errors, the exploration report. Pure.

Paths, titles and passages are foreign text. Invariant: what is not known (no vectors, never explored) is said, not 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from lathe.engine.jobs.values import FINAL, Job
from lathe.engine.rag.requests import StoreDetails
from lathe.engine.steps import (
    RagBuildStep,
    RagEvalStep,
    RagExploreStep,
    RagGoldenStep,
    RagReembedStep,
    RagVerifyStep,
)
from lathe.store.rag.values import FileError, StoredDocument, StoredPassage, StoreStats
from lathe.tui import formats
from lathe.tui.glyphs import Glyphs
from lathe.tui.text import advice
from lathe.tui.text import line as one_line
from lathe.tui.widgets.columns import Column
from lathe.tui.widgets.grid import Cell, Row
from lathe.tui.widgets.paint import Line, bar, histogram, wrap

if TYPE_CHECKING:
    from lathe.engine.rag.ingest.report import QualityReport

STORES = (
    Column("store", least=16, most=24, flex=True, sort="name"),
    Column("docs", ">", least=4, sort="documents"),
    Column("passages", ">", rank=1, least=6, sort="passages"),
    Column("dim", ">", rank=5, least=4),
    Column("embedder", rank=3, least=8, most=26),
    Column("size", ">", rank=2, least=5, sort="size"),
    Column("errors", ">", rank=4, least=4, sort="errors"),
    Column("updated", ">", rank=2, least=5),
    Column("state", least=8, most=16),
)
DOCUMENTS = (
    Column("document", least=20, most=70, flex=True, sort="path", end=True),
    Column("title", rank=4, least=8, most=30),
    Column("type", rank=2, least=6, most=10, sort="type"),
    Column("passages", ">", least=4, sort="passages"),
    Column("chars", ">", rank=1, least=5, sort="chars"),
    Column("lang", rank=5, least=4),
    Column("parser", rank=6, least=6, most=18),
    Column("findings", rank=3, least=8, most=18),
)
PASSAGES = (
    Column("#", ">", least=3, sort="ordinal"),
    Column("page", ">", rank=2, least=4),
    Column("tokens", ">", rank=1, least=4, sort="tokens"),
    Column("kind", rank=3, least=5, most=10),
    Column("heading", rank=2, least=8, most=30),
    Column("text", least=20, most=200, flex=True),
)
ERRORS = (
    Column("file", least=20, most=60, flex=True, sort="path", end=True),
    Column("code", least=8, most=22, sort="code"),
    Column("why", least=16, most=100, flex=True),
)
_KINDS = {"document": "docx", "presentation": "pptx", "sheet": "xlsx", "ms-excel": "xls", "ms-outlook": "msg"}
"""What media types of Office end with."""
RAG_STEPS = (RagBuildStep, RagReembedStep, RagVerifyStep, RagGoldenStep, RagEvalStep, RagExploreStep)


def store_rows(
    stores: Sequence[StoreStats], jobs: Sequence[Job], glyphs: Glyphs, watched: Collection[str] = ()
) -> list[Row]:
    """Every store; `watched` are those that follow their folders."""
    return [_store(store, jobs, glyphs, store.settings.name in watched) for store in stores]


def _store(store: StoreStats, jobs: Sequence[Job], glyphs: Glyphs, watched: bool) -> Row:
    name, active = store.settings.name, store.active
    state, ink = _state(store, jobs, glyphs)
    if watched and ink != "accent":
        state, ink = f"{glyphs.good} watched", "good"
    finished = store.version.finished_at if store.version else None
    cells: tuple[Cell, ...] = (
        (name, "value"),
        formats.count(store.documents),
        formats.count(store.passages),
        str(active.embedder.dimensions) if active else formats.NONE,
        (active.embedder.name if active else "words only", "dim"),
        formats.size(store.bytes),
        (str(store.errors), "warn" if store.errors else "dim"),
        (formats.moment(finished)[5:] if finished else formats.NONE, "dim"),
        (state, ink),
    )
    fields: dict[str, str | float | None] = {
        "name": name, "documents": store.documents, "passages": store.passages, "size": store.bytes / (1 << 20),
        "errors": store.errors, "state": state.split(" ", 1)[-1], "embedder": active.embedder.name if active else None,
    }  # fmt: skip
    return Row(name, cells, fields)


def _state(store: StoreStats, jobs: Sequence[Job], glyphs: Glyphs) -> tuple[str, str]:
    job = store_job(jobs, store.settings.name)
    if job is not None and job.state not in FINAL:
        done = f" {formats.percent(job.progress.fraction)}" if job.progress.fraction is not None else ""
        return f"{glyphs.busy} {'building' if isinstance(job.step, RagBuildStep) else 'working'}{done}", "accent"
    if store.version is not None and store.version.finished_at is None:
        return f"{glyphs.warn} unfinished", "warn"
    if not store.documents:
        return f"{glyphs.idle} empty", "dim"
    if store.active is None:
        return f"{glyphs.idle} words", "dim"
    return (f"{glyphs.good} ready", "good") if store.index == "ready" else (f"{glyphs.idle} {store.index}", "dim")


def store_job(jobs: Sequence[Job], store: str) -> Job | None:
    """The store's newest job; one that runs before others."""
    own = [job for job in jobs if isinstance(job.step, RAG_STEPS) and getattr(job.step, "store", None) == store]
    return next((job for job in own if job.state not in FINAL), next(iter(own), None))


def shown_job(jobs: Sequence[Job], store: str) -> Job | None:
    """The store's job, or a measurement on a test set, which belongs to no store, while that alone runs."""
    own = store_job(jobs, store)
    if own is not None and own.state not in FINAL:
        return own
    on_sets = (job for job in jobs if isinstance(job.step, RagEvalStep) and job.step.store is None)
    return next((job for job in on_sets if job.state not in FINAL), own)


def facts(store: StoreStats, details: StoreDetails | None, width: int, height: int, glyphs: Glyphs) -> list[Line]:
    """What one store is: sources, splitter, vectors, history."""
    settings, lines = store.settings, list[Line]()

    def say(name: str, value: str, ink: str = "text") -> None:
        lines.extend([(f"{name:<9}" if not number else " " * 9, "dim"), *line]
                     for number, line in enumerate(wrap(value, width - 9, ink, 2)))  # fmt: skip

    if settings.description:
        say("about", settings.description)
    say("sources", ", ".join(settings.sources) or "none")
    active = store.active
    if active is None:
        say("vectors", "none: it is searched by words", "warn")
    else:
        say("vectors", f"{active.vectors:,} x {active.embedder.dimensions}, {active.embedder.name}")
    building = next((column for column in store.columns if column.state == "building"), None)
    if building is not None:
        say("next", f"{building.embedder.name}: {building.vectors:,} of {store.passages:,}", "accent")
    splitter = settings.splitter
    say("passages", f"of {splitter.tokens} tokens, overlap {splitter.overlap}")
    say("index", store.index or formats.NONE, "text" if store.index in ("ready", "") else "warn")
    if store.prefilter is not None:
        say("search", f"bits first, recall@10 {store.prefilter.recall:.4f} on its own vectors")
    say(
        "golden", f"{formats.many(store.questions, 'question')}" if store.questions else "none: Q shows how to add some"
    )
    version = store.version
    if version is not None:
        what = [f"{count} {name}" for name, count in (("added", version.added), ("changed", version.changed),
                ("removed", version.removed), ("failed", version.failed)) if count]  # fmt: skip
        say("version", f"{version.number}, {formats.moment(version.finished_at)}  {', '.join(what) or 'no change'}")
    if settings.access:
        say("open to", ", ".join(settings.access))
    if details is not None and details.flags:
        say("findings", ", ".join(f"{name} {count}" for name, count in sorted(details.flags.items())), "warn")
    return lines[:height]


def kind_of(media_type: str) -> str:
    """A type in a word: `docx` for what Office calls a document."""
    name = media_type.rsplit("/", 1)[-1]
    return _KINDS.get(name.rsplit(".", 1)[-1], name.removeprefix("x-").removesuffix("+zip").removesuffix("+json"))


def document_rows(documents: Sequence[StoredDocument]) -> list[Row]:
    """What was read."""
    return [
        Row(
            document.path,
            (
                document.path,
                (document.title, "dim"),
                (kind_of(document.media_type), "dim"),
                str(document.passages),
                formats.count(document.chars),
                document.language or formats.NONE,
                (document.parser, "dim"),
                (" ".join(f"{name} {count}" for name, count in document.flags.items()) or formats.NONE, "warn"),
            ),
            {"path": document.path, "type": document.media_type, "passages": document.passages,
             "chars": document.chars, "title": document.title, "language": document.language},
        )
        for document in documents
    ]  # fmt: skip


def passage_rows(passages: Sequence[StoredPassage]) -> list[Row]:
    """Passages of a document, in order."""
    return [
        Row(
            str(passage.id),
            (
                str(passage.ordinal + 1),
                str(passage.page) if passage.page is not None else formats.NONE,
                str(passage.tokens),
                (passage.kind, "dim"),
                (passage.heading, "dim"),
                passage.text,
            ),
            {"ordinal": passage.ordinal, "tokens": passage.tokens, "text": passage.text, "heading": passage.heading},
        )
        for passage in passages
    ]


def error_rows(errors: Sequence[FileError]) -> list[Row]:
    """Files that gave no text, and why."""
    return [
        Row(
            error.path,
            (error.path, (error.code, "warn"), advice(error.message, error.hint)),
            {"path": error.path, "code": error.code, "why": error.message},
        )
        for error in errors
    ]


# -- the exploration report -------------------------------------------------------------------------------------------
def report_lines(report: QualityReport, width: int, glyphs: Glyphs) -> list[Line]:
    """Counts, lengths, formats, languages, duplicates, findings, with samples to judge them by."""
    lines: list[Line] = [
        [("documents ", "dim"), (f"{report.documents:,}", "value"), ("   passages ", "dim"),
         (f"{report.passages:,}", "value"), ("   tokens ", "dim"), (f"{report.tokens:,}", "value")],
        [("characters ", "dim"), (f"{report.characters:,}", "text"), ("   incomplete ", "dim"),
         (str(report.incomplete_documents), "text"), ("   skipped ", "dim"), (str(report.skipped_files), "text")],
        [],
    ]  # fmt: skip
    lines += _lengths(report, width, glyphs)
    kinds: Counter[str] = Counter()
    for name, count in report.formats.items():
        kinds[kind_of(name)] += count
    for title, counts in (
        ("Formats", kinds), ("Languages", report.languages), ("Encodings", report.encodings),
        ("Files without text", report.problems), ("Findings", report.flags),
    ):  # fmt: skip
        if counts:
            lines += [[(title, "title")], *_bars(counts, width, glyphs), []]
    lines += _duplicates(report, width)
    if report.flagged_samples:
        lines.append([("Passages with findings", "title")])
        for sample in report.flagged_samples:
            where = f"{sample.kind}  {sample.path} #{sample.ordinal + 1}"
            lines += [[(one_line(where, width), "warn")], *wrap(sample.text, width - 2, "dim", 2), []]
    return lines


def _lengths(report: QualityReport, width: int, glyphs: Glyphs) -> list[Line]:
    lengths = report.lengths
    if not lengths.histogram:
        return []
    counts = [one.count for one in lengths.histogram]
    room = min(width, 6 * len(counts))
    first, last = lengths.histogram[0].low, lengths.histogram[-1]
    end = f"{last.low}+" if last.high is None else str(last.high)
    return [
        [("Tokens per passage", "title")],
        *histogram(counts, room, glyphs, 3),
        [(f"{first}{end:>{max(1, room - len(str(first)))}}", "dim")],
        [(f"least {lengths.least}   p50 {lengths.p50}   p95 {lengths.p95}   most {lengths.most}", "text"),
         (f"   outliers {lengths.short_outliers} short, {lengths.long_outliers} long", "dim")],
        [],
    ]  # fmt: skip


def _bars(counts: Mapping[str, int], width: int, glyphs: Glyphs) -> list[Line]:
    ranked = sorted(counts.items(), key=lambda item: -item[1])[:12]
    most = max(count for _, count in ranked) or 1
    label = min(28, max(len(name) for name, _ in ranked), max(8, width // 3))
    room = max(4, min(40, width - label - 10))
    return [
        [(f"{one_line(name, label):<{label}} ", "text"), *bar(count / most, room, glyphs), (f" {count:,}", "value")]
        for name, count in ranked
    ]


def _duplicates(report: QualityReport, width: int) -> list[Line]:
    def known(count: int | None) -> str:
        return formats.NONE if count is None else str(count)

    lines: list[Line] = [
        [("Duplicates", "title")],
        [(f"exact {report.exact_duplicates}   near {known(report.near_duplicates)}   "
          f"similar {known(report.similar_duplicates)}   left out {report.dropped}", "text"),
         (f"   of {report.compared:,} compared", "dim")],
    ]  # fmt: skip
    for sample in report.duplicate_samples:
        where = f"{sample.kind} {sample.similarity:.2f}  {sample.path} #{sample.ordinal + 1}"
        lines += [
            [(one_line(f"{where} = {sample.of_path} #{sample.of_ordinal + 1}", width), "text")],
            *wrap(sample.text, width - 2, "dim", 1),
        ]
    return [*lines, []]
