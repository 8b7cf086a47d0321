"""Gates over a run and its comparison, with waivers that expire: may this model be released?

Invariant: a waiver excuses what it names, until its day, and is told in every report; an expired one excuses nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, date, datetime

import msgspec
from lathe.engine.batch.gates import parse_gate
from lathe.engine.errors import ConfigError
from lathe.engine.evals.results import Comparison, EvalRun, GateResult, Verdict
from lathe.engine.jobs.values import Figure

DEFAULT = ("failed == 0",)
AGAINST_BASELINE = ("failed == 0", "unpaired == 0", "no metric may get worse", "no case tagged critical may break")
_CASE = re.compile(r"[^/]+/.+")


class Waiver(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An excuse that a person signs for."""

    reason: str
    until: str
    """The last day it holds, `2026-12-31` (UTC)."""
    gate: str | None = None
    """The gate that may fail, as it is written."""
    case: str | None = None
    """`task/case`, which may break."""

    def __str__(self) -> str:
        return f"{self.gate or self.case} until {self.until}: {self.reason}"


def check_waivers(waivers: Sequence[Waiver]) -> None:
    """Refuse waivers that say nothing or cannot expire.

    Raises:
        ConfigError: naming the waiver.
    """
    for waiver in waivers:
        if (waiver.gate is None) == (waiver.case is None):
            raise ConfigError(f"waiver ({waiver.reason!r}): give either `gate` or `case`")
        if not waiver.reason.strip():
            raise ConfigError(f"waiver of {waiver.gate or waiver.case!r}: give a reason")
        if waiver.case is not None and not _CASE.fullmatch(waiver.case):
            raise ConfigError(f"waiver of {waiver.case!r}: a case is written `task/case`")
        _day(waiver)


def decide(
    run: EvalRun,
    comparison: Comparison | None,
    gates: Sequence[str] = (),
    waivers: Sequence[Waiver] = (),
    today: date | None = None,
) -> Verdict:
    """Hold a run against its gates; none given: the suite's, and against a baseline those that nothing got worse.

    Raises:
        ConfigError: a gate or a waiver is not written as one.
    """
    check_waivers(waivers)
    now = today or datetime.now(UTC).date()
    valid = [waiver for waiver in waivers if _day(waiver) >= now]
    excused_cases = frozenset(waiver.case for waiver in valid if waiver.case is not None)
    excused_gates = {_canonical(waiver.gate): waiver.reason for waiver in valid if waiver.gate is not None}
    figures: dict[str, Figure] = run.figures()
    if comparison is not None:
        figures |= comparison.figures(excused_cases)
    wanted = tuple(gates) or tuple(dict.fromkeys((*(AGAINST_BASELINE if comparison else DEFAULT), *run.gates)))
    results = []
    for text in wanted:
        gate = parse_gate(text)
        value = gate.value(figures)
        passed = gate.passes(figures) or (not gates and _about_absent_tag(gate.figure, figures))
        waived = None if passed else excused_gates.get(str(gate))
        results.append(GateResult(gate=text, figure=gate.figure, value=value, passed=passed, waived=waived))
    return Verdict(
        passed=all(result.ok for result in results), gates=tuple(results), waivers=tuple(map(str, valid)),
        expired=tuple(str(waiver) for waiver in waivers if _day(waiver) < now),
    )  # fmt: skip


def _about_absent_tag(figure: str, figures: dict[str, Figure]) -> bool:
    """The default gate on critical cases asks nothing of a suite that has none."""
    return figure == "broken.critical" and "broken" in figures and figure not in figures


def _canonical(gate: str) -> str:
    return str(parse_gate(gate))


def _day(waiver: Waiver) -> date:
    try:
        return date.fromisoformat(waiver.until)
    except ValueError:
        raise ConfigError(f"waiver of {waiver.gate or waiver.case!r}: {waiver.until!r} is no day") from None
