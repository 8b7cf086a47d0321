"""`lathe rag query` and `ask`: passages, and answers that cite them."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

import click
from lathe.engine.errors import ExitCode
from lathe.engine.rag.requests import Answered, AskRequest, Checked, Hit, Retrieved, Said, SearchRequest, SearchResult
from lathe.engine.workbench import Workbench
from lathe.store.rag.values import Filter
from lathe.tui.cli.numbers import Finite
from lathe.tui.cli.rag_options import MODES, as_json_option, filtered
from lathe.tui.cli.shell import Shell, put, put_json, say, write
from lathe.tui.text import clean

WIDTH = 240
"""Characters of a passage that a result line shows."""


@click.command()
@click.argument("store")
@click.argument("question")
@click.option("-k", type=click.IntRange(min=1), default=10, show_default=True)
@click.option("--mmr", type=Finite(0, 1), help="Trade relevance (1) against novelty (0).")
@click.option("--explain", is_flag=True, help="Scores by source and times by phase.")
@click.option("--mode", type=MODES, default="hybrid", show_default=True)
@click.option("--reranker", metavar="MODEL", help="Cross-encoder that orders the best again.")
@as_json_option
@filtered
@click.pass_obj
def query(
    shell: Shell, store: str, question: str, k: int, mmr: float | None, explain: bool, mode: Any,
    reranker: str | None, condition: Filter, as_json: bool,
) -> None:  # fmt: skip
    """Passages of STORE for QUESTION; exit 1 when there are none."""
    request = SearchRequest(
        store=store, query=question, k=k, mode=mode, mmr=mmr, reranker=reranker, filter=condition,
    )  # fmt: skip

    async def work(workbench: Workbench) -> SearchResult:
        return await workbench.search_store(request)

    result = shell.run(work, as_json=as_json)
    if as_json:
        put_json(result)
    else:
        if result.note:
            say(result.note)
        for hit in result.hits:
            _put_hit(hit, explain)
        if explain:
            say("  ".join(f"{name} {seconds * 1000:.1f} ms" for name, seconds in result.timings.items()))
    raise SystemExit(ExitCode.OK if result.hits else ExitCode.NEGATIVE)


def _put_hit(hit: Hit, explain: bool) -> None:
    passage = hit.passage
    place = f"  page {passage.page}" if passage.page is not None else ""
    put(f"[{hit.rank}] {hit.score:.4f}  {clean(passage.path)}{place}  {passage.start}-{passage.end}")
    if explain:
        put("    " + "  ".join(f"{name} #{source.rank} {source.score:.4f}" for name, source in hit.sources.items()))
    text = " ".join(clean(passage.text).split())
    put(f"    {text[:WIDTH]}{'…' if len(text) > WIDTH else ''}")


@click.command()
@click.argument("store")
@click.argument("question")
@click.option("--model", required=True, help="Model that answers.")
@click.option("-k", type=click.IntRange(min=1), default=6, show_default=True, help="Passages offered to the model.")
@click.option("-n", "--max-tokens", type=click.IntRange(min=1), default=256, show_default=True)
@click.option("--no-support", is_flag=True, help="Do not check which passage causes which sentence.")
@click.option("--quote", is_flag=True, help="Hold the model to the documents' own sentences, word for word.")
@click.option("--always", is_flag=True, help="Let the model answer even when retrieval is weak.")
@click.option("--mmr", type=Finite(0, 1), help="Trade relevance (1) against novelty (0).")
@click.option("--mode", type=MODES, default="hybrid", show_default=True)
@click.option("--reranker", metavar="MODEL", help="Cross-encoder that orders the best again.")
@as_json_option
@filtered
@click.pass_obj
def ask(
    shell: Shell, store: str, question: str, model: str, k: int, max_tokens: int, no_support: bool, quote: bool,
    always: bool, mmr: float | None, mode: Any, reranker: str | None, condition: Filter, as_json: bool,
) -> None:  # fmt: skip
    """Answer QUESTION from STORE with MODEL; exit 1 when it is not in the documents."""
    request = AskRequest(
        store=store, question=question, model=model, k=k, max_tokens=max_tokens, support=not no_support, quote=quote,
        always=always, mode=mode, reranker=reranker, mmr=mmr, filter=condition,
    )  # fmt: skip

    async def work(workbench: Workbench) -> bool:
        return await _follow_answer(workbench, request, as_json)

    raise SystemExit(ExitCode.OK if shell.run(work, as_json=as_json) else ExitCode.NEGATIVE)


async def _follow_answer(workbench: Workbench, request: AskRequest, as_json: bool) -> bool:
    """Stream the answer to stdout, sources and support to stderr; tells whether it was in the documents."""
    from lathe.tui.text import Cleaner

    cleaner = Cleaner()
    document: dict[str, object] = {}
    found = False
    async with aclosing(workbench.ask_store(request)) as events:
        async for event in events:
            match event:
                case Retrieved():
                    document["sources"] = event.given
                    if not as_json:
                        for source in event.given:
                            say(f"[{source.number}] {clean(source.passage.path)}")
                case Said(text=text) if not as_json:
                    write(cleaner.feed(text))
                case Answered():
                    found = event.in_documents
                    document |= {"answer": event.text, "cited": event.cited, "in_documents": found}
                    if not as_json:
                        put(cleaner.close())
                case Checked():
                    document |= {"sentences": event.sentences, "problem": event.problem}
                    if not as_json:
                        _say_support(event)
                case _:
                    pass
    if as_json:
        put_json(document)
    return found


def _say_support(checked: Checked) -> None:
    if checked.problem:
        say(f"support was not measured: {checked.problem}")
    for sentence in checked.sentences:
        best = max(range(len(sentence.passages)), key=lambda i: sentence.passages[i])
        verdict = f"rests on [{best + 1}]" if sentence.supported else "nothing supports it"
        say(f"{sentence.gain:+.2f} nats/token, {verdict}: {clean(sentence.text)[:100]}")
