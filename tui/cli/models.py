"""`lathe models`: the catalogue from the shell."""

from __future__ import annotations

from pathlib import Path

import click
from lathe.engine.jobs.values import Job
from lathe.engine.states import Fit
from lathe.engine.steps import ScanStep, VerifyStep
from lathe.engine.workbench import ModelAlias, ModelDetails, Workbench
from lathe.engine.worker.messages import LoadOptions
from lathe.store.models import ModelEntry
from lathe.tui.cli.follow import run_step
from lathe.tui.cli.numbers import GPU_LAYERS
from lathe.tui.cli.shell import Shell, anchored, need_yes, put, put_json, put_table, say
from lathe.tui.formats import long_size

as_json_option = click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")


@click.group()
def models() -> None:
    """The catalogue: files stay where they are, Lathe keeps what it knows about them."""


@models.command()
@click.argument("roots", nargs=-1, type=click.Path(file_okay=False, path_type=Path))
@click.option("--no-hashes", is_flag=True, help="Do not compute sha256 now.")
@as_json_option
@click.pass_obj
def scan(shell: Shell, roots: tuple[Path, ...], no_hashes: bool, as_json: bool) -> None:
    """Find models in ROOTS, or in the standard places (HF cache, Ollama, LM Studio, the workspace)."""
    step = ScanStep(roots=tuple(anchored(root) for root in roots), hashes=not no_hashes)

    def show(job: Job) -> None:
        figures = job.outcome.figures if job.outcome else {}
        put("  ".join(f"{name} {value}" for name, value in figures.items()))

    raise SystemExit(run_step(shell, step, show, as_json=as_json))


@models.command("list")
@as_json_option
@click.pass_obj
def list_models(shell: Shell, as_json: bool) -> None:
    """Every model of the workspace."""

    async def work(workbench: Workbench) -> list[ModelEntry]:
        return await workbench.models()

    entries = shell.run(work, as_json=as_json)
    if as_json:
        put_json(entries)
        return
    if not entries:
        say("no models yet: `lathe models scan DIR`, or `lathe demo`")
    rows = [
        (
            entry.name,
            entry.format,
            entry.card.get("file_type") or "-",
            long_size(entry.bytes),
            entry.card.get("context_length") or "-",
            entry.origin,
            "missing" if entry.missing else "hashed" if entry.sha256 else "",
        )
        for entry in entries
    ]
    put_table(("name", "format", "type", "size", "ctx", "origin", "state"), rows, right=(3, 4))


@models.command()
@click.argument("model")
@as_json_option
@click.pass_obj
def show(shell: Shell, model: str, as_json: bool) -> None:
    """Everything known about MODEL."""

    async def work(workbench: Workbench) -> ModelDetails:
        return await workbench.model(model)

    details = shell.run(work, as_json=as_json)
    if as_json:
        put_json(details)
        return
    entry, card = details.entry, details.card
    facts: list[tuple[str, object]] = [
        ("name", entry.name), ("path", entry.path), ("format", entry.format), ("size", long_size(entry.bytes)),
        ("sha256", entry.sha256 or (None if entry.format == "remote" else "not hashed yet")),
        ("origin", entry.origin), ("architecture", card.architecture),
        ("parameters", f"{card.parameters:,}" if card.parameters else None), ("type", card.file_type),
        ("bits per weight", f"{card.bits_per_weight:.2f}" if card.bits_per_weight else None),
        ("context", card.context_length), ("layers", card.layers),
        ("heads", f"{card.heads} ({card.kv_heads} kv)" if card.heads else None), ("vocabulary", card.vocabulary),
        ("tokenizer", f"{card.tokenizer} / {card.pre_tokenizer}" if card.tokenizer else None),
        ("template", card.template_sha256[:16] if card.template_sha256 else "none"), ("licence", card.licence),
        ("shards", card.shards if card.shards > 1 else None),
    ]  # fmt: skip
    facts += [(f"  {kind}", long_size(size)) for kind, size in card.tensor_types.items()]
    facts += [
        (f"measured {name}", f"{value:.6g}" if isinstance(value, float) else value)
        for name, value in entry.measured.items()
    ]
    for name, value in facts:
        if value is not None:
            put(f"{name:<18} {value}")
    if details.problem:
        say(f"problem: {details.problem.message}")
    for warning in card.warnings:
        say(f"note: {warning}")


@models.command()
@click.argument("model")
@as_json_option
@click.pass_obj
def verify(shell: Shell, model: str, as_json: bool) -> None:
    """Hash MODEL again and compare with what was recorded; exit 65 when it differs."""

    def show(job: Job) -> None:
        put(f"{model}: ok  {(job.outcome.figures if job.outcome else {}).get('sha256', '')}")

    raise SystemExit(run_step(shell, VerifyStep(model=model), show, as_json=as_json))


@models.command()
@click.argument("model")
@click.option("--ctx", "context", type=click.IntRange(min=1), help="Tokens per sequence.")
@click.option("--parallel", "slots", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--gpu-layers", type=GPU_LAYERS)
@click.option("--kv-type", type=click.Choice(["f16", "q8_0", "q4_0"]), default="f16")
@as_json_option
@click.pass_obj
def estimate(
    shell: Shell, model: str, context: int | None, slots: int, gpu_layers: int | None, kv_type: str, as_json: bool
) -> None:
    """Memory that MODEL would take, and whether it fits now; exit 1 when it does not."""
    options = LoadOptions(context=context, slots=slots, gpu_layers=gpu_layers, kv_type=kv_type)  # type: ignore[arg-type]

    async def work(workbench: Workbench) -> Fit:
        return await workbench.estimate(model, options)

    fit = shell.run(work, as_json=as_json)
    if as_json:
        put_json(fit)
    else:
        footprint = fit.footprint
        for name in ("weights", "kv_cache", "compute", "overhead", "total"):
            put(f"{name:<10} {long_size(getattr(footprint, name)):>10}")
        for device, size in footprint.devices.items():
            put(f"on {device:<7} {long_size(size):>10}")
        put(f"verdict    {fit.verdict}" + (f": {fit.reason}" if fit.reason else ""))
    raise SystemExit(1 if fit.verdict == "no" else 0)


@models.command()
@click.argument("model")
@click.argument("name")
@click.pass_obj
def rename(shell: Shell, model: str, name: str) -> None:
    """Give MODEL another NAME; its file stays where it is."""

    async def work(workbench: Workbench) -> ModelEntry:
        return await workbench.rename(model, name)

    put(shell.run(work).name)


@models.command()
@click.argument("name", required=False)
@click.argument("target", required=False)
@click.option("--model", "remote", metavar="ID", default="", help="What the remote server calls the model.")
@click.option("--key-env", metavar="NAME", help="Variable of the engine's environment that holds the server's key.")
@click.option("--key-file", metavar="PATH", help="File that holds the server's key; nobody else may read it.")
@click.option("--rm", "remove", is_flag=True, help="Forget NAME.")
@as_json_option
@click.pass_obj
def alias(
    shell: Shell, name: str | None, target: str | None, remote: str, key_env: str | None, key_file: str | None,
    remove: bool, as_json: bool,
) -> None:  # fmt: skip
    """Let NAME stand for TARGET, a model or the URL of an OpenAI-compatible server; without arguments list them.

    \b
      lathe models alias prod qwen3-8b-q4_k_m
      lathe models alias big http://gpu-box:8000/v1 --model Qwen/Qwen3-32B --key-env VLLM_KEY
    """
    if remove != (name is not None and target is None) or (key_env and key_file):
        raise click.UsageError("give NAME TARGET, NAME --rm, or nothing, and one of --key-env and --key-file at most")
    if (remote or key_env or key_file) and not (target and "://" in target):
        raise click.UsageError("--model, --key-env and --key-file belong to the URL of a server")
    key = f"env:{key_env}" if key_env else f"file:{key_file}" if key_file else None

    async def work(workbench: Workbench) -> list[ModelAlias]:
        if name is None:
            return await workbench.aliases()
        if target is None:
            return [await workbench.remove_alias(name)]
        return [await workbench.set_alias(ModelAlias(name=name, target=target, model=remote, key=key))]

    found = shell.run(work, as_json=as_json)
    if as_json:
        put_json(found)
    elif name is None:
        rows = [(one.name, one.target, one.model or "-", one.key or "-") for one in found]
        put_table(("name", "stands for", "there called", "key"), rows)
    else:
        put(f"forgot {name}" if remove else f"{name} -> {found[0].target}")


@models.command()
@click.argument("model")
@click.option("--files", is_flag=True, help="Delete the files, too, if Lathe made them.")
@click.option("--foreign", is_flag=True, help="With --files: delete files that Lathe did not make.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def rm(shell: Shell, model: str, files: bool, foreign: bool, yes: bool) -> None:
    """Forget MODEL. Its files are deleted only with --files, and foreign ones only with --foreign as well."""

    async def find(workbench: Workbench) -> ModelDetails:
        return await workbench.model(model)

    async def work(workbench: Workbench) -> list[str]:
        return await workbench.remove(model, delete_files=files, force=foreign)

    entry = shell.run(find).entry
    what = f"delete {entry.path} ({long_size(entry.bytes)})" if files else f"forget {entry.name} (its files stay)"
    need_yes(yes, f"{what}?")
    for path in shell.run(work):
        put(f"deleted {path}")
