"""Generated JSON: valid, of a schema, or the right tool call.

Invariant: the answer is parsed strictly (no NaN, no repeated keys); a fence of Markdown around it may be allowed, other
text around it may not.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec
from lathe.engine.errors import ConfigError, UnavailableError
from lathe.engine.evals.metrics import options as given
from lathe.engine.evals.metrics.metric import Metric, Options, verdict
from lathe.engine.evals.values import Item, Response, Task

_FENCE = "```"
_TOOL_CALL = "<tool_call>", "</tool_call>"
_MISSING = object()


class JsonOptions(msgspec.Struct, frozen=True):
    fence: bool = True
    """Allow a Markdown fence around the document."""
    keys: tuple[str, ...] = ()
    """An object with at least these keys."""


class SchemaOptions(msgspec.Struct, frozen=True):
    schema: dict[str, Any]
    fence: bool = True


class ToolOptions(msgspec.Struct, frozen=True):
    arguments: bool = True
    """Compare the arguments, too."""


def json_valid(name: str, task: Task, options: Options) -> Metric:
    """Whether the answer is a JSON document."""
    chosen = given.read(JsonOptions, name, options)

    def judge(_: Item, response: Response) -> bool:
        value = parsed(response.text, chosen.fence)
        if value is _MISSING:
            return False
        return not chosen.keys or (isinstance(value, dict) and set(chosen.keys) <= set(value))

    return verdict(name, judge, needs_target=False)


def json_schema(name: str, task: Task, options: Options) -> Metric:
    """Whether the answer is a JSON document of a schema (draft 2020-12)."""
    if "schema" not in options:
        raise ConfigError(f"metric {name!r} needs the option 'schema'")
    chosen = given.read(SchemaOptions, name, options)
    try:
        import jsonschema_rs
    except ImportError:
        raise UnavailableError(
            "JSON schemas are checked by jsonschema-rs, which is not installed", hint="install `lathe-llm[eval]`"
        ) from None
    try:
        validator = jsonschema_rs.Draft202012Validator(chosen.schema, validate_formats=True)
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
        raise ConfigError(f"metric {name!r}: not a valid schema: {error}") from error

    def judge(_: Item, response: Response) -> bool:
        value = parsed(response.text, chosen.fence)
        return value is not _MISSING and bool(validator.is_valid(value))

    return verdict(name, judge, needs_target=False)


def tool_call(name: str, task: Task, options: Options) -> Metric:
    """Whether the answer calls the target's tool: JSON with `name` and `arguments`, bare or in <tool_call>."""
    chosen = given.read(ToolOptions, name, options)

    def judge(item: Item, response: Response) -> bool:
        call = parsed(_called(response.text), True)
        return any(_same_call(call, parsed(target, False), chosen.arguments) for target in item.targets)

    return verdict(name, judge)


def parsed(text: str, fence: bool) -> Any:
    """The JSON document that a text is; `_MISSING` where it is none."""
    try:
        return json.loads(_unfenced(text) if fence else text, object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return _MISSING


# Searched by hand: a pattern with blanks on both sides of a lazy group takes cubic time on an answer of blanks.
def _unfenced(text: str) -> str:
    """What stands in a Markdown fence, if the text is nothing else."""
    bare = text.strip()
    head, newline, rest = bare.removeprefix(_FENCE).partition("\n")
    if not (newline and bare.startswith(_FENCE) and rest.endswith(_FENCE) and head.strip() in ("", "json")):
        return text
    return rest.removesuffix(_FENCE)


def _called(text: str) -> str:
    """What stands in the first <tool_call>; the text itself where there is none."""
    _, opened, rest = text.partition(_TOOL_CALL[0])
    inside, closed, _ = rest.partition(_TOOL_CALL[1])
    return inside if opened and closed else text


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key is given twice")
    return made


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _same_call(call: Any, target: Any, arguments: bool) -> bool:
    if not isinstance(call, dict) or not isinstance(target, dict) or call.get("name") != target.get("name"):
        return False
    return not arguments or _arguments(call) == _arguments(target)


def _arguments(call: dict[str, Any]) -> Any:
    given_arguments = call.get("arguments", call.get("parameters", {}))
    return parsed(given_arguments, False) if isinstance(given_arguments, str) else given_arguments
