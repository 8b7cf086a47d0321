"""CSV, JSON and JSON Lines as records in words. A broken line costs that line.

JSON keeps its meaning by its keys: a part small enough to be read at once becomes one record of `key: value` lines, and
what is larger is opened, its keys becoming the heading path.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

from lathe.engine.rag.ingest.errors import DocumentError
from lathe.engine.rag.ingest.readers.base import Notes, Source, is_header, read_text, row_text
from lathe.engine.rag.values import Piece

_RECORD = 2_000
"""Characters up to which a part of a JSON document is one record."""
_SAMPLE = 64 * 1024
_DELIMITERS = ",;\t|"
_NAMES = ("name", "title", "id", "key", "label")


def read_csv(source: Source, notes: Notes) -> Iterator[Piece]:
    """Yield one record per row, its header repeated; the delimiter is the one that cuts most rows alike."""
    text = read_text(source, notes)
    notes.parser = "lathe csv 1"
    delimiter = _delimiter(text[:_SAMPLE]) if not source.name.lower().endswith(".tsv") else "\t"
    csv.field_size_limit(notes.limits.output_chars)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    header: list[str] | None = None
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            notes.skip(f"line {reader.line_num}: {error}")
            continue
        if row is None:
            return
        if not any(cell.strip() for cell in row):
            continue
        if header is None:
            header = row if is_header(row) else []
            if header:
                continue
        yield Piece(row_text(header, row), "record")


def _delimiter(sample: str) -> str:
    """The candidate for which most of the first rows have the same number of cells, and more than one."""
    lines = sample.split("\n")[:200]
    lines = lines[:-1] if len(lines) > 1 else lines

    def agreement(candidate: str) -> tuple[int, int]:
        try:
            widths = [len(row) for row in csv.reader(lines, delimiter=candidate) if row]
        except csv.Error:
            return (0, 0)
        common = max(set(widths), key=widths.count, default=1)
        return (widths.count(common) if common > 1 else 0, common)

    return max(_DELIMITERS, key=agreement)


def read_json(source: Source, notes: Notes) -> Iterator[Piece]:
    """Yield the records of one JSON document; one that is JSON Lines in truth is read as such."""
    text = read_text(source, notes)
    notes.parser = "lathe json 1"
    try:
        document = json.loads(text, strict=False)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text[: error.pos].strip():
            yield from _lines(text, notes)
            return
        raise DocumentError(f"no JSON: {error.msg} in line {error.lineno}, column {error.colno}") from error
    except RecursionError as error:
        raise DocumentError("the JSON is nested deeper than any document") from error
    yield from records(document, ())


def read_json_lines(source: Source, notes: Notes) -> Iterator[Piece]:
    """Yield the records of every line."""
    notes.parser = "lathe json 1"
    yield from _lines(read_text(source, notes), notes)


def _lines(text: str, notes: Notes) -> Iterator[Piece]:
    good = 0
    broken = ""
    for number, line in enumerate(io.StringIO(text), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line, strict=False)
        except (json.JSONDecodeError, RecursionError) as error:
            broken = f"line {number}: {getattr(error, 'msg', 'nested too deep')}"
            notes.skip(broken)
            continue
        good += 1
        yield from records(value, ())
    if broken and not good:
        raise DocumentError(f"no line is JSON; {broken}")


def records(value: Any, path: tuple[str, ...]) -> Iterator[Piece]:
    """Yield a JSON value as records; iterative, in document order."""
    waiting: list[tuple[Any, tuple[str, ...]]] = [(value, path)]
    while waiting:
        value, path = waiting.pop()
        text = in_words(value, _RECORD)
        if text is not None:
            yield Piece(text, "record", None, path)
            continue
        if isinstance(value, dict):
            short: dict[str, Any] = {}
            long: list[tuple[Any, tuple[str, ...]]] = []
            for key, inner in value.items():
                if in_words(inner, _RECORD // 2) is not None and not isinstance(inner, dict | list):
                    short[key] = inner
                else:
                    long.append((inner, (*path, str(key)[:100])))
            if short:
                yield from _short(short, path)
            waiting.extend(reversed(long))
        elif isinstance(value, list):
            waiting.extend((inner, (*path, _label(inner, place))) for place, inner in reversed(list(enumerate(value))))
        else:
            yield Piece(str(value), "record", None, path)


def _short(entries: dict[str, Any], path: tuple[str, ...]) -> Iterator[Piece]:
    """The plain entries of an object too large for one record, as few records as fit."""
    lines: list[str] = []
    size = 0
    for key, value in entries.items():
        line = in_words({key: value}, _RECORD) or ""
        if lines and size + len(line) > _RECORD:
            yield Piece("\n".join(lines), "record", None, path)
            lines, size = [], 0
        lines.append(line)
        size += len(line)
    yield Piece("\n".join(lines), "record", None, path)


def in_words(value: Any, limit: int) -> str | None:
    """`key: value` lines of a value, nested keys joined by dots; None as soon as they exceed `limit` characters."""
    lines: list[str] = []
    size = 0
    waiting: list[tuple[str, Any]] = [("", value)]
    while waiting:
        name, value = waiting.pop()
        match value:
            case dict():
                if len(value) > limit:
                    return None
                waiting.extend((f"{name}.{key}" if name else str(key), value[key]) for key in reversed(value))
            case list():
                if len(value) > limit:
                    return None
                if all(not isinstance(inner, dict | list) for inner in value):
                    waiting.append((name, ", ".join(_scalar(inner) for inner in value)))
                else:
                    numbered = reversed(list(enumerate(value, 1)))
                    waiting.extend((f"{name}.{place}" if name else str(place), inner) for place, inner in numbered)
            case _:
                text = _scalar(value)
                lines.append(f"{name}: {text}" if name else text)
                size += len(lines[-1]) + 1
                if size > limit:
                    return None
    return "\n".join(lines)


def _scalar(value: Any) -> str:
    return {None: "", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else str(value)


def _label(value: Any, place: int) -> str:
    """What people would call an element: its name or title, else its number."""
    if isinstance(value, dict):
        for name in _NAMES:
            if isinstance(value.get(name), str) and 0 < len(value[name]) <= 80:
                return str(value[name])
    return f"[{place}]"
