"""The process that renders chat templates: `python -m lathe.engine.worker.rendering`, frames on stdin and stdout.

A template comes with a model file and is a program: the sandbox keeps it from reaching out, but not from looping or
from filling memory. So it runs here, where CPU time and address space are limited by the kernel, and a bomb takes this
process with it and nothing else. Invariant: between two jobs no state is kept but compiled templates; output beyond the
job's limit is never built up.
"""

from __future__ import annotations

import functools
import json
import math
import resource
import sys
import time
from typing import BinaryIO, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import msgspec
from lathe.engine.errors import Failure as FailureValue
from lathe.engine.errors import InternalError, LatheError, UsageError, describe
from lathe.engine.wire import Decoder, frame

CPU_S = 2
"""Processor seconds per job."""
MEMORY_BYTES = 512 * 2**20
_KEPT_TEMPLATES = 4


class Job(msgspec.Struct, frozen=True, tag=True):
    """A template and its variables."""

    template: str
    variables: str
    """A JSON object: frames hold no integers beyond 64 bits, and the arguments of a call may."""
    limit: int
    """Characters of output."""


class Rendered(msgspec.Struct, frozen=True, tag=True):
    """The output."""

    text: str


class NotRendered(msgspec.Struct, frozen=True, tag=True):
    """Why there is none."""

    failure: FailureValue


Answer = Rendered | NotRendered


class _Refused(jinja2.TemplateError):
    """`raise_exception(...)` in a template."""


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's words for training; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise _Refused(str(message))


def _to_json(value: object, ensure_ascii: bool = False, indent: int | None = None, **_: object) -> str:
    """`tojson` as transformers has it: plain JSON, without the escapes that HTML needs."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _strftime_now(pattern: str) -> str:
    return time.strftime(pattern)


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
        extensions=[jinja2.ext.loopcontrols, _Generation],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


@functools.lru_cache(_KEPT_TEMPLATES)
def _compiled(template: str) -> jinja2.Template:
    return _environment().from_string(template)


def render(job: Job) -> str:
    """Render a template, with no limit but that of its output.

    Raises:
        UsageError: the template is wrong, refuses the conversation, or writes too much.
    """
    try:
        parts: list[str] = []
        length = 0
        for part in _compiled(job.template).generate(json.loads(job.variables)):
            length += len(part)
            if length > job.limit:
                raise UsageError(f"the chat template writes more than {job.limit} characters", code="E_TEMPLATE")
            parts.append(part)
        text = "".join(parts)
        text.encode()  # a template can write half a character
        return text
    except _Refused as error:
        raise UsageError(f"the chat template refuses the conversation: {error.message}", code="E_TEMPLATE") from error
    except jinja2.TemplateError as error:
        where = f" in line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
        raise UsageError(f"the chat template cannot be used{where}: {error.message}", code="E_TEMPLATE") from error
    except (MemoryError, RecursionError, OverflowError) as error:
        raise UsageError(f"the chat template exceeds its limits ({type(error).__name__})", code="E_TEMPLATE") from error
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError, LookupError) as error:
        raise UsageError(f"the chat template fails on this conversation: {error}", code="E_TEMPLATE") from error


def _serve(source: BinaryIO, sink: BinaryIO) -> None:
    decoder: Decoder[Job] = Decoder(Job)
    while data := source.read1(1 << 16):  # type: ignore[attr-defined]  # sys.stdin.buffer is a BufferedReader
        for job in decoder.feed(data):
            _limit_cpu()
            answer: Answer
            try:
                answer = Rendered(render(job))
            except LatheError as error:
                answer = NotRendered(describe(error))
            except Exception as error:  # noqa: BLE001 - templates can raise anything
                answer = NotRendered(describe(InternalError(f"rendering failed: {type(error).__name__}")))
            sink.write(frame(answer))
            sink.flush()


def _limit_cpu() -> None:
    """Allow `CPU_S` more seconds; beyond them the kernel ends the process."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time()) + CPU_S, hard))


def main() -> None:
    """Render until stdin closes."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    _serve(sys.stdin.buffer, sys.stdout.buffer)


if __name__ == "__main__":
    main()
