"""`lathe rag`: stores from folders of documents, search, cited answers, and how good retrieval is."""

from __future__ import annotations

import sys
from contextlib import aclosing
from pathlib import Path
from typing import Any

import click
from lathe.engine.errors import ExitCode
from lathe.engine.jobs.values import Job
from lathe.engine.rag.ingest.findings import LABELS
from lathe.engine.rag.ingest.report import QualityReport
from lathe.engine.rag.requests import (
    Answered,
    AskRequest,
    Checked,
    Hit,
    Retrieved,
    Said,
    SearchRequest,
    SearchResult,
    StoreDetails,
    StoreDiff,
    Watched,
)
from lathe.engine.steps import (
    RagBuildStep,
    RagEvalStep,
    RagExploreStep,
    RagGoldenStep,
    RagReembedStep,
    RagVerifyStep,
    Step,
)
from lathe.engine.workbench import Workbench
from lathe.store.rag.values import Filter, StoreStats
from lathe.tui.cli.follow import run_step
from lathe.tui.cli.shell import Shell, put, put_json, put_table, say
from lathe.tui.formats import long_size
from lathe.tui.text import clean

MODES = click.Choice(["hybrid", "dense", "bm25"])
as_json_option = click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
detach_option = click.option("--detach", is_flag=True, help="Leave the job to the engine; print its id.")
WIDTH = 240
"""Characters of a passage that a result line shows."""


@click.group()
def rag() -> None:
    """RAG stores: one file each, made from folders of documents; answers cite their passages."""


def _build_options(command: Any) -> Any:
    for option in (
        click.option("--embedder", metavar="MODEL", help="Embedding model (default: the store's, else MiniLM)."),
        click.option("--words-only", is_flag=True, help="Keyword search alone: no vectors."),
        click.option("--partition", default="", metavar="NAME", help="Written on the documents; searches can use it."),
        click.option("--mask-personal", is_flag=True, help="Replace e-mail addresses, numbers and secrets."),
        click.option("--drop-injections", is_flag=True, help="Leave out text that addresses a model."),
        click.option(
            "--duplicates",
            type=click.Choice(["keep", "drop-exact", "drop-near", "drop-similar"]),
            help="Copies that answers leave out (at first drop-exact).",
        ),
        click.option(
            "--reembed",
            type=click.Choice(["auto", "manual"]),
            help="With another embedder: embed anew beside the old vectors (at first auto), or refuse.",
        ),
        click.option("--explore/--no-explore", default=None, help="Make the quality report afterwards."),
        detach_option,
        as_json_option,
    ):
        command = option(command)
    return command


@rag.command()
@click.argument("store")
@click.argument("sources", nargs=-1, type=click.Path(path_type=Path))
@click.option("--tokens", type=click.IntRange(min=16), default=256, show_default=True, help="Budget of a passage.")
@click.option("--overlap", type=click.IntRange(min=0), default=32, show_default=True)
@click.option("--description", default="")
@_build_options
@click.pass_obj
def build(
    shell: Shell, store: str, sources: tuple[Path, ...], tokens: int, overlap: int, description: str,
    embedder: str | None, words_only: bool, partition: str, mask_personal: bool, drop_injections: bool,
    duplicates: Any, reembed: Any, explore: bool | None, detach: bool, as_json: bool,
) -> None:  # fmt: skip
    """Make STORE from SOURCES, or bring it up to date with the folders it was made from."""
    step = RagBuildStep(
        store=store, sources=tuple(str(source.absolute()) for source in sources), tokens=tokens, overlap=overlap,
        description=description, embedder=embedder, words_only=words_only, partition=partition,
        mask_personal=mask_personal, drop_injections=drop_injections, duplicates=duplicates, reembed=reembed,
        explore=explore,
    )  # fmt: skip
    _run(shell, step, detach, as_json)


@rag.command()
@click.argument("store")
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path))
@_build_options
@click.pass_obj
def add(
    shell: Shell, store: str, sources: tuple[Path, ...], embedder: str | None, words_only: bool, partition: str,
    mask_personal: bool, drop_injections: bool, duplicates: Any, reembed: Any, explore: bool | None,
    detach: bool, as_json: bool,
) -> None:  # fmt: skip
    """Add SOURCES to an existing STORE."""
    step = RagBuildStep(
        store=store, sources=tuple(str(source.absolute()) for source in sources), embedder=embedder,
        words_only=words_only, partition=partition, mask_personal=mask_personal, drop_injections=drop_injections,
        duplicates=duplicates, reembed=reembed, explore=explore,
    )  # fmt: skip

    async def known(workbench: Workbench) -> StoreDetails:
        return await workbench.store(store)

    shell.run(known, as_json=as_json)
    _run(shell, step, detach, as_json)


@rag.command("reembed")
@click.argument("store")
@click.option("--embedder", required=True, metavar="MODEL")
@click.option("--keep", is_flag=True, help="Keep the former vectors in the file.")
@click.option("--least", type=click.FloatRange(0, 1), default=0.0, help="Share of golden recall that must be kept.")
@detach_option
@as_json_option
@click.pass_obj
def embed_anew(shell: Shell, store: str, embedder: str, keep: bool, least: float, detach: bool, as_json: bool) -> None:
    """Embed STORE with another model beside the one that answers, then switch."""
    _run(shell, RagReembedStep(store=store, embedder=embedder, keep=keep, least_agreement=least), detach, as_json)


@rag.command("list")
@as_json_option
@click.pass_obj
def list_stores(shell: Shell, as_json: bool) -> None:
    """Every store of the workspace."""

    async def work(workbench: Workbench) -> list[StoreStats]:
        return await workbench.stores()

    found = shell.run(work, as_json=as_json)
    if as_json:
        put_json(found)
        return
    if not found:
        say("no stores yet: `lathe rag build NAME DIR`")
    rows = [
        (
            store.settings.name, store.documents, store.passages, store.errors,
            store.active.embedder.name if store.active else "words only", long_size(store.bytes),
        )
        for store in found
    ]  # fmt: skip
    put_table(("name", "documents", "passages", "errors", "embedder", "size"), rows, right=(1, 2, 3, 5))


@rag.command()
@click.argument("store")
@as_json_option
@click.pass_obj
def show(shell: Shell, store: str, as_json: bool) -> None:
    """STORE with its documents, files that failed, and what changed last."""

    async def work(workbench: Workbench) -> StoreDetails:
        return await workbench.store(store)

    details = shell.run(work, as_json=as_json)
    if as_json:
        put_json(details)
        return
    stats = details.stats
    put(f"{store}: {stats.documents} documents, {stats.passages} passages, {long_size(stats.bytes)}, {stats.index}")
    for column in stats.columns:
        put(f"  {column.state:<9} {column.embedder.name}  {column.vectors} x {column.embedder.dimensions}")
    if stats.prefilter:
        put(f"  prefilter {stats.prefilter.factor} candidates per result, recall@10 {stats.prefilter.recall:.3f}")
    rows = [(clean(d.path), d.media_type, d.passages, d.language or "-") for d in details.documents]
    put_table(("document", "type", "passages", "language"), rows, right=(2,))
    for error in details.errors:
        say(f"failed: {clean(error.path)}: {clean(error.message)}")


def _search_options(command: Any) -> Any:
    for option in (
        click.option("--mode", type=MODES, default="hybrid", show_default=True),
        click.option("--path", "paths", multiple=True, metavar="GLOB", help="Only documents whose path matches."),
        click.option("--partition", "partitions", multiple=True, metavar="NAME"),
        click.option(
            "--without",
            "without",
            multiple=True,
            metavar="FINDING",
            help="Leave out passages with a finding, such as injection.",
        ),
        click.option("--reranker", metavar="MODEL", help="Cross-encoder that orders the best again."),
        as_json_option,
    ):
        command = option(command)
    return command


@rag.command()
@click.argument("store")
@click.argument("question")
@click.option("-k", type=click.IntRange(min=1), default=10, show_default=True)
@click.option("--mmr", type=click.FloatRange(0, 1), help="Trade relevance (1) against novelty (0).")
@click.option("--explain", is_flag=True, help="Scores by source and times by phase.")
@_search_options
@click.pass_obj
def query(
    shell: Shell, store: str, question: str, k: int, mmr: float | None, explain: bool, mode: Any,
    paths: tuple[str, ...], partitions: tuple[str, ...], without: tuple[str, ...], reranker: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Passages of STORE for QUESTION; exit 1 when there are none."""
    request = SearchRequest(
        store=store, query=question, k=k, mode=mode, mmr=mmr, reranker=reranker,
        filter=Filter(paths=paths, partitions=partitions, without_flags=without),
    )  # fmt: skip

    async def work(workbench: Workbench) -> SearchResult:
        return await workbench.search_store(request)

    result = shell.run(work, as_json=as_json)
    if as_json:
        put_json(result)
    else:
        if result.note:
            say(result.note)
        for hit in result.hits:
            _put_hit(hit, explain)
        if explain:
            say("  ".join(f"{name} {seconds * 1000:.1f} ms" for name, seconds in result.timings.items()))
    raise SystemExit(ExitCode.OK if result.hits else ExitCode.NEGATIVE)


def _put_hit(hit: Hit, explain: bool) -> None:
    passage = hit.passage
    place = f"  page {passage.page}" if passage.page is not None else ""
    put(f"[{hit.rank}] {hit.score:.4f}  {clean(passage.path)}{place}  {passage.start}-{passage.end}")
    if explain:
        put("    " + "  ".join(f"{name} #{source.rank} {source.score:.4f}" for name, source in hit.sources.items()))
    text = " ".join(clean(passage.text).split())
    put(f"    {text[:WIDTH]}{'…' if len(text) > WIDTH else ''}")


@rag.command()
@click.argument("store")
@click.argument("question")
@click.option("--model", required=True, help="Model that answers.")
@click.option("-k", type=click.IntRange(min=1), default=6, show_default=True, help="Passages offered to the model.")
@click.option("-n", "--max-tokens", type=click.IntRange(min=1), default=256, show_default=True)
@click.option("--no-support", is_flag=True, help="Do not check which passage causes which sentence.")
@click.option("--quote", is_flag=True, help="Hold the model to the documents' own sentences, word for word.")
@click.option("--always", is_flag=True, help="Let the model answer even when retrieval is weak.")
@_search_options
@click.pass_obj
def ask(
    shell: Shell, store: str, question: str, model: str, k: int, max_tokens: int, no_support: bool, quote: bool,
    always: bool, mode: Any, paths: tuple[str, ...], partitions: tuple[str, ...], without: tuple[str, ...],
    reranker: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Answer QUESTION from STORE with MODEL; exit 1 when it is not in the documents."""
    request = AskRequest(
        store=store, question=question, model=model, k=k, max_tokens=max_tokens, support=not no_support, quote=quote,
        always=always, mode=mode, reranker=reranker,
        filter=Filter(paths=paths, partitions=partitions, without_flags=without),
    )  # fmt: skip

    async def work(workbench: Workbench) -> bool:
        return await _follow_answer(workbench, request, as_json)

    raise SystemExit(ExitCode.OK if shell.run(work, as_json=as_json) else ExitCode.NEGATIVE)


async def _follow_answer(workbench: Workbench, request: AskRequest, as_json: bool) -> bool:
    """Stream the answer to stdout, sources and support to stderr; tells whether it was in the documents."""
    from lathe.tui.text import Cleaner

    cleaner = Cleaner()
    document: dict[str, object] = {}
    found = False
    async with aclosing(workbench.ask_store(request)) as events:
        async for event in events:
            match event:
                case Retrieved():
                    document["sources"] = event.given
                    if not as_json:
                        for source in event.given:
                            say(f"[{source.number}] {clean(source.passage.path)}")
                case Said(text=text) if not as_json:
                    sys.stdout.write(cleaner.feed(text))
                    sys.stdout.flush()
                case Answered():
                    found = event.in_documents
                    document |= {"answer": event.text, "cited": event.cited, "in_documents": found}
                    if not as_json:
                        put(cleaner.close())
                case Checked():
                    document |= {"sentences": event.sentences, "problem": event.problem}
                    if not as_json:
                        _say_support(event)
                case _:
                    pass
    if as_json:
        put_json(document)
    return found


def _say_support(checked: Checked) -> None:
    if checked.problem:
        say(f"support was not measured: {checked.problem}")
    for sentence in checked.sentences:
        best = max(range(len(sentence.passages)), key=lambda i: sentence.passages[i])
        verdict = f"rests on [{best + 1}]" if sentence.supported else "nothing supports it"
        say(f"{sentence.gain:+.2f} nats/token, {verdict}: {clean(sentence.text)[:100]}")


@rag.command()
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
        store=store, file=str(file.absolute()) if file else None, draft=draft or 0, model=model, confirm=confirm,
        drop=drop,
    )  # fmt: skip
    raise SystemExit(run_step(shell, step, _show_questions, as_json=as_json))


def _show_questions(job: Job) -> None:
    rows = [
        (clean(str(row["id"])), row["state"], clean(str(row["text"])), clean(str(row["path"] or "")))
        for row in (job.outcome.rows if job.outcome else ())
    ]
    put_table(("id", "state", "question", "document"), rows)


@rag.command()
@click.argument("store")
@click.option("--mend", is_flag=True, help="Make every index again first.")
@as_json_option
@click.pass_obj
def verify(shell: Shell, store: str, mend: bool, as_json: bool) -> None:
    """Compare every row of STORE with its seal; exit 1 when something is damaged."""
    raise SystemExit(run_step(shell, RagVerifyStep(store=store, mend=mend), _show_problems, as_json=as_json))


def _show_problems(job: Job) -> None:
    _show(job)
    for row in job.outcome.rows if job.outcome else ():
        put(f"{row['table']} {clean(str(row['row']))}: {clean(str(row['what']))}")


@rag.command("eval")
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
        store=store, beir=str(beir.absolute()) if beir else None, modes=modes or ("bm25", "dense", "hybrid"),
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


@rag.command()
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


@rag.command()
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


@rag.command()
@click.argument("store")
@click.option("--interval", type=click.FloatRange(min=0.1), default=2.0, show_default=True, help="Seconds.")
@as_json_option
@click.pass_obj
def watch(shell: Shell, store: str, interval: float, as_json: bool) -> None:
    """Keep STORE up to date with its folders until interrupted."""

    async def work(workbench: Workbench) -> None:
        async with aclosing(workbench.watch_store(store, interval)) as rounds:
            async for seen in rounds:
                if as_json:
                    put_json(seen)
                else:
                    _put_round(seen)

    shell.run(work, as_json=as_json)


def _put_round(seen: Watched) -> None:
    if seen.job.failure is not None:
        say(f"{seen.job.id} failed: {clean(seen.job.failure.message)}")
        return
    figures = seen.job.outcome.figures if seen.job.outcome else {}
    put("  ".join(f"{name} {figures.get(name) or 0}" for name in ("added", "changed", "removed", "embedded", "failed")))


@rag.command()
@click.argument("store")
@click.option("--allow", "allowed", multiple=True, metavar="KEY", help="An API key that may search; repeatable.")
@click.option("--everyone", is_flag=True, help="Every key may search.")
@as_json_option
@click.pass_obj
def access(shell: Shell, store: str, allowed: tuple[str, ...], everyone: bool, as_json: bool) -> None:
    """Show or set which API keys may search STORE; the user of this machine always may."""
    if allowed and everyone:
        raise click.UsageError("give either --allow or --everyone")

    async def work(workbench: Workbench) -> StoreStats:
        if allowed or everyone:
            return await workbench.share_store(store, list(allowed))
        return (await workbench.store(store)).stats

    names = shell.run(work, as_json=as_json).settings.access
    if as_json:
        put_json({"store": store, "access": names})
    else:
        put(", ".join(map(clean, names)) or "every key")


def _run(shell: Shell, step: Step, detach: bool, as_json: bool) -> None:
    raise SystemExit(run_step(shell, step, _show_build, detach=detach, as_json=as_json, then=_embedding_anew))


def _embedding_anew(job: Job) -> str | None:
    """The job that embeds a store anew after its build: it ends with this process, so it is waited for."""
    number = job.outcome.figures.get("reembed_job") if job.outcome else None
    return str(number) if number is not None else None


def _show_build(job: Job) -> None:
    _show(job)
    for row in job.outcome.rows if job.outcome else ():
        what = "skipped" if row["skipped"] else "failed"
        say(f"{what}: {clean(str(row['path']))}: {clean(str(row['message']))}")


def _show(job: Job) -> None:
    for name, value in (job.outcome.figures if job.outcome else {}).items():
        if value is not None:
            put(f"  {name:<20} {value:.6g}" if isinstance(value, float) else f"  {name:<20} {value}")
