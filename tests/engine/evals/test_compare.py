"""Runs side by side, gates, waivers and reports: noise is called noise, and what broke is named."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from datetime import date
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest
from lathe.engine.errors import ConfigError, UsageError
from lathe.engine.evals.book import EvalBook
from lathe.engine.evals.compare import compare
from lathe.engine.evals.reports import html, text
from lathe.engine.evals.results import Comparison, EvalRun, Record
from lathe.engine.evals.verdict import Waiver, decide
from support.eval_model import TableModel, evaluate

SUITE = """\
name: echo
tasks:
  - id: say
    kind: generate
    prompt: "{{ q }}"
    answer: a
    metrics: [exact_match, f1]
    cases: {file: cases.jsonl}
  - id: pick
    kind: choice
    prompt: "{{ q }}"
    choices: "['aa', 'bb']"
    answer: 0
    metrics: [acc, margin]
    cases: {file: cases.jsonl}
"""
COUNT = 60


def _suite(folder: Path) -> Path:
    rows = [
        {"q": f"question {i:02d} <b>|</b>", "a": f"answer {i:02d}", "tags": ["critical"] if i < 5 else ["other"]}
        for i in range(COUNT)
    ]
    (folder / "cases.jsonl").write_text("\n".join(map(json.dumps, rows)))
    path = folder / "suite.yaml"
    path.write_text(SUITE)
    return path


def _says(wrong: set[int], seed: int = 0) -> TableModel:
    """A model that answers right except for some questions."""

    def say(prompt: str) -> str:
        number = int(prompt.split()[1])
        return f"nonsense {number}" if number in wrong else f"answer {number:02d}"

    return TableModel(seed, say=say)


@pytest.fixture
async def book(tmp_path: Path) -> AsyncIterator[EvalBook]:
    book = EvalBook(tmp_path / "evals.db")
    yield book
    book.close()


async def _pair(tmp_path: Path, book: EvalBook, before: TableModel, after: TableModel) -> Comparison:
    path = _suite(tmp_path)
    first = await evaluate(path, book, before, name="before")
    second = await evaluate(path, book, after, name="after")
    return compare(first, await book.records(first), second, await book.records(second))


async def test_cases_are_fixed_broken_or_the_same(tmp_path: Path, book: EvalBook) -> None:
    comparison = await _pair(tmp_path, book, _says({1, 2, 10}), _says({2, 3, 11, 12}))
    assert comparison.counts == {"fixed": 2, "broken": 3, "changed": 0, "same": 2 * COUNT - 5, "unpaired": 0}
    assert [change.label for change in comparison.changes] == [
        "say/00004", "say/00012", "say/00013", "say/00002", "say/00011"
    ]  # fmt: skip
    broken = comparison.changes[0]
    assert (broken.kind, broken.before, broken.after, broken.targets) == (
        "broken", "answer 03", "nonsense 3", ("answer 03",)
    )  # fmt: skip
    figures = comparison.figures()
    assert (figures["broken"], figures["broken.critical"], figures["broken.other"]) == (3, 1, 2)
    exact = next(metric for metric in comparison.metrics if metric.metric == "exact_match")
    assert exact.difference.test == "McNemar"
    assert exact.finding == "noise", "3 against 2 proves nothing"
    assert figures["worse"] == 0


async def test_a_real_loss_is_worse_and_a_real_gain_better(tmp_path: Path, book: EvalBook) -> None:
    comparison = await _pair(tmp_path, book, _says(set()), _says(set(range(20, 32))))
    exact = next(metric for metric in comparison.metrics if metric.metric == "exact_match")
    assert (exact.finding, exact.material) == ("worse", True)
    assert exact.difference.value == pytest.approx(-12 / COUNT)
    assert comparison.figures()["worse"] == 1
    verdict = decide(comparison.other, comparison)
    assert not verdict.passed
    assert [gate.gate for gate in verdict.gates if not gate.ok] == ["no metric may get worse"]
    back = compare(comparison.other, await book.records(comparison.other), comparison.base,
                   await book.records(comparison.base))  # fmt: skip
    assert back.figures()["better"] == 1
    assert decide(comparison.base, back).passed


async def test_an_identical_pair_passes_the_default_gate_100_of_100_times(tmp_path: Path, book: EvalBook) -> None:
    path = _suite(tmp_path)
    first = await evaluate(path, book, _says({4, 8}), name="m")
    records = await book.records(first)
    for _ in range(100):
        again = await evaluate(path, book, _says({4, 8}), name="m", cache=False)
        comparison = compare(first, records, again, await book.records(again))
        assert decide(again, comparison).passed
        assert {metric.finding for metric in comparison.metrics} == {"same"}


async def test_gates_of_critical_cases_and_waivers_that_expire(tmp_path: Path, book: EvalBook) -> None:
    comparison = await _pair(tmp_path, book, _says(set()), _says({3}))
    gates = ("no case tagged critical may break", "exact_match lower bound > 0.9", "p95 TTFT < 0.5")
    today = date(2026, 11, 20)

    def passed(*waivers: Waiver) -> bool:
        return decide(comparison.other, comparison, gates, waivers, today).passed

    assert [gate.passed for gate in decide(comparison.other, comparison, gates).gates] == [False, True, True]
    excuse = Waiver(case="say/00004", until="2026-11-20", reason="known, ticket 7")
    assert passed(excuse)
    assert passed(Waiver(gate="no case tagged critical may break", until="2026-12-01", reason="release"))
    assert not passed(msgspec.structs.replace(excuse, case="say/00005"))
    late = decide(comparison.other, comparison, gates, [msgspec.structs.replace(excuse, until="2026-11-19")], today)
    assert not late.passed
    assert late.expired == ("say/00004 until 2026-11-19: known, ticket 7",)
    for wrong in (
        {"until": "2026-13-01"}, {"gate": "x < 1"}, {"case": None}, {"reason": " "}, {"case": "no-slash"},
    ):  # fmt: skip
        with pytest.raises(ConfigError, match="waiver"):
            decide(comparison.other, comparison, gates, [msgspec.structs.replace(excuse, **wrong)], today)


async def test_what_was_not_measured_fails_its_gate(tmp_path: Path, book: EvalBook) -> None:
    run = await evaluate(_suite(tmp_path), book, _says(set()))
    verdict = decide(run, None, ("perplexity < 12", "no case may break"))
    assert [gate.value for gate in verdict.gates] == [None, None]
    assert not verdict.passed
    assert decide(run, None).passed


async def test_another_question_is_not_compared(tmp_path: Path, book: EvalBook) -> None:
    path = _suite(tmp_path)
    first = await evaluate(path, book, _says(set()))
    before = await book.records(first)
    path.write_text(SUITE.replace('prompt: "{{ q }}"\n    answer: a', 'prompt: "Q: {{ q }}"\n    answer: a'))
    second = await evaluate(path, book, TableModel(say=lambda _: "x"))
    comparison = compare(first, before, second, await book.records(second))
    assert comparison.counts["unpaired"] == 2 * COUNT
    assert {metric.task for metric in comparison.metrics} == {"pick"}
    assert "the suite changed" in comparison.warnings[0]
    assert not decide(second, comparison).passed
    with pytest.raises(UsageError, match="share no question"):
        compare(first, before, second, [r for r in await book.records(second) if r.task == "say"])


async def test_multiple_comparisons_are_corrected_and_told(tmp_path: Path, book: EvalBook) -> None:
    comparison = await _pair(tmp_path, book, _says(set()), _says({1, 2, 3, 4, 5, 6}))
    exact = next(metric for metric in comparison.metrics if metric.metric == "exact_match")
    assert exact.p_adjusted == pytest.approx(2 * exact.difference.p), (
        "of two primary metrics, the smaller p counts twice"
    )
    assert any("by chance alone" in text for text in comparison.warnings)


async def test_cases_that_are_all_alike_are_not_certain(tmp_path: Path, book: EvalBook) -> None:
    run = await evaluate(_suite(tmp_path), book, _says(set(range(COUNT))), limit=4)
    zero = next(summary for summary in run.summaries if summary.task == "say").metrics["f1"]
    assert (zero.value, zero.low) == (0, 0)
    assert zero.high > 0.4


class _Strict(HTMLParser):
    """Collects tags and refuses what a self-contained page must not have."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert tag not in ("script", "link", "img", "iframe", "b")
        assert not [name for name, _ in attrs if name in ("src", "href", "onload")]

    def handle_data(self, data: str) -> None:
        self.text += data


async def test_reports_stand_alone_and_escape_what_is_foreign(tmp_path: Path, book: EvalBook) -> None:
    comparison = await _pair(tmp_path, book, _says(set()), _says(set(range(20, 32))))
    run: EvalRun = comparison.other
    records: list[Record] = await book.records(run)
    verdict = decide(run, comparison, waivers=[Waiver(gate="acc > 2", until="2020-01-01", reason="<i>old</i>")])
    page = html.page(run, records, comparison, verdict)
    parser = _Strict()
    parser.feed(page)
    assert {"svg", "circle", "table"} <= set(parser.tags)
    assert "question 03 <b>|</b>" in parser.text
    assert "<i>old</i>" in parser.text
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)
    shown = text.markdown(run, comparison, verdict)
    assert "**FAILED**" in shown
    assert "| no metric may get worse | **missed** | worse | 1 |" in shown
    assert "| say | exact_match (primary) | 1 | 0.8 |" in shown
    assert "**worse**" in shown
    tree = ElementTree.fromstring(text.junit(run, records, comparison, verdict))
    gates, cases = tree.findall("testsuite")
    assert (gates.get("failures"), cases.get("failures"), cases.get("tests")) == ("1", "12", str(2 * COUNT))
    document = json.loads(text.as_json(run, records, comparison, verdict))
    assert document["verdict"]["passed"] is False
    assert len(document["records"]) == 2 * COUNT


def test_junit_survives_every_character() -> None:
    run = EvalRun(id="e-1", suite="s\x00\ud800", model="m\x1b[31m", done=1)
    record = Record(task="t", case="\x08", kind="generate", item_sha256="")
    ElementTree.fromstring(text.junit(run, [record]).encode("utf-8", "surrogatepass").decode("utf-8", "replace"))
