"""API keys: shown once, stored as digests, gone when revoked, there after a restart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from lathe.store.database import Database
from lathe.store.errors import NotFound
from lathe.store.keys import KeyRefused, KeyRing


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with Database.open(tmp_path / "lathe.db") as database:
        yield database


def test_the_secret_opens_and_nothing_near_it_does(database: Database) -> None:
    ring = KeyRing(database)
    key, secret = ring.make("ops", scopes=("infer",), models=("tiny",), requests_per_minute=60, tokens_per_minute=9)
    assert ring.match(secret) == key
    for wrong in ("", secret[:-1], secret + "x", secret.upper(), key.digest, "\ud800", "x" * 1_000_000):
        assert ring.match(wrong) is None


def test_secrets_have_256_bits_and_differ(database: Database) -> None:
    ring = KeyRing(database)
    secrets = {ring.make(f"k{i}")[1] for i in range(20)}
    assert len(secrets) == 20
    assert all(len(secret.removeprefix("lathe-")) == 43 for secret in secrets)  # 32 bytes in base64url


def test_the_file_never_holds_the_secret(database: Database) -> None:
    _, secret = KeyRing(database).make("ops")
    database.close()
    for path in database.path.parent.iterdir():
        assert secret.encode() not in path.read_bytes()


def test_keys_survive_a_restart_with_every_field(tmp_path: Path) -> None:
    with Database.open(tmp_path / "lathe.db") as database:
        made, secret = KeyRing(database).make("a", scopes=("admin",), models=("x", "y"), tokens_per_minute=5)
    with Database.open(tmp_path / "lathe.db") as database:
        again = KeyRing(database)
        assert again.keys() == (made,)
        assert again.match(secret) == made


def test_a_revoked_key_stops_at_once_and_for_good(database: Database) -> None:
    ring = KeyRing(database)
    _, secret = ring.make("ops")
    ring.revoke("ops")
    assert ring.match(secret) is None
    assert KeyRing(database).match(secret) is None
    with pytest.raises(NotFound):
        ring.revoke("ops")


@pytest.mark.parametrize("name", ["", "a b", "../x", "é", "-x", "x" * 65, "a\n"])
def test_odd_names_are_refused(database: Database, name: str) -> None:
    with pytest.raises(KeyRefused):
        KeyRing(database).make(name)


def test_taken_names_unknown_scopes_and_empty_quotas_are_refused(database: Database) -> None:
    ring = KeyRing(database)
    ring.make("ops")
    with pytest.raises(KeyRefused, match="exists"):
        ring.make("ops")
    with pytest.raises(KeyRefused, match="unknown scope 'root'"):
        ring.make("b", scopes=("root",))
    with pytest.raises(KeyRefused, match="at least 1"):
        ring.make("c", requests_per_minute=0)
    assert len(ring) == 1


def test_a_secret_may_be_brought_if_it_is_long_enough_and_no_other_key_s(database: Database) -> None:
    ring = KeyRing(database)
    given = "x" * 32
    key, secret = ring.make("ci", secret=given)
    assert (secret, ring.match(given)) == (given, key)
    for weak in ("short", "x" * 31, "x" * 513, "y" * 31 + " ", "é" * 40, "z" * 40 + "\n"):
        with pytest.raises(KeyRefused, match="32 to 512 visible"):
            ring.make("weak", secret=weak)
    with pytest.raises(KeyRefused, match="another key's"):
        ring.make("twin", secret=given)
    assert [key.name for key in ring.keys()] == ["ci"]  # noqa: SIM118 - a key ring is no dict
