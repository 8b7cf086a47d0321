"""Reports as files: the suffix chooses the format, and a file is there whole or not at all."""

from __future__ import annotations

from pathlib import Path

from lathe.engine.errors import UsageError
from lathe.engine.evals.results import ReportStyle
from lathe.quantize.artefact import new_artefact

_STYLES: dict[str, ReportStyle] = {
    ".md": "markdown", ".html": "html", ".htm": "html", ".json": "json", ".xml": "junit", ".jsonl": "jsonl",
}  # fmt: skip


def style_of(path: Path) -> ReportStyle:
    """The format that a suffix means; raises UsageError."""
    try:
        return _STYLES[path.suffix.lower()]
    except KeyError:
        raise UsageError(
            f"{path}: what format is it?", hint="reports end in .html, .md, .json, .jsonl or .xml (JUnit)"
        ) from None


def write(path: Path, text: str) -> None:
    """Write a report, over an earlier one if need be."""
    with new_artefact(path, force=True) as part:
        part.write_text(text, "utf-8", errors="replace")
