"""Prompt templates: Jinja in its immutable sandbox, where a name that the case lacks is a mistake, not an empty text.

Invariant: rendering a case has no effects and reads nothing but the case's fields and the suite's variables.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment
from lathe.engine.errors import DataError, MissingError

MAX_CHARS = 64 * 1024
_VARIABLE = re.compile(r"\$\{([A-Za-z_]\w*)\}")
_HINT = "give it with `--var NAME=VALUE`, or in the suite's `variables`"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@cache
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=False
    )
    environment.globals = {"range": environment.globals["range"], "letters": LETTERS}
    return environment


@cache
def _template(source: str) -> jinja2.Template:
    return _environment().from_string(source)


@cache
def _expression(source: str) -> Any:
    return _environment().compile_expression(source, undefined_to_none=False)


def check_template(source: str) -> str | None:
    """What is wrong with a template's syntax, if anything."""
    if len(source) > MAX_CHARS:
        return f"longer than {MAX_CHARS} characters"
    try:
        _template(source)
    except jinja2.TemplateSyntaxError as error:
        return f"not a valid template: {error.message} (its line {error.lineno})"
    return None


def check_expression(source: str) -> str | None:
    """What is wrong with an expression's syntax, if anything."""
    try:
        _expression(source)
    except jinja2.TemplateSyntaxError as error:
        return f"not a valid expression: {error.message}"
    return None


def render(source: str, fields: dict[str, Any]) -> str:
    """Fill a template.

    Raises:
        DataError: the case lacks a name, or the template fails on its values.
    """
    try:
        return _template(source).render(fields)
    except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, OverflowError) as error:
        raise DataError(f"the prompt cannot be rendered: {error}") from error


def evaluate(source: str, fields: dict[str, Any]) -> Any:
    """Compute an expression; raises DataError."""
    try:
        value = _expression(source)(**fields)
    except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, OverflowError) as error:
        raise DataError(f"`{source}` cannot be computed: {error}") from error
    if isinstance(value, jinja2.Undefined):
        raise DataError(f"the case has no {source!r}")
    return value


def variables(text: str) -> list[str]:
    """The names of a text's `${name}`s."""
    return _VARIABLE.findall(text)


def substitute(text: str, variables: dict[str, Any], place: str = "") -> str:
    """Fill `${name}`s of paths and names.

    Raises:
        MissingError: no such variable is set.
    """

    def value(match: re.Match[str]) -> str:
        if match.group(1) not in variables:
            raise MissingError(f"{place}{': ' if place else ''}no variable {match.group(1)!r} is set", hint=_HINT)
        return str(variables[match.group(1)])

    return _VARIABLE.sub(value, text)
