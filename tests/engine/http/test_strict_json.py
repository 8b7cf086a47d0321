"""Strict JSON: what two parsers could read differently is refused with a reason, whatever the bytes."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lathe.engine.http.limits import Limits
from lathe.engine.http.problems import Problem
from lathe.engine.http.strict_json import decode
from support.json_corpus import INVALID, VALID

LIMITS = Limits()
ANY = msgspec.json.Decoder(Any)


class Inner(msgspec.Struct):
    size: int = 0


class Body(msgspec.Struct, forbid_unknown_fields=True):
    model: str
    temperature: float = 0.0
    inner: Inner | None = None


BODY = msgspec.json.Decoder(Body)


def refusal(body: bytes, decoder: Any = ANY) -> Problem:
    with pytest.raises(Problem) as caught:
        decode(body, decoder, LIMITS)
    assert caught.value.status == 400
    return caught.value


@pytest.mark.parametrize("body", INVALID, ids=lambda body: repr(body[:40]))
def test_invalid_documents_are_refused(body: bytes) -> None:
    refusal(body)


@pytest.mark.parametrize("body", VALID, ids=lambda body: repr(body[:40]))
def test_valid_documents_are_read(body: bytes) -> None:
    decode(body, ANY, LIMITS)


def test_a_key_given_twice_is_refused_however_it_is_spelled() -> None:
    assert "twice" in refusal(b'{"a": 1, "a": 2}').message
    assert "twice" in refusal(b'{"a": 1, "\\u0061": 2}').message
    assert "twice" in refusal(b'[{"x": {"b": 1, "c": {"b": 2}, "b": 3}}]').message
    same_key_elsewhere = b'[{"a": {"a": 1}}, {"a": ["a", "a"]}]'
    assert decode(same_key_elsewhere, ANY, LIMITS) == [{"a": {"a": 1}}, {"a": ["a", "a"]}]


def test_depth_is_capped_before_parsing() -> None:
    assert decode(b"[" * 64 + b"]" * 64, ANY, LIMITS)
    assert "deeper" in refusal(b"[" * 65 + b"]" * 65).message
    assert "deeper" in refusal(b"[" * 1_000_000).message
    assert "deeper" in refusal(b'{"a":' * 100_000).message


def test_brackets_inside_strings_do_not_count() -> None:
    text = "[{" * 1000
    assert decode(msgspec.json.encode({"a": text}), ANY, LIMITS) == {"a": text}


def test_the_number_of_values_is_capped() -> None:
    assert "more than" in refusal(b"[" + b"[]," * 200_000 + b"[]]").message


def test_an_unterminated_string_of_quotes_is_scanned_once() -> None:
    # Eight megabytes of escaped quotes: a scan that started anew at each of them would not end within the test's limit.
    refusal(b'{"a": "' + b'\\"' * 4_000_000)


def test_errors_name_the_parameter() -> None:
    unknown = refusal(b'{"model": "m", "temprature": 1}', BODY)
    assert (unknown.param, unknown.code) == ("temprature", "unknown_parameter")
    assert "did you mean 'temperature'" in unknown.message
    missing = refusal(b"{}", BODY)
    assert (missing.param, missing.code) == ("model", "missing_required_parameter")
    wrong = refusal(b'{"model": "m", "inner": {"size": "big"}}', BODY)
    assert (wrong.param, wrong.code) == ("inner.size", "invalid_value")


@given(st.binary(max_size=200))
def test_bytes_are_read_or_refused(body: bytes) -> None:
    try:
        decode(body, ANY, LIMITS)
    except Problem as problem:
        assert problem.status == 400


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(JSON)
def test_every_value_survives(value: Any) -> None:
    assert decode(msgspec.json.encode(value), ANY, LIMITS) == value


@given(JSON, st.data())
def test_damage_is_refused_or_read_the_same_by_the_standard_library(value: Any, data: st.DataObject) -> None:
    import json

    body = bytearray(msgspec.json.encode(value))
    place = data.draw(st.integers(0, len(body) - 1))
    body[place] = data.draw(st.integers(0, 255))
    try:
        ours = decode(bytes(body), ANY, LIMITS)
    except Problem:
        return
    assert ours == json.loads(bytes(body).decode("utf-8"))
