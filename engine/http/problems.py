"""Refusals as values, and the three envelopes clients expect them in.

`Problem` is the only exception that handlers raise on purpose; `of` turns everything else into one. Statuses:

    400 the request is wrong, or asks of the model what it cannot do
    401 no valid key               403 the key (or host, origin) may not
    404 no such model or route     405 wrong method             408 sent too slowly
    413 body too large             415 not JSON                 421 wrong Host
    429 over a quota               431 head too large           500 a bug of ours
    503 overloaded, loading, draining, or the engine crashed    504 a deadline passed

Invariant: the text of an unexpected exception never leaves the process, since it may hold a prompt.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec
from lathe.engine.errors import CrashedError, DoesNotFit, ExitCode, Failure, LatheError, describe
from lathe.quantize.errors import QuantizeError
from lathe.store.errors import StoreError

Dialect = Literal["openai", "anthropic", "ollama"]


class Problem(Exception):
    """A request that gets an error instead of an answer."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s
        self.headers = headers

    def all_headers(self) -> list[tuple[str, str]]:
        """Return the headers that belong to it, `Retry-After` included."""
        headers = list(self.headers)
        if self.retry_after_s is not None:
            headers.append(("retry-after", str(max(1, math.ceil(self.retry_after_s)))))
        if self.status == 401:
            headers.append(("www-authenticate", "Bearer"))
        return headers


_STATUS: dict[int, int] = {
    ExitCode.USAGE: 400,
    ExitCode.DATA: 400,
    ExitCode.NO_INPUT: 404,
    ExitCode.UNAVAILABLE: 503,
    ExitCode.CANNOT_CREATE: 503,
    ExitCode.TEMPORARY: 503,
    ExitCode.POLICY: 403,
    ExitCode.CONFIG: 503,
    ExitCode.TIMEOUT: 504,
    ExitCode.INTERRUPTED: 503,
}
_ABILITY_CODES = frozenset({"E_UNSUPPORTED", "E_CAPABILITY"})
"""The model exists and works, but not for this."""
_CONTEXT_CODES = frozenset({"E_CONTEXT", "E_CONTEXT_OVERFLOW", "E_CONTEXT_LENGTH", "E_OVERFLOW"})


def of(error: BaseException) -> Problem:
    """Turn any exception into what its client may see."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, LatheError | QuantizeError | StoreError | TimeoutError):
        return of_failure(describe(error))
    return Problem(500, "internal error; the server's log names it under this request's id", code="E_INTERNAL")


def of_failure(failure: Failure) -> Problem:
    """Turn the engine's error value into a problem."""
    if failure.code == CrashedError.code:
        message = "the model's process died while it worked on this; it is being restarted, so try again"
        return Problem(503, message, code="engine_crashed", retry_after_s=2)
    if failure.code in _CONTEXT_CODES:
        return Problem(400, _text(failure), code="context_length_exceeded")
    if failure.code in _ABILITY_CODES:
        return Problem(400, _text(failure), code="not_supported")
    status = _STATUS.get(failure.exit, 500)
    if status == 500:
        return Problem(500, "internal error; the server's log names it under this request's id", code=failure.code)
    if status == 404:
        return Problem(404, _text(failure), code="model_not_found")
    retry = None
    if failure.exit == ExitCode.TEMPORARY:
        retry = 30.0 if failure.code == DoesNotFit.code else 1.0
    return Problem(status, _text(failure), code=failure.code, retry_after_s=retry)


def _text(failure: Failure) -> str:
    return f"{failure.message} ({failure.hint})" if failure.hint else failure.message


_OPENAI_TYPES = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error",
    500: "server_error", 503: "unavailable_error", 504: "timeout_error",
}  # fmt: skip
_ANTHROPIC_TYPES = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large",
    429: "rate_limit_error", 500: "api_error", 503: "overloaded_error", 504: "timeout_error",
}  # fmt: skip


def envelope(problem: Problem, dialect: Dialect, request_id: str = "") -> dict[str, object]:
    """Return the error body in the words of the client's dialect."""
    if dialect == "ollama":
        return {"error": problem.message}
    if dialect == "anthropic":
        kind = _ANTHROPIC_TYPES.get(problem.status, "invalid_request_error")
        return {"type": "error", "error": {"type": kind, "message": problem.message}, "request_id": request_id}
    kind = _OPENAI_TYPES.get(problem.status, "invalid_request_error")
    error = {"message": problem.message, "type": kind, "param": problem.param, "code": problem.code}
    return {"error": error}


def encoded(problem: Problem, dialect: Dialect, request_id: str = "") -> bytes:
    """Return `envelope` as JSON."""
    return msgspec.json.encode(envelope(problem, dialect, request_id))
