"""API keys at rest: a name, the SHA-256 of a 256-bit random secret, and what the key may do.

The secret is shown once, when made, and never stored. All keys live in memory as well, since each HTTP request needs
one; the engine is the only process that changes them. Invariant: `match` compares digests in constant time against
every key, so that neither the number nor the place of a near miss can be timed.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import threading
import time
from typing import TYPE_CHECKING, Any

import msgspec
from lathe.store.errors import NotFound, StoreError

if TYPE_CHECKING:
    import sqlite_utils
    from lathe.store.database import Database

INFER, OBSERVE, ADMIN = "infer", "observe", "admin"
SCOPES = (INFER, OBSERVE, ADMIN)
"""`infer`: use models. `observe`: metrics, slots, props. `admin`: change what is loaded."""
DEFAULT_SCOPES = (INFER, OBSERVE)
"""Of a key that names none."""
PREFIX = "lathe-"
TABLE = "api_keys"
LEAST = 32
"""Characters of a secret that somebody brings: its digest must be as hard to guess as that of a drawn one."""
_GIVEN = re.compile(rf"^[\x21-\x7e]{{{LEAST},512}}\Z")
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")


class StoredKey(msgspec.Struct, frozen=True, kw_only=True):
    """One key without its secret."""

    name: str
    digest: str
    """SHA-256 of the secret, in hex."""
    created_at: float
    scopes: tuple[str, ...] = ()
    """Empty: `infer` and `observe`."""
    models: tuple[str, ...] = ()
    """Names or ids the key may use; empty: all."""
    stores: tuple[str, ...] = ()
    """RAG stores the key may search; empty: all that are open to it."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None


class KeyRefused(StoreError):
    """A key that cannot be made as asked."""

    code = "E_KEY"


class KeyRing:
    """The keys of a workspace. Methods block for a database write at most; call them off the event loop."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        rows = database.read(lambda db: list(db.table(TABLE).rows))
        self._keys = {key.name: key for key in map(_from_row, rows)}

    def __len__(self) -> int:
        return len(self._keys)

    def keys(self) -> tuple[StoredKey, ...]:
        """Return every key, oldest first."""
        return tuple(sorted(self._keys.values(), key=lambda key: key.created_at))

    def make(
        self,
        name: str,
        *,
        scopes: tuple[str, ...] = (),
        models: tuple[str, ...] = (),
        stores: tuple[str, ...] = (),
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        secret: str | None = None,
    ) -> tuple[StoredKey, str]:
        """Make a key; return it with its secret, which nothing can show again.

        Args:
            secret: one that the caller brings (from a file that is deployed with clients); None draws one.

        Raises:
            KeyRefused: the name is taken or odd, a scope is unknown, a quota is not positive, the secret is weak.
        """
        if not _NAME.match(name):
            raise KeyRefused(f"key name {name!r}: letters, digits, dot, dash and underscore, at most 64")
        if unknown := sorted(set(scopes) - set(SCOPES)):
            raise KeyRefused(f"unknown scope {unknown[0]!r}", hint=f"scopes are {', '.join(SCOPES)}")
        if any(quota is not None and quota < 1 for quota in (requests_per_minute, tokens_per_minute)):
            raise KeyRefused("a quota per minute must be at least 1")
        if secret is not None and not _GIVEN.match(secret):
            raise KeyRefused(f"the key given for {name!r} must have {LEAST} to 512 visible ASCII characters")
        secret = secret or PREFIX + secrets.token_urlsafe(32)
        key = StoredKey(
            name=name, digest=_digest(secret), created_at=time.time(), scopes=scopes, models=models,
            stores=stores, requests_per_minute=requests_per_minute, tokens_per_minute=tokens_per_minute,
        )  # fmt: skip
        with self._lock:
            if any(key.digest == other.digest for other in self._keys.values()):
                raise KeyRefused(f"the secret given for {name!r} is another key's")
            if name in self._keys:
                raise KeyRefused(f"a key named {name!r} exists", hint="revoke it first or choose another name")
            self._database.write(lambda db: _insert(db, key)).result()
            self._keys = {**self._keys, name: key}
        return key, secret

    def revoke(self, name: str) -> None:
        """Forget a key; it stops working at once.

        Raises:
            NotFound: no key has that name.
        """
        with self._lock:
            if name not in self._keys:
                raise NotFound(f"no API key named {name!r}")
            self._database.write(lambda db: db.table(TABLE).delete(name)).result()
            self._keys = {other: key for other, key in self._keys.items() if other != name}

    def match(self, secret: str) -> StoredKey | None:
        """Return the key whose secret this is."""
        digest = _digest(secret)
        found = None
        for key in self._keys.values():
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found


def _digest(secret: str) -> str:
    # The secret has 256 random bits, so there is nothing to guess and a slow hash would protect nothing.
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _insert(db: sqlite_utils.Database, key: StoredKey) -> None:
    row = msgspec.to_builtins(key)
    row["scopes"] = msgspec.json.encode(key.scopes).decode()
    row["models"] = msgspec.json.encode(key.models).decode()
    row["stores"] = msgspec.json.encode(key.stores).decode()
    db.table(TABLE).insert(row)


def _from_row(row: dict[str, Any]) -> StoredKey:
    nested = {name: msgspec.json.decode(row[name]) for name in ("scopes", "models", "stores")}
    return msgspec.convert({**row, **nested}, StoredKey)
