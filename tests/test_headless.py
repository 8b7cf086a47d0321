"""What CI jobs and pipes get: whole programs, run as processes, on the embedded model."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytestmark = pytest.mark.native
LATHE = [sys.executable, "-m", "lathe.tui.main"]
PLAN = """\
schema: 1
name: whole
steps:
  - {id: f16, run: convert, model: stdlib-4m, outtype: f16}
  - {id: q8, run: quantize, model: "${f16.model}", type: Q8_0}
  - {id: quality, run: perplexity, model: "${q8.model}", context: 128, chunks: 4, expect: ["perplexity <= 40"]}
  - {id: speed, run: bench, model: "${q8.model}", prompt_tokens: [8], generate_tokens: [4], repetitions: 1}
  - id: say
    run: generate
    model: "${q8.model}"
    prompts: ["What does the Python function os.path.join do?"]
    max_tokens: 8
    sampling: {temperature: 0}
  - id: probe
    run: serve
    model: "${q8.model}"
    prompts: ["What does the Python function os.path.join do?"]
    max_tokens: 8
    options: {context: 256, slots: 1, threads: 1}
"""


def _lathe(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*LATHE, *arguments], capture_output=True, text=True, **options)  # type: ignore[call-overload,no-any-return]


@pytest.mark.timeout(300)
def test_a_plan_runs_reports_and_is_reused(tmp_path: Path) -> None:
    plan, report, table = tmp_path / "plan.yaml", tmp_path / "junit.xml", tmp_path / "report.md"
    plan.write_text(PLAN)
    done = _lathe("--batch", str(plan), "--jsonl", "--report", str(report), "--report", str(table))
    assert done.returncode == 0, done.stdout + done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert events[0]["event"] == "run.started"
    summary = events[-1]
    assert (summary["event"], summary["state"], summary["exit"]) == ("run.summary", "done", 0)
    assert [step["state"] for step in summary["steps"]] == ["done"] * 6
    assert [Path(item["path"]).suffix for item in summary["artifacts"]] == [".gguf", ".gguf"]
    suite = ElementTree.fromstring(report.read_text())
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("6", "0", "0")
    assert "| q8 | quantize | done |" in table.read_text()

    again = _lathe("--batch", str(plan), "--jsonl")
    assert again.returncode == 0
    states = [json.loads(line)["state"] for line in again.stdout.splitlines() if '"step.finished"' in line]
    assert states == ["reused"] * 6

    plan.write_text(PLAN.replace("perplexity <= 40", "perplexity <= 1.5"))
    missed = _lathe("--batch", str(plan))
    assert missed.returncode == 1
    assert "gate missed: perplexity <= 1.5 (is " in missed.stdout


def test_an_interrupted_plan_stops_its_job_and_says_so(tmp_path: Path, home: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        "steps:\n  - {id: f16, run: convert, model: stdlib-4m, outtype: f16}\n"
        '  - {id: long, run: bench, model: "${f16.model}", repetitions: 5000}\n'
    )
    lines = []
    with subprocess.Popen([*LATHE, "--batch", str(plan), "--jsonl"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(json.loads(line))
            if lines[-1]["event"] == "job.progress" and lines[-1]["job"] == "j-2":
                process.send_signal(signal.SIGINT)
                break
        lines += [json.loads(line) for line in process.stdout]
    assert process.returncode == 130
    assert lines[-1]["event"] == "run.summary"
    assert (lines[-1]["state"], lines[-1]["steps"][1]["state"]) == ("interrupted", "cancelled")
    listed = json.loads(_lathe("jobs", "list", "--json").stdout)
    assert [job["state"] for job in listed] == ["cancelled", "done"]


@pytest.mark.timeout(600)
def test_the_demo_shows_what_it_measured() -> None:
    done = _lathe("demo", "--json")
    try:
        assert done.returncode == 0, done.stderr
        shown = json.loads(done.stdout)
        variants = {variant["type"]: variant for variant in shown["variants"]}
        assert list(variants) == ["F16", "Q8_0", "Q5_K_M", "Q4_K_M"]
        sizes = [variant["bytes"] for variant in shown["variants"]]
        assert sizes == sorted(sizes, reverse=True)
        assert 11.3 < variants["F16"]["perplexity"] < 11.6, "llama-perplexity says 11.46 for this file and text"
        assert variants["F16"]["perplexity"] <= variants["Q4_K_M"]["perplexity"] < 12
        for variant in shown["variants"]:
            assert min(variant["prompt_tps"], variant["generation_tps"], variant["ttft_s"]) > 0
            assert Path(variant["path"]).stat().st_size == variant["bytes"]
        assert shown["answers"][0]["text"].strip().startswith("Join two or more pathname components")
        assert [row["in_documents"] for row in shown["cited"]] == [True, True, True]
        for row in shown["cited"]:
            assert row["answer"].endswith("]") and row["cited"].startswith("["), row
        names = {entry["name"] for entry in json.loads(_lathe("models", "list", "--json").stdout)}
        assert {variant["name"] for variant in shown["variants"]} <= names
    finally:
        _lathe("engine", "stop")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("models", "show", "nothing"), 66, "no model is called 'nothing'"),
        (("convert", "/no/such/folder"), 66, "/no/such/folder"),
        (("--batch", "/no/such/plan.yaml"), 66, "no such plan"),
        (("--set", "serving.prot=1", "models", "list"), 78, "did you mean 'serving.port'"),
        (("convert", "stdlib-4m", "--to", "onnx"), 69, "onnx"),
        (("jobs", "show", "j-99"), 66, "j-99"),
        ((), 2, "lathe status"),
    ],
)
def test_what_cannot_work_says_so_in_one_line(arguments: tuple[str, ...], code: int, said: str) -> None:
    done = _lathe(*arguments, stdin=subprocess.DEVNULL)
    assert done.returncode == code, done.stdout + done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stdout + done.stderr


def test_an_unwritable_home_a_broken_setting_and_a_taken_port(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    unwritable = _lathe("--home", str(blocked / "home"), "models", "list")
    assert (unwritable.returncode, unwritable.stderr.count("\n")) == (73, 2)
    broken = tmp_path / "config.toml"
    broken.write_text("[serving]\nport = 'many'\n")
    wrong = _lathe("models", "list", env={**os.environ, "LATHE_CONFIG": str(broken)})
    assert wrong.returncode == 78
    assert f"{broken}:2" in wrong.stderr

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        busy = _lathe("serve", "--port", str(taken.getsockname()[1]), "--detach")
    _lathe("engine", "stop")
    assert busy.returncode == 75
    assert "is taken" in busy.stderr


def test_few_file_descriptors_and_no_umask(tmp_path: Path) -> None:
    """F32: work goes on with 64 files, and nobody else reads documents, prompts and answers."""
    home = tmp_path / "home"
    command = f"ulimit -n 64; umask 000; exec {shlex.join([*LATHE, '--home', str(home), 'convert', 'stdlib-4m'])}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    readable = {path for path in home.iterdir() if path.stat().st_mode & 0o077}
    assert readable == {home / "models"}


def test_output_to_a_closed_pipe_is_no_traceback() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*LATHE, "config", "show"], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert "Traceback" not in done.stderr
