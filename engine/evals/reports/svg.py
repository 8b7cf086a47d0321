"""Plots as inline SVG: intervals side by side, differences against zero, a histogram. No script, no font, no address.

Invariant: what is drawn is also in the report's tables; text from suites and models is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from lathe.engine.evals.results import Interval

_WIDTH, _LABEL, _ROW = 760, 230, 26
_BEFORE, _AFTER, _WORSE, _BETTER = "#8a94a6", "#2f6fde", "#c43d3d", "#2d8a4e"


def intervals(rows: Sequence[tuple[str, Sequence[tuple[str, Interval]]]]) -> str:
    """Figures with whiskers: one row per label, one whisker per (colour name, interval)."""
    height = _ROW * len(rows) + 8
    parts = [_open(height)]
    for index, (label, marks) in enumerate(rows):
        bounds = [x for _, one in marks for x in (one.low, one.high, one.value) if math.isfinite(x)]
        low, high = (min(bounds), max(bounds)) if bounds else (0.0, 1.0)
        pad = (high - low) * 0.1 or abs(high) * 0.1 or 1.0
        scale = _scale(low - pad, high + pad)
        y = _ROW * index + _ROW / 2 + 4
        parts.append(_text(4, y + 4, label))
        for offset, (colour, one) in enumerate(marks):
            at = y + (offset - (len(marks) - 1) / 2) * 8
            parts.append(_whisker(scale(one.low), scale(one.value), scale(one.high), at, colour))
        parts.append(_text(_WIDTH - 4, y + 4, f"{low:.4g} … {high:.4g}", anchor="end", faint=True))
    return "".join(parts) + "</svg>"


def differences(rows: Sequence[tuple[str, float, float, float, str]]) -> str:
    """(label, low, value, high, finding) relative to the baseline's figure, around zero."""
    reach = max((abs(x) for _, low, value, high, _ in rows for x in (low, value, high) if math.isfinite(x)), default=0)
    scale = _scale(-reach or -1.0, reach or 1.0)
    height = _ROW * len(rows) + 8
    parts = [_open(height), f'<line x1="{scale(0):.1f}" x2="{scale(0):.1f}" y1="0" y2="{height}" stroke="#999"/>']
    for index, (label, low, value, high, finding) in enumerate(rows):
        y = _ROW * index + _ROW / 2 + 4
        colour = {"worse": _WORSE, "better": _BETTER}.get(finding, _BEFORE)
        parts.append(_text(4, y + 4, label))
        parts.append(_whisker(scale(low), scale(value), scale(high), y, colour))
        parts.append(_text(_WIDTH - 4, y + 4, f"{value:+.2%} {finding}", anchor="end", faint=True))
    return "".join(parts) + "</svg>"


def histogram(values: Sequence[float], label: str, bins: int = 41) -> str:
    """How a quantity is spread over cases."""
    finite = sorted(value for value in values if math.isfinite(value))
    if len(finite) < 2 or finite[0] == finite[-1]:
        return ""
    low, high = finite[0], finite[-1]
    counts = [0] * bins
    for value in finite:
        counts[min(bins - 1, int((value - low) / (high - low) * bins))] += 1
    width, tallest = (_WIDTH - 8) / bins, max(counts)
    parts = [_open(130)]
    for index, count in enumerate(counts):
        tall = 90 * count / tallest
        x = 4 + index * width
        parts.append(
            f'<rect x="{x:.1f}" y="{96 - tall:.1f}" width="{width - 1:.1f}" height="{tall:.1f}" fill="{_AFTER}"/>'
        )
    parts += [_text(4, 112, f"{low:.4g}"), _text(_WIDTH - 4, 112, f"{high:.4g}", anchor="end"),
              _text(_WIDTH / 2, 126, label, anchor="middle", faint=True)]  # fmt: skip
    return "".join(parts) + "</svg>"


BEFORE, AFTER = _BEFORE, _AFTER


def _open(height: float) -> str:
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" role="img">'


class _scale:  # noqa: N801 - used as a function
    def __init__(self, low: float, high: float) -> None:
        self._low, self._span = low, (high - low) or 1.0

    def __call__(self, value: float) -> float:
        share = (value - self._low) / self._span if math.isfinite(value) else (1.0 if value > 0 else 0.0)
        return _LABEL + min(1.0, max(0.0, share)) * (_WIDTH - _LABEL - 150)


def _whisker(low: float, value: float, high: float, y: float, colour: str) -> str:
    return (
        f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y:.1f}" y2="{y:.1f}" stroke="{colour}" stroke-width="2"/>'
        f'<circle cx="{value:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>'
    )


def _text(x: float, y: float, text: str, anchor: str = "start", faint: bool = False) -> str:
    style = ' class="faint"' if faint else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{style}>{escape(text)}</text>'
