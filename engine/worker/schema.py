"""JSON Schema to GBNF, so that an answer is JSON of the wanted shape by construction.

Either a schema is enforced or it is refused with the keyword that cannot be: an answer is never silently
unconstrained. Two liberties are taken, and documented: `oneOf` is read as `anyOf`, and an object with `properties` has
no others unless `additionalProperties` says so. Invariant: each rule ends where its JSON value ends; white space stands
between values, bounded, because models left free may write nothing else for ever.
"""

from __future__ import annotations

import json
from typing import Any

from lathe.engine.errors import UsageError
from lathe.engine.worker.numerals import integer_range
from lathe.engine.worker.patterns import literal, pattern_to_gbnf

MAX_DEPTH = 32
MAX_PROPERTIES = 500
MAX_SCHEMA_BYTES = 256 * 1024
MAX_WORK = 2_000_000
"""What a schema may cost to compile, in characters: references that fan out multiply its parts without end."""
_PART = 100
"""The cost of a part beside that of what it holds."""

_COMMON = {
    "ws": r'( " " | "\n" [ \t]{0,20} )?',
    "hex": r"[0-9a-fA-F]",
    "char": r'[^"\\\x7F\x00-\x1F] | "\\" ( ["\\/bfnrt] | "u" hex{4} )',
    "string": r'"\"" char* "\""',
    "digits": r'"0" | [1-9] [0-9]{0,15}',
    "integer": r'"-"? digits',
    "number": r'"-"? digits ( "." [0-9]{1,16} )? ( [eE] [-+]? [0-9]{1,3} )?',
    "boolean": r'"true" | "false"',
    "null": r'"null"',
    "value": "object | array | string | number | boolean | null",
    "member": 'string ws ":" ws value ws',
    "object": '"{" ws ( member ( "," ws member )* )? "}"',
    "array": '"[" ws ( value ws ( "," ws value ws )* )? "]"',
    "year": "[0-9]{4}",
    "month": '"0" [1-9] | "1" [0-2]',
    "day": '"0" [1-9] | [12] [0-9] | "3" [01]',
    "date": 'year "-" month "-" day',
    "time": '( [01] [0-9] | "2" [0-3] ) ":" [0-5] [0-9] ":" [0-5] [0-9] ( "." [0-9]{1,9} )?'
    ' ( "Z" | [+-] ( [01] [0-9] | "2" [0-3] ) ":" [0-5] [0-9] )',
}
_USES = {
    "char": ("hex",), "string": ("char",), "integer": ("digits",), "number": ("digits",),
    "value": ("object", "array", "string", "number", "boolean", "null"), "member": ("string", "ws", "value"),
    "object": ("ws", "member"), "array": ("ws", "value"), "date": ("year", "month", "day"),
}  # fmt: skip
_FORMATS = {
    "date": r'"\"" date "\""',
    "time": r'"\"" time "\""',
    "date-time": r'"\"" date "T" time "\""',
    "uuid": r'"\"" hex{8} "-" hex{4} "-" hex{4} "-" hex{4} "-" hex{12} "\""',
}
_UNSUPPORTED = frozenset((
    "not", "if", "then", "else", "dependentRequired", "dependentSchemas", "dependencies", "patternProperties",
    "propertyNames", "minProperties", "maxProperties", "contains", "minContains", "maxContains", "uniqueItems",
    "multipleOf", "unevaluatedItems", "unevaluatedProperties", "$dynamicRef", "$recursiveRef",
))  # fmt: skip
_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
_SHAPES: dict[str, tuple[str, ...]] = {
    "object": ("properties", "required", "additionalProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
}


def schema_to_grammar(text: str) -> str:
    """Compile a JSON Schema, given as JSON text, to GBNF.

    Raises:
        UsageError: it is no schema, it is too large, or it asks for what cannot be enforced.
    """
    if len(text) > MAX_SCHEMA_BYTES:
        raise _refusal(f"it has {len(text)} characters, more than {MAX_SCHEMA_BYTES}")
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _refusal(f"no valid JSON ({error})") from error
    return _Compiler(schema).compile()


def _refusal(reason: str) -> UsageError:
    return UsageError(f"json_schema: {reason}", code="E_SCHEMA")


class _Compiler:
    """Turns schemas into rules; each becomes an expression that stands for one JSON value."""

    def __init__(self, schema: Any) -> None:
        self._root = schema
        self._rules: dict[str, str] = {}
        self._references: dict[str, str] = {"#": "root"}
        self._named: dict[str, str] = {}
        """Body -> rule, so that equal parts are written once."""
        self._common: set[str] = set()
        self._properties = 0
        self._work = 0

    def compile(self) -> str:
        self._rules["root"] = self._value(self._root, 0)
        for name in sorted(self._common):
            self._rules[name] = _COMMON[name]
        return "".join(f"{name} ::= {body}\n" for name, body in self._rules.items())

    # -- plumbing ------------------------------------------------------------------------------------------------
    def _use(self, name: str) -> str:
        """Name a common rule and bring along those it is made of."""
        if name not in self._common:
            self._common.add(name)
            for other in _USES.get(name, ()):
                self._use(other)
        return name

    def _rule(self, body: str) -> str:
        self._count(len(body))
        if body not in self._named:
            name = self._named[body] = self._reserve()
            self._rules[name] = body
        return self._named[body]

    def _reserve(self) -> str:
        """A rule whose body comes later, for schemas that contain themselves."""
        name = f"r{len(self._rules)}"
        self._rules[name] = ""
        return name

    def _count(self, cost: int) -> None:
        self._work += cost
        if self._work > MAX_WORK:
            raise _refusal("allOf, anyOf and $ref multiply its parts beyond all bounds")

    # -- schemas -------------------------------------------------------------------------------------------------
    def _value(self, schema: Any, depth: int) -> str:
        """The expression for a schema."""
        if depth > MAX_DEPTH:
            raise _refusal(f"schemas are nested more than {MAX_DEPTH} deep")
        if schema is True:
            return self._use("value")
        if schema is False:
            raise _refusal("`false` allows no value at all")
        if not isinstance(schema, dict):
            raise _refusal(f"a schema must be an object or a boolean, not {json.dumps(schema)[:40]}")
        self._count(_cost(schema))
        for keyword in schema:
            if keyword in _UNSUPPORTED and schema[keyword] not in (False, None):
                raise _refusal(f"{keyword} cannot be enforced")
        if "$ref" in schema:
            if any(key != "$ref" and key not in _ANNOTATIONS for key in schema):
                return self._value(self._flat(schema, 0), depth + 1)
            return self._reference(schema["$ref"], depth)
        if "const" in schema:
            return literal(_json(schema["const"]))
        if "enum" in schema:
            return self._enumeration(schema["enum"])
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                return self._any_of(schema, keyword, depth)
        if "allOf" in schema:
            return self._value(self._flat(schema, 0), depth + 1)
        kind = schema.get("type", self._implied(schema))
        if isinstance(kind, list):
            if not kind:
                raise _refusal("an empty list of types allows no value")
            return self._either([self._typed(one, schema, depth) for one in kind])
        return self._typed(kind, schema, depth)

    def _typed(self, kind: Any, schema: dict[str, Any], depth: int) -> str:
        match kind:
            case None:
                return self._use("value")
            case "object":
                return self._object(schema, depth)
            case "array":
                return self._array(schema, depth)
            case "string":
                return self._string(schema)
            case "integer":
                return self._integer(schema)
            case "number":
                return self._number(schema)
            case "boolean" | "null":
                return self._use(kind)
        raise _refusal(f"type {json.dumps(kind)[:40]} is none of {', '.join(_TYPES)}")

    @staticmethod
    def _implied(schema: dict[str, Any]) -> str | None:
        """The type that a schema without one means by its keywords."""
        for kind, keywords in _SHAPES.items():
            if any(keyword in schema for keyword in keywords):
                return kind
        return None

    def _either(self, options: list[str]) -> str:
        return self._rule(" | ".join(dict.fromkeys(options)))

    def _enumeration(self, values: Any) -> str:
        if not isinstance(values, list) or not values:
            raise _refusal("enum must be a list with at least one value")
        return self._either([literal(_json(value)) for value in values])

    def _any_of(self, schema: dict[str, Any], keyword: str, depth: int) -> str:
        options = schema[keyword]
        if not isinstance(options, list) or not options:
            raise _refusal(f"{keyword} must be a list with at least one schema")
        beside = {key: value for key, value in schema.items() if key != keyword and key not in _ANNOTATIONS}
        compiled = []
        for option in options:
            both = self._flat({"allOf": [beside, option]}, 0) if beside else option
            compiled.append(self._value(both, depth + 1))
        return self._either(compiled)

    def _flat(self, part: Any, depth: int) -> dict[str, Any]:
        """A part of `allOf` without references or further `allOf` at its top."""
        if depth > MAX_DEPTH:
            raise _refusal("allOf and $ref lead in circles")
        if not isinstance(part, dict):
            raise _refusal("allOf: each part must be an object")
        self._count(_cost(part))
        for keyword, parts in (("$ref", [part.get("$ref")]), ("allOf", part.get("allOf"))):
            if keyword in part:
                if not isinstance(parts, list) or not parts:
                    raise _refusal("allOf must be a list with at least one schema")
                merged = {key: value for key, value in part.items() if key != keyword}
                for one in parts:
                    for key, value in self._flat(self._resolved(one) if keyword == "$ref" else one, depth + 1).items():
                        merged[key] = self._joined(key, merged[key], value) if key in merged else value
                return self._flat(merged, depth + 1)
        return part

    @staticmethod
    def _joined(key: str, one: Any, other: Any) -> Any:
        if key in _ANNOTATIONS or one == other:
            return one
        if key == "properties" and isinstance(one, dict) and isinstance(other, dict):
            return {
                **one,
                **{name: {"allOf": [one[name], schema]} if name in one else schema for name, schema in other.items()},
            }
        if key == "required" and isinstance(one, list) and isinstance(other, list):
            return [*one, *other]
        raise _refusal(f"allOf: two different values of {key} cannot be joined")

    def _reference(self, target: Any, depth: int) -> str:
        if not isinstance(target, str):
            raise _refusal("$ref must be text")
        if target not in self._references:
            self._references[target] = name = self._reserve()
            self._rules[name] = self._value(self._resolved(target), depth + 1)
        return self._references[target]

    def _resolved(self, target: str) -> Any:
        if not isinstance(target, str) or not (target == "#" or target.startswith("#/")):
            raise _refusal(f"$ref {json.dumps(target)[:80]} is not within this schema; nothing is fetched")
        node = self._root
        for step in target.split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            if isinstance(node, list) and step.isdecimal() and int(step) < len(node):
                node = node[int(step)]
            elif isinstance(node, dict) and step in node:
                node = node[step]
            else:
                raise _refusal(f"$ref {target[:80]}: there is no {step[:40]}")
        return node

    # -- objects and arrays --------------------------------------------------------------------------------------
    def _object(self, schema: dict[str, Any], depth: int) -> str:
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        if not isinstance(properties, dict):
            raise _refusal("properties must be an object")
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise _refusal("required must be a list of names")
        self._properties += len(properties)
        if self._properties > MAX_PROPERTIES:
            raise _refusal(f"more than {MAX_PROPERTIES} properties in all")
        more = schema.get("additionalProperties", not properties)
        if more is True and not properties and not required:
            return self._use("object")
        self._use("ws")
        unknown = [name for name in dict.fromkeys(required) if name not in properties]
        if unknown and more is False:
            raise _refusal(f"{unknown[0][:40]} is required but not among the properties")
        members = [(self._member(name, value, depth), name in required) for name, value in properties.items()]
        members += [(self._member(name, more, depth), True) for name in unknown]
        extra = None if more is False else f'{self._use("string")} ws ":" ws {self._value(more, depth + 1)} ws'
        return self._rule(f'"{{" ws {self._members(members, extra)} "}}"')

    def _member(self, name: str, schema: Any, depth: int) -> str:
        return self._rule(f'{literal(_json(name))} ws ":" ws {self._value(schema, depth + 1)} ws')

    def _members(self, members: list[tuple[str, bool]], extra: str | None) -> str:
        """Members in their order, the optional ones left out or not; two rules per member, one of each for whether a
        member came before and so needs a comma."""
        after, first = '""', '""'
        if extra is not None:
            extra = self._rule(extra)
            after = self._rule(f'( "," ws {extra} )*')
            first = self._rule(f'( {extra} ( "," ws {extra} )* )?')
        for member, needed in reversed(members):
            with_comma, without = f'"," ws {member} {after}', f"{member} {after}"
            following, leading = after, first
            after = self._rule(with_comma if needed else f"{with_comma} | {following}")
            first = self._rule(without if needed else f"{without} | {leading}")
        return first

    def _array(self, schema: dict[str, Any], depth: int) -> str:
        self._use("ws")
        least, most = self._bounds(schema, "minItems", "maxItems")
        prefix = schema.get("prefixItems", [])
        items = schema.get("items", not prefix)
        if isinstance(items, list):  # drafts before 2020-12
            prefix, items = items, schema.get("additionalItems", False)
        if not isinstance(prefix, list):
            raise _refusal("prefixItems must be a list")
        if prefix:
            if items is not False or (most is not None and most < len(prefix)) or least > len(prefix):
                raise _refusal("prefixItems with further items or other counts cannot be enforced")
            fixed = ' "," ws '.join(f"{self._value(one, depth + 1)} ws" for one in prefix)
            return self._rule(f'"[" ws {fixed} "]"')
        if items is False or most == 0:
            if least:
                raise _refusal("an array without items cannot have at least one")
            return self._rule('"[" ws "]"')
        item = self._rule(f"{self._value(items, depth + 1)} ws")
        bound = "" if most is None else str(most - 1)
        several = f'{item} ( "," ws {item} ){{{max(0, least - 1)},{bound}}}'
        return self._rule(f'"[" ws {several if least else f"( {several} )?"} "]"')

    # -- strings and numbers -------------------------------------------------------------------------------------
    def _string(self, schema: dict[str, Any]) -> str:
        least, most = self._bounds(schema, "minLength", "maxLength")
        bounded = least > 0 or most is not None
        if "pattern" in schema:
            if bounded:
                raise _refusal("pattern together with minLength or maxLength cannot be enforced")
            return self._rule(pattern_to_gbnf(schema["pattern"]))
        written = _FORMATS.get(str(schema.get("format")))
        if written is not None:
            for name in ("date", "time", "hex"):
                if name in written:
                    self._use(name)
            return self._rule(written)
        if not bounded:
            return self._use("string")
        self._use("char")
        return self._rule(rf'"\"" char{{{least},{"" if most is None else most}}} "\""')

    def _integer(self, schema: dict[str, Any]) -> str:
        low, high = self._limits(schema, whole=True)
        if low is None and high is None:
            return self._use("integer")
        if low is not None and high is not None and low > high:
            raise _refusal(f"no integer is at least {low} and at most {high}")
        return self._rule(integer_range(low, high))

    def _number(self, schema: dict[str, Any]) -> str:
        low, high = self._limits(schema, whole=False)
        if low is None and high is None:
            return self._use("number")
        if high is None and low == 0 and "exclusiveMinimum" not in schema:
            self._use("digits")
            return self._rule(_COMMON["number"].removeprefix('"-"? '))
        raise _refusal("bounds of a number other than `minimum: 0` cannot be enforced; use integer")

    def _limits(self, schema: dict[str, Any], *, whole: bool) -> tuple[int | None, int | None]:
        """The smallest and the largest value; for whole numbers exclusive bounds are made inclusive."""
        low, high = schema.get("minimum"), schema.get("maximum")
        above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
        for value in (low, high, above, below):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 10**15):
                raise _refusal(f"the bound {json.dumps(value)[:40]} is no whole number of at most 15 digits")
        if above is not None:
            low = above + whole if low is None else max(low, above + whole)
        if below is not None:
            high = below - whole if high is None else min(high, below - whole)
        return low, high

    @staticmethod
    def _bounds(schema: dict[str, Any], lower: str, upper: str) -> tuple[int, int | None]:
        least, most = schema.get(lower, 0), schema.get(upper)
        for keyword, value in ((lower, least), (upper, most)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                raise _refusal(f"{keyword} must be a whole number, not {json.dumps(value)[:40]}")
        if most is not None and most < least:
            raise _refusal(f"{upper} {most} is less than {lower} {least}")
        return least, most


_ANNOTATIONS = frozenset((
    "title", "description", "default", "examples", "$schema", "$id", "$comment", "$defs", "definitions", "deprecated",
    "readOnly", "writeOnly",
))  # fmt: skip


def _cost(part: dict[str, Any]) -> int:
    """The work that one look at a part makes; what it holds is looked at by itself."""
    held = (value for key, value in part.items() if key not in _ANNOTATIONS)
    return _PART + sum(len(value) if isinstance(value, str | list | dict) else 1 for value in held)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
