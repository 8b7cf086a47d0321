"""Request heads: framing that two servers could read differently never reaches the parser."""

from __future__ import annotations

import pytest
from lathe.engine.http.head import END_OF_HEAD, check_head
from lathe.engine.http.limits import Limits

LIMITS = Limits()


def head(*lines: str, end: str = "\r\n") -> bytes:
    return (end.join(lines) + end + end).encode("latin-1")


@pytest.mark.parametrize(
    "given",
    [
        head("GET / HTTP/1.1", "Host: a"),
        head("POST /v1/models?x=%20 HTTP/1.1", "Host: a", "Content-Length: 3", "X: a:b\t c", "Empty:"),
        head("POST / HTTP/1.1", "Transfer-Encoding: chunked", "X-Content-Length: 4"),
        head("OPTIONS * HTTP/1.1", "Host: a"),
        head("GET / HTTP/1.0"),
        head("GET / HTTP/1.1", *(f"X{i}: y" for i in range(100))),
        # Two credentials are judged by authentication, which answers 401 like for any other bad key.
        head("GET / HTTP/1.1", "Authorization: Bearer a", "Authorization: Bearer b"),
    ],
)
def test_honest_heads_pass(given: bytes) -> None:
    assert check_head(given, LIMITS) is None


@pytest.mark.parametrize(
    ("given", "status"),
    [
        (head("POST / HTTP/1.1", "Content-Length: 3", "Transfer-Encoding: chunked"), 400),
        (head("POST / HTTP/1.1", "content-length: 3", "Content-Length: 3"), 400),
        (head("POST / HTTP/1.1", "Content-Length: 3", "Content-Length: 4"), 400),
        (head("POST / HTTP/1.1", "Transfer-Encoding: chunked", "transfer-encoding: identity"), 400),
        (head("GET / HTTP/1.1", "Host: a", "Host: b"), 400),
        (head("GET / HTTP/1.1", "X: a", " folded"), 400),
        (head("GET / HTTP/1.1", "X: a", "\tfolded"), 400),
        (head("GET / HTTP/1.1", "Host: a", end="\n"), 400),
        (b"GET / HTTP/1.1\r\nX: a\nContent-Length: 5\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: a\rContent-Length: 5\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: a\x00b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: a\n\r\n", 400),
        (head("GET  / HTTP/1.1"), 400),
        (head("GET /"), 400),
        (head("GET / HTTP/2.0"), 400),
        (head("GET / HTTP/0.9"), 400),
        (head("GET http://elsewhere/ HTTP/1.1", "Host: a"), 400),
        (head("CONNECT elsewhere:443 HTTP/1.1", "Host: a"), 400),
        (head(" GET / HTTP/1.1"), 400),
        (head("GET /" + "a" * LIMITS.target_bytes + " HTTP/1.1"), 414),
        (head("GET / HTTP/1.1", *(f"X{i}: y" for i in range(101))), 431),
        (head("GET / HTTP/1.1", "X: " + "a" * LIMITS.head_bytes), 431),
    ],
)
def test_ambiguous_heads_are_refused(given: bytes, status: int) -> None:
    refusal = check_head(given, LIMITS)
    assert refusal is not None
    assert refusal.status == status


@pytest.mark.parametrize("end", [b"\n\n", b"\n\r\n", b"\r\n\n", b"\r\n\r\n"])
def test_every_end_that_h11_accepts_is_seen(end: bytes) -> None:
    match = END_OF_HEAD.search(b"GET / HTTP/1.1" + end + b"body")
    assert match is not None
    refused = check_head((b"GET / HTTP/1.1" + end)[: match.end()], LIMITS) is not None
    assert refused == (end != b"\r\n\r\n")
