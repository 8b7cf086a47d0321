"""What a batch run leaves behind: JSON lines while it runs, JUnit XML and Markdown when it is over.

Invariant: every JSON line is complete when written, `seq` increases by one, and times are UTC with milliseconds.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from xml.etree import ElementTree

from lathe.engine.batch.execution import RunResult, StepResult
from lathe.engine.jobs.values import Figure

EVENT_VERSION = 1


def utc_now() -> str:
    """UTC with milliseconds and `Z`."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class JsonLines:
    """Numbers events and hands each to a writer as one line of JSON."""

    def __init__(self, run: str, write: Callable[[str], None]) -> None:
        self._run = run
        self._write = write
        self._seq = 0

    def emit(self, event: str, fields: dict[str, Any]) -> None:
        """Write one event."""
        self._seq += 1
        level = "error" if fields.get("exit") not in (None, 0) else "info"
        record = {
            "v": EVENT_VERSION,
            "ts": utc_now(),
            "seq": self._seq,
            "level": level,
            "event": event,
            "run": self._run,
        }
        self._write(json.dumps(record | fields, ensure_ascii=False, separators=(",", ":")))


def junit(result: RunResult) -> str:
    """The run as JUnit XML: one test case per step, gates and errors as failures."""
    failures = sum(1 for step in result.steps if step.state in ("gate_failed", "negative"))
    errors = sum(1 for step in result.steps if step.state in ("failed", "cancelled"))
    skipped = sum(1 for step in result.steps if step.state == "skipped")
    suite = ElementTree.Element(
        "testsuite",
        name=xml_text(result.name), tests=str(len(result.steps)), failures=str(failures), errors=str(errors),
        skipped=str(skipped), time=f"{result.seconds:.3f}",
    )  # fmt: skip
    for step in result.steps:
        case = ElementTree.SubElement(
            suite, "testcase", classname=xml_text(result.name), name=xml_text(step.id), time=f"{step.seconds:.3f}"
        )
        _verdict(case, step)
        if step.outcome and step.outcome.figures:
            output = ElementTree.SubElement(case, "system-out")
            output.text = xml_text(
                "\n".join(f"{name} = {_plain(value)}" for name, value in step.outcome.figures.items())
            )
    ElementTree.indent(suite)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suite, encoding="unicode") + "\n"


def _verdict(case: ElementTree.Element, step: StepResult) -> None:
    summary = step.outcome.summary if step.outcome else ""
    message = step.failure.message if step.failure else summary or step.state
    if step.state in ("gate_failed", "negative"):
        ElementTree.SubElement(case, "failure", message=xml_text(message))
    elif step.state in ("failed", "cancelled"):
        code = step.failure.code if step.failure else step.state
        ElementTree.SubElement(case, "error", message=xml_text(message), type=xml_text(code))
    elif step.state == "skipped":
        ElementTree.SubElement(case, "skipped", message=xml_text(message))


def markdown(result: RunResult) -> str:
    """The run as a table for people."""
    lines = [
        f"# {result.name}",
        "",
        f"Run {result.run}: **{result.state}** (exit {result.exit}), {result.seconds:.1f} s",
        "",
    ]
    lines += ["| step | run | state | seconds | result |", "|---|---|---|---:|---|"]
    for step in result.steps:
        shown = result_of(step).replace("|", "\\|").replace("\n", " ")
        lines.append(f"| {step.id} | {step.run} | {step.state} | {step.seconds:.1f} | {shown} |")
    return "\n".join(lines) + "\n"


def result_of(step: StepResult) -> str:
    """What became of a step, in one line."""
    if step.failure:
        return step.failure.message
    if step.outcome is None:
        return ""
    figures = (f"{name} {_plain(value)}" for name, value in step.outcome.figures.items() if value is not None)
    return step.outcome.summary or ", ".join(figures)


def _plain(value: Figure) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def xml_text(text: str) -> str:
    """Text without the characters that XML 1.0 cannot hold."""
    return "".join(
        c for c in text if c in "\t\n\r" or "\x20" <= c <= "\ud7ff" or "\ue000" <= c <= "\ufffd" or c > "\uffff"
    )
