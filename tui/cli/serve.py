"""`lathe serve` and `lathe keys`: the HTTP API from the shell."""

from __future__ import annotations

import asyncio
import re
import shlex
import time
from pathlib import Path
from typing import Any

import click
from lathe.engine.errors import UsageError
from lathe.engine.events import LogLine, ServerChanged
from lathe.engine.settings import load_here
from lathe.engine.states import ServerOptions, ServerState
from lathe.engine.workbench import ApiKey, Workbench
from lathe.engine.worker.messages import LOOKUP, LoadOptions
from lathe.store.keys import DEFAULT_SCOPES, SCOPES
from lathe.tui.cli.numbers import GPU_LAYERS, SOME_THREADS, Finite
from lathe.tui.cli.shell import Shell, put, put_json, put_table, say


@click.command()
@click.argument("models", nargs=-1)
@click.option("--host", default=None, help="Address (default: serving.host).")
@click.option("--port", type=click.IntRange(0, 65535), default=None, help="Port; 0 picks a free one.")
@click.option("--parallel", "slots", type=click.IntRange(1, 256), default=None, help="Sequences at once.")
@click.option("--ctx", "context", type=click.IntRange(min=1), default=None, help="Tokens per sequence.")
@click.option("--gpu-layers", type=GPU_LAYERS, default=None)
@click.option("--kv-type", type=click.Choice(["f16", "q8_0", "q4_0"]), default="f16", show_default=True)
@click.option("--threads", type=SOME_THREADS, default=None)
@click.option("--lora", multiple=True, metavar="ADAPTER", help="Load this LoRA adapter too; requests choose (`lora`).")
@click.option("--draft", metavar="MODEL", help="Guess ahead with this smaller model, or `lookup` in the text itself.")
@click.option("--ttl", type=Finite(min=0), metavar="SECONDS", help="Unload a model after so long unused.")
@click.option("--unix-socket", metavar="PATH")
@click.option("--allow-remote", is_flag=True, help="Needed to listen on anything but loopback.")
@click.option("--no-token", is_flag=True, help="Ask for no token; loopback and Unix sockets only.")
@click.option("--cors-origin", multiple=True)
@click.option("--allowed-host", multiple=True)
@click.option(
    "--api-key-file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="PATH",
    help="Take the keys in this file, one a line; where it is missing, make one and write it there.",
)
@click.option("--tls-certificate", type=click.Path(exists=True))
@click.option("--tls-key", type=click.Path(exists=True))
@click.option("--detach", is_flag=True, help="Leave the server to the engine and return.")
@click.option("--stop", is_flag=True, help="Stop the running server.")
@click.option("--json", "as_json", is_flag=True, help="The server's state as JSON.")
@click.pass_obj
def serve(
    shell: Shell, models: tuple[str, ...], host: str | None, port: int | None, slots: int | None, context: int | None,
    gpu_layers: int | None, kv_type: Any, threads: int | None, lora: tuple[str, ...], draft: str | None,
    ttl: float | None, unix_socket: str | None, allow_remote: bool,
    no_token: bool, cors_origin: tuple[str, ...], allowed_host: tuple[str, ...], api_key_file: Path | None,
    tls_certificate: str | None, tls_key: str | None, detach: bool, stop: bool, as_json: bool,
) -> None:  # fmt: skip
    """Serve MODELS over HTTP; without a name every registered model is offered and loaded on demand.

    The server belongs to the engine: ctrl+c stops it, --detach leaves it running.
    """

    async def work(workbench: Workbench) -> None:
        if stop:
            put("stopped" if not (await workbench.stop_server()).running else "running")
            return
        settings = load_here(shell.flags).settings.serving
        options = ServerOptions(
            host=host or settings.host, port=settings.port if port is None else port,
            unix_socket=unix_socket, models=models, allow_remote=allow_remote, require_token=not no_token,
            cors_origins=cors_origin, allowed_hosts=allowed_host, tls_certificate=tls_certificate, tls_key=tls_key,
            options=LoadOptions(
                slots=slots or settings.slots, context=context or settings.context or None, kv_type=kv_type,
                gpu_layers=gpu_layers, threads=threads or settings.threads or None, prefix_cache=settings.prefix_cache,
                adapters=tuple([await _file_of(workbench, one) for one in lora]),
                draft=draft if draft in (None, LOOKUP) else await _file_of(workbench, draft),
                ttl_s=settings.idle_unload_s or None if ttl is None else ttl,
            ),
        )  # fmt: skip
        key = None
        if options.require_token:  # before anybody can ask, so that no client meets a server that knows no key
            key = await _from_file(workbench, api_key_file) if api_key_file else await _first_key(workbench)
        state = await workbench.start_server(options)
        _announce(state, key, api_key_file, as_json)
        if detach:
            say("the engine keeps serving; `lathe serve --stop` ends it")
        else:
            await _until_stopped(workbench)

    shell.run(work, start=True, as_json=as_json)


async def _file_of(workbench: Workbench, reference: str) -> str:
    """The file of a model or an adapter, by its name or path."""
    return (await workbench.model(reference)).entry.path


async def _first_key(workbench: Workbench) -> ApiKey | None:
    """Make a token where there is none yet; its secret is shown once."""
    if await workbench.keys():
        return None
    return await workbench.make_key(ApiKey(name="default", created_at=time.time()))


async def _from_file(workbench: Workbench, path: Path) -> ApiKey | None:
    """Take the tokens of a file, which replace those taken from it before; a missing file gets one."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", path.stem).strip("-")[:50] or "keys"
    secrets = _read_secrets(path)
    for key in await workbench.keys():
        if re.fullmatch(rf"{re.escape(name)}-file-\d+", key.name):
            await workbench.revoke_key(key.name)
    if secrets is None:
        key = await workbench.make_key(ApiKey(name=f"{name}-file-1", created_at=time.time()))
        _write_secret(path, key.secret or "")
        return key
    for number, secret in enumerate(secrets, 1):
        await workbench.make_key(ApiKey(name=f"{name}-file-{number}", created_at=time.time(), secret=secret))
    return None


def _read_secrets(path: Path) -> list[str] | None:
    """The lines of a key file; None where there is no file."""
    try:
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    except FileNotFoundError:
        return None
    secrets = [line for line in lines if line and not line.startswith("#")]
    if not secrets:
        raise UsageError(f"{path} holds no key", hint="one a line; remove the file to have one made")
    return secrets


def _write_secret(path: Path, secret: str) -> None:
    path.touch(mode=0o600, exist_ok=False)
    path.write_text(f"{secret}\n", "ascii")


def _announce(state: ServerState, key: ApiKey | None, file: Path | None, as_json: bool) -> None:
    """Say where, and how a client gets in: the base URL on stdout, the rest as narration."""
    if as_json:
        put_json({"server": state, "key": key})
        return
    url = state.url or ""
    put(url if url.startswith("unix:") else f"{url}/v1")
    if not state.options.require_token:
        say("no token is asked for: anyone on this machine can use it")
    elif file is not None:
        say(f"clients need a token of {file}:")
        say(f"  export LATHE_API_KEY=$(head -n 1 {shlex.quote(str(file))})")
    elif key is not None and key.secret:
        say("token (shown once, kept nowhere; `lathe keys make NAME` makes more):")
        say(f"  export LATHE_API_KEY={key.secret}")
    else:
        say("clients need one of the tokens of `lathe keys list`; `lathe keys make NAME` makes another")
    say(_example(state))
    if not url.startswith("unix:"):
        key_word = " OPENAI_API_KEY=$LATHE_API_KEY" if state.options.require_token else " OPENAI_API_KEY=none"
        say(f"  OpenAI clients: OPENAI_BASE_URL={url}/v1{key_word}")


def _example(state: ServerState) -> str:
    """A first request."""
    url = state.url or ""
    words = ["  curl"]
    if url.startswith("unix:"):
        words += ["--unix-socket", shlex.quote(url.removeprefix("unix:")), "http://localhost/v1/models"]
    else:
        words += [f"{url}/v1/models"]
    if state.options.require_token:
        words.append('-H "Authorization: Bearer $LATHE_API_KEY"')
    return " ".join(words)


async def _until_stopped(workbench: Workbench) -> None:
    """Narrate the server's log until it stops or we are told to."""
    try:
        async for event in workbench.events():
            if isinstance(event, LogLine) and event.source == "http":
                say(f"{time.strftime('%H:%M:%S', time.localtime(event.ts))} {event.text}")
            elif isinstance(event, ServerChanged) and not event.server.running:
                return
    except asyncio.CancelledError:
        say("stopping: running requests are finished first")
        await asyncio.shield(workbench.stop_server())
        raise


@click.group()
def keys() -> None:
    """Tokens of the HTTP API; stored hashed, shown once."""


@keys.command("list")
@click.option("--json", "as_json", is_flag=True)
@click.pass_obj
def list_keys(shell: Shell, as_json: bool) -> None:
    """Every token, without its secret."""

    async def work(workbench: Workbench) -> list[ApiKey]:
        return await workbench.keys()

    found = shell.run(work, as_json=as_json)
    if as_json:
        put_json(found)
        return
    rows = [
        (key.name, time.strftime("%Y-%m-%d", time.localtime(key.created_at)), " ".join(key.scopes or DEFAULT_SCOPES),
         ",".join(key.models) or "all models", key.requests_per_minute or "-", key.tokens_per_minute or "-")
        for key in found
    ]  # fmt: skip
    put_table(("name", "made", "scopes", "models", "req/min", "tok/min"), rows, right=(4, 5))


@keys.command()
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(SCOPES),
    help="infer: use models; observe: metrics, slots, props; admin: unload models, set adapters "
    "(repeatable; default: infer and observe).",
)
@click.option("--model", "models", multiple=True, help="Allow this model only (repeatable).")
@click.option("--store", "stores", multiple=True, help="Allow this RAG store only (repeatable).")
@click.option("--requests-per-minute", type=click.IntRange(min=1))
@click.option("--tokens-per-minute", type=click.IntRange(min=1))
@click.pass_obj
def make(
    shell: Shell, name: str, scopes: tuple[str, ...], models: tuple[str, ...], stores: tuple[str, ...],
    requests_per_minute: int | None, tokens_per_minute: int | None,
) -> None:  # fmt: skip
    """Make a token called NAME and print it once."""
    wanted = ApiKey(
        name=name, created_at=time.time(), scopes=scopes, models=models, stores=stores,
        requests_per_minute=requests_per_minute, tokens_per_minute=tokens_per_minute,
    )  # fmt: skip

    async def work(workbench: Workbench) -> ApiKey:
        return await workbench.make_key(wanted)

    put(shell.run(work).secret or "")


@keys.command()
@click.argument("name")
@click.pass_obj
def revoke(shell: Shell, name: str) -> None:
    """Forget the token called NAME; it stops working at once."""

    async def work(workbench: Workbench) -> None:
        await workbench.revoke_key(name)

    shell.run(work)
    put(f"revoked {name}")
