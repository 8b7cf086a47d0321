"""The README's example: a plan whose gate stops a damaged quant with exit code 1, and lets the sound one pass."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from lathe.engine.batch.execution import execute
from lathe.engine.batch.plan import load as load_plan
from lathe.engine.connect import open_workbench
from lathe.engine.embedded import CHECKPOINT
from lathe.engine.paths import Home

README = Path(__file__).resolve().parents[3] / "README.md"


def _plan(folder: Path) -> str:
    """The plan as it stands in the README, on the embedded model, a few cases, one thread."""
    text = README.read_text("utf-8")
    match = re.search(r"```yaml\n(# gate\.yaml.*?)```", text, re.DOTALL)
    assert match is not None, "the README shows gate.yaml"
    plan = match.group(1).replace("./my-checkpoint", str(CHECKPOINT)).replace("gate.html", f"{folder}/gate.html")
    assert plan.count("limit: 30") == 2
    return plan.replace("limit: 30", "limit: 24, options: {threads: 1, slots: 4}")


@pytest.mark.native
@pytest.mark.parametrize(("mix", "state", "code"), [("q2_k", "negative", 1), ("q8_0", "done", 0)])
async def test_the_gate_stops_what_is_damaged_and_nothing_else(
    home: Path, tmp_path: Path, mix: str, state: str, code: int
) -> None:
    plan = tmp_path / "gate.yaml"
    text = _plan(tmp_path)
    assert "q2_k" in text
    plan.write_text(text.replace("q2_k", mix))
    async with open_workbench(Home(home)) as workbench:
        result = await execute(load_plan(plan), workbench, "r-1", lambda name, fields: None)
    assert {step.id: step.state for step in result.steps} == {
        "f16": "done", "quant": "done", "base": "done", "mine": "done", "gate": state,
    }  # fmt: skip
    assert result.exit == code
    gates = {row["gate"]: row["passed"] for row in result.steps[-1].outcome.rows}  # type: ignore[union-attr]
    assert gates["no metric may get worse"] is (code == 0)
    assert "<svg" in (tmp_path / "gate.html").read_text("utf-8")
