"""`lathe doctor`: everything this machine can do for Lathe, and the exact mend for each gap.

Invariant: whatever is broken, the report is complete; an examination that fails is a finding, not an exception.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable

from lathe.engine.checkup import gpus, libraries, machine, place
from lathe.engine.checkup.probe import LlamaFacts, llama_facts
from lathe.engine.paths import Home
from lathe.engine.telemetry.devices import Devices
from lathe.engine.workbench import Finding

OK, WARNED, FAILED = 0, 1, 2
"""Exit codes of `lathe doctor`."""


async def examine(home: Home, *, offline: bool = True, devices: Devices | None = None) -> list[Finding]:
    """Look at everything but the terminal, which belongs to the front (`lathe.engine.checkup.place.terminal`).

    Args:
        offline: the network policy in force.
        devices: the engine's readers; None reads with its own.
    """
    facts = await llama_facts(home.logs)
    return await asyncio.to_thread(_examine, home, offline, devices or Devices(), facts)


def verdict(findings: Iterable[Finding]) -> int:
    """The exit code: 2 with a failure, 1 with a warning, else 0."""
    levels = {finding.level for finding in findings}
    return FAILED if "fail" in levels else WARNED if "warn" in levels else OK


def _examine(home: Home, offline: bool, devices: Devices, facts: object) -> list[Finding]:
    from lathe.engine.native.tiles import work

    known = facts if isinstance(facts, LlamaFacts) else None
    examinations: list[tuple[str, Callable[[], list[Finding]]]] = [
        ("cpu", lambda: [machine.system(), *machine.processor()]),
        ("memory", machine.memory),
        ("gpu", lambda: gpus.gpus(devices, known)),
        ("disk", lambda: machine.disk(home.root)),
        ("llama.cpp", lambda: libraries.llama(facts)),  # type: ignore[arg-type]  # facts or a failure
        ("llama.cpp", lambda: [machine.build_for_processor(known.features)] if known else []),
        ("llama.cpp", lambda: machine.tiles(work)),
        ("sqlite", libraries.sqlite),
        ("extras", libraries.extras),
        ("network", lambda: place.network(offline, os.environ)),
        ("workspace", lambda: place.workspace(home)),
        ("convert", lambda: place.converter(home)),
    ]
    return [finding for area, look in examinations for finding in _safely(area, look)]


def _safely(area: str, look: Callable[[], list[Finding]]) -> list[Finding]:
    try:
        return look()
    except Exception as error:  # noqa: BLE001 - a doctor does not die of a disease
        value = f"could not be examined: {type(error).__name__}: {error}"
        return [Finding(area=area, name="examination", value=value, level="warn", fix="report this with the log")]
