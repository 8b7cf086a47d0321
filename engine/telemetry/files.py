"""Reading the small text files of /proc and /sys. Invariant: what is missing, forbidden or strange reads as None."""

from __future__ import annotations

from pathlib import Path


def text(path: Path) -> str | None:
    """The content without surrounding blanks."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def number(path: Path, scale: float = 1.0) -> float | None:
    """The content as a number times `scale`."""
    content = text(path)
    try:
        return None if content is None else float(content) * scale
    except ValueError:
        return None


def integer(path: Path) -> int | None:
    """The content as a whole number."""
    value = number(path)
    return None if value is None else int(value)


def first(*values: float | None) -> float | None:
    """The first value that could be read."""
    return next((value for value in values if value is not None), None)


def entries(folder: Path, pattern: str) -> list[Path]:
    """Matching entries of a folder, sorted; none where it cannot be read."""
    try:
        return sorted(folder.glob(pattern))
    except OSError:
        return []
