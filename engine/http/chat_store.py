"""A chat with a store attached: passages are found for the last message, and the answer cites them.

    last user message -> ask_store -> citations, text, support -> the same chunks and answers as any chat
Invariant: whatever a passage says, the model is given it as `lathe.engine.rag.fencing` fences it, and a request with a
store can call no tools.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Literal

import msgspec
from lathe.engine.generation import Delta, GenerationRequest, Message, Usage
from lathe.engine.http.call import Call
from lathe.engine.http.problems import Problem
from lathe.engine.http.stores import PassageBody, StoreFilter, StoreName, as_filter, asker, find, passage_body
from lathe.engine.http.wire import ModelName
from lathe.engine.rag.requests import Answered, AskRequest, Checked, Retrieved, Said, SentenceSupport
from msgspec import Meta

_TOKENS = 512
"""Of an answer whose request names no limit: the context must hold the passages, too."""


class StoreChoice(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Which store a chat answers from, and how."""

    name: StoreName
    k: Annotated[int, Meta(ge=1, le=100)] = 6
    """Passages offered to the model, as far as they fit."""
    mode: Literal["hybrid", "dense", "bm25"] = "hybrid"
    filter: StoreFilter | None = None
    reranker: ModelName | None = None
    mmr: Annotated[float, Meta(ge=0, le=1)] | None = None
    """Trade between relevance (1) and novelty (0)."""
    support: bool = False
    """Measure which passage causes which sentence."""
    quote: bool = False
    """Hold the model to sentences of the passages, word for word."""
    always: bool = False
    """Let the model answer even when what was found is weak."""


class CitationBody(msgspec.Struct):
    """What `[number]` in the answer means."""

    number: int
    store: str
    passage: PassageBody


class SupportBody(msgspec.Struct):
    """What one sentence of the answer rests on."""

    text: str
    start: int
    end: int
    gain: float
    """Nats per token that the passages together add."""
    passages: list[float]
    """Nats per token lost without each passage, in the order of the citations."""
    supported: bool


class Grounds(msgspec.Struct):
    """What an answer rests on, filled while it comes."""

    citations: list[CitationBody] = []
    cited: list[int] | None = None
    in_documents: bool | None = None
    support: list[SupportBody] | None = None


async def attach(call: Call, choice: StoreChoice, request: GenerationRequest) -> tuple[AskRequest, Grounds]:
    """The question that a chat request asks of a store.

    Raises:
        Problem: the store is not there, or the request wants what an answer from a store has not.
    """
    stats = await find(call, choice.name)
    if request.tools or request.n > 1 or request.logprobs is not None:
        raise Problem(400, "store: not together with tools, n or logprobs", param="store", code="invalid_value")
    *history, last = request.messages
    if last.role != "user" or not last.content.strip():
        raise Problem(
            400, "store: the last message must be the user's question", param="messages", code="invalid_value"
        )
    reranker = await call.service.catalogue.find(choice.reranker, call.principal.models) if choice.reranker else None
    asked = AskRequest(
        store=stats.settings.name, question=last.content, model=request.model, history=tuple(_plain(history)),
        k=choice.k, mode=choice.mode, filter=as_filter(choice.filter), reranker=reranker.name if reranker else None,
        max_tokens=request.max_tokens or _TOKENS, sampling=request.sampling, support=choice.support,
        quote=choice.quote, always=choice.always, mmr=choice.mmr, principal=asker(call),
    )  # fmt: skip
    return asked, Grounds()


def _plain(history: list[Message]) -> list[Message]:
    """Earlier turns, without those of tools: no tool is at hand here."""
    return [message for message in history if message.role in ("system", "user", "assistant") and message.content]


async def answer(call: Call, asked: AskRequest, grounds: Grounds) -> AsyncGenerator[Delta, None]:
    """The deltas of an answer from a store; `grounds` holds the citations before the first of them."""
    end = Delta(finish="stop", usage=Usage(0, 0))
    async with aclosing(call.service.workbench.ask_store(asked)) as events:
        async for event in events:
            match event:
                case Retrieved(given=given):
                    grounds.citations += [CitationBody(c.number, asked.store, passage_body(c.passage)) for c in given]
                case Said(text=text):
                    yield Delta(text=text)
                case Answered():
                    grounds.cited, grounds.in_documents = list(event.cited), event.in_documents
                    usage = event.usage or Usage(0, 0)
                    end = Delta(finish=event.finish, usage=usage, timing=event.timing)
                case Checked(sentences=sentences):
                    grounds.support = [_support(sentence) for sentence in sentences]
    yield end


def _support(sentence: SentenceSupport) -> SupportBody:
    return SupportBody(
        sentence.text, sentence.start, sentence.end, sentence.gain, list(sentence.passages), sentence.supported
    )
