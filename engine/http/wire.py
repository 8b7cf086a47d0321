"""Parts that several request bodies share: sampling parameters, output constraints, and what is accepted in vain.

The policy for parameters: at the top level of a body an unknown name is a 400 that suggests the nearest known one, so
that a typo never passes for a setting; inside messages, tools and parts unknown names are ignored, because clients
send back what other servers gave them. `null` means not given. Numbers outside their closed range are a 400, never
clamped. Names and defaults are llama-server's where OpenAI has none.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from lathe.engine.generation import MAX_CHOICES, MAX_STOP_CHARS, MAX_STOPS, Sampling
from lathe.engine.http.problems import Problem
from msgspec import Meta

MAX_GRAMMAR_CHARS = 64 * 1024
MAX_SCHEMA_CHARS = 64 * 1024

Share = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-100, le=100)]
Window = Annotated[int, Meta(ge=-1, le=1_000_000)]
Tokens = Annotated[int, Meta(ge=0, le=2**31 - 1)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Choices = Annotated[int, Meta(ge=1, le=MAX_CHOICES)]
ModelName = Annotated[str, Meta(max_length=512)]
Stop = Annotated[str, Meta(min_length=1, max_length=MAX_STOP_CHARS)]
Stops = Stop | Annotated[list[Stop], Meta(max_length=MAX_STOPS)]
Schema = dict[str, Any] | bool
TemplateValues = dict[str, str | bool | Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | float]


class NoEffect(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Parameters of OpenAI's service that are accepted and change nothing: there is one tier, and nothing is stored."""

    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None


class LoraScale(msgspec.Struct):
    """How strongly one adapter acts; adapters are named by their files, or numbered as `/lora-adapters` lists them."""

    id: Annotated[int, Meta(ge=0, le=1000)] | Annotated[str, Meta(min_length=1, max_length=200)]
    scale: Annotated[float, Meta(ge=-100, le=100)]


class TextFormat(msgspec.Struct, tag="text", tag_field="type"):
    """Unconstrained output."""


class JsonObjectFormat(msgspec.Struct, tag="json_object", tag_field="type"):
    """Any JSON object, or one that a schema describes (llama-server's form)."""

    schema: Schema | None = None


class NamedSchema(msgspec.Struct):
    """OpenAI's wrapper around a JSON schema."""

    schema: Schema = True
    name: str = ""
    description: str | None = None
    strict: bool | None = None


class JsonSchemaFormat(msgspec.Struct, tag="json_schema", tag_field="type"):
    """Output that a JSON schema describes."""

    json_schema: NamedSchema | None = None
    schema: Schema | None = None


ResponseFormat = TextFormat | JsonObjectFormat | JsonSchemaFormat


class StreamOptions(msgspec.Struct):
    """What a stream carries besides text."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


class Sampled(NoEffect, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """How tokens are chosen, where generation stops, and what it may look like."""

    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    top_p: Share | None = None
    min_p: Share | None = None
    typical_p: Share | None = None
    xtc_probability: Share | None = None
    xtc_threshold: Share | None = None
    dry_multiplier: Annotated[float, Meta(ge=0, le=100)] | None = None
    dry_base: Annotated[float, Meta(ge=1, le=100)] | None = None
    dry_allowed_length: Annotated[int, Meta(ge=0, le=10_000)] | None = None
    dry_penalty_last_n: Window | None = None
    mirostat: Literal[0, 1, 2] | None = None
    mirostat_tau: Annotated[float, Meta(ge=0, le=100)] | None = None
    mirostat_eta: Annotated[float, Meta(ge=0, le=10)] | None = None
    repeat_penalty: Annotated[float, Meta(ge=0.01, le=100)] | None = None
    repeat_last_n: Window | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    """-1 draws one; others are taken modulo 2**32."""
    logit_bias: dict[str, float] | list[tuple[TokenId, float | bool]] | None = None
    """Token id -> bias, or llama-server's pairs, where `false` forbids the token."""
    ignore_eos: bool | None = None
    grammar: Annotated[str, Meta(max_length=MAX_GRAMMAR_CHARS)] | None = None
    json_schema: Schema | None = None
    response_format: ResponseFormat | None = None
    stop: Stops | None = None
    n: Choices | None = None
    cache_prompt: bool | None = None
    lora: Annotated[list[LoraScale], Meta(max_length=64)] | None = None
    overflow: Literal["refuse", "truncate_left", "truncate_middle"] | None = None
    """What to do with a prompt that does not fit; the default refuses it with the counts."""
    deadline_s: Annotated[float, Meta(ge=0.001, le=86_400)] | None = None


_SAME = (
    "temperature", "top_k", "top_p", "min_p", "typical_p", "xtc_probability", "xtc_threshold", "dry_multiplier",
    "dry_base", "dry_allowed_length", "dry_penalty_last_n", "mirostat", "mirostat_tau", "mirostat_eta",
    "repeat_penalty", "repeat_last_n", "frequency_penalty", "presence_penalty", "ignore_eos", "grammar",
)  # fmt: skip
FORBIDDEN = -1000.0
"""A bias that no logit outweighs."""


def sampling(body: Sampled) -> Sampling:
    """Return the engine's sampling value.

    Raises:
        Problem: 400 for constraints that exclude each other, bad logit_bias keys or an oversized schema.
    """
    given: dict[str, Any] = {name: value for name in _SAME if (value := getattr(body, name)) is not None}
    if body.seed is not None:
        given["seed"] = fold_seed(body.seed)
    if body.logit_bias:
        given["logit_bias"] = _biases(body.logit_bias)
    schema = _one_schema(body)
    if schema is not None:
        if body.grammar is not None:
            raise Problem(400, "give a grammar or a JSON schema, not both", param="grammar", code="invalid_value")
        given["json_schema"] = schema_text(schema)
    return Sampling(**given)


def fold_seed(seed: int) -> int | None:
    """Map any client's seed to 32 bits; -1 is llama-server's word for a random one."""
    return None if seed == -1 else seed % 2**32


def schema_text(schema: Schema, param: str = "response_format") -> str:
    """Return a schema as JSON text, within the size that is compiled at all."""
    text = msgspec.json.encode(schema).decode()
    if len(text) > MAX_SCHEMA_CHARS:
        raise Problem(400, f"the schema exceeds {MAX_SCHEMA_CHARS} characters", param=param, code="invalid_value")
    return text


def _one_schema(body: Sampled) -> Schema | None:
    from_format = _format_schema(body.response_format)
    if body.json_schema is None:
        return from_format
    if from_format is not None:
        raise Problem(400, "give json_schema or response_format, not both", param="json_schema", code="invalid_value")
    return body.json_schema


def _format_schema(chosen: ResponseFormat | None) -> Schema | None:
    match chosen:
        case JsonObjectFormat(schema=schema):
            return {"type": "object"} if schema is None else schema
        case JsonSchemaFormat(json_schema=named, schema=schema):
            found = named.schema if named is not None else schema
            if found is None:
                raise Problem(400, "json_schema has no schema", param="response_format", code="invalid_value")
            return found
        case _:
            return None


def _biases(given: dict[str, float] | list[tuple[int, float | bool]]) -> dict[int, float]:
    if isinstance(given, list):
        return {token: FORBIDDEN if bias is False else float(bias) for token, bias in given}
    try:
        return {int(token): bias for token, bias in given.items()}
    except ValueError:
        message = "logit_bias: keys must be token ids"
        raise Problem(400, message, param="logit_bias", code="invalid_value") from None


def stops(given: str | list[str] | None) -> tuple[str, ...]:
    """Return stop strings as a tuple."""
    if given is None:
        return ()
    return (given,) if isinstance(given, str) else tuple(given)
