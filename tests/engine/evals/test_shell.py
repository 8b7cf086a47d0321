"""Judge, preferences, calibration, the harness and suite checks, typed as a user types them, on the real model."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from lathe.tui.cli.root import cli

SUITE = """\
name: talk
tasks:
  - id: say
    kind: generate
    chat: true
    max_tokens: 12
    cases:
      - {id: a, prompt: "What does os.path.join do?"}
      - {id: b, prompt: "What does json.dumps do?"}
    metrics: [no_template_tokens]
"""
TASK = """\
task: tiny
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{folder}/cases.jsonl"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_choice: choices
doc_to_target: gold
metric_list: [{{metric: acc}}]
"""


def _lathe(home: Path, *arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(cli, ["--home", str(home), "eval", *arguments])
    assert done.exit_code == code, done.output
    return done.output


@pytest.mark.native
def test_a_judge_compares_two_runs_and_people_calibrate_it(home: Path, embedded_gguf: Path, tmp_path: Path) -> None:
    suite, model, coarse = tmp_path / "talk.yaml", str(embedded_gguf), str(tmp_path / "coarse.gguf")
    suite.write_text(SUITE)
    quantized = CliRunner().invoke(cli, ["--home", str(home), "quantize", model, "-t", "Q2_K", "-o", coarse])
    assert quantized.exit_code == 0, quantized.output
    _lathe(home, "run", str(suite), model, "--threads", "1", "--as", "old")
    _lathe(home, "run", str(suite), coarse, "--threads", "1", "--as", "new")
    assert "won 0, lost 0, tied 0 of 0 pairs; 2 answers were identical" in _lathe(home, "judge", "old", "old", model)
    said = _lathe(home, "judge", "old", "new", model, "--rubric", "Prefer what is right.", "--threads", "1")
    assert "of 2 pairs" in said
    assert "no pair was judged" in _lathe(home, "calibrate", embedded_gguf.stem, code=2)
    _lathe(home, "prefer", "old", "new", "say/a", "A", "--by", "ada")
    assert "| 1 |" in _lathe(home, "calibrate", embedded_gguf.stem, "--by", "ada")
    assert "do not both have" in _lathe(home, "prefer", "old", "new", "say/none", "A", code=66)
    kept = [json.loads(line) for line in _lathe(home, "reviews").splitlines() if line.startswith("{")]
    assert {review["source"] for review in kept} == {f"judge {embedded_gguf.stem}", "human ada"}


def test_a_suite_is_checked_without_a_model(home: Path, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SUITE)
    assert "say" in _lathe(home, "check", str(tmp_path / "s.yaml"))
    (tmp_path / "s.yaml").write_text(SUITE.replace("kind: generate", "kind: genrate"))
    assert "s.yaml:4:" in _lathe(home, "check", str(tmp_path / "s.yaml"), code=78)
    assert json.loads(_lathe(home, "schema"))["$defs"]["Task"]


@pytest.mark.native
def test_the_harness_runs_in_its_own_process(home: Path, embedded_gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "cases.jsonl").write_text(
        '{"q": "os.path.join joins", "choices": ["paths", "bananas"], "gold": 0}\n' * 3
    )
    (tmp_path / "tiny.yaml").write_text(TASK.format(folder=tmp_path))
    run = ("harness", str(embedded_gguf), "tiny", "--include", str(tmp_path), "--threads", "1", "--as", "theirs")
    if importlib.util.find_spec("lm_eval") is None:
        assert "install `lathe-llm[harness]`" in _lathe(home, *run, code=69)
        return
    assert "acc *" in _lathe(home, *run)
    assert "os.path.join joins" in _lathe(home, "export", "theirs", "--to", "jsonl")
    assert "3 the same" in _lathe(home, "compare", "theirs", "theirs")
