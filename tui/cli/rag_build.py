"""`lathe rag build`, `add`, `reembed`, `watch`, `access`, `rm`: what changes a store."""

from __future__ import annotations

from contextlib import aclosing
from pathlib import Path
from typing import Any

import click
from lathe.engine.jobs.values import Job
from lathe.engine.rag.requests import StoreDetails, Watched
from lathe.engine.steps import RagBuildStep, RagReembedStep, Step
from lathe.engine.workbench import Workbench
from lathe.store.rag.values import StoreStats
from lathe.tui.cli.follow import run_step
from lathe.tui.cli.numbers import Finite
from lathe.tui.cli.rag_options import as_json_option, detach_option, show_figures
from lathe.tui.cli.shell import Shell, anchored, need_yes, put, put_json, say
from lathe.tui.formats import long_size
from lathe.tui.text import clean


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


@click.command()
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
        store=store, sources=tuple(anchored(source) for source in sources), tokens=tokens, overlap=overlap,
        description=description, embedder=embedder, words_only=words_only, partition=partition,
        mask_personal=mask_personal, drop_injections=drop_injections, duplicates=duplicates, reembed=reembed,
        explore=explore,
    )  # fmt: skip
    _run(shell, step, detach, as_json)


@click.command()
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
        store=store, sources=tuple(anchored(source) for source in sources), embedder=embedder,
        words_only=words_only, partition=partition, mask_personal=mask_personal, drop_injections=drop_injections,
        duplicates=duplicates, reembed=reembed, explore=explore,
    )  # fmt: skip

    async def known(workbench: Workbench) -> StoreDetails:
        return await workbench.store(store)

    shell.run(known, as_json=as_json)
    _run(shell, step, detach, as_json)


@click.command("reembed")
@click.argument("store")
@click.option("--embedder", required=True, metavar="MODEL")
@click.option("--keep", is_flag=True, help="Keep the former vectors in the file.")
@click.option("--least", type=Finite(0, 1), default=0.0, help="Share of golden recall that must be kept.")
@detach_option
@as_json_option
@click.pass_obj
def embed_anew(shell: Shell, store: str, embedder: str, keep: bool, least: float, detach: bool, as_json: bool) -> None:
    """Embed STORE with another model beside the one that answers, then switch."""
    _run(shell, RagReembedStep(store=store, embedder=embedder, keep=keep, least_agreement=least), detach, as_json)


@click.command()
@click.argument("store")
@click.option("--interval", type=Finite(min=0.1), default=2.0, show_default=True, help="Seconds.")
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


@click.command()
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


@click.command("rm")
@click.argument("store")
@click.option("--yes", is_flag=True, help="Do not ask.")
@as_json_option
@click.pass_obj
def remove(shell: Shell, store: str, yes: bool, as_json: bool) -> None:
    """Delete STORE for good; the documents it was made from stay where they are."""
    need_yes(yes, f"Delete store {store} for good? Its documents stay.")

    async def work(workbench: Workbench) -> int:
        return await workbench.remove_store(store)

    free = shell.run(work, as_json=as_json)
    if as_json:
        put_json({"store": store, "bytes": free})
    else:
        say(f"{store} deleted, {long_size(free)} free")


def _run(shell: Shell, step: Step, detach: bool, as_json: bool) -> None:
    raise SystemExit(run_step(shell, step, _show_build, detach=detach, as_json=as_json, then=_embedding_anew))


def _embedding_anew(job: Job) -> str | None:
    """The job that embeds a store anew after its build: it ends with this process, so it is waited for."""
    number = job.outcome.figures.get("reembed_job") if job.outcome else None
    return str(number) if number is not None else None


def _show_build(job: Job) -> None:
    show_figures(job)
    for row in job.outcome.rows if job.outcome else ():
        what = "skipped" if row["skipped"] else "failed"
        say(f"{what}: {clean(str(row['path']))}: {clean(str(row['message']))}")
