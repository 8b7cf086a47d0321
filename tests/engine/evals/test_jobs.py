"""The whole slice on the real embedded model: suite, job, store, gate, reports, plan, shell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner
from lathe.engine.batch.execution import execute
from lathe.engine.batch.plan import load as load_plan
from lathe.engine.connect import open_workbench
from lathe.engine.errors import ConfigError
from lathe.engine.evals import shipped, suite
from lathe.engine.evals.waivers import read_waivers
from lathe.engine.paths import Home
from lathe.tui.cli.root import cli

NEEDS_DATA = {"arc-easy", "arc-challenge", "gsm8k", "truthfulqa", "xquad"}
SUITE = """\
name: tiny
tasks:
  - id: pick
    kind: choice
    prompt: "os.path.join joins"
    cases: [{id: paths, choices: [paths, bananas], answer: paths, tags: [critical]}]
  - id: read
    kind: perplexity
    prompt: "Return the absolute version of a path."
    cases: [{id: one}]
  - id: say
    kind: generate
    chat: true
    prompt: "What does the Python function os.path.join do?"
    max_tokens: 8
    metrics: [no_template_tokens]
    cases: [{id: join}]
"""


def test_every_shipped_suite_is_sound(shared_data_or_none: Path | None) -> None:
    listed = shipped.catalogue(Path("/nowhere"))
    assert {one.name for one in listed} >= {"stdlib", "smoke", *NEEDS_DATA}
    for one in listed:
        assert one.problem is None
        if one.name in NEEDS_DATA and shared_data_or_none is None:
            continue
        loaded = suite.load(Path(one.path), variables={"data": str(shared_data_or_none)}, limit=5)
        assert loaded.items
        assert one.name == loaded.suite.name


@pytest.fixture
def shared_data_or_none() -> Path | None:
    from conftest import SHARED

    return SHARED / "eval" if SHARED.is_dir() else None


@pytest.mark.native
async def test_a_plan_runs_a_suite_and_a_gate_on_the_real_model(
    home: Path, embedded_gguf: Path, tmp_path: Path
) -> None:  # fmt: skip
    (tmp_path / "suite.yaml").write_text(SUITE)
    (tmp_path / "waivers.yaml").write_text("- {gate: acc > 2, until: 2999-01-01, reason: impossible}\n")
    plan = tmp_path / "plan.yaml"
    plan.write_text(f"""\
steps:
  - {{id: base, run: eval, suite: {tmp_path}/suite.yaml, model: {embedded_gguf}, baseline_name: release}}
  - {{id: mine, run: eval, suite: {tmp_path}/suite.yaml, model: {embedded_gguf}, cache: false}}
  - id: gate
    run: gate
    of: ${{mine.figures.run}}
    baseline: release
    reports: [{tmp_path}/r.html, {tmp_path}/r.xml, {tmp_path}/r.json, {tmp_path}/r.md]
  - {{id: stop, run: gate, of: release, gates: ["acc upper bound < 0.1", "acc > 2"], waivers: {tmp_path}/waivers.yaml}}
""")
    events: list[tuple[str, dict[str, Any]]] = []
    async with open_workbench(Home(home)) as workbench:
        result = await execute(load_plan(plan), workbench, "r-1", lambda name, fields: events.append((name, fields)))
        assert {step.id: step.state for step in result.steps} == {
            "base": "done", "mine": "done", "gate": "done", "stop": "negative",
        }  # fmt: skip
        assert result.exit == 1
        figures = result.steps[0].outcome.figures  # type: ignore[union-attr]
        assert figures["acc"] == 1.0
        assert 1 < figures["perplexity"] < 100  # type: ignore[operator]
        comparison = await workbench.eval_compare("release", "e-2")
        assert {metric.finding for metric in comparison.metrics} <= {"same", "noise"}
        assert (await workbench.eval_run("release")).id == "e-1"
        records = await workbench.eval_records("e-1")
        assert {record.label: record.failure for record in records} == dict.fromkeys(
            ("pick/paths", "read/one", "say/join")
        )
        assert await workbench.eval_case("release", "say", "join") == [r for r in records if r.task == "say"]
        assert await workbench.eval_case("e-2", "say", "none") == []
        rows = {row["gate"]: row for row in result.steps[3].outcome.rows}  # type: ignore[union-attr]
        assert (rows["acc upper bound < 0.1"]["passed"], rows["acc > 2"]["waived"]) == (False, "impossible")
    assert ElementTree.parse(tmp_path / "r.xml").getroot().tag == "testsuites"
    assert json.loads((tmp_path / "r.json").read_text())["verdict"]["passed"] is True
    assert "PASSED" in (tmp_path / "r.md").read_text()
    assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")


@pytest.mark.native
def test_the_shell_runs_gates_and_exits_1(home: Path, embedded_gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text(SUITE)

    def lathe(*arguments: str, code: int = 0) -> str:
        done = CliRunner().invoke(cli, ["--home", str(home), "eval", *arguments])
        assert done.exit_code == code, done.output
        return done.output

    said = lathe("run", str(tmp_path / "suite.yaml"), str(embedded_gguf), "--as", "release")
    assert "acc *" in said
    assert "MISSED" in lathe("gate", "release", "--gate", "perplexity < 1", code=1)
    assert "release" in lathe("list", "--runs")
    assert "stdlib" in lathe("list")
    assert "os.path.join joins" in lathe("export", "release", "--to", "json")
    assert "pick/paths" in lathe("show", "release", "--cases")
    assert "the same" in lathe("compare", "release", "release")
    assert "no suite 'stdlb'; did you mean 'stdlib'?" in lathe("run", "stdlb", str(embedded_gguf), code=66)
    lathe("review", "release", "say/join", "edit", "--edited", "It joins paths.")
    assert json.loads(lathe("reviews", "--to", "sft"))["messages"][1]["content"] == "It joins paths."
    assert "has no case" in lathe("review", "release", "say/none", "accept", code=66)
    assert "is forgotten" in lathe("rm", "release", "--yes")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- {gate: acc > 2, untl: 2026-01-01, reason: r}", "1:19: a waiver has no field 'untl'; did you mean 'until'?"),
        ("- {gate: acc > 2, until: soon, reason: r}", "1:3: waiver of 'acc > 2': 'soon' is no day"),
        ("- {until: 2026-01-01, reason: r}", "give either `gate` or `case`"),
        ("- acc > 2", "1:3: a waiver is a mapping"),
        ("gate: acc", "waivers are a list"),
    ],
)
def test_wrong_waivers_are_placed(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "waivers.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_waivers(path)
    assert message in caught.value.message
