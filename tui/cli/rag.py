"""`lathe rag`: stores from folders of documents, search, cited answers, and how good retrieval is."""

from __future__ import annotations

import click
from lathe.engine.rag.requests import StoreDetails
from lathe.engine.workbench import Workbench
from lathe.store.rag.values import StoreStats
from lathe.tui.cli import rag_build, rag_quality, rag_search
from lathe.tui.cli.rag_options import as_json_option
from lathe.tui.cli.shell import Shell, put, put_json, put_table, say
from lathe.tui.formats import long_size
from lathe.tui.text import clean


@click.group()
def rag() -> None:
    """RAG stores: one file each, made from folders of documents; answers cite their passages."""


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


for verb in (
    rag_build.build, rag_build.add, rag_build.embed_anew, rag_build.watch, rag_build.access, rag_build.remove,
    rag_search.query, rag_search.ask, rag_quality.report, rag_quality.diff, rag_quality.golden, rag_quality.verify,
    rag_quality.evaluate,
):  # fmt: skip
    rag.add_command(verb)
