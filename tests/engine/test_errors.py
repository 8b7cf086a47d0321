"""Errors as values: every exception has a code, one line and an exit code, and survives the wire."""

from __future__ import annotations

import errno

import msgspec
import pytest
from lathe.engine import errors
from lathe.engine.batch.execution import worst
from lathe.engine.errors import ExitCode, Failure, describe, revive
from lathe.quantize import errors as quantize_errors
from lathe.store import errors as store_errors


def _tree(kind: type[Exception]) -> list[type[Exception]]:
    """The tree as its module draws it; packages may add leaves of their own."""
    children = [child for child in kind.__subclasses__() if child.__module__ == kind.__module__]
    return [kind, *(leaf for child in children for leaf in _tree(child))]


@pytest.mark.parametrize(
    "kind", [*_tree(errors.LatheError), *_tree(quantize_errors.QuantizeError), *_tree(store_errors.StoreError)]
)
def test_every_error_describes_itself(kind: type[Exception]) -> None:
    failure = describe(kind("model.gguf: too short"))
    assert failure.message == "model.gguf: too short"
    assert failure.code.startswith("E_")
    assert failure.exit in set(ExitCode) - {ExitCode.OK}
    revived = revive(failure)
    assert describe(revived) == failure


@pytest.mark.parametrize(
    ("error", "code", "exit_code"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "x.gguf"), "E_DISK_FULL", ExitCode.CANNOT_CREATE),
        (FileNotFoundError(errno.ENOENT, "No such file", "x"), "E_NOT_FOUND", ExitCode.NO_INPUT),
        (PermissionError(errno.EACCES, "Permission denied", "x"), "E_PERMISSION", ExitCode.CANNOT_CREATE),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "x"), "E_IS_FOLDER", ExitCode.DATA),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "x"), "E_NO_FOLDER", ExitCode.DATA),
        (KeyboardInterrupt(), "E_CANCELLED", ExitCode.INTERRUPTED),
        (TimeoutError(), "E_TIMEOUT", ExitCode.TIMEOUT),
        (MemoryError(), "E_MEMORY", ExitCode.TEMPORARY),
        (ZeroDivisionError("division by zero"), "E_INTERNAL", ExitCode.INTERNAL),
    ],
)
def test_foreign_exceptions_are_mapped(error: BaseException, code: str, exit_code: ExitCode) -> None:
    failure = describe(error)
    assert (failure.code, failure.exit) == (code, exit_code)
    assert "\n" not in failure.message


def test_names_that_are_no_text_can_still_be_sent() -> None:
    failure = describe(errors.DataError("caf\udce9.gguf: too short"))
    assert msgspec.json.decode(msgspec.json.encode(failure), type=Failure).message == "caf?.gguf: too short"


def test_an_unknown_exit_code_of_another_release_is_an_internal_error() -> None:
    assert isinstance(revive(Failure("E_NEW", "x", "", 99)), errors.InternalError)


def test_every_exit_code_has_its_rank_and_a_failure_is_never_success() -> None:
    assert sorted(errors.SEVERITY) == sorted(ExitCode)
    for code in ExitCode:
        assert worst([ExitCode.OK, code, ExitCode.OK]) is code
    assert worst([ExitCode.NEGATIVE, ExitCode.USAGE, ExitCode.OK]) is ExitCode.USAGE
    assert worst([ExitCode.INTERNAL, ExitCode.INTERRUPTED]) is ExitCode.INTERRUPTED
