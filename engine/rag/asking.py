"""Ask: a question answered from a store, with citations, or the plain statement that it is not there.

    search -> weak? "not in the documents" -> fence what fits the model -> stream the answer -> cite -> check support
Invariant: the model sees passages only through `fencing`, and the numbers in the answer mean the passages sent before
the first word of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import msgspec
from lathe.engine.errors import DataError, LatheError, UsageError
from lathe.engine.generation import Delta, GenerationRequest, Message, Sampling
from lathe.engine.rag.fencing import NOT_THERE, SYSTEM, citations, question_turn
from lathe.engine.rag.quoting import quoting_grammar
from lathe.engine.rag.requests import (
    Answered,
    AskEvent,
    AskRequest,
    Checked,
    Citation,
    Hit,
    Retrieved,
    Said,
    SearchRequest,
    SearchResult,
)
from lathe.engine.rag.searching import Searcher
from lathe.engine.rag.strength import COVERAGE, covered, stands_out
from lathe.engine.rag.support import support
from lathe.engine.workbench import Workbench
from lathe.store.rag.values import StoredPassage


async def ask(workbench: Workbench, searcher: Searcher, request: AskRequest) -> AsyncGenerator[AskEvent, None]:
    """Answer one question; leaving the loop cancels what runs."""
    if not request.question.strip():
        raise UsageError("the question is empty")
    result = await searcher.search(
        SearchRequest(
            store=request.store, query=request.question, k=request.k, mode=request.mode, filter=request.filter,
            reranker=request.reranker, mmr=request.mmr, principal=request.principal,
        )
    )  # fmt: skip
    weak = not result.hits or await _weak(searcher, request.question, result)
    if not result.hits or (weak and not request.always):
        yield Retrieved(result=result, given=(), weak=True)
        yield Said(NOT_THERE)
        yield Answered(text=NOT_THERE, in_documents=False)
        return
    prompt = _Prompt(workbench, request, result.hits)
    given = await prompt.fit()
    yield Retrieved(
        result=result, given=tuple(Citation(number=i, passage=p) for i, p in enumerate(given, 1)), weak=weak
    )
    text: list[str] = []
    last = Delta()
    async with aclosing(workbench.generate(await prompt.request(given))) as deltas:
        async for delta in deltas:
            if delta.text:
                text.append(delta.text)
                yield Said(delta.text)
            last = delta
    answer = "".join(text)
    yield Answered(
        text=answer, cited=tuple(citations(answer, len(given))), usage=last.usage, timing=last.timing,
        finish=last.finish or "stop",
        in_documents=NOT_THERE.rstrip(".").casefold() not in answer.casefold(),
    )  # fmt: skip
    if request.support and not request.quote and answer.strip():
        try:
            measured = await support(workbench, request.model, prompt.tokens_of, len(given), answer)
            yield Checked(sentences=tuple(measured))
        except LatheError as error:
            yield Checked(problem=error.message)


async def _weak(searcher: Searcher, question: str, result: SearchResult) -> bool:
    """Whether neither source found anything that stands out."""
    best = max((hit.sources["dense"].score for hit in result.hits if "dense" in hit.sources), default=None)
    if (
        best is not None
        and searcher.embedder is not None
        and stands_out(await searcher.embedded(question), best, await searcher.unrelated())
    ):
        return False
    by_words = [hit.passage.id for hit in result.hits if "bm25" in hit.sources]
    for passage in by_words[:3]:
        if await asyncio.to_thread(covered, searcher.store, question, passage) >= COVERAGE:
            return False
    return True


class _Prompt:
    """The prompt of one question, made of some passages."""

    def __init__(self, workbench: Workbench, request: AskRequest, hits: Sequence[Hit]) -> None:
        self._workbench = workbench
        self._request = request
        self._passages = [hit.passage for hit in hits]
        self._given: list[StoredPassage] = []

    async def fit(self) -> list[StoredPassage]:
        """The best passages that leave room for the answer.

        Raises:
            DataError: not even one does.
        """
        state = await self._workbench.load(self._request.model)
        context = state.info.context if state.info is not None else 2048
        room = context - self._request.max_tokens - 1
        given = list(self._passages)
        while given and len(await self._tokens(given)) > room:
            given.pop()
        if not given:
            raise DataError(
                f"no passage fits into {self._request.model}'s context of {context} tokens beside "
                f"{self._request.max_tokens} for the answer",
                hint="ask for a shorter answer, or split the store into smaller passages",
            )
        self._given = given
        return given

    async def request(self, given: Sequence[StoredPassage]) -> GenerationRequest:
        """The request that generates the answer."""
        common = {
            "model": self._request.model, "max_tokens": self._request.max_tokens, "sampling": self._sampling(given),
            "client": f"rag {self._request.store}", "principal": self._request.principal,
        }  # fmt: skip
        return GenerationRequest(messages=self._messages(given), **common)  # type: ignore[arg-type]

    def _sampling(self, given: Sequence[StoredPassage]) -> Sampling:
        if not self._request.quote:
            return self._request.sampling
        grammar = quoting_grammar(self._request.question, given)
        if grammar is None:
            raise DataError("the passages found hold no sentence to quote", hint="ask without quoting")
        return msgspec.structs.replace(self._request.sampling, grammar=grammar, json_schema=None)

    async def tokens_of(self, kept: Sequence[int]) -> tuple[int, ...]:
        """Token ids of the prompt with only some of the passages given."""
        return await self._tokens([self._given[number] for number in kept])

    async def _tokens(self, passages: Sequence[StoredPassage]) -> tuple[int, ...]:
        rendered = await self._workbench.render(self._request.model, list(self._messages(passages)))
        return rendered.tokens

    def _messages(self, passages: Sequence[StoredPassage]) -> tuple[Message, ...]:
        turn = Message("user", question_turn(self._request.question, passages))
        return (Message("system", SYSTEM), *self._request.history, turn)
