"""Builds the engine's `GenerationRequest` from what all dialects share."""

from __future__ import annotations

from typing import Literal

import msgspec
from lathe.engine import generation
from lathe.engine.generation import GenerationRequest, Message, Sampling
from lathe.engine.http.access import LOCAL
from lathe.engine.http.adapters import scales
from lathe.engine.http.call import Call
from lathe.engine.http.wire import LoraScale, Sampled, sampling, stops
from lathe.store.models import ModelEntry

Overflow = Literal["refuse", "truncate_left", "truncate_middle"]


async def ask(
    call: Call,
    entry: ModelEntry,
    *,
    messages: tuple[Message, ...] = (),
    prompt: str | None = None,
    tokens: tuple[int, ...] | None = None,
    max_tokens: int | None = None,
    chosen: Sampling | None = None,
    stop: tuple[str, ...] = (),
    n: int = 1,
    logprobs: int | None = None,
    echo: bool = False,
    tools: str | None = None,
    template_args: dict[str, str | bool | int | float] | None = None,
    cache_prompt: bool = True,
    deadline_s: float | None = None,
    overflow: Overflow | None = None,
    lora: list[LoraScale] | None = None,
) -> GenerationRequest:
    """Return a checked request on behalf of the caller.

    Raises:
        UsageError: a value outside its documented range.
    """
    request = GenerationRequest(
        model=entry.name,
        messages=messages,
        prompt=prompt,
        tokens=tokens,
        tools=tools,
        template_args=template_args or {},
        max_tokens=max_tokens,
        sampling=chosen or Sampling(),
        stop=stop,
        n=n,
        logprobs=logprobs,
        echo=echo,
        cache_prompt=cache_prompt,
        principal=principal_of(call),
        client=client_of(call),
        deadline_s=deadline_s,
        overflow=overflow or "refuse",
        adapters=await scales(call, entry, lora),
    )
    generation.check(request)
    return request


async def ask_sampled(
    call: Call,
    entry: ModelEntry,
    body: Sampled,
    *,
    schema: str | None = None,
    messages: tuple[Message, ...] = (),
    prompt: str | None = None,
    tokens: tuple[int, ...] | None = None,
    max_tokens: int | None = None,
    logprobs: int | None = None,
    echo: bool = False,
    tools: str | None = None,
    template_args: dict[str, str | bool | int | float] | None = None,
) -> GenerationRequest:
    """Return a checked request with the sampling of an OpenAI-style body; `schema` replaces its output constraint."""
    chosen = sampling(body)
    if schema is not None:
        chosen = constrain(chosen, schema)
    return await ask(
        call, entry, messages=messages, prompt=prompt, tokens=tokens, max_tokens=max_tokens, chosen=chosen,
        stop=stops(body.stop), n=body.n or 1, logprobs=logprobs, echo=echo, tools=tools, template_args=template_args,
        cache_prompt=body.cache_prompt is not False, deadline_s=body.deadline_s, overflow=body.overflow, lora=body.lora,
    )  # fmt: skip


def constrain(chosen: Sampling, schema: str) -> Sampling:
    """Return the sampling with its output constrained to a schema, instead of what constrained it before."""
    return msgspec.structs.replace(chosen, grammar=None, json_schema=schema)


def principal_of(call: Call) -> str:
    """Return whose request it is: prefix cache and fair share are kept per key."""
    return f"key:{call.principal.name}"


def client_of(call: Call) -> str:
    """Return how panels name the sender: `http KEY@ADDRESS`, without a key `http ADDRESS`."""
    return f"http {call.client}" if call.principal is LOCAL else f"http {call.principal.name}@{call.client}"
