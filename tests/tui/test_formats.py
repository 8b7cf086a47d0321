"""Numbers as text: right, short, and `-` where nothing is known."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lathe.tui import formats

GIB = 1 << 30


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0B"),
        (999, "999B"),
        (1024, "1.0K"),
        (127 * 1024**2, "127M"),
        (4.7 * GIB, "4.7G"),
        (212 * GIB, "212G"),
        (None, "-"),
    ],
)
def test_sizes(count: float | None, text: str) -> None:
    assert formats.size(count) == text


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (formats.long_size, 4.7 * GIB, "4.7 GiB"),
        (formats.long_size, 12, "12 B"),
        (formats.count, 8_190_735_360, "8.2B"),
        (formats.count, 2048, "2048"),
        (formats.count, 12_450, "12.4k"),
        (formats.rate, 41.23, "41.2"),
        (formats.rate, 512.4, "512"),
        (formats.rate, 1234.0, "1.2k"),
        (formats.tokens, 40_960, "40k"),
        (formats.tokens, 512, "512"),
        (formats.tokens, 8000, "8000"),
        (formats.percent, 0.644, "64%"),
        (formats.latency, 0.0042, "4.2 ms"),
        (formats.latency, 0.18, "180 ms"),
        (formats.latency, 2.1, "2.10 s"),
        (formats.duration, 192, "03:12"),
        (formats.duration, 3840, "1h 04m"),
        (formats.duration, 273_600, "3d 04h"),
        (formats.ago, 6.1, "6.1s"),
        (formats.ago, 720, "12m"),
        (formats.many, (1, "model"), "1 model"),
        (formats.figure, 9.19873, "9.199"),
        (formats.figure, True, "yes"),
    ],
)
def test_figures(function: object, value: object, text: str) -> None:
    arguments = value if isinstance(value, tuple) else (value,)
    assert function(*arguments) == text  # type: ignore[operator]


def test_two_sizes_share_the_unit_of_the_whole() -> None:
    assert formats.used_of(12.3 * GIB, 24 * GIB) == "12.3/24.0G"
    assert formats.used_of(None, None) == "-"


FLOATS = (formats.size, formats.long_size, formats.count, formats.rate, formats.percent, formats.latency,
          formats.duration, formats.ago)  # fmt: skip
UNKNOWN = (*FLOATS, formats.tokens, formats.clock, formats.moment, formats.figure)


@pytest.mark.parametrize("function", UNKNOWN)
def test_what_is_not_known_is_a_dash(function: object) -> None:
    assert function(None) == "-"  # type: ignore[operator]
    if function in FLOATS:
        assert function(math.nan) == "-"  # type: ignore[operator]
        assert function(math.inf) == "-"  # type: ignore[operator]


@given(st.floats(0, 1e17))
def test_columns_keep_their_width(value: float) -> None:
    assert len(formats.size(value)) <= 6
    assert len(formats.latency(min(value, 1e6))) <= 9
    assert len(formats.percent(value)) <= 4


@given(st.floats(0, 9.9e14))
def test_counts_and_rates_keep_their_width(value: float) -> None:
    assert len(formats.count(value)) <= 6
    assert len(formats.rate(min(value, 9.9e6))) <= 6
