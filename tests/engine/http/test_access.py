"""Who gets in: bind rules, Host and Origin, keys and scopes (S01 to S04, F50)."""

from __future__ import annotations

import pytest
from lathe.engine.errors import PolicyError, UsageError
from lathe.engine.http.access import (
    LOCAL,
    HostRule,
    OriginRule,
    Principal,
    authenticate,
    authorize,
    check_options,
    resolve,
)
from lathe.engine.http.problems import Problem
from lathe.engine.states import ServerOptions
from support.http_kit import SECRET, Ring, key

REMOTE = ["0.0.0.0", "::", "192.168.1.5", "10.0.0.1", "fe80::1%eth0", "8.8.8.8"]


@pytest.mark.parametrize("address", REMOTE)
def test_other_machines_need_permission_a_token_and_a_key(address: str) -> None:
    with pytest.raises(PolicyError, match="explicitly"):
        check_options(ServerOptions(host=address), [address], 1)
    with pytest.raises(PolicyError, match="without a token"):
        check_options(ServerOptions(host=address, allow_remote=True, require_token=False), [address], 1)
    with pytest.raises(PolicyError, match="at least one API key"):
        check_options(ServerOptions(host=address, allow_remote=True), [address], 0)
    check_options(ServerOptions(host=address, allow_remote=True), [address], 1)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.8.8", "::1"])
def test_loopback_may_go_without(address: str) -> None:
    check_options(ServerOptions(host=address, require_token=False), [address], 0)


def test_a_name_with_one_remote_address_is_remote() -> None:
    with pytest.raises(PolicyError):
        check_options(ServerOptions(host="box"), ["127.0.0.1", "192.168.1.5"], 1)


def test_a_unix_socket_is_local() -> None:
    check_options(ServerOptions(unix_socket="/run/x", require_token=False), (), 0)


def test_odd_options_are_refused() -> None:
    with pytest.raises(UsageError, match="cors_origins"):
        check_options(ServerOptions(cors_origins=("*",)), ["127.0.0.1"], 1)
    with pytest.raises(UsageError, match="tls"):
        check_options(ServerOptions(tls_certificate="a.pem"), ["127.0.0.1"], 1)
    with pytest.raises(UsageError, match="cannot be resolved"):
        resolve("no such host.invalid", 0)


def host(value: str | None) -> list[tuple[bytes, bytes]]:
    return [] if value is None else [(b"host", value.encode("latin-1"))]


@pytest.mark.parametrize(
    "value", ["localhost", "localhost:8321", "LOCALHOST", "127.0.0.1:1", "[::1]:8321", "box.lan", "Box.Lan:99"]
)
def test_known_hosts_pass(value: str) -> None:
    HostRule(ServerOptions(allowed_hosts=("box.lan",)), remote=False).check(host(value))


@pytest.mark.parametrize(
    "value",
    [None, "", "evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "localhost@evil", "a b",
     "localhost:", "localhost:x", "[::1", "192.168.1.5", "2130706433", "0x7f000001", "127.1", "localhost,evil",
     "localhost/evil", "é"],
)  # fmt: skip
def test_foreign_hosts_do_not(value: str | None) -> None:
    with pytest.raises(Problem) as caught:
        HostRule(ServerOptions(), remote=False).check(host(value))
    assert caught.value.status == 421


def test_a_remote_server_takes_its_addresses_but_not_other_names() -> None:
    rule = HostRule(ServerOptions(host="0.0.0.0"), remote=True)
    rule.check(host("192.168.1.5:8321"))
    rule.check(host("[fe80::1]"))
    for foreign in ("evil.example", "0.0.0.0.evil.example"):
        with pytest.raises(Problem):
            rule.check(host(foreign))


def test_a_unix_socket_has_no_host_to_check() -> None:
    HostRule(ServerOptions(unix_socket="/run/x"), remote=False).check(host(None))


@pytest.mark.parametrize("origin", [b"https://evil.example", b"null", b"http://localhost:3000", b"file://"])
def test_origins_are_refused_unless_named(origin: bytes) -> None:
    with pytest.raises(Problem) as caught:
        OriginRule(()).check([(b"origin", origin)])
    assert caught.value.status == 403


def test_a_named_origin_gets_exactly_itself_and_no_credentials() -> None:
    headers = OriginRule(("https://app.example/",)).check([(b"origin", b"https://app.example")])
    assert dict(headers)["access-control-allow-origin"] == "https://app.example"
    assert "access-control-allow-credentials" not in dict(headers)
    with pytest.raises(Problem):
        OriginRule(("https://app.example",)).check([(b"origin", b"https://app.example.evil")])


def test_navigation_from_a_foreign_page_is_refused_even_without_origin() -> None:
    with pytest.raises(Problem):
        OriginRule(()).check([(b"sec-fetch-site", b"cross-site")])
    assert OriginRule(()).check([(b"sec-fetch-site", b"none")]) == []
    assert OriginRule(()).check([]) == []


RING = Ring(key("ops", scopes=("infer",)), key("dev", "lathe-" + "d" * 43))
GOOD = b"Bearer " + SECRET.encode()


def enter(*headers: tuple[bytes, bytes], x_api_key: bool = False) -> Principal:
    return authenticate(list(headers), RING, require_token=True, x_api_key=x_api_key)


@pytest.mark.parametrize("value", [GOOD, GOOD.replace(b"Bearer", b"bearer"), b"Bearer   " + SECRET.encode()])
def test_a_good_key_names_its_owner(value: bytes) -> None:
    assert enter((b"authorization", value)).name == "ops"


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", b"")],
        [(b"authorization", b"Bearer")],
        [(b"authorization", b"Bearer ")],
        [(b"authorization", SECRET.encode())],
        [(b"authorization", b"Basic " + SECRET.encode())],
        [(b"authorization", b"Bearer " + SECRET.upper().encode())],
        [(b"authorization", b"Bearer " + SECRET.encode() + b"x")],
        [(b"authorization", b"Bearer " + SECRET.encode()[:-1])],
        [(b"authorization", b"Bearer a b")],
        [(b"authorization", b"Bearer \xc3\xa9")],
        [(b"authorization", b"Bearer " + b"x" * 1_000_000)],
        [(b"authorization", GOOD), (b"authorization", GOOD)],
        [(b"authorization", GOOD), (b"authorization", b"Bearer other")],
        [(b"x-api-key", SECRET.encode())],
        [(b"cookie", b"token=" + SECRET.encode())],
    ],
)
def test_anything_else_gets_the_same_401(headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(Problem) as caught:
        enter(*headers)
    with pytest.raises(Problem) as plain:
        enter()
    assert (caught.value.status, caught.value.message) == (401, plain.value.message)


def test_x_api_key_counts_on_anthropic_s_path_alone_and_may_not_contradict() -> None:
    assert enter((b"x-api-key", SECRET.encode()), x_api_key=True).name == "ops"
    assert enter((b"x-api-key", SECRET.encode()), (b"authorization", GOOD), x_api_key=True).name == "ops"
    for headers in (
        [(b"x-api-key", SECRET.encode()), (b"authorization", b"Bearer other")],
        [(b"x-api-key", SECRET.encode()), (b"authorization", b"Basic x")],
        [(b"x-api-key", b"wrong")],
    ):
        with pytest.raises(Problem):
            enter(*headers, x_api_key=True)


def test_without_tokens_everyone_is_local() -> None:
    assert authenticate([], RING, require_token=False, x_api_key=False) is LOCAL


def test_scopes_are_what_the_key_says_and_never_admin_by_default() -> None:
    default = authenticate(
        [(b"authorization", b"Bearer lathe-" + b"d" * 43)], RING, require_token=True, x_api_key=False
    )
    authorize(default, "infer")
    authorize(default, "observe")
    with pytest.raises(Problem) as caught:
        authorize(default, "admin")
    assert caught.value.status == 403
    with pytest.raises(Problem):
        authorize(enter((b"authorization", GOOD)), "observe")
