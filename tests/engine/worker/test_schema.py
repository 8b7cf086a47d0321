"""JSON Schemas compiled to grammars: the grammar takes exactly the values that the schema allows."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lathe.engine.errors import UsageError
from lathe.engine.worker.grammar import checked_grammar
from lathe.engine.worker.numerals import integer_range
from lathe.engine.worker.schema import schema_to_grammar

CASES: list[tuple[Any, list[Any], list[Any]]] = [
    (True, [1, "x", [1, {"a": None}], {}], []),
    ({}, [1, "x"], []),
    ({"type": "boolean"}, [True, False], [0, "true", None]),
    ({"type": "null"}, [None], [False]),
    ({"type": ["string", "null"]}, ["x", None], [1]),
    ({"type": "integer"}, [0, -5, 123456], [1.5, "1"]),
    ({"type": "integer", "minimum": 18, "maximum": 120}, [18, 99, 100, 120], [17, 121, -18, 1000, 1]),
    ({"type": "integer", "exclusiveMinimum": -5, "exclusiveMaximum": 3}, [-4, 0, 2], [-5, 3, 10]),
    ({"type": "integer", "minimum": 1000}, [1000, 99999], [999, -1000, 0]),
    ({"type": "integer", "maximum": -3}, [-3, -100], [-2, 0, 3]),
    ({"type": "number"}, [0, -1.5, 1e10, 2], ["1"]),
    ({"type": "number", "minimum": 0}, [0, 1.5], [-1]),
    ({"type": "string"}, ["", 'quo"te', "back\\slash", "é🌍", "\n"], [1]),
    ({"type": "string", "minLength": 2, "maxLength": 3}, ["ab", "abc", "🌍🌍"], ["a", "abcd", ""]),
    ({"type": "string", "format": "date"}, ["2026-02-28"], ["2026-13-01", "today"]),
    (
        {"type": "string", "format": "date-time"},
        ["2026-02-28T10:00:00Z", "2026-02-28T23:59:59.5+01:00"],
        ["2026-02-28"],
    ),
    ({"type": "string", "format": "uuid"}, ["123e4567-e89b-12d3-a456-426614174000"], ["123"]),
    ({"type": "string", "pattern": "^[A-Z]{2}-\\d+$"}, ["AB-1", "ZZ-0099"], ["ab-1", "AB-", "AB-1x"]),
    ({"type": "string", "pattern": '^(?:a|b)*["\\\\]?$'}, ["", "abba", 'a"', "b\\"], ["c", '"a']),
    ({"enum": ["red", 7, None, {"a": [1]}]}, ["red", 7, None], ["green", 8]),
    ({"const": "only"}, ["only"], ["other"]),
    ({"type": "array"}, [[], [1, "a"]], [{}]),
    (
        {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 3},
        [[1], [1, 2, 3]],
        [[], [1, 2, 3, 4], ["a"]],
    ),
    ({"type": "array", "maxItems": 0}, [[]], [[1]]),
    (
        {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}]},
        [["a", 1]],
        [["a"], [1, "a"], ["a", 1, 2]],
    ),
    ({"type": "object"}, [{}, {"a": {"b": 1}}], [[]]),
    (
        {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}, "required": ["a"]},
        [{"a": 1}, {"a": 1, "b": "x"}],
        [{}, {"b": "x"}, {"a": "x"}, {"a": 1, "c": 2}, {"b": "x", "a": 1}],
    ),
    (
        {"properties": {"a": {}, "b": {}, "c": {}}},
        [{}, {"a": 1}, {"b": 1}, {"c": 1}, {"a": 1, "c": 2}, {"b": 1, "c": 2}],
        [{"c": 1, "a": 2}, {"d": 1}],
    ),
    (
        {"properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "boolean"}},
        [{}, {"a": 1}, {"x": True}, {"a": 1, "x": True, "y": False}],
        [{"x": 1}],
    ),
    ({"additionalProperties": {"type": "integer"}}, [{}, {"x": 1, "y": 2}], [{"x": "a"}]),
    ({"type": "object", "additionalProperties": False}, [{}], [{"a": 1}]),
    ({"type": "object", "required": ["x"]}, [{"x": 5}], [{}]),
    ({"anyOf": [{"type": "integer"}, {"type": "array", "items": {"type": "integer"}}]}, [1, [1]], ["a"]),
    (
        {
            "type": "object",
            "oneOf": [{"properties": {"a": {}}, "required": ["a"]}, {"properties": {"b": {}}, "required": ["b"]}],
        },
        [{"a": 1}, {"b": 1}],
        [{}, {"c": 1}],
    ),
    (
        {"allOf": [{"properties": {"a": {"type": "integer"}}, "required": ["a"]}, {"properties": {"b": {"const": 0}}}]},
        [{"a": 1}, {"a": 1, "b": 0}],
        [{"b": 0}, {"a": 1, "b": 1}],
    ),
    (
        {
            "$defs": {
                "tree": {
                    "type": "object",
                    "properties": {"value": {"type": "integer"}, "next": {"$ref": "#/$defs/tree"}},
                    "required": ["value"],
                }
            },
            "$ref": "#/$defs/tree",
        },
        [{"value": 1}, {"value": 1, "next": {"value": 2, "next": {"value": 3}}}],
        [{"next": {"value": 1}}],
    ),
    ({"type": "array", "items": {"$ref": "#"}}, [[], [[], [[]]]], [[1]]),
    (
        {"properties": {"a/b~c": {"const": 1}, "r": {"$ref": "#/properties/a~1b~0c"}}, "required": ["r"]},
        [{"r": 1}],
        [{"r": 2}],
    ),
]


def fans_out(levels: int, **part: Any) -> str:
    """Each level holds the next eight times."""
    definitions = {
        f"a{level}": {key: [{"$ref": f"#/$defs/a{level + 1}", **beside}] * 8 for key, beside in part.items()}
        for level in range(levels)
    }
    return json.dumps({"$ref": "#/$defs/a0", "$defs": {**definitions, f"a{levels}": {"type": "array"}}})


REFUSED = {
    "not JSON": ("{", "no valid JSON"),
    "no schema": ("5", "must be an object"),
    "false": ("false", "no value"),
    "remote reference": ('{"$ref": "https://example.org/x.json"}', "nothing is fetched"),
    "file reference": ('{"$ref": "file:///etc/passwd"}', "nothing is fetched"),
    "broken reference": ('{"$ref": "#/nowhere"}', "there is no nowhere"),
    "reference to itself in a circle": ('{"allOf": [{"$ref": "#"}]}', "circles"),
    "allOf that fans out": (fans_out(8, allOf={}), "multiply"),
    "references with siblings that fan out": (fans_out(8, prefixItems={"type": "array"}), "multiply"),
    "a long value that fans out": (
        json.dumps({"anyOf": [{"$ref": "#/$defs/a", "x": 1}] * 5000, "$defs": {"a": {"enum": ["v" * 9000]}}}),
        "multiply",
    ),
    "unknown type": ('{"type": "float"}', "float"),
    "not": ('{"not": {"type": "string"}}', "not cannot be enforced"),
    "uniqueItems": ('{"type": "array", "uniqueItems": true}', "uniqueItems"),
    "multipleOf": ('{"type": "integer", "multipleOf": 5}', "multipleOf"),
    "bounds of a number": ('{"type": "number", "maximum": 1}', "integer"),
    "a contradiction": ('{"type": "integer", "minimum": 5, "maximum": 4}', "no integer"),
    "negative length": ('{"type": "string", "minLength": -1}', "whole number"),
    "length as text": ('{"type": "string", "minLength": "1"}', "whole number"),
    "unanchored pattern": ('{"type": "string", "pattern": "a+"}', "begin with"),
    "look-ahead": ('{"type": "string", "pattern": "^(?=a)b$"}', "look-around"),
    "back-reference": ('{"type": "string", "pattern": "^(a)\\\\1$"}', "cannot be enforced"),
    "catastrophic pattern": ('{"type": "string", "pattern": "^(a*)*$"}', "without end"),
    "huge repetition in a pattern": ('{"type": "string", "pattern": "^a{1,1000000}$"}', "1000000"),
    "empty enum": ('{"enum": []}', "at least one"),
    "10,000 values": (json.dumps({"enum": [f"value {i}" for i in range(10_000)]}), "bytes"),
    "501 properties": (json.dumps({"properties": {f"p{i}": {} for i in range(501)}}), "500"),
    "too deep": ('{"type":"array","items":' * 40 + "{}" + "}" * 40, "32 deep"),
    "100,000 deep": ("[" * 100_000, "no valid JSON"),
    "too long": ('{"const": "' + "x" * 300_000 + '"}', "characters"),
    "endless literal": ('{"type": "string", "maxLength": 1000000}', "1000000"),
}


def compiled(schema: Any) -> str:
    return checked_grammar(schema_to_grammar(json.dumps(schema)))


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_enforced_is_refused_with_the_reason(name: str) -> None:
    schema, reason = REFUSED[name]
    with pytest.raises(UsageError) as refused:
        checked_grammar(schema_to_grammar(schema))
    assert reason in refused.value.message
    assert len(refused.value.message) < 300


# -- the grammars at work ---------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def accepts(embedded_gguf: Path) -> Iterator[Callable[[str, str], bool]]:
    """Whether a grammar takes a text in full, by llama.cpp's own judgement."""
    import ctypes

    import numpy as np
    from lathe.engine.native.llama import LlamaModel, bindings

    lib: Any = bindings()
    with LlamaModel(embedded_gguf, vocab_only=True) as model:
        end = model.eos

        def judge(grammar: str, text: str) -> bool:
            sampler = lib.llama_sampler_init_grammar(model.vocab, grammar.encode(), b"root")
            assert sampler, grammar
            try:
                for token in [*model.tokenize(text), end]:
                    entry = np.array([(token, 0.0, 0.0)], [("id", "i4"), ("logit", "f4"), ("p", "f4")])
                    data = ctypes.cast(entry.ctypes.data, lib.llama_token_data_p)
                    array = lib.llama_token_data_array(data, 1, -1, False)
                    lib.llama_sampler_apply(sampler, array)
                    if not np.isfinite(entry["logit"][0]):
                        return False
                    lib.llama_sampler_accept(sampler, token)
                return True
            finally:
                lib.llama_sampler_free(sampler)

        yield judge


@pytest.mark.native
@pytest.mark.parametrize(("schema", "valid", "invalid"), CASES)
def test_grammars_take_what_schemas_allow(
    accepts: Callable[[str, str], bool], schema: Any, valid: list[Any], invalid: list[Any]
) -> None:
    grammar = compiled(schema)
    for value in valid:
        for text in (
            json.dumps(value, ensure_ascii=False),
            json.dumps(value, ensure_ascii=False, separators=(",", ":")),
        ):
            assert accepts(grammar, text), text
    for value in invalid:
        assert not accepts(grammar, json.dumps(value, ensure_ascii=False)), value


@settings(max_examples=200)
@given(
    st.none() | st.integers(-(10**6), 10**6),
    st.none() | st.integers(-(10**6), 10**6),
    st.lists(st.integers(-(10**7), 10**7)),
)
def test_integer_ranges_are_exact(low: int | None, high: int | None, values: list[int]) -> None:
    if low is not None and high is not None and low > high:
        low, high = high, low
    pattern = re.compile(as_regex(integer_range(low, high)))
    around = [bound + step for bound in (low, high, 0) if bound is not None for step in (-1, 0, 1)]
    for value in {*values, *around}:
        inside = (low is None or value >= low) and (high is None or value <= high)
        assert bool(pattern.fullmatch(str(value))) == inside, value


def as_regex(expression: str) -> str:
    """These expressions hold literals, classes, counts and groups alone, which regular expressions have too."""
    return expression.replace('"', "").replace(" ", "")


def test_equal_parts_are_written_once() -> None:
    many = {"properties": {f"p{index}": {"type": "string", "maxLength": 5} for index in range(50)}}
    assert compiled(many).count("char{0,5}") == 1


def test_a_large_schema_that_says_things_once_is_no_burden() -> None:
    shared = {"type": "string", "description": "said once " * 100}
    parts = {f"p{index}": {"allOf": [{"$ref": "#/$defs/shared"}], "maxLength": 5} for index in range(400)}
    compiled({"properties": parts, "$defs": {"shared": shared}})
