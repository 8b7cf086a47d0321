"""Every cap and deadline of the HTTP API in one value, so that tests can shrink them and docs can list them."""

from __future__ import annotations

import msgspec


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What one client may cost; times in seconds, sizes in bytes."""

    head_bytes: int = 64 * 1024
    """Request line and headers together."""
    headers: int = 100
    target_bytes: int = 8 * 1024
    body_bytes: int = 8 * 1024 * 1024
    bodies_bytes: int = 256 * 1024 * 1024
    """Bodies being received or decoded at one moment, over all connections."""
    json_depth: int = 64
    json_tokens: int = 200_000
    """Strings and brackets in one body."""

    head_s: float = 10.0
    """From the first byte of a request (or from connecting) to the end of its head."""
    body_s: float = 30.0
    """From the end of the head to the end of the body."""
    body_rate: float = 512.0
    """Bytes per second that a body must average once `rate_grace_s` have passed."""
    rate_grace_s: float = 5.0
    idle_s: float = 65.0
    """Between two requests on one connection; longer than the pools of common clients keep theirs."""
    write_s: float = 30.0
    """A response that stays unread for this long is given up."""
    write_buffer: int = 32 * 1024
    """Bytes held per connection for a slow reader before the stream pauses."""
    linger_s: float = 1.0
    """How long the rest of a refused request is swallowed, so that the client gets to read the refusal."""
    sweep_s: float = 1.0
    """How often the deadlines are looked at."""

    connections: int = 4096
    connections_per_ip: int = 128
    """For addresses other than loopback; a Unix socket and loopback share `connections`."""
    active: int = 2048
    """Requests that may be with the engine at once, running or in a model's queue."""
    active_per_key_share: float = 0.75
    """The part of `active` that one key may hold, so that the others always find room."""

    first_byte_s: float = 10.0
    """A stream whose first token takes longer starts without it; until then errors still get their own status."""
    ping_s: float = 15.0
    """Silence after which a stream sends a comment, so that proxies and clients see it alive."""
    drain_s: float = 30.0
    """How long `stop` waits for running requests."""
