"""YAML, TOML and JSON files whose mistakes can be placed: every value knows its file, line and column.

Shared by plans and eval suites. Invariant: keys are given once, aliases cannot unfold without end, and what is not
UTF-8 or not valid is refused with its place.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import msgspec
import yaml
from lathe.engine.errors import ConfigError, MissingError

MAX_BYTES = 1024 * 1024
MAX_VALUES = 20_000

Where = tuple[object, ...]
"""The way to a value: keys and indices from the root."""


class Document:
    """A parsed file that still knows where things stand."""

    def __init__(self, path: Path, tree: object, marks: dict[Where, tuple[int, int]]) -> None:
        self.path, self.tree, self.marks = path, tree, marks

    def at(self, *where: object) -> str:
        """`file:line:column` of a value or of its nearest known parent."""
        for length in range(len(where), -1, -1):
            mark = self.marks.get(where[:length])
            if mark:
                return f"{self.path}:{mark[0]}:{mark[1]}"
        return f"{self.path}:1:1"

    def line(self, *where: object) -> int:
        """Line of a value."""
        return int(self.at(*where).rsplit(":", 2)[1])


def read(path: Path, *, what: str = "plan", table: str = "steps", max_values: int = MAX_VALUES) -> Document:
    """Parse a file by its suffix.

    Args:
        path: the file; `.toml` is TOML, everything else YAML, of which JSON is a part.
        what: what the file is, for messages.
        table: the array of tables whose lines are wanted in TOML.
        max_values: values after aliases are unfolded.

    Raises:
        ConfigError: with file, line and column. MissingError: there is no such file.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_BYTES} bytes, which no {what} is")
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise MissingError(f"{path}: no such {what}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}:1:1: not UTF-8: {error.reason}") from error
    if path.suffix == ".toml":
        try:
            return Document(path, tomllib.loads(text), _toml_marks(text, table))
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path}: not valid TOML: {error}") from error
    return _read_yaml(path, text, what, max_values)


def near(name: str, known: Iterable[str]) -> str:
    """`; did you mean ...?`, or nothing."""
    close = get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def check_fields(
    document: Document,
    where: Where,
    kind: Any,
    fields: Mapping[str, object],
    mistakes: list[str],
    *,
    what: str,
    also: tuple[str, ...] = (),
) -> bool:
    """Compare a mapping with a struct's fields: names, presence and types; returns whether all is well.

    Args:
        document, where: what is checked and where it stands.
        kind: the struct type.
        fields: the mapping, without keys that belong to its surroundings.
        mistakes: gets one line per mistake.
        what: the mapping in words, such as `step 'convert'`.
        also: keys of the surroundings, for near names only.
    """  # fmt: skip
    known = {field.name: field for field in msgspec.structs.fields(kind)}
    unknown = [key for key in fields if key not in known]
    for key in unknown:
        hint = near(str(key), (*known, *also))
        mistakes.append(f"{document.at(*where, key)}: {what} has no field {key!r}{hint}")
    missing = [name for name, field in known.items() if name not in fields and field.required]
    mistakes += [f"{document.at(*where)}: {what} needs {name!r}" for name in missing]
    if unknown or missing:
        return False
    for name, value in fields.items():
        try:
            msgspec.convert(value, known[name].type)
        except msgspec.ValidationError as error:
            text = re.sub(r" - at `\$(.*)`$", rf" (in {re.escape(name)}\1)", str(error))
            mistakes.append(f"{document.at(*where, name)}: {name}: {text}")
            return False
    return True


def _read_yaml(path: Path, text: str, what: str, max_values: int) -> Document:
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        marks: dict[Where, tuple[int, int]] = {}
        walk = _walk(node, (), marks, max_values, what)
        duplicates = [f"{path}:{line}:{column}: {key!r} is given twice" for key, line, column in walk]
        if duplicates:
            raise ConfigError("\n".join(duplicates))
        return Document(path, yaml.safe_load(text), marks)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{mark.line + 1}:{mark.column + 1}" if mark else "1:1"
        raise ConfigError(f"{path}:{place}: {error.problem or 'not valid YAML'}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path}:1:1: not valid YAML: {error}") from error


def _walk(
    node: yaml.Node | None, where: Where, marks: dict[Where, tuple[int, int]], limit: int, what: str
) -> Iterator[tuple[str, int, int]]:
    """Record where every value stands; yield duplicate keys."""
    if node is None:
        return
    if len(marks) > limit:  # aliases can unfold a small file without end
        raise ConfigError(f"more than {limit} values, aliases unfolded: no {what} is that large")
    marks.setdefault(where, (node.start_mark.line + 1, node.start_mark.column + 1))
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            mark = key.start_mark
            if key.value in seen:
                yield str(key.value), mark.line + 1, mark.column + 1
            seen.add(key.value)
            marks[*where, key.value] = (mark.line + 1, mark.column + 1)
            yield from _walk(value, (*where, key.value), marks, limit, what)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _walk(value, (*where, index), marks, limit, what)


def _toml_marks(text: str, table: str) -> dict[Where, tuple[int, int]]:
    """Lines of `[[table]]`s and of their keys; tomllib keeps no positions."""
    marks: dict[Where, tuple[int, int]] = {}
    where: Where = ()
    count = 0
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if stripped == f"[[{table}]]":
            where = (table, count)
            count += 1
            marks[where] = (number, 1)
        elif match := re.match(r"\s*([\w.-]+)\s*=", line):
            marks.setdefault((*where, match.group(1)), (number, match.start(1) + 1))
    return marks
