"""Errors as part of the interface: one tree, one value for the wire, one table of exit codes.

    LatheError
    |- UsageError        the call itself is wrong                       exit 2
    |- DataError         input that cannot be parsed or trusted         exit 65
    |- MissingError      a file, model, job or store is not there       exit 66
    |- UnavailableError  a backend, extra, driver or the engine is not  exit 69
    |  '- EngineStopped  the engine was told to end                     exit 69
    |- InternalError     a bug; also a crashed child                    exit 70
    |  '- CrashedError   native code died; nothing else did             exit 70
    |- CannotCreate      disk full, no permission, output exists        exit 73
    |- BusyError         lock held, port taken, queue full, memory      exit 75
    |  '- DoesNotFit     the estimate says: short by X                  exit 75
    |- PolicyError       refused by a rule of the user or of ours       exit 77
    |- ConfigError       settings or plan are wrong (file:line:column)  exit 78
    |- TimeoutExpired    a deadline passed                              exit 124
    '- Cancelled         the user stopped it                            exit 130

Errors of the floors below keep their own types; `describe` turns any exception into a `Failure`, the value that
crosses process boundaries, and `revive` turns a `Failure` back into an exception of the right kind.
"""

from __future__ import annotations

import asyncio
import errno
from enum import IntEnum

import msgspec
from lathe.quantize import errors as quantize_errors
from lathe.store import errors as store_errors


class ExitCode(IntEnum):
    """What a process of Lathe says when it ends; documented in README.md."""

    OK = 0
    NEGATIVE = 1
    """Ran fine, but the answer is no: a missed gate, a doctor warning."""
    USAGE = 2
    NOTHING_TO_DO = 5
    DATA = 65
    NO_INPUT = 66
    UNAVAILABLE = 69
    INTERNAL = 70
    CANNOT_CREATE = 73
    TEMPORARY = 75
    POLICY = 77
    CONFIG = 78
    TIMEOUT = 124
    INTERRUPTED = 130
    TERMINATED = 143


SEVERITY = (
    ExitCode.INTERRUPTED, ExitCode.TERMINATED, ExitCode.INTERNAL, ExitCode.DATA, ExitCode.NO_INPUT,
    ExitCode.UNAVAILABLE, ExitCode.CANNOT_CREATE, ExitCode.TEMPORARY, ExitCode.POLICY, ExitCode.CONFIG, ExitCode.USAGE,
    ExitCode.TIMEOUT, ExitCode.NEGATIVE, ExitCode.NOTHING_TO_DO, ExitCode.OK,
)  # fmt: skip
"""All of them, most severe first: a plan of several steps exits with the first of these that any step returned."""


class Failure(msgspec.Struct, frozen=True):
    """An error as a value: what crosses the socket, stands in a job's row and is shown to the user."""

    code: str
    """Stable name such as `E_GGUF_HEADER`; part of the JSON contract."""
    message: str
    """One line: what went wrong, with which object."""
    hint: str = ""
    """What to do next; may be empty."""
    exit: int = int(ExitCode.INTERNAL)


class LatheError(Exception):
    """Base of everything the engine raises on purpose."""

    code = "E_INTERNAL"
    exit = ExitCode.INTERNAL

    def __init__(self, message: str, *, hint: str = "", code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if code is not None:
            self.code = code


class UsageError(LatheError):
    """The call itself is wrong."""

    code = "E_USAGE"
    exit = ExitCode.USAGE


class DataError(LatheError):
    """Input that cannot be parsed or trusted."""

    code = "E_DATA"
    exit = ExitCode.DATA


class MissingError(LatheError):
    """A named thing is not there."""

    code = "E_NOT_FOUND"
    exit = ExitCode.NO_INPUT


class UnavailableError(LatheError):
    """A backend, an extra, a driver or the engine is not available."""

    code = "E_UNAVAILABLE"
    exit = ExitCode.UNAVAILABLE


class EngineStopped(UnavailableError):
    """Somebody told the engine to end: it is started again on request only."""

    code = "E_ENGINE_STOPPED"


class InternalError(LatheError):
    """A bug of ours."""


class CrashedError(InternalError):
    """A child process with native code died; everything else lives."""

    code = "E_ENGINE_CRASH"


class CannotCreate(LatheError):
    """The output cannot be written."""

    code = "E_CANNOT_CREATE"
    exit = ExitCode.CANNOT_CREATE


class BusyError(LatheError):
    """Try again later: a lock, a port, a full queue."""

    code = "E_BUSY"
    exit = ExitCode.TEMPORARY


class DoesNotFit(BusyError):
    """The memory estimate exceeds what is free."""

    code = "E_DOES_NOT_FIT"


class PolicyError(LatheError):
    """Refused by a rule."""

    code = "E_POLICY"
    exit = ExitCode.POLICY


class ConfigError(LatheError):
    """Settings or a plan are wrong; the message starts with file:line:column."""

    code = "E_CONFIG"
    exit = ExitCode.CONFIG


class TimeoutExpired(LatheError):
    """A deadline passed."""

    code = "E_TIMEOUT"
    exit = ExitCode.TIMEOUT


class Cancelled(LatheError):
    """The user stopped it; a first-class outcome, not a fault."""

    code = "E_CANCELLED"
    exit = ExitCode.INTERRUPTED


_FLOOR_EXITS: tuple[tuple[type[Exception], ExitCode], ...] = (
    (quantize_errors.UnsafeError, ExitCode.POLICY),
    (quantize_errors.UnsupportedError, ExitCode.UNAVAILABLE),
    (quantize_errors.InputMissing, ExitCode.NO_INPUT),
    (quantize_errors.OutputError, ExitCode.CANNOT_CREATE),
    (quantize_errors.QuantizeError, ExitCode.DATA),
    (store_errors.NotFound, ExitCode.NO_INPUT),
    (store_errors.StoreLocked, ExitCode.TEMPORARY),
    (store_errors.StoreFull, ExitCode.CANNOT_CREATE),
    (store_errors.StoreReadOnly, ExitCode.TEMPORARY),
    (store_errors.StoreError, ExitCode.DATA),
)

_FULL = {errno.ENOSPC, errno.EDQUOT}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


def describe(error: BaseException) -> Failure:
    """Turn any exception into the value that users and other processes see."""
    failure = _describe(error)
    # File names may hold bytes that are no text; a value that cannot be sent would be lost with its error.
    message, hint = (text.encode("utf-8", "replace").decode() for text in (failure.message, failure.hint))
    return msgspec.structs.replace(failure, message=message, hint=hint)


def _describe(error: BaseException) -> Failure:
    if isinstance(error, LatheError):
        return Failure(error.code, error.message, error.hint, int(error.exit))
    if isinstance(error, quantize_errors.QuantizeError | store_errors.StoreError):
        exit_code = next(code for kind, code in _FLOOR_EXITS if isinstance(error, kind))
        return Failure(error.code, error.message, error.hint, int(exit_code))
    if isinstance(error, KeyboardInterrupt | asyncio.CancelledError):
        return Failure("E_CANCELLED", "interrupted", "", int(ExitCode.INTERRUPTED))
    if isinstance(error, TimeoutError):
        return Failure("E_TIMEOUT", str(error) or "timed out", "", int(ExitCode.TIMEOUT))
    if isinstance(error, OSError):
        return _describe_os_error(error)
    if isinstance(error, MemoryError):
        return Failure("E_MEMORY", "out of memory", "free memory or use a smaller model", int(ExitCode.TEMPORARY))
    text = str(error) or type(error).__name__
    return Failure("E_INTERNAL", f"{type(error).__name__}: {text}", "run `lathe doctor`; the log has the details")


def _describe_os_error(error: OSError) -> Failure:
    name = f": {error.filename}" if error.filename else ""
    text = f"{error.strerror or error}{name}"
    if error.errno in _FULL:
        return Failure("E_DISK_FULL", text, "free disk space and run it again", int(ExitCode.CANNOT_CREATE))
    if isinstance(error, FileNotFoundError):
        return Failure("E_NOT_FOUND", text, "check the path", int(ExitCode.NO_INPUT))
    if isinstance(error, IsADirectoryError):
        return Failure("E_IS_FOLDER", text, "name a file in it", int(ExitCode.DATA))
    if isinstance(error, NotADirectoryError):
        return Failure("E_NO_FOLDER", text, "check the path: a part of it is a file", int(ExitCode.DATA))
    if error.errno in _DENIED:
        return Failure("E_PERMISSION", text, "check the permissions", int(ExitCode.CANNOT_CREATE))
    if isinstance(error, ConnectionError):
        return Failure("E_UNAVAILABLE", text, "`lathe engine status` tells whether it runs", int(ExitCode.UNAVAILABLE))
    return Failure("E_IO", text, "", int(ExitCode.INTERNAL))


_BY_EXIT: dict[int, type[LatheError]] = {
    kind.exit: kind
    for kind in (UsageError, DataError, MissingError, UnavailableError, InternalError, CannotCreate, BusyError,
                 PolicyError, ConfigError, TimeoutExpired, Cancelled)
}  # fmt: skip
_BY_CODE: dict[str, type[LatheError]] = {kind.code: kind for kind in (CrashedError, DoesNotFit, EngineStopped)}


def revive(failure: Failure) -> LatheError:
    """Rebuild an exception from a value that came from another process."""
    kind = _BY_CODE.get(failure.code) or _BY_EXIT.get(failure.exit, InternalError)
    return kind(failure.message, hint=failure.hint, code=failure.code)
