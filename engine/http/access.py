"""Who may talk to the server at all: bind rules, Host and Origin checks, keys and scopes.

Pure except for name resolution in `resolve`. Invariant: nothing but loopback or a Unix socket is ever served without
a key, whatever the options say, and every failed authentication gets the same answer.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable
from typing import Literal, Protocol

import msgspec
from lathe.engine.errors import PolicyError, UsageError
from lathe.engine.http.problems import Problem
from lathe.engine.states import ServerOptions
from lathe.store.keys import ADMIN, DEFAULT_SCOPES, INFER, OBSERVE, StoredKey

Headers = list[tuple[bytes, bytes]]
Auth = Literal["public", "infer", "observe", "admin"]
"""What a route asks for: nothing, or a key with that scope."""

_HOST = re.compile(r"^(?P<name>\[[0-9a-fA-F:.]+\]|[^:\[\]@/\\\s]+)(?::\d{1,5})?$")
_SECRET = re.compile(rb"^[\x21-\x7e]{1,512}$")
_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


class Keys(Protocol):
    """The part of the key ring that serving needs."""

    def match(self, secret: str) -> StoredKey | None:
        """Return the key whose secret this is."""

    def __len__(self) -> int: ...


class Principal(msgspec.Struct, frozen=True):
    """Who sends a request."""

    name: str
    scopes: frozenset[str] = frozenset({INFER, OBSERVE, ADMIN})
    models: frozenset[str] = frozenset()
    """Names or ids it may use; empty: all."""
    stores: frozenset[str] = frozenset()
    """RAG stores it may search; empty: all that are open to it."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None


LOCAL = Principal("local")
"""The caller of a server that asks for no key."""
_UNAUTHENTICATED = "a valid API key is required: Authorization: Bearer KEY"
_NO_KEYS = "this server knows no API key yet: `lathe keys make NAME` makes one"


def check_options(options: ServerOptions, addresses: Iterable[str], keys: int) -> None:
    """Refuse to serve more openly than the options say aloud.

    Raises:
        PolicyError: a non-loopback address without `allow_remote`, keys or tokens.
        UsageError: options that contradict each other.
    """
    if "*" in options.cors_origins:
        raise UsageError("cors_origins: name the origins; `*` would open the server to every web page")
    if (options.tls_certificate is None) != (options.tls_key is None):
        raise UsageError("tls_certificate and tls_key go together")
    if options.unix_socket is not None or all(_is_loopback(address) for address in addresses):
        return
    if not options.allow_remote:
        raise PolicyError(
            f"{options.host} is reachable from other machines; serving there must be allowed explicitly",
            hint="pass --allow-remote, or bind 127.0.0.1",
        )
    if not options.require_token:
        raise PolicyError("serving other machines without a token is refused", hint="drop --no-token")
    if not keys:
        raise PolicyError(
            "serving other machines needs at least one API key", hint="make one with `lathe keys make NAME`"
        )


def resolve(host: str, port: int) -> list[tuple[socket.AddressFamily, tuple[str, int]]]:
    """Return the addresses a host name stands for, IPv4 first."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"host {host!r} cannot be resolved: {error}") from None
    pairs = {(family, (str(address[0]), port)) for family, _, _, _, address in found}
    return sorted(pairs, key=lambda pair: (pair[0] != socket.AF_INET, pair[1]))


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


class HostRule:
    """The Host allow-list: what keeps a rebinding web page out of a loopback server."""

    def __init__(self, options: ServerOptions, *, remote: bool) -> None:
        names = {name.lower() for name in (*options.allowed_hosts, options.host)} | _LOCAL_NAMES
        self._names = names - {"0.0.0.0", "::", ""}  # noqa: S104 - these are bound, never named
        self._literals = remote
        self._any = options.unix_socket is not None

    def check(self, headers: Headers) -> None:
        """Refuse a request meant for another host."""
        if self._any:
            return
        value = header(headers, b"host") or ""
        match = _HOST.match(value)
        name = match["name"].strip("[]").lower() if match else ""
        if name in self._names or (self._literals and _is_literal(name)):
            return
        raise Problem(421, "this server does not serve that Host; name it in allowed_hosts", code="unknown_host")


def _is_literal(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class OriginRule:
    """CORS, off unless origins are named; a browser's request from anywhere else is refused, not merely unreadable."""

    def __init__(self, origins: Iterable[str]) -> None:
        self._origins = frozenset(origin.rstrip("/") for origin in origins)

    def check(self, headers: Headers) -> list[tuple[str, str]]:
        """Return the CORS headers of the answer; refuse foreign origins."""
        origin = header(headers, b"origin")
        if origin is None:
            if (header(headers, b"sec-fetch-site") or "none") in ("cross-site", "same-site") and not self._origins:
                raise Problem(403, "requests from web pages are not allowed", code="origin_not_allowed")
            return []
        if origin not in self._origins:
            raise Problem(403, "this origin is not allowed; name it in cors_origins", code="origin_not_allowed")
        return [("access-control-allow-origin", origin), ("vary", "origin")]

    @staticmethod
    def preflight() -> list[tuple[str, str]]:
        """Return what a preflight of an allowed origin is told."""
        return [
            ("access-control-allow-methods", "GET, POST"),
            ("access-control-allow-headers", "authorization, content-type, x-api-key, anthropic-version"),
            ("access-control-max-age", "600"),
        ]


def authenticate(headers: Headers, keys: Keys, *, require_token: bool, x_api_key: bool) -> Principal:
    """Find out who asks. Keys come in headers only, never in the URL.

    Raises:
        Problem: 401, the same whatever was wrong.
    """
    bearer = [value for name, value in headers if name == b"authorization"]
    plain = [value for name, value in headers if name == b"x-api-key"] if x_api_key else []
    if not require_token:
        return LOCAL
    secrets = [value[7:].strip(b" ") for value in bearer if value[:7].lower() == b"bearer "] + plain
    key = None
    if len(bearer) <= 1 and len(set(secrets)) == 1 and len(secrets) == len(bearer) + len(plain):
        secret = secrets[0]
        key = keys.match(secret.decode("ascii")) if _SECRET.match(secret) else None
    if key is None:
        raise Problem(401, _UNAUTHENTICATED if len(keys) else _NO_KEYS, code="invalid_api_key")
    return Principal(
        name=key.name,
        scopes=frozenset(key.scopes or DEFAULT_SCOPES),
        models=frozenset(key.models),
        stores=frozenset(key.stores),
        requests_per_minute=key.requests_per_minute,
        tokens_per_minute=key.tokens_per_minute,
    )


def authorize(principal: Principal, auth: Auth) -> None:
    """Refuse a key without the scope a route asks for."""
    if auth != "public" and auth not in principal.scopes:
        raise Problem(403, f"this key lacks the scope '{auth}'", code="missing_scope")


def header(headers: Headers, name: bytes) -> str | None:
    """Return the first header of a (lower-case) name."""
    for key, value in headers:
        if key == name:
            return value.decode("latin-1")
    return None
