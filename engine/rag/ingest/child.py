"""The process that parses documents: `python -m lathe.engine.rag.ingest.child FD`; it lives for a whole ingest.

Every file gets its own allowance of processor time and memory, and a parser that outgrows it costs that file.
Invariant: this process opens nothing but the regular files it is told to read, writes no file, starts no program and
opens no connection, whatever a document says.
"""

from __future__ import annotations

import errno
import gc
import hashlib
import io
import os
import resource
import signal
import socket
import stat
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import msgspec
from lathe.engine.catalogue.walk import printable
from lathe.engine.errors import LatheError, describe
from lathe.engine.rag.ingest.clean import clean
from lathe.engine.rag.ingest.document import parse
from lathe.engine.rag.ingest.errors import DocumentError, NotADocument, TooMuch
from lathe.engine.rag.ingest.protocol import Failed, FromParser, Parsed, Part, Read, Ready, Same
from lathe.engine.rag.ingest.readers.base import Notes, Source
from lathe.engine.rag.values import ParsedDocument
from lathe.engine.wire import frame, receive_blocking

_PART_CHARS = 2 * 1024 * 1024
_PART_BLOCKS = 20_000
_GROWN = 0.5
"""Share of the memory limit: a process whose address space holds more after a file makes room for a fresh one."""
_REFUSED = ("socket.connect", "socket.bind", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class OutOfTime(BaseException):
    """The file's processor time is used up; no library's `except Exception` may swallow it."""


def main() -> int:
    """Answer `Read` frames until the other side closes."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGXCPU, _out_of_time)
    sys.dont_write_bytecode = True
    sys.addaudithook(_guard)
    channel.sendall(frame(Ready(os.getpid())))
    requests: Iterator[Read] = receive_blocking(channel, Read)
    for request in requests:
        leaving = False
        for answer in answers(request):
            channel.sendall(frame(answer))
            leaving = isinstance(answer, Parsed | Failed) and answer.leaving
        if leaving:
            break
    channel.close()
    return 0


def answers(request: Read) -> list[FromParser]:
    """Everything there is to say about one file."""
    size: int | None = None
    try:
        _allow(request)
        with open_regular(request.path) as file:
            status = os.fstat(file.fileno())
            size = status.st_size
            if size > request.limits.file_bytes:
                raise TooMuch(f"the file has {size:,} bytes (limit {request.limits.file_bytes:,})", hint="split it")
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            if sha256 == request.known_sha256:
                return [Same(sha256, size, status.st_mtime_ns)]
            file.seek(0)
            path = Path(os.fsdecode(request.path))
            document = _document(request, file, path, size)
            after = os.fstat(file.fileno())
        if (after.st_size, after.st_mtime_ns) != (size, status.st_mtime_ns):
            raise DocumentError("the file changed while it was read", hint="the next run reads it again")
        stamped = msgspec.structs.replace(document, sha256=sha256, file_bytes=size, modified_ns=status.st_mtime_ns)
        return [*_parts(stamped), Parsed(msgspec.structs.replace(stamped, text="", blocks=()), leaving=_grown(request))]
    except LatheError as error:
        is_document = not isinstance(error, NotADocument)
        return [Failed(describe(error), document=is_document, file_bytes=size, leaving=_grown(request))]
    except OutOfTime:
        late = TooMuch(f"reading it takes more than {request.limits.cpu_s:g} s of processor time")
        return [Failed(describe(late), file_bytes=size, leaving=True)]
    except MemoryError:
        large = TooMuch(f"reading it takes more than {request.limits.memory_bytes >> 20} MiB of memory")
        return [Failed(describe(large), file_bytes=size, leaving=True)]
    except RecursionError:
        return [Failed(describe(TooMuch("it is nested too deep")), file_bytes=size)]
    except OSError as error:
        return [Failed(describe(error), file_bytes=size)]
    except Exception as error:  # noqa: BLE001 - a parser's own bug; the file is the one that pays
        traceback.print_exc()
        said = f"the parser failed: {type(error).__name__}: {str(error)[:300]}"
        return [Failed(describe(DocumentError(said)), file_bytes=size)]
    finally:
        resource.setrlimit(resource.RLIMIT_CPU, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def _document(request: Read, file: BinaryIO, path: Path, size: int) -> ParsedDocument:
    source = Source(printable(Path(path.name)), file, size)
    return clean(parse(source, Notes(limits=request.limits), printable(path)), request.cleaning)


def open_regular(path: bytes) -> io.BufferedReader:
    """Open a regular file for reading; a pipe, a device or a link that took its place since the walk is refused."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise NotADocument("a link, not a document", hint="add the file that it points to") from error
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise NotADocument("a special file, not a document")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _parts(document: ParsedDocument) -> list[Part]:
    texts = [
        Part(text=document.text[start : start + _PART_CHARS]) for start in range(0, len(document.text), _PART_CHARS)
    ]
    places = range(0, len(document.blocks), _PART_BLOCKS)
    return texts + [Part(blocks=document.blocks[start : start + _PART_BLOCKS]) for start in places]


def _allow(request: Read) -> None:
    """Set this file's limits; only soft ones move, so that the next file's can be set as well."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime + request.limits.cpu_s) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
    if sys.platform == "linux":  # elsewhere address space is not counted in a way that could be limited
        resource.setrlimit(resource.RLIMIT_AS, (request.limits.memory_bytes, resource.RLIM_INFINITY))


def _grown(request: Read) -> bool:
    """Whether what was read has left this process large."""
    if sys.platform != "linux":
        return False
    if _address_space() < _GROWN * request.limits.memory_bytes:
        return False
    gc.collect()
    return _address_space() >= _GROWN * request.limits.memory_bytes


def _address_space() -> int:
    pages = Path("/proc/self/statm").read_text().split()[0]
    return int(pages) * resource.getpagesize()


def _out_of_time(_signum: int, _frame: object) -> NoReturn:
    raise OutOfTime


def _guard(event: str, args: tuple[Any, ...]) -> None:
    """Refuse what no reader of documents needs."""
    if event in _REFUSED or (event == "open" and isinstance(args[2], int) and args[2] & _WRITING):
        raise PermissionError(f"a parser may not do this: {event}")


if __name__ == "__main__":
    sys.exit(main())
