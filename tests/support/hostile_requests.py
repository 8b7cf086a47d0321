"""Requests that no well-meaning client sends, made from a seed: the same number gives the same requests everywhere.

extreme     parameters at and beyond their ranges, as raw JSON text
malformed   bodies cut, doubled, flipped and mixed at the level of bytes
naughty     strings that broke other software, in every place where a string stands
shaped      bodies drawn from the JSON schema of our own OpenAPI document
odd         methods, paths, queries and headers off the road
abusive     grammars, schemas, stops and biases made to cost much

One in eight of each kind is its fair twin from `fair_requests`, which must be served: a server that refuses everything
survives, too. Each kind draws from a sequence of its own, so that a new parameter moves the requests of no other kind.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
from lathe.engine.http.ollama_in import OllamaOptions
from lathe.engine.http.openapi import describe
from lathe.engine.http.routes import ROUTES
from support import fair_requests as fair
from support.json_corpus import INVALID

RAW_EXTREMES = [
    "NaN", "Infinity", "-Infinity", "-1", "0", "-0.0", "1", "1.5", "2147483648", "4294967296", "9223372036854775808",
    "1180591620717411303424", "-1180591620717411303424", "1e308", "1e309", "-1e309", "1e-320", "1000000", "0.1e1",
    "true", "null", '""', '"1"', "[]", "{}", "[1]", '{"a": 1}', '"' + "x" * 1000 + '"', "9" * 400,
]  # fmt: skip
NAUGHTY = [
    "\x00", "\u202e", "\u200d" * 50, "e" + "\u0301" * 500, "\ue000", "\U0010ffff", "<|im_start|>system", "</s>",
    "{{7*7}}", "<tool_call>", "%s%n", "'; DROP TABLE", "../../etc/passwd", "\r\nX: y", "data: [DONE]\n\n", "﷽" * 20,
    "Ω≈ç√∫˜µ≤≥÷", "<|im_end|>\n<|im_start|>assistant\n", "[INST]", "<s>", "\u0000\u0001\u001b[31m", "\ufeff", "\u2028",
    "🏳️‍🌈👨‍👩‍👧‍👦", "İıŞşĞğ", "０１２３", "\U000e0041\U000e007f", "a" * 3000, "\t\n\r ", "{% for i in range(9**9) %}",
    "\u05d0\u202b(\u202c", "zalgơ̷̡͎͚̰", "null", "undefined", "True", "-1e999", "$(touch x)", "|&;<>",
]  # fmt: skip
_ABUSIVE_GRAMMARS = [
    'root ::= "a"{1,1000000000}', "root ::= root", "root ::= x", "root ::= (((((((((((((((((((((a", "root ::= [a-",
    'root ::= "' + "a" * 60_000 + '"', "root ::= " + "(" * 6000 + '"a"' + ")" * 6000,
    'root ::= a a\na ::= b b\nb ::= ""*',
    'root ::= ("a"{1000}){1000}', "root ::= [\\U0010FFFF-\\u0000]", 'root ::= "\\xZZ"', "", "root", "::=", "\x00",
]  # fmt: skip
_ABUSIVE_SCHEMAS: list[Any] = [
    {"$ref": "#"}, {"$ref": "http://127.0.0.1:1/x"}, {"$ref": "file:///etc/passwd"}, {"type": "nothing"},
    {"type": "string", "pattern": "(a+)+$"}, {"type": "string", "pattern": "(?<=x)"}, {"enum": list(range(10_000))},
    {"type": "array", "minItems": 10**9}, {"type": "string", "minLength": 10**9}, {"anyOf": []}, {"allOf": [{}] * 500},
    {"type": "object", "properties": {f"p{i}": {"type": "object"} for i in range(600)}}, False, {"const": {"a": [1]}},
    {"type": "integer", "minimum": 2**70, "maximum": -(2**70)},
    {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
]  # fmt: skip


class Hostile(NamedTuple):
    """One request."""

    kind: str
    method: str
    path: str
    body: bytes | None
    headers: dict[str, str]
    fair: bool = False
    """Within the rules: the answer must be 200."""


def bases(model: str) -> dict[str, dict[str, Any]]:
    """A small good body of every route that takes one object."""
    chat = [{"role": "user", "content": "hi"}]
    return {
        "/v1/chat/completions": {"model": model, "messages": chat, "max_tokens": 1},
        "/v1/completions": {"model": model, "prompt": "hi", "max_tokens": 1},
        "/v1/messages": {"model": model, "messages": chat, "max_tokens": 1},
        "/v1/responses": {"model": model, "input": "hi", "max_output_tokens": 1},
        "/api/chat": {"model": model, "messages": chat, "stream": False, "options": {"num_predict": 1}},
        "/api/generate": {"model": model, "prompt": "hi", "stream": False, "options": {"num_predict": 1}},
        "/api/embed": {"model": model, "input": ["hi"]},
        "/api/show": {"model": model},
        "/v1/embeddings": {"model": model, "input": "hi"},
        "/v1/rerank": {"model": model, "query": "a", "documents": ["b"]},
        "/v1/score": {"model": model, "context": "hi", "continuations": [" there"]},
        "/tokenize": {"model": model, "content": "hi"},
        "/detokenize": {"model": model, "tokens": [1]},
        "/apply-template": {"model": model, "messages": chat},
        "/infill": {"model": model, "input_prefix": "a"},
        "/completion": {"model": model, "prompt": "hi", "n_predict": 1},
        "/v1/feedback": {"name": "quality", "label": "accept"},
        "/v1/messages/count_tokens": {"model": model, "messages": chat},
    }


def fields(path: str) -> list[str]:
    """The parameters a route takes."""
    takes = next(route.takes for route in ROUTES if route.path == path)
    return [field.encode_name for field in msgspec.structs.fields(takes)]


class Maker:
    """Makes requests about one model."""

    def __init__(self, model: str, seed: int, strings: list[str] | None = None) -> None:
        self._seed = seed
        self._rng = random.Random(seed)
        self._bases = bases(model)
        self._paths = sorted(self._bases)
        self._strings = NAUGHTY + (strings or [])
        document = describe(ROUTES)
        self._components: dict[str, Any] = document["components"]["schemas"]
        self._schemas = {
            path: document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
            for path in self._paths
        }
        self._defaults = {path: self._defaults_of(schema) for path, schema in self._schemas.items()}

    def requests(self, count: int) -> Iterator[Hostile]:
        """`count` requests, the kinds in turn."""
        makers = (self._extreme, self._malformed, self._naughty, self._shaped, self._odd, self._abusive)
        sequences = [random.Random(f"{self._seed} {place}") for place in range(len(makers))]
        for number in range(count):
            turn, place = divmod(number, len(makers))
            self._rng = sequences[place]
            request = makers[place]()
            yield self._fair(request.kind) if turn % 8 == 0 else request

    def _fair(self, kind: str) -> Hostile:
        match kind:
            case "odd":
                address, headers = fair.odd(self._rng)
                return Hostile(kind, "GET", address, None, headers, fair=True)
            case "extreme":
                path, body = fair.extreme(self._rng, self._bases)
            case "malformed":
                path, body = fair.malformed(self._rng, self._bases)
            case "naughty":
                path, body = fair.naughty(self._rng, self._bases, self._strings)
            case "shaped":
                path, body = fair.shaped(self._rng, self._bases, self._defaults)
            case _:
                path, body = fair.abusive(self._rng, self._bases)
        return self._post(kind, path, body)._replace(fair=True)

    def _defaults_of(self, schema: Any) -> dict[str, Any]:
        """The defaults that the document gives for a body's members."""
        named = self._components[schema["$ref"].rpartition("/")[2]]["properties"]
        return {name: inner["default"] for name, inner in named.items() if "default" in inner}

    def _pick(self) -> tuple[str, dict[str, Any]]:
        path = self._rng.choice(self._paths)
        return path, copy.deepcopy(self._bases[path])

    def _post(self, kind: str, path: str, body: bytes) -> Hostile:
        return Hostile(kind, "POST", path, body, {"content-type": "application/json"})

    def _extreme(self) -> Hostile:
        path, base = self._pick()
        parts = {name: json.dumps(value) for name, value in base.items()}
        for name in self._rng.sample(fields(path), min(len(fields(path)), self._rng.choice((1, 1, 2, 3)))):
            parts[name] = self._rng.choice(RAW_EXTREMES)
        if path.startswith("/api/") and self._rng.random() < 0.5:
            option = self._rng.choice(OllamaOptions.__struct_fields__)
            parts["options"] = f'{{"num_predict": 1, "{option}": {self._rng.choice(RAW_EXTREMES)}}}'
        text = "{" + ", ".join(f"{json.dumps(name)}: {value}" for name, value in parts.items()) + "}"
        return self._post("extreme", path, text.encode())

    def _malformed(self) -> Hostile:
        rng = self._rng
        path, base = self._pick()
        if rng.random() < 0.25:
            return self._post("malformed", path, rng.choice(INVALID))
        body = bytearray(json.dumps(base).encode())
        for _ in range(rng.randint(1, 4)):
            place, length = rng.randrange(len(body) + 1), rng.randint(1, 8)
            match rng.randrange(5):
                case 0:
                    del body[place : place + length]
                case 1:
                    body[place:place] = body[place : place + length] or b"{"
                case 2:
                    body[place:place] = rng.randbytes(length)
                case 3 if place < len(body):
                    body[place] ^= 1 << rng.randrange(8)
                case _:
                    body[place:place] = rng.choice((b"[" * 100, b'{"a":' * 70, b'"', b"\\", b"\x00", b"\xed\xa0\x80"))
        return self._post("malformed", path, bytes(body))

    def _naughty(self) -> Hostile:
        path, base = self._pick()
        if self._rng.random() < 0.3:
            base[self._rng.choice((*fields(path), self._rng.choice(self._strings)))] = self._rng.choice(self._strings)
        return self._post("naughty", path, json.dumps(self._spoilt(base)).encode())

    def _spoilt(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: inner if name == "model" else self._spoilt(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [self._spoilt(inner) for inner in value]
        if isinstance(value, str) and self._rng.random() < 0.7:
            return self._rng.choice(self._strings)
        return value

    def _shaped(self) -> Hostile:
        path, base = self._pick()
        drawn = self._drawn(self._schemas[path], 0)
        body = {**drawn, **base} if isinstance(drawn, dict) and self._rng.random() < 0.6 else drawn
        return self._post("shaped", path, json.dumps(body).encode())

    def _drawn(self, schema: Any, depth: int) -> Any:
        """A value that a schema describes, or nearly."""
        rng = self._rng
        if "$ref" in schema:
            return self._drawn(self._components[schema["$ref"].rpartition("/")[2]], depth + 1)
        if "anyOf" in schema:
            return self._drawn(rng.choice(schema["anyOf"]), depth + 1)
        if "enum" in schema:
            return rng.choice(schema["enum"])
        match schema.get("type"):
            case "object":
                named = schema.get("properties", {})
                wanted = set(schema.get("required", ())) | {name for name in named if rng.random() < 0.25}
                drawn = {name: self._drawn(named[name], depth + 1) for name in sorted(wanted) if name in named}
                if isinstance(schema.get("additionalProperties"), dict) and depth < 8:
                    inner = schema["additionalProperties"]
                    drawn |= {rng.choice(self._strings): self._drawn(inner, depth + 1) for _ in range(rng.randrange(3))}
                return drawn
            case "array":
                if "prefixItems" in schema:
                    return [self._drawn(inner, depth + 1) for inner in schema["prefixItems"]]
                few = rng.randint(schema.get("minItems", 0), schema.get("minItems", 0) + 2)
                inner = schema.get("items", {})
                return [self._drawn(inner if isinstance(inner, dict) else {}, depth + 1) for _ in range(few)]
            case "integer":
                return rng.choice((schema.get("minimum", -5), schema.get("maximum", 5), rng.randint(0, 100), 1))
            case "number":
                return rng.choice((schema.get("minimum", -5), schema.get("maximum", 5), rng.random(), 1))
            case "string":
                text = rng.choice((*self._strings, "hi", "x" * schema.get("minLength", 1)))
                return text[: schema.get("maxLength", 4000)]
            case "boolean":
                return rng.random() < 0.5
            case "null":
                return None
        return rng.choice((1, "x", None, [1], {"a": 1}, True, 0.5))

    def _odd(self) -> Hostile:
        rng = self._rng
        route = rng.choice(ROUTES)
        path = route.path.replace("{model}", rng.choice(("x", "..%2f..", "%00", "a/b/c", "é", "%ff", ".", "a" * 600)))
        method = rng.choice(("GET", "POST", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND"))
        query = rng.choice(
            ("", "", "?model=", "?model=x", "?" + "a=b&" * 40, "?%", "?model=%00", "?=&=&", "?model=a&model=b")
        )
        path = rng.choice((path, path + "/", "/" + path, path.upper(), path + "%20", "/..;" + path)) + query
        names = ("content-type", "accept", "origin", "x-api-key", "content-encoding", "range", "expect", "te",
                 "upgrade", "sec-fetch-site", "x-forwarded-for", "cookie", "if-none-match")  # fmt: skip
        values = ("", "x", "*/*", "application/json", "multipart/form-data", "gzip", "bytes=0-1,2-3", "null", "a" * 500,
                  "http://evil.example", "cross-site", "\x7f", "é", "application/json; charset=utf-16")  # fmt: skip
        headers = {rng.choice(names): rng.choice(values) for _ in range(rng.randrange(4))}
        return Hostile("odd", method, path, rng.choice((None, b"", b"{}", b"x")), headers)

    def _abusive(self) -> Hostile:
        rng = self._rng
        path = rng.choice(("/v1/chat/completions", "/v1/completions", "/completion", "/v1/responses", "/api/chat"))
        base = copy.deepcopy(self._bases[path])
        biases = {
            str(rng.randint(-5, 5000)): rng.choice((-100, 100, 1e9, -1e9)) for _ in range(rng.choice((1, 300, 2000)))
        }
        function = {"name": rng.choice(self._strings), "parameters": rng.choice(_ABUSIVE_SCHEMAS)}
        abuses: list[dict[str, Any]] = [
            {"grammar": rng.choice(_ABUSIVE_GRAMMARS)},
            {"json_schema": rng.choice(_ABUSIVE_SCHEMAS)},
            {"response_format": {"type": "json_schema", "json_schema": {"schema": rng.choice(_ABUSIVE_SCHEMAS)}}},
            {"format": rng.choice(_ABUSIVE_SCHEMAS)},
            {"text": {"format": {"type": "json_schema", "name": "x", "schema": rng.choice(_ABUSIVE_SCHEMAS)}}},
            {"stop": [rng.choice(self._strings) for _ in range(rng.randint(1, 20))]},
            {"logit_bias": biases}, {"tools": [{"type": "function", "function": function}], "tool_choice": "required"},
            {"chat_template_kwargs": {rng.choice(self._strings): rng.choice((1, "x", True, 2**70))}},
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {
                "name": "f", "arguments": rng.choice(("9" * 40, '{"a": ' * 70, '["\\udc00"]', "[" * 60_000, "9" * 5000))
            }}]}]},
            {"prompt": "x " * 20_000}, {"prompt": [rng.choice((-1, 0, 1, 4095, 4096, 2**31)) for _ in range(5)]},
            {"messages": [{"role": rng.choice(("user", "tool", "system")), "content": "y" * 10} for _ in range(300)]},
            {"lora": [{"id": rng.choice((0, 999)), "scale": 1}]}, {"n": 16, "stream": True}, {"deadline_s": 0.001},
            {"overflow": "truncate_left", "prompt": "z " * 5000}, {"logprobs": 20, "echo": True, "prompt": "a b " * 60},
        ]  # fmt: skip
        return self._post("abusive", path, json.dumps(base | rng.choice(abuses)).encode())
