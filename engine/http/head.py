"""What a request head must look like before h11 parses it: framing that two servers could read differently is refused.

h11 is strict, but it unfolds obsolete folded headers, takes bare line feeds, collapses equal Content-Length headers
and lets Transfer-Encoding win over Content-Length; each of these has been half of a smuggling attack. Pure: bytes in,
a refusal or nothing out.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from lathe.engine.http.limits import Limits

END_OF_HEAD = re.compile(rb"\n\r?\n")
"""Where h11 sees the end of a head; only CR LF CR LF is then accepted."""
_LONE_BREAK = re.compile(rb"(?<!\r)\n|\r(?!\n)|\x00")
_FOLD = re.compile(rb"\r\n[ \t]")
_ONCE = re.compile(rb"(?i)\r\n(host|content-length|transfer-encoding|authorization|x-api-key|content-type|expect):")
_LENGTH_AND_CODING = {b"content-length", b"transfer-encoding"}


class Refusal(NamedTuple):
    """Why a head is not taken."""

    status: int
    message: str


def check_head(head: bytes, limits: Limits) -> Refusal | None:
    """Judge a complete head: request line, headers, and the empty line that ends them."""
    if len(head) > limits.head_bytes:
        return Refusal(431, f"the request head exceeds {limits.head_bytes} bytes")
    if _LONE_BREAK.search(head):
        return Refusal(400, "the request head has a bare CR, LF or NUL")
    request_line, _, _ = head.partition(b"\r\n")
    parts = request_line.split(b" ")
    if len(parts) != 3 or not parts[2].startswith(b"HTTP/1."):
        return Refusal(400, "the request line is not METHOD TARGET HTTP/1.1")
    if len(parts[1]) > limits.target_bytes:
        return Refusal(414, f"the request target exceeds {limits.target_bytes} bytes")
    if not parts[1].startswith(b"/") and parts[1] != b"*":
        return Refusal(400, "the request target must be a path")
    if head.count(b"\r\n") - 2 > limits.headers:
        return Refusal(431, f"the request has more than {limits.headers} headers")
    if _FOLD.search(head):
        return Refusal(400, "the request has a folded header")
    return _check_repeats([name.lower() for name in _ONCE.findall(head)])


def _check_repeats(names: list[bytes]) -> Refusal | None:
    if len(names) != len(set(names)):
        twice = next(name for name in names if names.count(name) > 1).decode()
        # Two credentials are an authentication failure, not a framing one; `auth` answers 401.
        return None if twice in ("authorization", "x-api-key") else Refusal(400, f"the header {twice} is given twice")
    if _LENGTH_AND_CODING.issubset(names):
        return Refusal(400, "Content-Length and Transfer-Encoding exclude each other")
    return None
