"""Work that a job gives to a process of its own: what measures its own memory, may crash, or loads a heavy library.

The helper is `python -m MODULE`: one JSON document on stdin, one on stdout, its log on stderr. Invariant: a helper
never outlives its job, and its death is an error that the job can go on from.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import TypeVar

import msgspec
from lathe.engine.errors import CrashedError, Failure, TimeoutExpired, describe, revive
from lathe.engine.process import child_environment, explain

Answer = TypeVar("Answer")
Request = TypeVar("Request")

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "DO_NOT_TRACK": "1"}
_TAIL = 30
"""Lines of its log that are searched for a cause."""
_LOGGED = 64 << 10
"""Bytes of its log that are kept in the job's."""


class _Envelope(msgspec.Struct, frozen=True):
    answer: msgspec.Raw = msgspec.Raw(b"null")
    failure: Failure | None = None


def ask(
    module: str, request: msgspec.Struct, kind: type[Answer], *, role: str, timeout_s: float = 3600.0,
    env: Mapping[str, str] | None = None,
) -> Answer:  # fmt: skip
    """Run a helper on a request.

    Raises:
        CrashedError: it died, or answered with something else; the message carries its last words.
        TimeoutExpired: it took longer than `timeout_s`.
        LatheError: what the helper itself reported.
    """
    command = [sys.executable, "-P", "-m", "lathe.engine.boot", str(os.getpid()), module]
    try:
        done = subprocess.run(
            command, input=msgspec.json.encode(request), capture_output=True, timeout=timeout_s, check=False,
            env=child_environment({**OFFLINE, **(env or {})}),
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise TimeoutExpired(f"{role} took more than {timeout_s:,.0f} s") from error
    sys.stderr.write(done.stderr[-_LOGGED:].decode("utf-8", "replace"))
    if done.returncode:
        cause = explain(done.returncode, done.stderr.decode("utf-8", "replace").splitlines()[-_TAIL:])
        failure = cause.failure(role)
        raise CrashedError(failure.message, hint=failure.hint)
    try:
        envelope = msgspec.json.decode(done.stdout, type=_Envelope)
        if envelope.failure is None:
            return msgspec.json.decode(envelope.answer, type=kind)
    except msgspec.MsgspecError as error:
        raise CrashedError(f"{role} gave an answer that cannot be read: {error}") from error
    raise revive(envelope.failure)


def serve(kind: type[Request], work: Callable[[Request], msgspec.Struct]) -> None:
    """The helper's side: read the one request, do the work, answer; whatever else is written to stdout becomes log."""
    channel = os.dup(1)
    os.dup2(2, 1)
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=kind)
    try:
        envelope = _Envelope(answer=msgspec.Raw(msgspec.json.encode(work(request))))
    except Exception as error:  # noqa: BLE001 - the boundary of the process: every error becomes the answer
        envelope = _Envelope(failure=describe(error))
    with os.fdopen(channel, "wb") as stream:
        stream.write(msgspec.json.encode(envelope))
