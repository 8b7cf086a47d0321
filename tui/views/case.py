"""One case of an eval: what was asked, expected and answered, in one run or in two side by side. Pure."""

from __future__ import annotations

import msgspec
from lathe.engine.evals.results import EvalRun, Record
from lathe.tui import formats
from lathe.tui.text import clean
from lathe.tui.text import line as one_line
from lathe.tui.views.evals import number, result
from lathe.tui.views.words import flow, marked
from lathe.tui.widgets.paint import Line, Span, crop, fit, wrap

BESIDE = 84
"""Cells from which two answers stand side by side."""
_GAP = 3


class CaseSeen(msgspec.Struct, frozen=True, kw_only=True):
    """A case in a run, and in the run it is compared with."""

    run: EvalRun
    after: Record
    base: EvalRun | None = None
    before: Record | None = None
    history: tuple[tuple[str, float | None], ...] = ()
    """(run, the case's figure) in the suite's other runs, oldest first."""


def lines(seen: CaseSeen, width: int, height: int) -> list[Line]:
    """As much of a case as fits: expectation, answers, then the question."""
    record = seen.after
    head: list[Line] = [_named("expected", expected(record), width)] if expected(record) else []
    answers = _answers(seen, width, max(3, (height - len(head)) * 2 // 3))
    found = [*head, *answers]
    if len(found) < height - 1:
        found.append([])
        found += _question(record, width, height - len(found) - 1)
    return found[:height]


def full(seen: CaseSeen, width: int) -> list[Line]:
    """Everything about a case, to scroll through."""
    record = seen.after
    found: list[Line] = [_named("tags", " ".join(record.tags), width)] if record.tags else []
    found += [_named("expected", expected(record), width)] if expected(record) else []
    found += [[], *_answers(seen, width, 10_000)]
    if record.kind == "choice":
        found += [[], *_choices(seen, width)]
    values = ", ".join(f"{name} {_before(seen, name)}{number(value)}" for name, value in record.values.items())
    found += [[], *_titled("figures", values, width)] if values else []
    if len(seen.history) > 1:
        past = ", ".join(f"{run} {result(value)[0]}" for run, value in seen.history)
        found += [[], *_titled("this case in other runs", past, width)]
    if seen.before is not None:
        same = seen.before.item_sha256 == record.item_sha256
        found += [[], _named("question", "the same in both runs" if same else "NOT the same in both runs", width)]
    return [*found, [], [("prompt", "dim")], *flow([(clean(record.prompt), "text")], width, 10_000)]


def expected(record: Record) -> str:
    """What counts as right."""
    return " | ".join(record.targets or tuple(record.continuations[index].strip() for index in record.gold))


def _named(name: str, value: str, width: int) -> Line:
    return [(f"{name}  ", "dim"), (crop(value, width - len(name) - 2), "value")]


def _titled(name: str, text: str, width: int) -> list[Line]:
    return [[(name, "dim")], *wrap(text, width, "text", 6)]


def _question(record: Record, width: int, height: int) -> list[Line]:
    if height < 2:
        return []
    return [[("prompt", "dim")], *flow([(clean(record.prompt), "text")], width, height - 1)]


def _answers(seen: CaseSeen, width: int, height: int) -> list[Line]:
    after = seen.after.answer()
    if seen.base is None or seen.before is None:
        return [_head(seen.run, seen.after, width), *flow([(clean(after), "text")], width, height - 1)]
    before: list[Span] = [(clean(seen.before.answer()), "text")]
    if width < BESIDE:
        half = max(1, (height - 2) // 2)
        return [
            _head(seen.base, seen.before, width), *flow(before, width, half),
            _head(seen.run, seen.after, width), *flow(marked(seen.before.answer(), after), width, half),
        ]  # fmt: skip
    room = (width - _GAP) // 2
    left = [_head(seen.base, seen.before, room), *flow(before, room, height - 1)]
    right = [_head(seen.run, seen.after, room), *flow(marked(seen.before.answer(), after), room, height - 1)]
    return [
        [
            *fit(left[row] if row < len(left) else [], room),
            (" " * _GAP, "dim"),
            *(right[row] if row < len(right) else []),
        ]
        for row in range(max(len(left), len(right)))
    ]


def _head(run: EvalRun, record: Record, width: int) -> Line:
    primary = next((summary.primary for summary in run.summaries if summary.task == record.task), "")
    value = record.values.get(primary, next(iter(record.values.values()), None))
    word, ink = ("failed", "bad") if record.failure else result(value)
    response = record.response
    facts = [
        f"{response.completion_tokens} tok" if response.completion_tokens else "",
        f"{formats.rate(response.tokens_per_s)} tok/s" if response.tokens_per_s else "",
        f"first {formats.latency(response.ttft_s)}" if response.ttft_s is not None else "",
        response.finish, "cached" if response.cached else "",
    ]  # fmt: skip
    line: Line = [(f"{run.id}  ", "dim"), (word, ink), (f"  {one_line(run.model)}", "value")]
    told = "  ".join(one_line(fact) for fact in facts if fact)
    return fit([*line, (f"  {told}", "dim")] if told else line, width)


def _choices(seen: CaseSeen, width: int) -> list[Line]:
    """Each continuation with its log-likelihood; `*` is right, `>` what the model finds most likely."""
    found: list[Line] = [[("choices with log-likelihood: * right, > chosen", "dim")]]
    others = seen.before.response.scores if seen.before is not None else ()
    for index, text in enumerate(seen.after.continuations):
        scores = seen.after.response.scores
        own = number(scores[index].logprob) if index < len(scores) else formats.NONE
        other = f"{number(others[index].logprob):>9}" if index < len(others) else ""
        right, chosen = "*" if index in seen.after.gold else " ", ">" if index == seen.after.choice else " "
        line: Line = [(f"{chosen}{right} ", "accent"), (other, "dim"), (f"{own:>9}  ", "value")]
        found.append([*line, (crop(text, width - len(other) - 15), "good" if right == "*" else "text")])
    return found


def _before(seen: CaseSeen, name: str) -> str:
    value = seen.before.values.get(name) if seen.before is not None else None
    return f"{number(value)} -> " if value is not None else ""
