"""Tools as clients declare them: for the chat template, for reading calls, and as a schema that forces one.

`auto` leaves the model free. `required` or a named tool constrains the output to one JSON call through the grammar,
because a prompt alone does not oblige a small model to anything. `none` hides the tools from the template.
Invariant: what the template is given and the names a reader accepts come from the same list.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from lathe.engine.http.problems import Problem
from lathe.engine.http.wire import Schema, schema_text

MAX_TOOLS = 128


class Function(msgspec.Struct, omit_defaults=True):
    """A function the model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct):
    """OpenAI's wrapper around a function."""

    function: Function
    type: Literal["function"] = "function"


class NamedFunction(msgspec.Struct):
    """The function of a tool choice."""

    name: str


class NamedTool(msgspec.Struct):
    """A tool choice that names its tool."""

    function: NamedFunction
    type: Literal["function"] = "function"


ToolChoice = Literal["none", "auto", "required"] | NamedTool


class Toolbox(msgspec.Struct, frozen=True):
    """What a request's tools come to."""

    template: str | None = None
    """JSON text for the chat template; None: no tools are shown."""
    names: frozenset[str] = frozenset()
    schema: str | None = None
    """JSON schema of the one call that must be made."""


def toolbox(functions: list[Function], choice: Literal["none", "auto", "required"] | str, *, named: bool) -> Toolbox:
    """Work out the tools of a request.

    Args:
        choice: a mode, or with `named` the function that must be called.

    Raises:
        Problem: 400 for doubled names, an unknown choice, or a forced call without tools.
    """
    names = frozenset(function.name for function in functions)
    if len(names) != len(functions):
        raise Problem(400, "two tools have the same name", param="tools", code="invalid_value")
    if len(functions) > MAX_TOOLS:
        raise Problem(400, f"at most {MAX_TOOLS} tools are allowed", param="tools", code="invalid_value")
    if choice == "none" and not named:
        return Toolbox()
    wanted = functions
    if named:
        wanted = [function for function in functions if function.name == choice]
        if not wanted:
            raise Problem(400, f"tool_choice names '{choice}', which is not among the tools", param="tool_choice")
    forced = named or choice == "required"
    if forced and not wanted:
        raise Problem(400, "tool_choice needs at least one tool", param="tool_choice", code="invalid_value")
    if not functions:
        return Toolbox()
    template = msgspec.json.encode([Tool(function) for function in functions]).decode()
    schema = schema_text(_call_schema(wanted), "tools") if forced else None
    return Toolbox(template, frozenset(function.name for function in wanted) if named else names, schema)


def _call_schema(functions: list[Function]) -> Schema:
    calls: list[Schema] = [
        {
            "type": "object",
            "properties": {
                "name": {"const": function.name},
                "arguments": function.parameters or {"type": "object"},
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for function in functions
    ]
    return calls[0] if len(calls) == 1 else {"anyOf": calls}
