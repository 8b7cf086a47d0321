"""The table of faults in tests/README.md names tests that exist, and leaves out no fault of serving and converting."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
READ = {*(f"T{n:02}" for n in range(1, 21) if n != 19), "F08", "F09", "F10", "F11", "F12", "F25"}
"""What scanning, converting, quantizing and measuring have to withstand."""
STORED = {"T19", *(f"R{n:02}" for n in range(1, 7)), "F14", "F15", "F26", "F27", "F52"}
"""What documents and stores of them have to."""
IDS = READ | STORED | {*(f"S{n:02}" for n in range(1, 18)), "R11", "R12", *(f"F{n}" for n in (20, 21, 22, 23, 24, 29)),
       *(f"F{n}" for n in range(40, 52)), "F54"}  # fmt: skip
_NAMED = re.compile(r"`(?P<file>[\w/]+\.py)?(?:::(?P<name>\w+))?`")


def test_every_fault_has_a_test_that_exists() -> None:
    rows = [line for line in (TESTS / "README.md").read_text("utf-8").splitlines() if re.match(r"\| [TSRF]\d\d ", line)]
    assert {line[2:5] for line in rows} == IDS
    sources = {path.relative_to(TESTS).as_posix(): path.read_text("utf-8") for path in TESTS.rglob("*.py")}
    for line in rows:
        current, found = "", 0
        for match in _NAMED.finditer(line.split("|")[3]):
            if (file := match["file"]) is not None and not file.startswith("benchmarks/"):
                current = next((path for path in sources if path.endswith(file)), "")
                assert current, f"{line[2:5]}: there is no {file}"
                found += 1
            if match["name"]:
                assert f"def {match['name']}(" in sources[current], f"{line[2:5]}: {current} has no {match['name']}"
        assert found, line
