"""`lathe rag report`, `diff`, `verify`, `golden`, `eval`: what a store is made of, and how good it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from lathe.engine.errors import ExitCode
from lathe.engine.jobs.values import Job
from lathe.engine.rag.ingest.findings import LABELS
from lathe.engine.rag.ingest.report import QualityReport
from lathe.engine.rag.requests import StoreDiff
from lathe.engine.steps import RagEvalStep, RagExploreStep, RagGoldenStep, RagVerifyStep
from lathe.engine.workbench import Workbench
from lathe.tui.cli.follow import run_step
from lathe.tui.cli.rag_options import MODES, as_json_option, show_figures
from lathe.tui.cli.shell import Shell, put, put_json, put_table, say
from lathe.tui.cli.work import absolute
from lathe.tui.text import clean


@click.command()
@click.argument("store")
@click.option("--fresh", is_flag=True, help="Explore the store anew first.")
@as_json_option
@click.pass_obj
def report(shell: Shell, store: str, fresh: bool, as_json: bool) -> None:
    """What STORE is made of: formats, languages, lengths, duplicates, findings."""
    if fresh and (code := run_step(shell, RagExploreStep(store=store), lambda _: None)):
        raise SystemExit(code)

    async def work(workbench: Workbench) -> QualityReport | None:
        return await workbench.store_report(store)

    found = shell.run(work, as_json=as_json)
    if as_json:
        put_json(found)
    elif found is None:
        say(f"{store} was never explored: `lathe rag report {store} --fresh`")
    else:
        _put_report(store, found)
    raise SystemExit(ExitCode.OK if found else ExitCode.NEGATIVE)


def _put_report(store: str, found: QualityReport) -> None:
    lengths = found.lengths
    put(f"{store}, version {found.version}: {found.documents} documents, {found.passages} passages, "
        f"{found.tokens:,} tokens")  # fmt: skip
    for name, counts in (
        ("formats", found.formats), ("languages", found.languages), ("encodings", found.encodings),
        ("passages with", {LABELS.get(kind, kind): n for kind, n in found.flagged_passages.items()}),
        ("unreadable", found.problems),
    ):  # fmt: skip
        if counts:
            put(f"  {name:<14} " + ", ".join(f"{clean(kind)} {number}" for kind, number in counts.items()))
    put(f"  tokens         least {lengths.least or 0}, median {lengths.p50 or 0}, p95 {lengths.p95 or 0}, "
        f"most {lengths.most or 0}; outliers {lengths.short_outliers} short, {lengths.long_outliers} long")  # fmt: skip
    copies = ("exact", found.exact_duplicates), ("near", found.near_duplicates), ("similar", found.similar_duplicates)
    put("  duplicates     " + ", ".join(f"{kind} {'-' if n is None else n}" for kind, n in copies)
        + f"; {found.dropped} left out of answers")  # fmt: skip
    most = max((bar.count for bar in lengths.histogram), default=0)
    for bar in lengths.histogram:
        if bar.count:
            put(f"  {bar.low:>5}-{bar.high or '':<5} {'#' * max(1, bar.count * 40 // most):<40} {bar.count}")
    for sample in found.duplicate_samples:
        put(f"  {sample.kind} {sample.similarity:.2f}  {clean(sample.path)}#{sample.ordinal} repeats "
            f"{clean(sample.of_path)}#{sample.of_ordinal}")  # fmt: skip


@click.command()
@click.argument("store")
@click.argument("before", type=int, required=False)
@click.argument("after", type=int, required=False)
@as_json_option
@click.pass_obj
def diff(shell: Shell, store: str, before: int | None, after: int | None, as_json: bool) -> None:
    """What came between two versions of STORE (default: with the newest); exit 1 when something did."""

    async def work(workbench: Workbench) -> StoreDiff:
        return await workbench.store_diff(store, before, after)

    found = shell.run(work, as_json=as_json)
    if as_json:
        put_json(found)
    else:
        say(f"version {found.before} -> {found.after}: {len(found.changes)} documents")
        put_table(("what", "document"), [(change.what, clean(change.path)) for change in found.changes])
    raise SystemExit(ExitCode.NEGATIVE if found.changes else ExitCode.OK)


@click.command()
@click.argument("store")
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("--draft", type=click.IntRange(min=1), metavar="N", help="Let MODEL draft questions for N passages.")
@click.option("--model", help="Model that drafts.")
@click.option("--confirm", multiple=True, metavar="ID", help="A draft that is good; repeatable.")
@click.option("--drop", multiple=True, metavar="ID", help="A question to forget; repeatable.")
@as_json_option
@click.pass_obj
def golden(
    shell: Shell, store: str, file: Path | None, draft: int | None, model: str | None, confirm: tuple[str, ...],
    drop: tuple[str, ...], as_json: bool,
) -> None:  # fmt: skip
    """STORE's golden questions, for `rag eval`: those of FILE (JSON lines: id, text, relevant), or drafts."""
    step = RagGoldenStep(
        store=store, file=absolute(file), draft=draft or 0, model=model, confirm=confirm,
        drop=drop,
    )  # fmt: skip
    raise SystemExit(run_step(shell, step, _show_questions, as_json=as_json))


def _show_questions(job: Job) -> None:
    rows = [
        (clean(str(row["id"])), row["state"], clean(str(row["text"])), clean(str(row["path"] or "")))
        for row in (job.outcome.rows if job.outcome else ())
    ]
    put_table(("id", "state", "question", "document"), rows)


@click.command()
@click.argument("store")
@click.option("--mend", is_flag=True, help="Make every index again first.")
@as_json_option
@click.pass_obj
def verify(shell: Shell, store: str, mend: bool, as_json: bool) -> None:
    """Compare every row of STORE with its seal; exit 1 when something is damaged."""
    raise SystemExit(run_step(shell, RagVerifyStep(store=store, mend=mend), _show_problems, as_json=as_json))


def _show_problems(job: Job) -> None:
    show_figures(job)
    for row in job.outcome.rows if job.outcome else ():
        put(f"{row['table']} {clean(str(row['row']))}: {clean(str(row['what']))}")


@click.command("eval")
@click.argument("store", required=False)
@click.option("--beir", type=click.Path(path_type=Path), metavar="DIR", help="A test set in BEIR's layout.")
@click.option("--mode", "modes", multiple=True, type=MODES, help="Repeatable (default: all three).")
@click.option("--embedder", "embedders", metavar="MODEL", multiple=True, help="Repeatable: each is measured.")
@click.option("--tokens", type=click.IntRange(min=16), multiple=True, help="Budget of passages; repeatable.")
@click.option("--reranker", metavar="MODEL")
@click.option("--split", default="test", show_default=True)
@click.option("--passages", is_flag=True, help="Cut documents as stores do, instead of one vector each.")
@as_json_option
@click.pass_obj
def evaluate(
    shell: Shell, store: str | None, beir: Path | None, modes: tuple[Any, ...], embedders: tuple[str, ...],
    tokens: tuple[int, ...], reranker: str | None, split: str, passages: bool, as_json: bool,
) -> None:  # fmt: skip
    """How good retrieval is: on a BEIR set, or on STORE's golden questions."""
    if (store is None) == (beir is None):
        raise click.UsageError("give either STORE or --beir DIR")
    step = RagEvalStep(
        store=store, beir=absolute(beir), modes=modes or ("bm25", "dense", "hybrid"),
        embedder=embedders[0] if len(embedders) == 1 else None, embedders=embedders if len(embedders) > 1 else (),
        tokens=tokens, reranker=reranker, split=split, passages=passages,
    )  # fmt: skip
    raise SystemExit(run_step(shell, step, _show_table, as_json=as_json))


def _show_table(job: Job) -> None:
    names = ("ndcg@10", "recall@10", "recall@100", "mrr@10", "p50_ms", "p95_ms")
    found = job.outcome.rows if job.outcome else ()
    about = [name for name in ("embedder", "tokens") if len({row.get(name) for row in found}) > 1]
    rows = [
        (
            row["mode"],
            *(clean(str(row.get(name) or "-")) for name in about),
            *(f"{float(row[name] or 0):.{1 if 'ms' in name else 4}f}" for name in names),
        )
        for row in found
    ]
    put_table(("mode", *about, *names), rows, right=tuple(range(1 + len(about), 7 + len(about))))
