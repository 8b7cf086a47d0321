"""The verbs that tell what quantization costs: the steps they submit, the tables they print, their refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result
from lathe.engine import connect
from lathe.engine.errors import DoesNotFit, ExitCode
from lathe.engine.jobs.values import Artefact, Job, Outcome
from lathe.engine.steps import (
    ConvertStep,
    ImatrixMergeStep,
    ImatrixStep,
    KldStep,
    OnnxQuantizeStep,
    QuantizeStep,
    ToolchainStep,
    TuneStep,
)
from lathe.engine.tune.frontier import Measure, Point
from lathe.engine.tune.frontier_file import FrontierFile, point_row
from lathe.engine.tune.halving import Run
from lathe.engine.workbench import LogPage
from lathe.quantize.imatrix import Entry, Imatrix, write_imatrix
from lathe.tui.cli.root import cli
from lathe.tui.cli.tune import heat_map
from support.scripted_workbench import ScriptedWorkbench


class Terminal:
    """Runs verbs on an engine that keeps what is submitted and answers with a given outcome."""

    def __init__(self) -> None:
        self.engine = ScriptedWorkbench()
        self.steps: list[Any] = []
        self.outcome: Outcome | None = None

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(cli, arguments, catch_exceptions=True)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    from contextlib import asynccontextmanager

    terminal = Terminal()

    @asynccontextmanager
    async def opened(home: Any, *, flags: Any = None, start: bool = False) -> Any:
        yield terminal.engine

    async def submit(step: Any, run: str | None = None) -> Job:
        terminal.steps.append(step)
        if terminal.outcome is None:
            raise DoesNotFit("enough seen")
        return Job(id="j-1", step=step, title="work", state="done", outcome=terminal.outcome)

    async def wait(job_id: str) -> Job:
        return Job(id=job_id, step=terminal.steps[-1], title="work", state="done", outcome=terminal.outcome)

    async def job_log(job_id: str, after: int = 0, limit: int = 500) -> LogPage:
        return LogPage(lines=(), next=after, ended=True)

    monkeypatch.setattr(connect, "open_workbench", opened)
    monkeypatch.setattr(terminal.engine, "job_log", job_log)
    monkeypatch.setattr(terminal.engine, "submit", submit)
    monkeypatch.setattr(terminal.engine, "wait", wait)
    return terminal


@pytest.mark.parametrize(
    ("arguments", "step"),
    [
        (
            ("imatrix", "collect", "m", "--text", "/t", "--ctx", "256", "--merge", "/a", "--merge", "/b"),
            ImatrixStep(model="m", text="/t", context=256, merge=("/a", "/b")),
        ),
        (("imatrix", "merge", "/a", "/b", "-o", "/c"), ImatrixMergeStep(matrices=("/a", "/b"), output="/c")),
        (
            ("quantize", "m", "-t", "INT8-static", "--text", "/t", "--op", "Gemm", "--exclude", "head", "--per-tensor"),
            OnnxQuantizeStep(
                model="m", mode="int8-static", text="/t", operators=("Gemm",), exclude=("head",), per_channel=False
            ),
        ),
        (("quantize", "m", "-t", "int4", "--block-size", "64", "--asymmetric"),
         OnnxQuantizeStep(model="m", mode="int4", block_size=64, symmetric=False)),
        (("quantize", "m", "--prune-layer", "3", "--keep-split", "--keep-output", "--imatrix-only", "ffn"),
         QuantizeStep(model="m", prune_layers=(3,), keep_split=True, keep_output=True, imatrix_only=("ffn",))),
        (("convert", "m", "--to", "onnx", "--opset", "17"), ConvertStep(model="m", to="onnx", opset=17)),
        (("convert", "m", "--base", "b", "--split-max-bytes", "1000", "--no-parity"),
         ConvertStep(model="m", base="b", split_max_bytes=1000, parity=False)),
        (("toolchain", "install", "--from", "/a.tar.gz", "--version", "1.2"),
         ToolchainStep(source="/a.tar.gz", version="1.2")),
        (("kld", "m", "--base", "b", "--chunks", "4"), KldStep(model="m", base="b", chunks=4)),
        (("kld", "m", "--base-file", "/f"), KldStep(model="m", base_file="/f")),
        (
            ("tune", "m", "--text", "/t", "--max-size", "4G", "--min-tps", "20", "--max-kld", "0.02", "--kind", "q4_k"),
            TuneStep(model="m", text="/t", max_size="4G", min_tokens_per_s=20, max_kld=0.02, kinds=("Q4_K",)),
        ),
        (
            ("tune", "m", "--text", "/t", "--max-distance", "0.001"),
            TuneStep(model="m", text="/t", max_distance=0.001),
        ),
        (
            ("tune", "m", "--text", "/t", "--kv-type", "q8_0", "--try-threads", "2", "--try-gpu-layers", "-1",
             "--no-feedback", "--no-speed", "--compare", "q8_0"),
            TuneStep(model="m", text="/t", kv_types=("q8_0",), try_threads=(2,), try_gpu_layers=(-1,), feedback=False,
                     speed=False, compare=("Q8_0",)),
        ),
    ],
)  # fmt: skip
def test_verbs_submit_the_steps_that_screens_submit(terminal: Terminal, arguments: tuple[str, ...], step: Any) -> None:
    terminal.run(*arguments)
    assert terminal.steps == [step]


@pytest.mark.parametrize(
    "arguments",
    [
        ("tune", "m"),
        ("imatrix", "collect", "m"),
        ("tune", "m", "--text", "/t", "--max-kld", "0"),
        ("tune", "m", "--text", "/t", "--max-kld", "nan"),
        ("tune", "m", "--text", "/t", "--minutes", "inf"),
        ("tune", "m", "--text", "/t", "--kv-type", "FOO"),
        ("perplexity", "m", "--chunks", "-5"),
        ("perplexity", "m", "--chunks", "0"),
        ("kld", "m", "--base", "b", "--chunks", "0"),
        ("imatrix", "collect", "m", "--text", "/t", "--chunks", "0"),
        ("perplexity", "m", "--threads", "100000"),
        ("bench", "m", "-t", "2,100000"),
        ("quantize", "m", "--prune-layer", "99999999999999999999"),
        ("convert", "m", "--to", "onnx", "--opset", "25"),
    ],
)
def test_what_is_missing_or_impossible_is_wrong_usage(terminal: Terminal, arguments: tuple[str, ...]) -> None:
    assert terminal.run(*arguments).exit_code == ExitCode.USAGE
    assert terminal.steps == []


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("quantize", "m", "--text", "/t"), "--text"),
        (("quantize", "m", "--block-size", "32"), "--block-size"),
        (("quantize", "m", "-t", "int8", "--imatrix", "/i"), "--imatrix"),
        (("quantize", "m", "-t", "int4", "--pure"), "--pure"),
        (("convert", "m", "--task", "auto"), "--task"),
        (("convert", "m", "--to", "safetensors", "--opset", "17"), "--opset"),
        (("convert", "m", "--to", "onnx", "--no-parity"), "--no-parity"),
        (("kld", "m", "--base-file", "/f", "--text", "/t"), "--text"),
        (("kld", "m", "--base-file", "/f", "--ctx", "512"), "--ctx"),
    ],
)
def test_what_would_not_be_heeded_is_refused_in_a_line(
    terminal: Terminal, arguments: tuple[str, ...], option: str
) -> None:
    refused = terminal.run(*arguments)
    assert refused.exit_code == ExitCode.USAGE
    assert refused.stderr.startswith(f"lathe: {option} is ")
    assert len(refused.stderr.splitlines()) == 1
    assert terminal.steps == []


def test_what_the_job_warned_of_is_narrated(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ("10:00:00 info  warn of nothing", "10:00:01 warn  blk.0 has no importances", "llama.cpp: warn  its own")

    async def job_log(job_id: str, after: int = 0, limit: int = 500) -> LogPage:
        return LogPage(lines=lines if not after else (), next=100)

    monkeypatch.setattr(terminal.engine, "job_log", job_log)
    terminal.outcome = Outcome(figures={"warnings": 1})
    made = terminal.run("quantize", "m")
    assert made.exit_code == 0, made.output
    assert made.stderr == "warning: blk.0 has no importances\n"
    assert "warnings" in made.stdout


def test_a_matrix_is_shown_without_an_engine(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    sums = np.array([[1, 2, 3, 4]], np.float32)
    entries = {
        "blk.0.ffn_up.weight": Entry(sums, np.array([2])),
        "blk.1.ffn_up.weight": Entry(sums[:, ::-1].copy(), np.array([4])),
    }
    write_imatrix(path, Imatrix(entries=entries, datasets=("a.txt",), chunks=3, chunk_size=2))
    shown = CliRunner().invoke(cli, ["imatrix", "show", str(path)])
    assert shown.exit_code == 0, shown.output
    lines = shown.output.splitlines()
    assert lines[-2].split()[:3] == ["blk.0.ffn_up.weight", "5", "1.25"]
    assert lines[-1].split()[-1] == "0.66667", "cosine with the layer below"
    document = json.loads(CliRunner().invoke(cli, ["imatrix", "show", str(path), "--json"]).output)
    assert (document["chunks"], document["texts"], len(document["tensors"])) == (3, "a.txt", 2)
    (tmp_path / "no").write_bytes(b"\x01")
    refused = CliRunner().invoke(cli, ["imatrix", "show", str(tmp_path / "no")])
    assert refused.exit_code == ExitCode.DATA
    assert "no importance matrix" in refused.output


def test_divergence_is_a_table_with_errors(terminal: Terminal) -> None:
    names = ("mean_kld", "same_top_p", "delta_p_rms", "delta_p", "perplexity", "base_perplexity", "ratio", "difference")
    figures: dict[str, Any] = dict.fromkeys(names, 0.5) | {f"{name}_error": 0.25 for name in names}
    figures |= {"correlation": 0.99, "max_kld": 2.0, "tokens": 1234}
    terminal.outcome = Outcome(figures=figures, rows=({"percentile": 99.9, "kld": 1.5, "delta_p": -0.125},))
    shown = terminal.run("kld", "m", "--base", "b")
    assert shown.exit_code == 0, shown.output
    assert "mean KLD                          0.5 ± 0.25" in shown.output
    assert "same top token, %                  50 ± 25" in shown.output
    assert shown.output.splitlines()[-1].split() == ["99.9", "1.5", "-12.5"]


def _found(terminal: Terminal, path: Path, point: Point, run: Run, measure: Measure) -> None:
    """A search that ended with one point and one way to run it."""
    document = FrontierFile(
        model="m", model_sha256="0", text="t", text_sha256="0", context=64, chunks=6, measure=measure, feedback=True,
        exact=True, readings=9, points=(point,), runs=(run,), tensor_bytes={},
        sensitivity={"blk.0.attn_q.weight": {"Q4_K": 1e-5}, "token_embd.weight": {"Q4_K": 1e-3}},
    )  # fmt: skip
    path.write_bytes(msgspec.json.encode(document))
    terminal.outcome = Outcome(
        artefacts=(Artefact(name="m-frontier", path=str(path), format="json", bytes=path.stat().st_size),),
        figures={"chosen": point.label},
        rows=(point_row(point, True, measure),),
        exit=0,
    )


def test_a_frontier_is_a_table_a_map_and_the_files(terminal: Terminal, tmp_path: Path) -> None:
    point = Point(
        label="mix 2.89 MB", mix={"blk.0.attn_q.weight": "Q5_K", "token_embd.weight": "Q6_K"}, bytes=2_888_000,
        bits_per_weight=5.5, divergence=0.0123, error=0.001, divergence_99_9=0.2, agreement=0.95, perplexity=11.5,
        prompt_tokens_per_s=100.0, tokens_per_s=50.0, load_s=0.1, peak_bytes=1 << 20,
    )  # fmt: skip
    run = Run(
        label="mix 2.89 MB", kv_type="q8_0", threads=2, batch=512, gpu_layers=0, divergence=0.0125,
        tokens_per_s=55.0, prompt_tokens_per_s=110.0, rounds=3,
    )  # fmt: skip
    path = tmp_path / "frontier.json"
    _found(terminal, path, point, run, "kld")
    shown = terminal.run("tune", "m", "--text", "/t", "--max-size", "3MB")
    assert shown.exit_code == 0, shown.output
    words = shown.output.split()
    for expected in ("2,888,000", "0.01230", "95.00%", "1.0", "q8_0", "0.01250", "q5_k", "100.0"):
        assert expected in words, expected
    path.write_bytes(b"{}")
    broken = terminal.run("tune", "m", "--text", "/t")
    assert broken.exit_code == ExitCode.DATA
    assert "no frontier" in broken.stderr


def test_a_frontier_of_an_embedder_is_about_distances_and_reading(terminal: Terminal, tmp_path: Path) -> None:
    point = Point(
        label="Q8_0", bytes=24_000_000, bits_per_weight=8.6, divergence=0.00039, error=0.00002,
        divergence_99_9=0.0011, agreement=0.9375, neighbours=0.975, prompt_tokens_per_s=7000.0,
    )  # fmt: skip
    run = Run(label="Q8_0", kv_type="", threads=2, batch=2048, gpu_layers=0, prompt_tokens_per_s=7100.0, rounds=3)
    _found(terminal, tmp_path / "frontier.json", point, run, "distance")
    shown = terminal.run("tune", "m", "--text", "/t").output
    assert all(word in shown for word in ("mean distance", "same nearest", "neighbours", "read/s", "1e-5 of distance"))
    assert all(word in shown.split() for word in ("0.00039", "93.75%", "97.50%", "7000.0", "7100.0"))
    assert "KLD" not in shown
    assert "KV cache" not in shown
    assert "perplexity" not in shown


def test_types_come_from_a_file_as_tune_writes_it(terminal: Terminal, tmp_path: Path) -> None:
    types = tmp_path / "mix.types.txt"
    types.write_text("^blk\\.0\\.attn_q\\.weight$=q5_k\n^token_embd\\.weight$=q6_k\n")
    terminal.run("quantize", "m", "-t", "Q8_0", "--tensor-types-file", str(types))
    assert terminal.steps[0].tensor_types == {
        r"^blk\.0\.attn_q\.weight$": "q5_k", r"^token_embd\.weight$": "q6_k"
    }  # fmt: skip


def test_a_file_of_types_may_have_comments_and_gaps(terminal: Terminal, tmp_path: Path) -> None:
    types = tmp_path / "mix.types.txt"
    types.write_text("# by hand\n\n  ffn=q4_k  # cheap\r\nattn=q5_k a#b=q6_k\n")
    terminal.run("quantize", "m", "--tensor-type", "ffn=q8_0", "--tensor-types-file", str(types))
    assert terminal.steps[0].tensor_types == {"ffn": "q4_k", "attn": "q5_k", "a#b": "q6_k"}


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ("ffn", ExitCode.USAGE),
        (b"\x00\xff", ExitCode.DATA),
        ("folder", ExitCode.DATA),
        ("none", ExitCode.NO_INPUT),
    ],
)
def test_types_that_cannot_be_read_are_an_error_like_any(
    terminal: Terminal, tmp_path: Path, content: str | bytes, code: ExitCode
) -> None:
    types = tmp_path / "types.txt"
    if content == "folder":
        types.mkdir()
    elif content != "none":
        types.write_bytes(content if isinstance(content, bytes) else content.encode())
    arguments = ("quantize", "m", "--tensor-types-file", str(types))
    told = terminal.run(*arguments)
    assert told.exit_code == code
    assert told.stderr.startswith("lathe: ")
    assert str(types) in told.stderr
    assert json.loads(terminal.run(*arguments, "--json").stdout)["error"]["exit"] == code
    assert terminal.run("quantize", "m", "--tensor-type", "ffn").exit_code == ExitCode.USAGE
    assert terminal.steps == []


def test_toolchains_are_listed_packed_and_removed_without_an_engine(tmp_path: Path) -> None:
    home = ["--home", str(tmp_path)]
    assert json.loads(CliRunner().invoke(cli, [*home, "toolchain", "list", "--json"]).stdout) == []
    missing = CliRunner().invoke(
        cli, [*home, "toolchain", "pack", "-o", str(tmp_path / "x.tar.gz"), "--version", "1.2"]
    )
    assert missing.exit_code == ExitCode.NO_INPUT
    assert "not installed" in missing.stderr
    assert CliRunner().invoke(cli, [*home, "toolchain", "remove", "1.2"]).exit_code == ExitCode.USAGE, "it asks"
    removed = CliRunner().invoke(cli, [*home, "toolchain", "remove", "../..", "--yes"])
    assert removed.exit_code == ExitCode.USAGE
    assert "is no version" in removed.stderr


def test_the_map_is_darker_where_it_is_dearer() -> None:
    lines = heat_map({"blk.0.a.weight": {"Q4_K": 1e-9}, "blk.0.b.weight": {"Q4_K": 1e-2}, "c": {"Q8_0": 1.0}}, None)
    assert lines[2].split() == ["a", "b"]
    assert lines[3].startswith("layer 0")
    assert "@@@ 1000.0" in lines[3]
    assert heat_map({}, None) == []
