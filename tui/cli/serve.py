"""`lathe serve` and `lathe keys`: the HTTP API from the shell."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import click
from lathe.engine.events import LogLine, ServerChanged
from lathe.engine.settings import load_here
from lathe.engine.states import ServerOptions, ServerState
from lathe.engine.workbench import ApiKey, Workbench
from lathe.engine.worker.messages import LOOKUP, LoadOptions
from lathe.tui.cli.shell import Shell, put, put_json, put_table, say


@click.command()
@click.argument("models", nargs=-1)
@click.option("--host", default=None, help="Address (default: serving.host).")
@click.option("--port", type=click.IntRange(0, 65535), default=None, help="Port; 0 picks a free one.")
@click.option("--parallel", "slots", type=click.IntRange(1, 256), default=None, help="Sequences at once.")
@click.option("--ctx", "context", type=click.IntRange(min=1), default=None, help="Tokens per sequence.")
@click.option("--gpu-layers", type=int, default=None)
@click.option("--kv-type", type=click.Choice(["f16", "q8_0", "q4_0"]), default="f16", show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=None)
@click.option("--lora", multiple=True, metavar="ADAPTER", help="Load this LoRA adapter too; requests choose (`lora`).")
@click.option("--draft", metavar="MODEL", help="Guess ahead with this smaller model, or `lookup` in the text itself.")
@click.option("--ttl", type=click.FloatRange(min=0), metavar="SECONDS", help="Unload a model after so long unused.")
@click.option("--unix-socket", metavar="PATH")
@click.option("--allow-remote", is_flag=True, help="Needed to listen on anything but loopback.")
@click.option("--no-token", is_flag=True, help="Ask for no token; loopback and Unix sockets only.")
@click.option("--cors-origin", multiple=True)
@click.option("--allowed-host", multiple=True)
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
    no_token: bool, cors_origin: tuple[str, ...], allowed_host: tuple[str, ...], tls_certificate: str | None,
    tls_key: str | None, detach: bool, stop: bool, as_json: bool,
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
        state = await workbench.start_server(options)
        key = await _first_key(workbench) if options.require_token else None
        _announce(state, key, as_json)
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


def _announce(state: ServerState, key: ApiKey | None, as_json: bool) -> None:
    if as_json:
        put_json({"server": state, "key": key})
        return
    put(f"{state.url}/v1")
    if key is not None and key.secret:
        say(f"token (shown once): {key.secret}")
    elif state.options.require_token:
        say("clients need one of the tokens of `lathe keys list`")
    else:
        say("no token is asked for: anyone on this machine can use it")


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
        (key.name, time.strftime("%Y-%m-%d", time.localtime(key.created_at)), ",".join(key.models) or "all models",
         key.requests_per_minute or "-", key.tokens_per_minute or "-")
        for key in found
    ]  # fmt: skip
    put_table(("name", "made", "models", "req/min", "tok/min"), rows, right=(3, 4))


@keys.command()
@click.argument("name")
@click.option("--model", "models", multiple=True, help="Allow this model only (repeatable).")
@click.option("--requests-per-minute", type=click.IntRange(min=1))
@click.option("--tokens-per-minute", type=click.IntRange(min=1))
@click.pass_obj
def make(
    shell: Shell, name: str, models: tuple[str, ...], requests_per_minute: int | None, tokens_per_minute: int | None
) -> None:
    """Make a token called NAME and print it once."""
    wanted = ApiKey(
        name=name, created_at=time.time(), models=models, requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
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
