"""The command line over a scripted engine: data on stdout, narration on stderr, exit codes as documented."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result
from lathe.engine import connect, settings
from lathe.engine.batch.execution import RunResult
from lathe.engine.errors import DoesNotFit, ExitCode
from lathe.engine.steps import BenchStep, ConvertStep, QuantizeStep
from lathe.tui.cli import batch
from lathe.tui.cli.root import VERBS, cli
from support.scripted_workbench import ScriptedWorkbench


class Terminal:
    """Runs commands against one scripted engine."""

    def __init__(self) -> None:
        self.engine = ScriptedWorkbench()
        self.started: list[bool] = []

    def run(self, *arguments: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(cli, arguments, input=stdin, catch_exceptions=True)

    def engine_model(self, kind: str = "") -> str:
        """A model that the scripted engine knows; the first of a format where one is given."""
        listed = json.loads(self.run("models", "list", "--json").stdout)
        return next(entry["name"] for entry in listed if not kind or entry["format"] == kind)

    def api_keys(self) -> list[dict[str, Any]]:
        return json.loads(self.run("keys", "list", "--json").stdout)

    @asynccontextmanager
    async def open(self, home: Any, *, flags: Any = None, start: bool = False) -> AsyncIterator[ScriptedWorkbench]:
        self.started.append(start)
        yield self.engine


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    terminal = Terminal()
    monkeypatch.setattr(connect, "open_workbench", terminal.open)
    return terminal


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(terminal: Terminal, verb: str) -> None:
    result = terminal.run(verb, "--help")
    assert result.exit_code == 0, result.output
    assert "Usage:" in result.output


def test_every_verb_is_in_the_readme_or_its_groups_help(terminal: Terminal) -> None:
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text("utf-8")
    missing = [verb for verb in VERBS if f"lathe {verb}" not in readme and f"`{verb}`" not in readme]
    assert missing == []


def test_every_setting_is_in_the_readme() -> None:
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text("utf-8")
    for key in settings.names():
        default = settings.default(key)
        shown = str(default).lower() if isinstance(default, bool) else default
        assert f"| `{key}` | `{shown}` | {settings.docs()[key]} |" in readme


def test_an_unknown_verb_names_the_nearest(terminal: Terminal) -> None:
    result = terminal.run("quantise")
    assert result.exit_code == ExitCode.USAGE
    assert "did you mean 'quantize'" in result.output


def test_models_list_is_a_table_and_json(terminal: Terminal) -> None:
    table = terminal.run("models", "list")
    assert table.exit_code == 0
    listed = json.loads(terminal.run("models", "list", "--json").stdout)
    assert [entry["name"] for entry in listed] == [line.split()[0] for line in table.stdout.splitlines()[1:]]


def test_errors_are_one_line_a_hint_and_a_code(terminal: Terminal) -> None:
    terminal.engine.fail["estimate"] = DoesNotFit("qwen does not fit: short by 1.2 GiB", hint="use a smaller context")
    result = terminal.run("models", "estimate", "qwen")
    assert result.exit_code == ExitCode.TEMPORARY
    assert result.stderr == "lathe: qwen does not fit: short by 1.2 GiB\n  use a smaller context\n"
    assert result.stdout == ""
    terminal.engine.fail["estimate"] = DoesNotFit("qwen does not fit")
    as_json = json.loads(terminal.run("models", "estimate", "qwen", "--json").stdout)
    assert as_json["error"]["code"] == "E_DOES_NOT_FIT"


def test_a_bug_is_reported_without_a_traceback(terminal: Terminal) -> None:
    terminal.engine.fail["models"] = ZeroDivisionError("division by zero")  # type: ignore[assignment]
    result = terminal.run("models", "list")
    assert result.exit_code == ExitCode.INTERNAL
    assert "Traceback" not in result.output
    assert "ZeroDivisionError" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "step"),
    [
        (("quantize", "{m}", "-t", "Q8_0"), QuantizeStep(model="{m}", type="Q8_0")),
        (
            ("quantize", "{m}", "--tensor-type", "blk.*=q8_0", "--tensor-type", "a=b=f16", "--pure"),
            QuantizeStep(model="{m}", tensor_types={"blk.*": "q8_0", "a=b": "f16"}, pure=True),
        ),
        (("convert", "{m}", "--outtype", "f16", "--name", "x"), ConvertStep(model="{m}", outtype="f16", name="x")),
        (
            ("bench", "{m}", "-p", "16,32", "-n", "8", "-pg", "4,2", "-r", "1"),
            BenchStep(model="{m}", prompt_tokens=(16, 32), generate_tokens=(8,), pairs=((4, 2),), repetitions=1),
        ),
    ],
)
def test_verbs_submit_the_steps_that_screens_submit(
    terminal: Terminal, arguments: tuple[str, ...], step: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = terminal.engine_model("gguf")
    submitted: list[Any] = []

    async def submit(step: Any, run: str | None = None) -> Any:
        submitted.append(step)
        raise DoesNotFit("enough seen")

    monkeypatch.setattr(terminal.engine, "submit", submit)
    terminal.run(*(argument.format(m=name) for argument in arguments))
    assert submitted == [msgspec.structs.replace(step, model=name)]


def test_a_path_is_made_absolute_for_the_engine(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "checkpoint").mkdir()
    monkeypatch.chdir(tmp_path)
    seen: list[Any] = []

    async def submit(step: Any, run: str | None = None) -> Any:
        seen.append(step.model)
        raise DoesNotFit("enough seen")

    monkeypatch.setattr(terminal.engine, "submit", submit)
    terminal.run("convert", "checkpoint")
    assert seen == [str(tmp_path / "checkpoint")]


def test_a_home_that_the_shell_left_alone_is_found(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    seen: list[Any] = []

    async def submit(step: Any, run: str | None = None) -> Any:
        seen.append(step)
        raise DoesNotFit("enough seen")

    monkeypatch.setattr(terminal.engine, "submit", submit)
    terminal.run("quantize", "m", "--output=~/x.gguf", "--imatrix=~nobody-here/x")
    assert seen[0].output == str(tmp_path / "x.gguf")
    assert seen[0].imatrix == str(Path.cwd() / "~nobody-here/x")


def test_a_reader_who_has_seen_enough_ends_the_program_quietly(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lathe.tui.main", "--home", str(tmp_path)]
    for arguments in (["bindings"], ["models", "show", "stdlib-4m"], ["quantize", "--help"]):
        with subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stderr is not None
            process.stdout.close()
            assert process.stderr.read() == b""
        assert process.returncode == 128 + signal.SIGPIPE


def test_a_file_is_no_folder_to_scan(terminal: Terminal, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    refused = terminal.run("models", "scan", str(tmp_path / "model.gguf"))
    assert refused.exit_code == ExitCode.USAGE
    assert "is a file" in refused.stderr


def test_names_too_long_for_a_path_are_still_names(terminal: Terminal) -> None:
    refused = terminal.run("quantize", "x" * 300)
    assert refused.exit_code == ExitCode.NO_INPUT
    assert "Traceback" not in refused.output


def test_chat_streams_to_stdout_and_narrates_on_stderr(terminal: Terminal) -> None:
    name = terminal.engine_model()
    result = terminal.run("chat", name, "hello there", "--seed", "1")
    assert result.exit_code == 0, result.output
    assert len(result.stdout.strip()) > 10
    assert "tokens" in result.stderr
    piped = terminal.run("generate", name, "--json", stdin="once upon")
    assert json.loads(piped.stdout)["finish"] in ("stop", "length")


def test_removing_asks_and_without_a_terminal_wants_yes(terminal: Terminal) -> None:
    name = terminal.engine_model()
    refused = terminal.run("models", "rm", name)
    assert refused.exit_code == ExitCode.USAGE
    assert "--yes" in refused.output
    assert terminal.run("models", "rm", name, "--yes").exit_code == 0


def test_what_outlives_the_call_starts_the_engine(terminal: Terminal) -> None:
    terminal.run("models", "list")
    terminal.run("quantize", terminal.engine_model(), "--detach")
    terminal.run("serve", "--detach")
    assert terminal.started == [False, False, True, True]


def test_serving_prints_the_url_and_a_token_once(terminal: Terminal) -> None:
    for key in [key["name"] for key in terminal.api_keys()]:
        terminal.run("keys", "revoke", key)
    first = terminal.run("serve", "--detach", "--port", "0")
    assert first.exit_code == 0, first.output
    assert first.stdout.strip().endswith("/v1")
    assert "shown once" in first.stderr
    (export,) = [line.strip() for line in first.stderr.splitlines() if "export LATHE_API_KEY=" in line]
    assert len(export.partition("=")[2]) > 30
    assert f'curl {first.stdout.strip()}/models -H "Authorization: Bearer $LATHE_API_KEY"' in first.stderr
    assert "OPENAI_BASE_URL=" in first.stderr
    terminal.run("serve", "--stop")
    again = terminal.run("serve", "--detach", "--port", "0")
    assert "export" not in again.stderr and "lathe keys list" in again.stderr


def test_serving_takes_the_keys_of_a_file_or_makes_one(terminal: Terminal, tmp_path: Path) -> None:
    file = tmp_path / "my keys.txt"
    made = terminal.run("serve", "--detach", "--port", "0", "--api-key-file", str(file))
    assert made.exit_code == 0, made.output
    assert file.stat().st_mode & 0o777 == 0o600
    assert len(file.read_text().strip()) > 30
    assert file.read_text().strip() not in made.output
    terminal.run("serve", "--stop")
    file.write_text("# two\n" + "a" * 32 + "\n\n" + "b" * 40 + "\n")
    assert terminal.run("serve", "--detach", "--port", "0", "--api-key-file", str(file)).exit_code == 0
    ours = [key["name"] for key in terminal.api_keys() if "-file-" in key["name"]]
    assert ours == ["my-keys-file-1", "my-keys-file-2"]
    given = [call[1] for call in terminal.engine.calls if call[0] == "make_key"][-2:]
    assert [key.secret for key in given] == ["a" * 32, "b" * 40]
    terminal.run("serve", "--stop")
    file.write_text("# none\n")
    empty = terminal.run("serve", "--detach", "--api-key-file", str(file))
    assert empty.exit_code == ExitCode.USAGE and "holds no key" in empty.stderr


def test_keys_have_scopes(terminal: Terminal) -> None:
    assert terminal.run("keys", "make", "boss", "--scope", "admin", "--scope", "infer").exit_code == 0
    (boss,) = [key for key in terminal.api_keys() if key["name"] == "boss"]
    assert boss["scopes"] == ["admin", "infer"]
    assert "admin infer" in terminal.run("keys", "list").stdout
    assert "infer observe" in terminal.run("keys", "list").stdout
    assert terminal.run("keys", "make", "x", "--scope", "root").exit_code == ExitCode.USAGE


def test_status_names_every_number_of_the_dashboard(terminal: Terminal) -> None:
    text = terminal.run("status").stdout
    for word in ("CPU", "RAM", "VRAM", "generation", "prompt", "TTFT", "ITL", "E2E", "server", "jobs"):
        assert word in text
    document = json.loads(terminal.run("status", "--json").stdout)
    assert document["engine"]["version"]


def test_config_round_trip(terminal: Terminal) -> None:
    assert terminal.run("config", "set", "serving.port", "9000").exit_code == 0
    assert terminal.run("config", "get", "serving.port").stdout == "9000\n"
    assert "user" in terminal.run("config", "show", "--origin").stdout
    assert terminal.run("config", "unset", "serving.port").exit_code == 0
    assert terminal.run("config", "get", "serving.port").stdout.strip() == str(settings.default("serving.port"))
    wrong = terminal.run("config", "set", "serving.prot", "1")
    assert wrong.exit_code == ExitCode.CONFIG
    assert "did you mean 'serving.port'" in wrong.stderr


def test_an_invalid_plan_runs_nothing(terminal: Terminal, tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text("steps: [{run: quantise, model: m}]")
    before = list(terminal.engine.calls)
    result = terminal.run("--batch", str(plan))
    assert result.exit_code == ExitCode.CONFIG
    assert "did you mean 'quantize'" in result.stderr
    assert terminal.engine.calls == before
    assert terminal.run("--batch", str(tmp_path / "none.yaml")).exit_code == ExitCode.NO_INPUT


def test_a_report_that_cannot_be_written_is_refused_before_the_plan_runs(terminal: Terminal, tmp_path: Path) -> None:
    plan, folder = tmp_path / "plan.yaml", tmp_path / "folder.xml"
    plan.write_text(f"steps: [{{run: quantize, model: {terminal.engine_model('gguf')}}}]")
    folder.mkdir()
    before = list(terminal.engine.calls)
    for report in (tmp_path / "none" / "x.xml", plan / "x.xml", folder):
        refused = terminal.run("--batch", str(plan), "--report", str(report))
        assert refused.exit_code == ExitCode.CANNOT_CREATE
        assert str(report) in refused.stderr
    assert terminal.engine.calls == before


@pytest.mark.parametrize(("plans", "code"), [(ExitCode.OK, ExitCode.CANNOT_CREATE), (ExitCode.DATA, ExitCode.DATA)])
def test_a_report_that_is_lost_does_not_hide_what_was_worse(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plans: ExitCode, code: ExitCode
) -> None:
    async def execute(*_: object, **__: object) -> RunResult:
        (tmp_path / "reports").rmdir()
        return RunResult(run="r-1", name="plan", steps=(), exit=int(plans), seconds=0.0)

    monkeypatch.setattr(batch, "execute", execute)
    plan = tmp_path / "plan.yaml"
    plan.write_text("steps: [{run: scan}]")
    (tmp_path / "reports").mkdir()
    told = terminal.run("--batch", str(plan), "--report", str(tmp_path / "reports" / "x.json"))
    assert told.exit_code == code
    assert "No such file" in told.stderr


def test_the_tui_refuses_a_pipe(terminal: Terminal) -> None:
    result = terminal.run()
    assert result.exit_code == ExitCode.USAGE
    assert "lathe status" in result.stderr
    assert "\x1b" not in result.output
