"""HTTP to one remote server: JSON and event streams, with time limits, and another try before the first answer.

Redirects are not followed and no proxy of the environment is used: the key goes where the alias says and nowhere else.
Invariant: a request is sent again only while nothing of its answer has been read.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx2
from lathe.engine.errors import DataError, LatheError, TimeoutExpired, UnavailableError
from lathe.engine.worker.backends.remote import wire

CONNECT_S = 10.0
SILENCE_S = 300.0
"""Between two pieces of an answer: a long prompt on a slow server gives none for minutes."""
TRIES = 3
_WAITS_S = (0.25, 1.0)
_LONGEST_WAIT_S = 5.0
_AGAIN = frozenset({408, 429, 502, 503, 504})
_UNSENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.RemoteProtocolError)
"""Faults before an answer: no connection, or one that was kept open and had been closed at the other end."""
MAX_LINE = 8 * 2**20
MAX_ANSWER = 256 * 2**20


class Connection:
    """One server."""

    def __init__(self, url: str, key: str | None, name: str, *, silence_s: float = SILENCE_S) -> None:
        """Connect when first asked.

        Args:
            name: of the model, by which messages name its server: clients of Lathe need not learn where that is.
        """
        self.url = url.rstrip("/")
        self.server = f"the server of {name}"
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=32)
        timeout = httpx2.Timeout(silence_s, connect=CONNECT_S)
        logging.getLogger("httpx2").setLevel(logging.WARNING)  # a line per request is the server's business
        trusted = ssl.create_default_context()  # the system's authorities, or those of SSL_CERT_FILE
        self._client = httpx2.AsyncClient(
            headers=headers, timeout=timeout, limits=limits, verify=trusted, trust_env=False
        )

    async def close(self) -> None:
        """Close every connection."""
        await self._client.aclose()

    async def get(self, route: str) -> dict[str, Any]:
        """GET a JSON object."""
        async with self._answer("GET", route, None) as response:
            return wire.document(await self._whole(response))

    async def post(self, route: str, body: dict[str, Any]) -> dict[str, Any]:
        """POST and read a JSON object."""
        async with self._answer("POST", route, body) as response:
            return wire.document(await self._whole(response))

    async def events(
        self, route: str, body: dict[str, Any], whole: Callable[[], bool]
    ) -> AsyncGenerator[dict[str, Any], None]:
        """POST and read the events of a stream as they come; leaving the loop closes the connection.

        Args:
            whole: whether the events so far are a complete answer; asked of servers that do not say [DONE].

        Raises:
            LatheError: the server refused, was not there, broke off or reported an error in the stream.
        """
        async with self._answer("POST", route, body) as response:
            if "json" in response.headers.get("content-type", ""):  # it does not stream
                yield wire.document(await self._whole(response))
                return
            async for line in self._lines(response):
                field, _, value = line.partition(":")
                if field != "data":
                    continue
                value = value.strip()
                if value == "[DONE]":
                    return
                event = wire.document(value)
                if (error := wire.event_error(event, self.server)) is not None:
                    raise error
                yield event
            if not whole():
                hint = "the fault is the remote server's, or of what is between"
                raise UnavailableError(f"{self.server} broke off its answer", hint=hint, code="E_REMOTE_UNAVAILABLE")

    @asynccontextmanager
    async def _answer(self, method: str, route: str, body: dict[str, Any] | None) -> AsyncIterator[httpx2.Response]:
        # Routes of OpenAI's API are below its URL, those of servers beside it.
        url = f"{self.url.removesuffix('/v1')}{route}" if route.startswith("/") else f"{self.url}/{route}"
        for attempt in range(TRIES):
            last = attempt == TRIES - 1
            wait = _WAITS_S[min(attempt, len(_WAITS_S) - 1)]
            try:
                request = self._client.build_request(method, url, json=body)
                response = await self._client.send(request, stream=True)
            except Exception as error:
                if last or not isinstance(error, _UNSENT):
                    raise self._fault(error) from error
            else:
                try:
                    if response.status_code < 300:
                        yield response
                        return
                    data = await self._whole(response)
                except httpx2.HTTPError as error:
                    raise self._fault(error) from error
                finally:
                    await response.aclose()
                if last or response.status_code not in _AGAIN:
                    raise wire.refusal(response.status_code, data, self.server)
                wait = _retry_after(response, wait)
            await asyncio.sleep(wait)

    async def _whole(self, response: httpx2.Response) -> bytes:
        data = bytearray()
        async for chunk in response.aiter_bytes():
            data += chunk
            if len(data) > MAX_ANSWER:
                raise DataError(f"{self.server} answers with more than {MAX_ANSWER} bytes", code="E_REMOTE")
        return bytes(data)

    async def _lines(self, response: httpx2.Response) -> AsyncIterator[str]:
        rest = b""
        async for chunk in response.aiter_bytes():
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                yield line.rstrip(b"\r").decode("utf-8", "replace")
            if len(rest) > MAX_LINE:
                raise DataError(f"{self.server} sends a line of more than {MAX_LINE} bytes", code="E_REMOTE")
        if rest:
            yield rest.decode("utf-8", "replace")

    def _fault(self, error: Exception) -> LatheError:
        """What went wrong between the server and us."""
        if isinstance(error, LatheError):
            return error
        if isinstance(error, httpx2.TimeoutException):
            return TimeoutExpired(f"{self.server} did not answer in time", code="E_REMOTE_TIMEOUT")
        cause = error.__cause__ or error.__context__
        if isinstance(cause, ssl.SSLError) or "CERTIFICATE" in str(error):
            hint = "name its certificate authority in SSL_CERT_FILE"
            return UnavailableError(
                f"{self.server} has no trusted certificate: {error}", hint=hint, code="E_REMOTE_TLS"
            )
        reason = str(error) or type(error).__name__
        text = f"{self.server} cannot be reached: {reason}"
        return UnavailableError(text, hint="is it running, and is the alias right?", code="E_REMOTE_UNAVAILABLE")


def _retry_after(response: httpx2.Response, otherwise: float) -> float:
    try:
        return min(_LONGEST_WAIT_S, max(0.0, float(response.headers.get("retry-after", otherwise))))
    except ValueError:
        return otherwise
