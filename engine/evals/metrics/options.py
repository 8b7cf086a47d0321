"""Options of metrics, checked like everything else that users write.

Invariant: an option that is unknown or of the wrong type is a ConfigError that names it, before anything is asked.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import msgspec
from lathe.engine.batch.document import near
from lathe.engine.errors import ConfigError
from lathe.engine.evals.metrics.metric import Options

Declared = TypeVar("Declared", bound=msgspec.Struct)


def read(kind: type[Declared], metric: str, options: Options) -> Declared:
    """Options as a struct."""
    known = kind.__struct_fields__
    for name in options:
        if name not in known:
            allowed = f" (known: {', '.join(known)})" if known else " (it has none)"
            raise ConfigError(f"metric {metric!r} has no option {name!r}{near(name, known)}{allowed}")
    try:
        return msgspec.convert(options, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"metric {metric!r}: {error}") from error


class NoOptions(msgspec.Struct, frozen=True):
    """Of metrics that have none."""


def none(metric: str, options: Options) -> None:
    """Refuse options."""
    read(NoOptions, metric, options)


def pattern(metric: str, text: str, flags: int = 0) -> re.Pattern[str]:
    """Compile a regular expression of the suite."""
    try:
        return re.compile(text, flags)
    except re.error as error:
        raise ConfigError(f"metric {metric!r}: {text!r} is no regular expression: {error}") from error


def any_of(words: Sequence[str]) -> re.Pattern[str]:
    """A pattern of whole words and phrases; case does not count."""
    return re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, words)) + r")(?!\w)", re.IGNORECASE)


def lines(metric: str, file: str) -> list[str]:
    """A list of words: one per line, `#` begins a comment."""
    try:
        text = Path(file).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"metric {metric!r}: {file}: {error}") from error
    words = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not words:
        raise ConfigError(f"metric {metric!r}: {file} lists no word")
    return words
