"""The near side of every line that hostile requests cross: as odd to look at, yet within the rules, so all are served.

extreme     parameters at the very ends of their documented ranges
malformed   bodies spelled in a way that nobody writes and every JSON parser must read
naughty     the same strings, where any text may stand
shaped      what our own OpenAPI document gives as defaults, written out
odd         routes that anybody may ask, under queries and headers that say nothing to them
abusive     as many choices, stops and biases as are allowed, and grammars that just fit
"""

from __future__ import annotations

import json
import random
from typing import Any

from lathe.engine.generation import _RANGES, MAX_CHOICES, MAX_STOP_CHARS, MAX_STOPS

SAMPLED = ("/v1/chat/completions", "/v1/completions", "/completion")
"""Routes that take every sampling parameter by its own name."""
PLAIN = (*SAMPLED, "/v1/messages", "/v1/responses", "/v1/score", "/v1/messages/count_tokens", "/api/chat",
         "/api/generate", "/api/show", "/tokenize", "/detokenize", "/apply-template")  # fmt: skip
"""Routes whose plain body any model that writes text can serve."""
_BOUNDS = {
    **_RANGES,
    "seed": (-(2**63), 2**63 - 1), "mirostat": (0, 2), "deadline_s": (60, 86_400),
}  # fmt: skip
_GRAMMARS = (
    'root ::= "a"{1,2000}', 'root ::= [\\x00-\\U0010FFFF]', "root ::= " + "(" * 50 + '"a"' + ")" * 50,
    'root ::= "' + "a" * 2000 + '"', 'root ::= a | b\na ::= "a"\nb ::= "b" root?',
)  # fmt: skip


def extreme(rng: random.Random, bases: dict[str, dict[str, Any]]) -> tuple[str, bytes]:
    """One to three parameters at an end of their range."""
    path = rng.choice(SAMPLED)
    chosen = {name: rng.choice(_BOUNDS[name]) for name in rng.sample(sorted(_BOUNDS), rng.randint(1, 3))}
    return path, json.dumps(bases[path] | chosen).encode()


def malformed(rng: random.Random, bases: dict[str, dict[str, Any]]) -> tuple[str, bytes]:
    """Blanks wherever they may stand, members in any order, characters as escapes."""
    path = rng.choice(PLAIN)
    return path, _respelt(rng, bases[path]).encode()


def _respelt(rng: random.Random, value: Any) -> str:
    def blank() -> str:
        return "".join(rng.choices(" \t\r\n", k=rng.choice((0, 0, 1, 1, 300))))

    match value:
        case dict():
            members = [f"{_respelt(rng, name)}:{_respelt(rng, inner)}" for name, inner in value.items()]
            rng.shuffle(members)
            text = "{" + ",".join(members) + "}" if members else "{" + blank() + "}"
        case list():
            text = "[" + ",".join(_respelt(rng, inner) for inner in value) + "]"
        case str():
            text = (
                '"' + "".join(rng.choice((char, f"\\u{ord(char):04x}", f"\\u{ord(char):04X}")) for char in value) + '"'
            )
        case _:
            text = json.dumps(value)
    return blank() + text + blank()


def naughty(rng: random.Random, bases: dict[str, dict[str, Any]], strings: list[str]) -> tuple[str, bytes]:
    """A string that broke other software as the text to work on."""
    path, name = rng.choice((("/v1/completions", "prompt"), ("/completion", "prompt"), ("/tokenize", "content")))
    return path, json.dumps(bases[path] | {name: f"a {rng.choice(strings)[:60]}"}).encode()


def shaped(
    rng: random.Random, bases: dict[str, dict[str, Any]], defaults: dict[str, dict[str, Any]]
) -> tuple[str, bytes]:
    """Any of the defaults that the document gives."""
    path = rng.choice(PLAIN)
    known = defaults[path]
    chosen = {name: known[name] for name in rng.sample(sorted(known), rng.randint(0, len(known)))}
    return path, json.dumps(chosen | bases[path]).encode()


def odd(rng: random.Random) -> tuple[str, dict[str, str]]:
    """A path and headers."""
    path = rng.choice(("/health", "/v1/models", "/api/tags", "/openapi.json"))
    query = rng.choice(("", "?", "?model=", "?" + "a=b&" * 10, "?%", "?=&=&", "?model=a&model=b"))
    names = rng.sample(("accept", "range", "te", "cookie", "if-none-match", "x-forwarded-for", "referer"), 3)
    return path + query, {name: rng.choice(("x", "*/*", "bytes=0-1,2-3", "null", "a" * 500)) for name in names}


def abusive(rng: random.Random, bases: dict[str, dict[str, Any]]) -> tuple[str, bytes]:
    """Costly to look at, and allowed."""
    path = rng.choice(SAMPLED)
    allowed: list[dict[str, Any]] = [
        {"grammar": rng.choice(_GRAMMARS)},
        {"stop": ["s" * MAX_STOP_CHARS] * MAX_STOPS},
        {"stop": [chr(0x1F600 + place) * 64 for place in range(MAX_STOPS)]},
        {"logit_bias": {str(token): rng.choice((-100, 100, 1e9, -1e9)) for token in range(1000)}},
        {"n": 1 if path == "/completion" else MAX_CHOICES},
        {"prompt": "y " * 100} if "prompt" in bases[path] else _called(10**40),
        {"json_schema": {"type": "object", "properties": {f"p{place}": {"type": "integer"} for place in range(100)}}},
    ]
    return path, json.dumps(bases[path] | rng.choice(allowed)).encode()


def _called(number: int) -> dict[str, Any]:
    """A conversation in which a tool was called with a number that no machine word holds."""
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": json.dumps({"a": number})}}
    return {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [call]}]}
