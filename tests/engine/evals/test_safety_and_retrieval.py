"""Safety metrics on answers that leak, abuse or obey; retrieval and support metrics on known rankings."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from lathe.engine.errors import ConfigError, MissingError
from lathe.engine.evals.book import EvalBook
from lathe.engine.evals.metrics.metric import Finding, Metric
from lathe.engine.evals.metrics.registry import metrics_of
from lathe.engine.evals.values import Item, Passage, Response, Task
from lathe.engine.generation import Score, ScoreRequest
from lathe.engine.rag.requests import (
    Answered,
    AskEvent,
    AskRequest,
    Checked,
    Citation,
    Retrieved,
    SearchResult,
    SentenceSupport,
)
from lathe.store.rag.values import StoredPassage
from support.eval_model import TableModel, evaluate


def _metric(kind: str, name: str, /, **options: Any) -> Metric:
    entry: Any = {name: options} if options else name
    return metrics_of(Task(id="t", kind=kind, cases=(), metrics=(entry,)))[0]  # type: ignore[arg-type]


def _value(metric: Metric, response: Response, **item: Any) -> float | None:
    assert metric.judge is not None
    found = metric.judge(Item(task="t", case="c", **({"kind": "rag"} | item)), response)
    found = found.statistics if isinstance(found, Finding) else found
    return None if found is None else found[0] / found[1]


def test_personal_data_is_found_by_its_form_and_check_digits() -> None:
    metric = _metric("generate", "pii")
    assert _value(metric, Response(text="Write to ada.marsh@example.com.")) == 0
    assert _value(metric, Response(text="The card is 4539 1488 0343 6467.")) == 0
    assert _value(metric, Response(text="Order 1234 5678 9012 3456 was shipped.")) == 1
    assert metric.judge is not None
    note = metric.judge(Item(task="t", case="c", kind="generate"), Response(text="ada@example.com"))
    assert isinstance(note, Finding)
    assert note.note == "found: email"
    allowed = _metric("generate", "pii", from_prompt=True)
    assert _value(allowed, Response(text="ada@example.com"), context="mine is ada@example.com") == 1
    assert _value(_metric("generate", "pii", kinds=["card"]), Response(text="ada@example.com")) == 1
    with pytest.raises(ConfigError, match="no kind 'shoe'"):
        _metric("generate", "pii", kinds=["shoe"])


def test_abuse_and_obedience() -> None:
    shipped = _metric("generate", "toxicity")
    assert _value(shipped, Response(text="You are WORTHLESS, really.")) == 0
    assert _value(shipped, Response(text="Scunthorpe is a town, and an assassin is not polite.")) == 1
    assert _value(_metric("generate", "toxicity", words=["dolt"]), Response(text="You dolt!")) == 0
    obeys = _metric("generate", "injection")
    assert _value(obeys, Response(text="It is about bread.  ACCESS\nGRANTED"), targets=("access granted",)) == 0
    assert _value(obeys, Response(text="It is about bread."), targets=("access granted",)) == 1


def test_a_list_stands_beside_its_suite(tmp_path: Path) -> None:
    from lathe.engine.evals import suite

    (tmp_path / "words.txt").write_text("# a list\ndolt\n")
    (tmp_path / "s.yaml").write_text(
        "name: s\ntasks: [{id: t, kind: generate, metrics: [{toxicity: {file: words.txt}}],"
        " cases: [{prompt: hello}]}]\n"
    )
    loaded = suite.load(tmp_path / "s.yaml")
    assert loaded.tasks[0].task.metrics == ({"toxicity": {"file": str(tmp_path / "words.txt")}},)
    (tmp_path / "words.txt").write_text("# nothing\n")
    with pytest.raises(ConfigError, match="lists no word"):
        suite.load(tmp_path / "s.yaml")


PASSAGES = tuple(
    Passage(path, 0, text)
    for path, text in (("a/x.md", "nothing here"), ("b/y.md", "Paris is the capital of France."), ("a/z.md", "more"))
)


@pytest.mark.parametrize(
    ("name", "fields", "wanted"),
    [
        ("context_precision", {"contexts": ["the  capital of france"]}, 1 / 2),
        ("context_recall", {"contexts": ["capital of France", "Lima"]}, 1 / 2),
        ("hit", {"documents": ["y.md"]}, 1.0),
        ("mrr", {"documents": ["b/y.md"]}, 1 / 2),
        ("context_precision", {"documents": ["x.md", "z.md"]}, (1 / 1 + 2 / 3) / 2),
        ("ndcg", {"documents": ["y.md"]}, 1 / math.log2(3)),
        ("ndcg", {"documents": ["x.md", "y.md", "z.md", "4.md", "5.md"]}, 1.0),
        ("mrr", {"documents": ["other.md"]}, 0.0),
        ("hit", {}, None),
    ],
)
def test_rankings(name: str, fields: dict[str, Any], wanted: float | None) -> None:
    response = Response(passages=PASSAGES)
    assert _value(_metric("retrieval", name), response, kind="retrieval", fields=fields) == pytest.approx(wanted)


def test_a_ranking_of_nothing_is_worth_nothing() -> None:
    metric = _metric("retrieval", "ndcg")
    assert _value(metric, Response(passages=()), kind="retrieval", fields={"documents": ["y.md"]}) == 0


def _support(text: str, gain: float, *passages: float) -> SentenceSupport:
    return SentenceSupport(text=text, start=0, end=len(text), gain=gain, passages=passages, supported=gain >= 0.1)


def test_support_and_citations() -> None:
    response = Response(
        text="Paris [1]. Invented [2].",
        support=(_support("Paris [1].", 1.0, 0.9, 0.0), _support("Invented [2].", 0.02, 0.0, 0.01)),
    )
    assert _value(_metric("rag", "faithfulness"), response) == 0.5
    assert _value(_metric("rag", "citation_support"), response) == 0.5
    assert _value(_metric("rag", "faithfulness"), Response(text="x")) is None
    assert _value(_metric("rag", "citation_support"), Response(support=(_support("No number.", 1.0, 0.5),))) is None
    assert _value(_metric("rag", "answered"), response) == 1
    assert _value(_metric("rag", "answered", expected=False), Response(text="Not in the documents.")) == 1


class WithStore(TableModel):
    """A model beside a store that always finds the same."""

    async def store(self, name: str) -> Any:
        if name != "docs":
            raise MissingError(f"no store {name!r}")
        return _Details()

    async def ask_store(self, request: AskRequest) -> AsyncGenerator[AskEvent, None]:
        passage = StoredPassage(
            id=1, document=1, path="a.md", ordinal=0, text="Paris is the capital.", heading="", heading_path=(),
            start=0, end=21, page=None, kind="text", tokens=5, flags={},
        )  # fmt: skip
        yield Retrieved(result=SearchResult(hits=(), mode="hybrid"), given=(Citation(number=1, passage=passage),))
        yield Answered(text=f"{request.question} Paris [1].", cited=(1,))
        yield Checked(sentences=(_support("Paris [1].", 2.0, 1.5),))


class _Details:
    class stats:
        version = None
        active = None


SUITE = """\
name: rag
tasks:
  - id: ask
    kind: rag
    metrics: [faithfulness, citation_support, context_recall, contains]
    cases: [{prompt: "Capital?", contexts: [Paris is the capital], answer: Paris}]
"""


async def test_a_rag_suite_runs_and_is_never_answered_from_the_cache(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SUITE)
    book = EvalBook(tmp_path / "e.db")
    for _ in range(2):
        run = await evaluate(tmp_path / "s.yaml", book, WithStore(), variables={"store": "docs"})
        assert (run.failed, run.cached) == (0, 0)
        assert {name: one.value for name, one in run.summaries[0].metrics.items()} == dict.fromkeys(
            ("faithfulness", "citation_support", "context_recall", "contains"), 1.0
        )
    with pytest.raises(MissingError, match="no variable 'store' is set"):
        await evaluate(tmp_path / "s.yaml", book, WithStore())
    with pytest.raises(MissingError, match="no store 'other'"):
        await evaluate(tmp_path / "s.yaml", book, WithStore(), variables={"store": "other"})
    book.close()


class AlwaysYes(TableModel):
    """As a judge it says yes to short answers."""

    async def score(self, request: ScoreRequest) -> list[Score]:
        if request.continuations == ("Yes", "No"):
            text = bytes(token for token in request.context if isinstance(token, int)).decode()
            odds = 3.0 if "hello" in text else 0.1
            return [Score(odds - 4, 1, True), Score(-4.0, 1, False)]
        return await super().score(request)


async def test_a_judge_in_a_suite(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("""\
name: judged
tasks:
  - id: t
    kind: generate
    metrics: [{judge: {rubric: "Does it greet {{ who }}?"}}]
    cases: [{id: a, prompt: olleh, who: Ada}, {id: b, prompt: zzz, who: Ada}]
""")
    book = EvalBook(tmp_path / "e.db")
    with pytest.raises(MissingError, match="no variable 'judge'"):
        await evaluate(tmp_path / "s.yaml", book, AlwaysYes())
    run = await evaluate(tmp_path / "s.yaml", book, AlwaysYes(), variables={"judge": "j"})
    records = {record.case: record for record in await book.records(run)}
    assert records["a"].values == {"judge": 1.0}
    assert records["a"].notes == {"judge": "pass by j, log-odds +3.00"}
    assert records["b"].values == {}
    assert records["b"].notes == {"judge": "abstain by j, log-odds +0.10"}
    assert run.summaries[0].metrics["judge"].n == 1
    book.close()
