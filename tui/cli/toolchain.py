"""`lathe toolchain`: llama.cpp's own converter, for architectures that ours does not know."""

from __future__ import annotations

from pathlib import Path

import click
from lathe.engine.steps import ToolchainStep
from lathe.tui.cli.follow import run_step
from lathe.tui.cli.shell import Shell, need_yes, put, put_json, put_table
from lathe.tui.cli.work import absolute, job_options, show_figures


@click.group()
def toolchain() -> None:
    """llama.cpp's own converter: fetched once by hash, kept in the workspace, carried to machines without a network."""


@toolchain.command()
@click.option("--from", "source", type=click.Path(path_type=Path), help="Source archive, or a packed toolchain.")
@click.option("--version", help="Of llama-cpp-python (default: the installed one).")
@click.option("--sha256", help="Of the source archive, for versions that Lathe does not know.")
@click.option("--force", is_flag=True, help="Replace an installed one.")
@job_options
@click.pass_obj
def install(
    shell: Shell, source: Path | None, version: str | None, sha256: str | None, force: bool, detach: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Install from a file, or fetch through pip where the workspace is not offline."""
    step = ToolchainStep(source=absolute(source), version=version, sha256=sha256, force=force)
    raise SystemExit(run_step(shell, step, show_figures, detach=detach, as_json=as_json))


@toolchain.command("list")
@click.option("--json", "as_json", is_flag=True)
@click.pass_obj
def list_(shell: Shell, as_json: bool) -> None:
    """What is installed."""
    from lathe.engine.toolchain import store

    found = store.listed(shell.home.toolchain)
    if as_json:
        put_json(
            [{"version": one.version, "source_sha256": one.source_sha256, "files": len(one.files)} for one in found]
        )
    else:
        put_table(
            ("version", "files", "source sha256"), ((one.version, len(one.files), one.source_sha256) for one in found)
        )


@toolchain.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="File to write (.tar.gz).")
@click.option("--version", help="Default: the installed llama-cpp-python's.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@click.pass_obj
def pack(shell: Shell, output: Path, version: str | None, force: bool) -> None:
    """Write an installed toolchain as one file, for `install --from` elsewhere."""
    from lathe.engine.toolchain import store

    put(str(store.pack(shell.home.toolchain, output.absolute(), version, force=force)))


@toolchain.command()
@click.argument("version")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def remove(shell: Shell, version: str, yes: bool) -> None:
    """Delete an installed VERSION."""
    from lathe.engine.toolchain import store

    need_yes(yes, f"delete the toolchain {version}?")
    store.remove(shell.home.toolchain, version)
    put(f"deleted {version}")
