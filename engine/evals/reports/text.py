"""Reports as text: Markdown for people, JUnit XML for CI, JSON for programs.

Invariant: every figure stands with its interval and its number of cases, and a difference inside the noise is called
noise.
"""

from __future__ import annotations

import json
import math
from xml.etree import ElementTree

import msgspec
from lathe.engine.batch.reports import xml_text
from lathe.engine.evals.results import Comparison, EvalRun, Interval, Record, Verdict
from lathe.engine.jobs.values import Figure

_SHOWN = 50
"""Changed cases in a Markdown table."""


def number(value: float | None) -> str:
    """A figure in four significant digits."""
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.4g}"


def interval_text(interval: Interval) -> str:
    """`0.612 [0.58, 0.64]`."""
    return f"{number(interval.value)} [{number(interval.low)}, {number(interval.high)}]"


def markdown(run: EvalRun, comparison: Comparison | None = None, verdict: Verdict | None = None) -> str:
    """A run, and how it stands against its baseline."""
    lines = [f"# {run.suite} on {run.model}", ""]
    if verdict is not None:
        lines += [f"**{'PASSED' if verdict.passed else 'FAILED'}**", ""]
        lines += ["| gate | result | figure | value |", "|---|---|---|---:|"]
        for gate in verdict.gates:
            word = "passed" if gate.passed else "waived" if gate.waived else "**missed**"
            lines.append(f"| {_cell(gate.gate)} | {word} | {_cell(gate.figure)} | {number(gate.value)} |")
        lines.append("")
        lines += [f"- waiver: {_cell(text)}" for text in verdict.waivers]
        lines += [f"- EXPIRED waiver: {_cell(text)}" for text in verdict.expired]
    lines += [f"Run {run.id}, suite version {run.suite_version}, {run.done} answers ({run.failed} failed, "
              f"{run.cached} from the cache), {run.seconds:.1f} s.", ""]  # fmt: skip
    lines += ["| task | metric | value [95 %] | cases | interval |", "|---|---|---:|---:|---|"]
    for summary in run.summaries:
        for name, interval in summary.metrics.items():
            star = " (primary)" if name == summary.primary else ""
            lines.append(
                f"| {summary.task} | {name}{star} | {interval_text(interval)} | {interval.n} | {interval.method} |"
            )
    invariant = [(s.task, name, one) for s in run.summaries for name, one in s.invariance.items()]
    if invariant:
        lines += ["", "| task | transform | answered alike [95 %] |", "|---|---|---:|"]
        lines += [f"| {task} | {name} | {interval_text(one)} |" for task, name, one in invariant]
    if comparison is not None:
        lines += ["", *_comparison(comparison)]
    return "\n".join(lines) + "\n"


def _comparison(comparison: Comparison) -> list[str]:
    base, counts = comparison.base, comparison.counts
    lines = [
        f"## Against {base.id} ({base.model})", "",
        f"{counts['broken']} broken, {counts['fixed']} fixed, {counts['changed']} changed, {counts['same']} the same.",
        "",
        "| task | metric | before | after | difference [95 %] | p | detectable | finding |",
        "|---|---|---:|---:|---:|---:|---:|---|",
    ]  # fmt: skip
    for metric in comparison.metrics:
        difference = metric.difference
        finding = f"**{metric.finding}**" if metric.material else metric.finding
        star = " (primary)" if metric.primary else ""
        lines.append(
            f"| {metric.task} | {metric.metric}{star} | {number(metric.before.value)} | {number(metric.after.value)} | "
            f"{number(difference.value)} [{number(difference.low)}, {number(difference.high)}] "
            f"| {number(metric.p_adjusted)} | {number(difference.detectable)} | {finding} |"
        )
    lines += ["", *(f"- {text}" for text in comparison.warnings)]
    if comparison.changes:
        lines += ["", "| case | | expected | before | after |", "|---|---|---|---|---|"]
        for change in comparison.changes[:_SHOWN]:
            cells = (change.label, change.kind, " / ".join(change.targets), change.before, change.after)
            lines.append("| " + " | ".join(_cell(text) for text in cells) + " |")
        if len(comparison.changes) > _SHOWN:
            lines.append(f"\n... and {len(comparison.changes) - _SHOWN} more.")
    return lines


def junit(
    run: EvalRun, records: list[Record], comparison: Comparison | None = None, verdict: Verdict | None = None
) -> str:
    """Gates as test cases, and each broken or failed case as another."""
    suites = ElementTree.Element("testsuites", name=xml_text(f"{run.suite} on {run.model}"))
    if verdict is not None:
        missed = [gate for gate in verdict.gates if not gate.ok]
        gates = ElementTree.SubElement(
            suites, "testsuite", name="gates", tests=str(len(verdict.gates)), failures=str(len(missed)), errors="0"
        )
        for gate in verdict.gates:
            case = ElementTree.SubElement(gates, "testcase", classname=xml_text(run.suite), name=xml_text(gate.gate))
            if not gate.ok:
                ElementTree.SubElement(case, "failure", message=xml_text(str(gate)))
            elif gate.waived:
                ElementTree.SubElement(case, "skipped", message=xml_text(f"waived: {gate.waived}"))
    broken = {change.label: change for change in comparison.changes if change.kind == "broken"} if comparison else {}
    errors = sum(record.failure is not None for record in records)
    failures = sum(label in broken for label in (record.label for record in records if record.failure is None))
    cases = ElementTree.SubElement(
        suites, "testsuite", name="cases", tests=str(len(records)), failures=str(failures), errors=str(errors),
        time=f"{run.seconds:.3f}",
    )  # fmt: skip
    for record in records:
        case = ElementTree.SubElement(cases, "testcase", classname=xml_text(record.task), name=xml_text(record.label))
        if record.failure is not None:
            ElementTree.SubElement(
                case, "error", message=xml_text(record.failure.message), type=xml_text(record.failure.code)
            )
        elif record.label in broken:
            change = broken[record.label]
            ElementTree.SubElement(
                case,
                "failure",
                message=xml_text(f"was {change.before!r}, is {change.after!r}, expected {change.targets}"),
            )
    ElementTree.indent(suites)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suites, encoding="unicode") + "\n"


def as_json(
    run: EvalRun, records: list[Record] | None = None, comparison: Comparison | None = None,
    verdict: Verdict | None = None,
) -> str:  # fmt: skip
    """Everything, as one document."""
    document = {"run": run, "records": records, "comparison": comparison, "verdict": verdict}
    known = {name: msgspec.to_builtins(value) for name, value in document.items() if value is not None}
    return json.dumps(known | {"figures": _finite(run.figures())}, ensure_ascii=False, indent=2, default=str) + "\n"


def as_lines(records: list[Record]) -> str:
    """One JSON line per answer."""
    return "".join(msgspec.json.encode(record).decode() + "\n" for record in records)


def _finite(figures: dict[str, Figure]) -> dict[str, Figure]:
    """JSON has no infinities: what is not finite is unknown."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in figures.items()
    }


def _cell(text: str) -> str:
    shown = " ".join(text.replace("|", "\\|").split())
    return shown if len(shown) <= 120 else shown[:119] + "…"
