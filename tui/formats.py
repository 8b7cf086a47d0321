"""Numbers as text: bytes, rates, durations, percentages. Pure; `-` stands for what is not known.

Invariant: no result is longer than the width its docstring names, so columns of these line up.
"""

from __future__ import annotations

import math
import time

NONE = "-"
_KIB = 1024.0
_BINARY = ("B", "K", "M", "G", "T", "P")
_DECIMAL = ("", "k", "M", "B", "T")


def size(count: float | None) -> str:
    """Bytes in binary units, at most 6 characters: `4.7G`."""
    if count is None or not math.isfinite(count):
        return NONE
    power = 0
    while abs(count) >= 999.5 and power < len(_BINARY) - 1:
        count /= _KIB
        power += 1
    return f"{count:.1f}{_BINARY[power]}" if power and abs(count) < 99.95 else f"{count:.0f}{_BINARY[power]}"


def long_size(count: float | None) -> str:
    """Bytes with the full unit: `4.7 GiB`."""
    text = size(count)
    if text == NONE:
        return NONE
    return f"{text[:-1]} {text[-1]}iB" if text[-1] != "B" else f"{text[:-1]} B"


def used_of(used: float | None, total: float | None) -> str:
    """Two sizes in the unit of the second: `12.3/24.0G`."""
    if used is None or total is None:
        return f"{size(used)}/{size(total)}" if used is not None or total is not None else NONE
    power = 0
    while total >= 999.5 and power < len(_BINARY) - 1:
        total /= _KIB
        used /= _KIB
        power += 1
    digits = 2 if _BINARY[power] == "T" else 1 if power else 0
    return f"{used:.{digits}f}/{total:.{digits}f}{_BINARY[power]}"


def count(value: float | None) -> str:
    """A count in decimal units, at most 5 characters: `8.2B`, `12.4k`, `233`."""
    if value is None or not math.isfinite(value):
        return NONE
    power = 0
    while abs(value) >= (999.5 if power else 9_999.5) and power < len(_DECIMAL) - 1:
        value /= 1000 if power or abs(value) >= 9_999.5 else 1
        power += 1
    return f"{value:.1f}{_DECIMAL[power]}" if power and abs(value) < 99.95 else f"{value:.0f}{_DECIMAL[power]}"


def rate(value: float | None) -> str:
    """Units per second, at most 6 characters: `41.2`, `512`, `1.2k`."""
    if value is None or not math.isfinite(value):
        return NONE
    if value >= 1000:
        return f"{value / 1000:.1f}k" if value < 99_950 else f"{value / 1000:.0f}k"
    return f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def tokens(value: int | None) -> str:
    """A context length: `512`, `8k`, `40k`, `128k`, exact where it is no multiple of 1024."""
    if value is None:
        return NONE
    return f"{value // 1024}k" if value >= 2048 and value % 1024 == 0 else str(value)


def percent(fraction: float | None) -> str:
    """0..1 as `64%`, at most 4 characters."""
    return f"{min(max(fraction, 0.0), 9.99) * 100:.0f}%" if fraction is not None and math.isfinite(fraction) else NONE


def latency(seconds: float | None) -> str:
    """A short time with three significant digits: `180 ms`, `2.10 s`, `12.4 s`."""
    if seconds is None or not math.isfinite(seconds):
        return NONE
    milli = seconds * 1000
    if milli < 9.95:
        return f"{milli:.1f} ms"
    if milli < 999.5:
        return f"{milli:.0f} ms"
    return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s" if seconds < 99.95 else f"{seconds:.0f} s"


def duration(seconds: float | None) -> str:
    """A long time: `00:41`, `03:12`, `1h 04m`, `3d 04h`."""
    if seconds is None or not math.isfinite(seconds):
        return NONE
    whole = max(0, int(seconds))
    if whole < 3600:
        return f"{whole // 60:02d}:{whole % 60:02d}"
    if whole < 86_400:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 86_400}d {whole % 86_400 // 3600:02d}h"


def ago(seconds: float | None) -> str:
    """An age in one unit: `6.1s`, `41s`, `12m`, `3h`, `4d`."""
    if seconds is None or not math.isfinite(seconds):
        return NONE
    seconds = max(0.0, seconds)
    for limit, unit, per in ((9.95, "s", 1), (99.5, "s", 1), (5970, "m", 60), (172_800, "h", 3600)):
        if seconds < limit:
            value = seconds / per
            return f"{value:.1f}{unit}" if limit == 9.95 else f"{value:.0f}{unit}"
    return f"{seconds / 86_400:.0f}d"


def clock(unix: float | None) -> str:
    """Local time of day: `14:02:09`."""
    return time.strftime("%H:%M:%S", time.localtime(unix)) if unix else NONE


def moment(unix: float | None) -> str:
    """Local date and time: `2026-11-20 14:02`."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(unix)) if unix else NONE


def figure(value: float | int | str | bool | None) -> str:
    """Any headline number of a job: four significant digits, words as they are."""
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def many(number: int, noun: str) -> str:
    """A number with its noun: `1 model`, `3 models`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
