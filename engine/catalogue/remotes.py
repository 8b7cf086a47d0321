"""Models of other servers: how the catalogue writes them, where their keys are, and whether they may be reached.

Of a key the catalogue holds a reference only: `env:NAME`, a variable of the engine's environment, or `file:PATH`, a
file that nobody else may read. Invariant: a key is never part of an entry, of options, of a state or of a message.
"""

from __future__ import annotations

import ipaddress
import os
import stat
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from lathe.engine.errors import ConfigError, MissingError, PolicyError, UsageError
from lathe.store.models import ModelEntry

KEY = "key"
"""In the recipe of a remote entry."""
_MAX_BYTES = 16 * 1024


def remote_path(url: str, model: str) -> str:
    """How a remote model is written in the catalogue: its API's URL and, as fragment, its name there.

    Raises:
        UsageError: the URL is none of http or https, or holds a password, a query or a fragment.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UsageError(f"{url!r} is no URL: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"{url!r} is no URL of a server", hint="such as http://127.0.0.1:8000/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UsageError(
            "a URL with a password, query or fragment is not stored", hint="keys go to --key-env, --key-file"
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    place = host if port is None else f"{host}:{port}"
    return urlunsplit((parts.scheme, place, parts.path.rstrip("/"), "", model))


def checked(reference: str) -> str:
    """A reference as it may be stored.

    Raises:
        UsageError: it is neither of the two forms.
    """
    kind, _, value = reference.partition(":")
    if kind == "env" and value.replace("_", "a").isalnum() and value.isascii() and not value[0].isdigit():
        return reference
    if kind == "file" and value:
        return f"file:{Path(value).expanduser().absolute()}"
    raise UsageError("a key is env:VARIABLE or file:PATH", hint="the key itself is never stored")


def check_policy(entry: ModelEntry, offline: bool) -> None:
    """Refuse a model of another machine while the workspace is offline.

    Raises:
        PolicyError: `general.offline` is set and the server is not on this machine.
    """
    if not offline or entry.format != "remote" or "://" not in entry.path:
        return
    host = urlsplit(entry.path).hostname or ""
    try:
        here = ipaddress.ip_address(host).is_loopback
    except ValueError:
        here = host == "localhost"
    if not here:
        raise PolicyError(
            f"{entry.name} is at {host}, and the workspace is offline",
            hint="`lathe config set general.offline false` lets connections leave this machine", code="E_OFFLINE",
        )  # fmt: skip


def secret_of(entry: ModelEntry) -> str | None:
    """The key of a remote model; None where it has none, and for models that are files.

    Raises:
        ConfigError: the variable is not set, or the file is empty or cannot be read.
        MissingError: there is no such file. PolicyError: others may read it.
    """
    reference = entry.recipe.get(KEY) if entry.format == "remote" else None
    if not isinstance(reference, str):
        return None
    kind, _, value = reference.partition(":")
    if kind == "env":
        secret = os.environ.get(value, "")
        if not secret:
            raise ConfigError(
                f"{entry.name}: the variable {value}, which holds its key, is not set for the engine",
                hint="set it and start the engine anew, or use --key-file",
            )
    else:
        secret = _read(Path(value), entry)
    if not secret.isascii() or any(character.isspace() for character in secret):
        raise ConfigError(f"{entry.name}: its key has characters that no header can carry")
    return secret


def _read(path: Path, entry: ModelEntry) -> str:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(_MAX_BYTES)
    except FileNotFoundError as error:
        raise MissingError(f"{entry.name}: its key file {path} is not there") from error
    except OSError as error:
        raise ConfigError(f"{entry.name}: its key file {path} cannot be read: {error.strerror}") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise PolicyError(f"{entry.name}: others may read its key file {path}", hint=f"chmod 600 {path}")
    secret = data.decode("utf-8", "replace").strip()
    if not secret:
        raise ConfigError(f"{entry.name}: its key file {path} is empty")
    return secret
