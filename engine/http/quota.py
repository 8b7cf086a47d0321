"""How much one key, and all keys together, may use: token buckets per minute and a cap on what is under way.

Pure apart from the numbers it keeps; time comes in as an argument. Invariant: `Admission.active` is the number of
requests that entered and have not left, and no key holds more than its share of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from lathe.engine.generation import GenerationRequest
from lathe.engine.http.access import Principal
from lathe.engine.http.problems import Problem

_BYTES_PER_TOKEN = 4


def estimated(text: str | Sequence[int]) -> int:
    """Tokens of a text that nobody has counted; token ids are counted."""
    return -(-len(text.encode("utf-8", "replace")) // _BYTES_PER_TOKEN) if isinstance(text, str) else len(text)


def estimated_prompt(request: GenerationRequest) -> int:
    """Tokens of the prompt of a request that has not told its usage."""
    texts = [message.content for message in request.messages] + [request.prompt or "", request.tools or ""]
    return sum(map(estimated, texts)) + estimated(request.tokens or ())


class Bucket:
    """Refills evenly to `per_minute`; may be overdrawn by work whose cost is known only afterwards."""

    __slots__ = ("_at", "level", "per_minute")

    def __init__(self, per_minute: int, now: float) -> None:
        self.per_minute = per_minute
        self.level = float(per_minute)
        self._at = now

    def refill(self, now: float) -> None:
        """Bring the level up to date."""
        self.level = min(float(self.per_minute), self.level + max(0.0, now - self._at) * self.per_minute / 60)
        self._at = now

    def wait_s(self, amount: float) -> float:
        """Seconds until `amount` can be taken; 0 when it can be now."""
        return max(0.0, (amount - self.level) * 60 / self.per_minute)


class Quotas:
    """Requests and tokens per minute of every key that has a quota."""

    def __init__(self) -> None:
        self._requests: dict[str, Bucket] = {}
        self._tokens: dict[str, Bucket] = {}

    def admit(self, principal: Principal, now: float) -> list[tuple[str, str]]:
        """Take one request from the quota; return the headers that tell what is left.

        Raises:
            Problem: 429 with the seconds to wait.
        """
        requests = _bucket(self._requests, principal.name, principal.requests_per_minute, now)
        tokens = _bucket(self._tokens, principal.name, principal.tokens_per_minute, now)
        for bucket, what in ((requests, "requests"), (tokens, "tokens")):
            if bucket is not None and (wait := bucket.wait_s(1)) > 0:
                raise Problem(
                    429,
                    f"this key may use {bucket.per_minute} {what} per minute; try again in {wait:.1f} s",
                    code=f"{what}_per_minute",
                    retry_after_s=wait,
                )
        if requests is not None:
            requests.level -= 1
        return _headers("requests", requests) + _headers("tokens", tokens)

    def charge(self, principal: Principal, tokens: int, now: float) -> None:
        """Take the tokens of finished work; what was overdrawn delays the next request."""
        bucket = _bucket(self._tokens, principal.name, principal.tokens_per_minute, now)
        if bucket is not None:
            bucket.level -= tokens


def _bucket(buckets: dict[str, Bucket], name: str, per_minute: int | None, now: float) -> Bucket | None:
    if per_minute is None:
        return None
    bucket = buckets.get(name)
    if bucket is None or bucket.per_minute != per_minute:
        bucket = buckets[name] = Bucket(per_minute, now)
    bucket.refill(now)
    return bucket


def _headers(what: str, bucket: Bucket | None) -> list[tuple[str, str]]:
    if bucket is None:
        return []
    full_s = (bucket.per_minute - bucket.level) * 60 / bucket.per_minute
    return [
        (f"x-ratelimit-limit-{what}", str(bucket.per_minute)),
        (f"x-ratelimit-remaining-{what}", str(max(0, int(bucket.level)))),
        (f"x-ratelimit-reset-{what}", f"{full_s:.3f}s"),
    ]


class Admission:
    """The bounded number of requests that may be with the engine; the rest are told when to come back."""

    def __init__(self, capacity: int, share: float) -> None:
        self._capacity = capacity
        self._per_key = max(1, int(capacity * share))
        self._held: Counter[str] = Counter()
        self._mean_s = 1.0
        self.active = 0

    def enter(self, key: str) -> None:
        """Count a request in.

        Raises:
            Problem: 503 when the server is full, 429 when this key holds its share of it.
        """
        if self.active >= self._capacity:
            raise Problem(503, "the server is at capacity", code="overloaded", retry_after_s=self._retry_s())
        if self._held[key] >= self._per_key:
            message = f"this key has {self._per_key} requests under way, its share of this server"
            raise Problem(429, message, code="too_many_requests", retry_after_s=self._retry_s())
        self._held[key] += 1
        self.active += 1

    def leave(self, key: str, seconds: float) -> None:
        """Count a request out, with how long it took."""
        self.active -= 1
        self._held[key] -= 1
        if not self._held[key]:
            del self._held[key]
        self._mean_s += (seconds - self._mean_s) / 16

    def held(self, key: str) -> int:
        """Requests of a key that are under way."""
        return self._held.get(key, 0)

    def _retry_s(self) -> float:
        # With the server full, a place frees up about once per mean duration divided by the places; a client that
        # comes back after one mean duration finds the queue turned over once.
        return min(30.0, max(1.0, self._mean_s))
