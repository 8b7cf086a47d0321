"""Waivers as a file: a YAML list that is reviewed and versioned like code.

    - {case: names/00017, until: 2026-12-31, reason: "wrong label, fixed in suite version 3"}
    - {gate: "p95 TTFT < 0.5", until: 2026-12-01, reason: "slow runner, ticket 12"}
Invariant: every waiver names what it excuses, why, and until when.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path

import msgspec
from lathe.engine.batch.document import check_fields, read
from lathe.engine.errors import ConfigError
from lathe.engine.evals.verdict import Waiver, check_waivers


def read_waivers(path: Path) -> list[Waiver]:
    """Read and check a file of waivers.

    Raises:
        ConfigError: with file, line and column. MissingError: there is no such file.
    """
    document = read(path, what="list of waivers")
    if not isinstance(document.tree, list):
        raise ConfigError(f"{document.at()}: waivers are a list")
    mistakes: list[str] = []
    waivers: list[Waiver] = []
    for index, raw in enumerate(document.tree):
        if not isinstance(raw, dict):
            mistakes.append(f"{document.at(index)}: a waiver is a mapping with `gate` or `case`, `until` and `reason`")
            continue
        # YAML turns 2026-12-31 into a date.
        plain = {key: value.isoformat() if isinstance(value, date) else value for key, value in raw.items()}
        if not check_fields(document, (index,), Waiver, plain, mistakes, what="a waiver"):
            continue
        waiver = msgspec.convert(plain, Waiver)
        try:
            check_waivers([waiver])
        except ConfigError as error:
            mistakes.append(f"{document.at(index)}: {error.message}")
        waivers.append(waiver)
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return waivers
