"""The root command: verbs by name, loaded when used; without a verb, the TUI.

Importing every verb would cost a second; the table below knows their names and one-line helps, so `lathe --help`
imports none of them.
"""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

import click
from lathe.engine.errors import ExitCode
from lathe.tui.cli.shell import Shell, boundary, until_unread

VERBS: dict[str, tuple[str, str]] = {
    "demo": ("demo:demo", "Run the whole loop on the embedded model."),
    "doctor": ("doctor:doctor", "What this machine can do, and how to mend each gap."),
    "models": ("models:models", "The catalogue: scan, list, show, verify, estimate, rename, rm."),
    "convert": ("work:convert", "Turn a checkpoint into GGUF or ONNX."),
    "quantize": ("work:quantize", "Quantize a GGUF model."),
    "perplexity": ("work:perplexity", "Perplexity over a text, as llama-perplexity computes it."),
    "kld": ("quality:kld", "Divergence from a base model, with llama-perplexity's statistics."),
    "imatrix": ("quality:imatrix", "Importance matrices: collect, merge, show."),
    "tune": ("tune:tune", "Find the best mix of types for a size, speed or divergence."),
    "toolchain": ("toolchain:toolchain", "llama.cpp's own converter: install, list, pack, remove."),
    "bench": ("bench:bench", "Prompt and generation speed, with llama-bench's rows; its history on this machine."),
    "eval": ("eval:evaluate", "Eval suites: run, compare, gate, judge, harness, review, export, ..."),
    "serve": ("serve:serve", "Serve models over HTTP (OpenAI, Anthropic and Ollama APIs)."),
    "keys": ("serve:keys", "Tokens of the HTTP API: list, make, revoke."),
    "rag": ("rag:rag", "RAG stores: build, add, query, ask, verify, list, eval, reembed."),
    "chat": ("talk:chat", "Talk to a model from the shell."),
    "generate": ("talk:generate", "Complete one prompt, pipes included."),
    "jobs": ("jobs:jobs", "The queue: list, show, log, wait, cancel, resume."),
    "status": ("status:status", "What the engine does now."),
    "watch": ("status:watch", "The same, line by line, until stopped."),
    "logs": ("status:logs", "The engine's log."),
    "config": ("config:config", "Settings with their provenance: show, get, set, unset, path."),
    "engine": ("engine:engine", "The engine process: start, stop, status."),
    "bindings": ("bindings:bindings", "Every key of the terminal workbench."),
    "paths": ("config:paths", "Where this workspace keeps its files."),
}


class Verbs(click.Group):
    """Looks verbs up in the table and imports their module on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the table."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the verb."""
        if cmd_name not in VERBS:
            return None
        module, _, attribute = VERBS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(f"lathe.tui.cli.{module}"), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb, or say which one may be meant."""
        name = args[0] if args else ""
        if name not in VERBS and not name.startswith("-"):
            near = get_close_matches(name, VERBS, n=1)
            ctx.fail(f"no verb {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb; what goes wrong outside the engine, too, ends as one line and an exit code."""
        with boundary(), until_unread():
            return super().invoke(ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table."""
        with formatter.section("Verbs"):
            formatter.write_dl([(name, text) for name, (_, text) in VERBS.items()])


EXAMPLES = """\b
Examples:
  lathe                                      the terminal workbench
  lathe demo                                 see it all work, offline, in minutes
  lathe models scan /models                  find GGUF, safetensors, ONNX, GGML
  lathe convert ./checkpoint --outtype f16   torch-free, streaming
  lathe quantize my-model --type Q4_K_M
  lathe serve my-model-q4_k_m
  lathe --batch nightly.yaml --report junit.xml
"""


@click.group(
    cls=Verbs,
    invoke_without_command=True,
    help=f"Convert, quantize, measure, serve, observe and gate local models.\n\n{EXAMPLES}",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--home", type=click.Path(path_type=Path), help="The workspace (default: LATHE_HOME, else the platform's)."
)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override a setting for this call.")
@click.option("--batch", "plan", type=click.Path(path_type=Path), metavar="PLAN", help="Run a pipeline headless.")
@click.option("--dry-run", is_flag=True, help="With --batch: validate and show what would run.")
@click.option("--resume/--no-resume", default=True, help="With --batch: reuse finished steps (default).")
@click.option("--jsonl", "--json", "jsonl", is_flag=True, help="With --batch: events as JSON lines on stdout.")
@click.option(
    "--report",
    "reports",
    multiple=True,
    type=click.Path(path_type=Path),
    help="With --batch: write .xml (JUnit), .json or .md.",
)
@click.option("--read-only", is_flag=True, help="The TUI shows and changes nothing.")
@click.option("--version", is_flag=True, help="Show the version.")
@click.pass_context
def cli(
    ctx: click.Context, home: Path | None, settings: tuple[str, ...], plan: Path | None, dry_run: bool, resume: bool,
    jsonl: bool, reports: tuple[Path, ...], read_only: bool, version: bool,
) -> None:  # fmt: skip
    """Dispatch: a verb, a batch, or the TUI."""
    ctx.obj = shell = Shell.of(home, settings)
    if version:
        from lathe.engine.release import RELEASE

        click.echo(f"lathe {RELEASE}")
    elif plan is not None:
        if ctx.invoked_subcommand:
            ctx.fail("--batch takes no verb")
        from lathe.tui.cli.batch import run_batch

        ctx.exit(run_batch(shell, plan, dry_run=dry_run, resume=resume, jsonl=jsonl, reports=reports))
    elif ctx.invoked_subcommand is None:
        if dry_run or jsonl or reports:
            ctx.fail("--dry-run, --jsonl and --report belong to --batch")
        from lathe.tui.cli.terminal import run_tui

        ctx.exit(run_tui(shell, read_only=read_only) or int(ExitCode.OK))
