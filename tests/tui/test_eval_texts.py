"""Hostile text in every field of an eval's records: cases, comparisons and reports show it and obey nothing."""

from __future__ import annotations

import itertools
import json
import re
from xml.etree import ElementTree

import msgspec
import pytest
from lathe.engine.errors import Failure
from lathe.engine.evals.compare import compare
from lathe.engine.evals.reports import html
from lathe.engine.evals.reports.text import as_json, as_lines, junit, markdown
from lathe.engine.evals.results import Comparison, EvalRun, Record
from lathe.engine.evals.values import Response
from lathe.engine.evals.verdict import decide
from lathe.engine.generation import Score
from lathe.tui.views import case, evals, words
from lathe.tui.widgets.paint import Line, width_of
from support import scripted_evals
from support.foreign import CORPUS, HOSTILE

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200b-\u200f\ufeff\U000e0000-\U000e0fff]")
REPLACE = msgspec.structs.replace
FLOODS = ("{" * 70_000, "<&\"" * 30_000, "a " * 40_000, "\x9d" * 70_000 + "\x07", "\x1b]" * 40_000, "\n" * 70_000,
          "e\u0301" * 40_000, "\u6f22" * 70_000, "".join(map(chr, range(0x20, 0x3000))) * 5)  # fmt: skip
TEXTS = [text.encode("utf-8", "replace").decode() for text in (*HOSTILE, *CORPUS, *FLOODS)]


def _records(offset: int) -> tuple[list[Record], list[Record]]:
    """Two runs of one suite; every string is one of the texts, each field another one."""
    source = itertools.islice(itertools.cycle(TEXTS), offset, None)
    sides: list[list[Record]] = [[], []]
    for number in range(6):
        prompt, case_id, kind = next(source), f"{number}{next(source)[:60]}", ("generate", "choice")[number % 2]
        tags, targets = (next(source),), (next(source), next(source))
        for side, right in zip(sides, (True, number % 3 != 0), strict=True):
            choices: tuple[Score, ...] = (Score(-1.0, 2, False, (-0.5, -0.5)), Score(-2.0, 1, True, (-2.0,)))
            scores = choices if kind == "choice" else ()
            failure = Failure("E_X", next(source), next(source)) if number == 5 else None
            side.append(
                Record(
                    task="capitals", case=case_id, kind=kind, item_sha256=str(number), prompt=prompt, tags=tags,  # type: ignore[arg-type]
                    targets=targets, continuations=targets if kind == "choice" else (),
                    gold=(0,) if kind == "choice" else (), choice=1 if kind == "choice" else None, failure=failure,
                    response=Response(text=next(source), finish=next(source), scores=scores),
                    statistics={"exact_match": (float(right), 1.0)}, values={"exact_match": float(right)},
                    notes={"exact_match": next(source)},
                )
            )  # fmt: skip
    return sides[0], sides[1]


def _runs(offset: int) -> tuple[EvalRun, EvalRun]:
    text = TEXTS[offset % len(TEXTS)]
    base, run = scripted_evals.runs()["e-1"], scripted_evals.runs()["e-2"]
    return REPLACE(base, model=text, suite=text), REPLACE(run, model=text, suite=text, skipped=(text,))


def _held(lines: list[Line], width: int) -> None:
    for line in lines:
        assert width_of(line) <= width
        assert not any(CONTROL.search(text) for text, _ in line)


@pytest.mark.parametrize("offset", range(0, len(TEXTS), 4))
def test_cases_fit_and_hold_no_control_character(offset: int) -> None:
    before, after = _records(offset)
    base, run = _runs(offset)
    for old, new in zip(before, after, strict=True):
        seen = case.CaseSeen(
            run=run, after=new, base=base, before=old, history=((TEXTS[offset], 1.0), (TEXTS[offset - 1], None))
        )
        for width in (50, 80, 120):
            _held(case.lines(seen, width, 20), width)
            _held(case.full(seen, width), width)
    comparison = compare(base, before, run, after)
    assert len(evals.record_rows(after, run, comparison)) == 6
    assert len(evals.change_rows(comparison)) == len(comparison.changes)


@pytest.mark.parametrize("offset", range(0, len(TEXTS), 4))
def test_reports_are_sound_documents(offset: int) -> None:
    before, after = _records(offset)
    base, run = _runs(offset)
    comparison: Comparison = compare(base, before, run, after)
    verdict = decide(run, comparison)
    page = html.page(run, after, comparison, verdict)
    assert "<script" not in page.lower()
    assert "<a " not in page.lower()
    assert CONTROL.sub("", markdown(run, comparison, verdict))
    ElementTree.fromstring(junit(run, after, comparison, verdict))
    json.loads(as_json(run, after, comparison, verdict))
    assert [json.loads(line)["case"] for line in as_lines(after).rstrip("\n").split("\n")] == [
        record.case for record in after
    ]


def test_a_word_without_end_is_cut() -> None:
    for text in ("x" * 1_000_000, "\u6f22" * 1_000_000):
        lines = words.flow([(text, "text")], 40, 5)
        assert len(lines) == 5
        _held(lines, 40)
