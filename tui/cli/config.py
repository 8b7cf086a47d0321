"""`lathe config` and `lathe paths`: settings with their provenance, and where files live."""

from __future__ import annotations

import click
from lathe.engine import settings as reference
from lathe.tui.cli.shell import Shell, put, put_json, put_table


@click.group()
def config() -> None:
    """Settings: flag > environment > project > user > system > default."""


@config.command("show")
@click.option("--origin", is_flag=True, help="Where each value comes from.")
@click.option("--json", "as_json", is_flag=True)
@click.pass_obj
def show(shell: Shell, origin: bool, as_json: bool) -> None:
    """Every setting."""
    loaded = reference.load_here(shell.flags)
    if as_json:
        put_json({
            key: {"value": loaded.value(key), "default": reference.default(key), "origin": str(loaded.origin(key)),
                  "doc": reference.docs()[key], "kind": reference.kind(key)}
            for key in reference.names()
        })  # fmt: skip
        return
    header = ("key", "value", "origin") if origin else ("key", "value", "meaning")
    rows = [
        (key, _shown(loaded.value(key)), str(loaded.origin(key)) if origin else reference.docs()[key])
        for key in reference.names()
    ]
    put_table(header, rows)


def _shown(value: reference.Scalar) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@config.command()
@click.argument("key")
@click.pass_obj
def get(shell: Shell, key: str) -> None:
    """The effective value of KEY."""
    loaded = reference.load_here(shell.flags)
    put(_shown(loaded.value(key)))


@config.command("set")
@click.argument("key")
@click.argument("value")
@click.pass_obj
def set_key(shell: Shell, key: str, value: str) -> None:
    """Write KEY = VALUE to the user's file; comments are kept."""
    _write(key, value)


@config.command()
@click.argument("key")
@click.pass_obj
def unset(shell: Shell, key: str) -> None:
    """Remove KEY from the user's file."""
    _write(key, None)


def _write(key: str, text: str | None) -> None:
    path = reference.user_file()
    value = None if text is None else reference.parse(key, text)
    reference.write(path, key, value)
    put(f"{path}: {key} " + ("removed" if text is None else f"= {text}"))


@config.command("path")
def path_of() -> None:
    """The user's settings file."""
    put(str(reference.user_file()))


@config.command()
@click.pass_obj
def validate(shell: Shell) -> None:
    """Read every source; exit 78 when one is wrong."""
    reference.load_here(shell.flags)
    put("ok")


@click.command()
@click.option("--json", "as_json", is_flag=True)
@click.pass_obj
def paths(shell: Shell, as_json: bool) -> None:
    """Where this workspace keeps its files."""
    home = shell.home
    known = {
        "home": home.root, "database": home.database, "models": home.models, "stores": home.stores, "runs": home.runs,
        "logs": home.logs, "socket": home.socket, "settings": reference.user_file(),
    }  # fmt: skip
    if as_json:
        put_json({name: str(path) for name, path in known.items()})
    else:
        put_table(("what", "where"), list(known.items()))
