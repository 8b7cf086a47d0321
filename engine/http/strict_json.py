"""Decode request bodies strictly: what two parsers could read differently is refused.

msgspec already refuses NaN, infinities, trailing commas, bad UTF-8, lone surrogates, a BOM and UTF-16. It accepts
duplicate keys and recurses, so one linear scan over strings and brackets checks keys, depth and size first.
Invariant: whatever the bytes are, the outcome is a value of the asked type or a `Problem` with status 400.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import TypeVar

import msgspec
from lathe.engine.http.limits import Limits
from lathe.engine.http.problems import Problem

Body = TypeVar("Body")

# A string (with what makes it a key) or a bracket. An unterminated string matches to the end of the body: if it did
# not match at all, every quote inside it would be tried in turn, and the scan would be quadratic.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"(\s*+:)?|\\?\Z)|[{}\[\]]', re.DOTALL)
_UNKNOWN = re.compile(r"^Object contains unknown field `(?P<name>.*)`(?: - at `\$\.?(?P<path>.*)`)?$", re.DOTALL)
_MISSING = re.compile(r"^Object missing required field `(?P<name>.*)`(?: - at `\$\.?(?P<path>.*)`)?$", re.DOTALL)
_PLACE = re.compile(r"^(?P<what>.*) - at `\$\.?(?P<path>.*)`$", re.DOTALL)
_OPEN, _CLOSE = b"{[", b"}]"


def decode(body: bytes, decoder: msgspec.json.Decoder[Body], limits: Limits) -> Body:
    """Turn a body into its struct.

    Raises:
        Problem: status 400, naming the parameter where there is one.
    """
    if not body.strip():
        raise Problem(400, "the request body is empty; a JSON object is expected")
    _scan(body, limits)
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _invalid(str(error), decoder) from None
    except UnicodeDecodeError as error:
        raise Problem(400, f"the body is not valid UTF-8: {error.reason}", code="invalid_json") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise Problem(400, f"the body is not valid JSON: {error}", code="invalid_json") from None


def _scan(body: bytes, limits: Limits) -> None:
    """Refuse nesting that is too deep, too many values and objects with a key twice."""
    keys: list[set[bytes] | None] = []
    for count, match in enumerate(_TOKEN.finditer(body)):
        if count >= limits.json_tokens:
            raise Problem(400, f"the body holds more than {limits.json_tokens} strings and brackets")
        token = match.group()
        if token in _OPEN:
            keys.append(set() if token == b"{" else None)
            if len(keys) > limits.json_depth:
                raise Problem(400, f"the body is nested deeper than {limits.json_depth} levels", code="invalid_json")
        elif token in _CLOSE:
            if keys:
                keys.pop()
        elif match.group(1) is not None and keys and (seen := keys[-1]) is not None:
            key = token[: match.start(1) - match.start()]
            key = _unescaped(key) if b"\\" in key else key
            if key in seen:
                name = key.decode("utf-8", "replace")[:80]
                raise Problem(400, f"the key {name} is given twice in one object", code="invalid_json")
            seen.add(key)


def _unescaped(key: bytes) -> bytes:
    try:
        return msgspec.json.encode(msgspec.json.decode(key, type=str))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return key  # broken escapes are reported by the decoder


def _invalid(message: str, decoder: msgspec.json.Decoder[Body]) -> Problem:
    if match := _UNKNOWN.match(message):
        name = _join(match["path"], match["name"])
        near = get_close_matches(match["name"], _fields(decoder.type), 1) if not match["path"] else []
        hint = f"; did you mean '{near[0]}'?" if near else ""
        return Problem(400, f"unknown parameter '{name}'{hint}", param=name, code="unknown_parameter")
    if match := _MISSING.match(message):
        name = _join(match["path"], match["name"])
        return Problem(400, f"missing required parameter '{name}'", param=name, code="missing_required_parameter")
    if match := _PLACE.match(message):
        path = match["path"]
        return Problem(400, f"invalid value for '{path}': {_lower(match['what'])}", param=path, code="invalid_value")
    return Problem(400, f"the body is not what this route takes: {_lower(message)}", code="invalid_value")


def _fields(kind: object) -> list[str]:
    return list(getattr(kind, "__struct_encode_fields__", ()))


def _join(path: str | None, name: str) -> str:
    return f"{path}.{name}" if path else name


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
