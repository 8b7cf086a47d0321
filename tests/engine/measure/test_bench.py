"""Bench: llama-bench's tests in its order, its rows in its formats, real timings on the embedded model."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
from pathlib import Path

import msgspec
import pytest
from lathe.engine.errors import UsageError
from lathe.engine.measure.bench import BenchOptions, bench, planned
from lathe.engine.measure.bench_formats import FORMATS, render
from lathe.engine.measure.bench_rows import BenchRow
from lathe.engine.native.devices import commit, devices

LLAMA_BENCH_FIELDS = [
    "build_commit",
    "build_number",
    "cpu_info",
    "gpu_info",
    "backends",
    "model_filename",
    "model_type",
    "model_size",
    "model_n_params",
    "n_batch",
    "n_ubatch",
    "n_threads",
    "cpu_mask",
    "cpu_strict",
    "poll",
    "type_k",
    "type_v",
    "n_gpu_layers",
    "n_cpu_moe",
    "split_mode",
    "main_gpu",
    "no_kv_offload",
    "flash_attn",
    "devices",
    "tensor_split",
    "tensor_buft_overrides",
    "load_mode",
    "lazy_mode",
    "embeddings",
    "no_op_offload",
    "no_host",
    "repack",
    "fit_target",
    "fit_min_ctx",
    "n_prompt",
    "n_gen",
    "n_depth",
    "test_time",
    "avg_ns",
    "stddev_ns",
    "avg_ts",
    "stddev_ts",
]

ROW = BenchRow(
    build_commit="0c1e570", build_number=1, cpu_info='A "fast" CPU', model_filename="it's.gguf",
    model_type="llama 8B Q4_K - Medium", model_size=4_912_898_304, model_n_params=8_030_261_312, n_threads=2,
    n_prompt=512, n_gen=0, test_time="2026-01-02T03:04:05Z", samples_ns=(2_000_000_000, 2_500_000_001, 2_100_000_000),
)  # fmt: skip
DEEP = msgspec.structs.replace(ROW, n_prompt=64, n_gen=16, n_depth=128, type_k="q8_0", samples_ns=(10_000_000,))


def flat(*rows: BenchRow) -> list[dict[str, str | int | float | bool | None]]:
    return [row.flat() for row in rows]


def test_the_fields_are_those_of_llama_bench() -> None:
    assert list(ROW.fields()) == LLAMA_BENCH_FIELDS


def test_averages_are_computed_as_llama_bench_does() -> None:
    fields = ROW.fields()
    assert fields["avg_ns"] == 2_200_000_000
    assert fields["stddev_ns"] == 264_575_135
    assert fields["avg_ts"] == pytest.approx((256 + 512 / 2.500000001 + 512 / 2.1) / 3)
    assert fields["stddev_ts"] == pytest.approx(26.75, abs=5e-3)
    assert (DEEP.fields()["stddev_ns"], DEEP.fields()["stddev_ts"]) == (0, 0.0)


def test_rows_survive_a_job_outcome() -> None:
    assert [BenchRow.from_flat(row) for row in flat(ROW, DEEP)] == [ROW, DEEP]


def test_markdown_is_the_table_people_paste() -> None:
    assert render(flat(ROW, DEEP), "md") == (
        "| model                          |       size |     params | backend    | threads | type_k |"
        "            test |                  t/s |\n"
        "| ------------------------------ | ---------: | ---------: | ---------- | ------: | -----: |"
        " --------------: | -------------------: |\n"
        "| llama 8B Q4_K - Medium         |   4.58 GiB |     8.03 B | CPU        |       2 |    f16 |"
        "           pp512 |       234.87 ± 26.75 |\n"
        "| llama 8B Q4_K - Medium         |   4.58 GiB |     8.03 B | CPU        |       2 |   q8_0 |"
        " pp64+tg16 @ d128 |       8000.00 ± 0.00 |\n"
        "\nbuild: 0c1e570 (1)\n"
    )


def test_json_has_types_and_samples() -> None:
    first, second = json.loads(render(flat(ROW, DEEP), "json"))
    assert list(first) == [*LLAMA_BENCH_FIELDS, "samples_ns", "samples_ts"]
    assert (first["cpu_strict"], first["repack"], first["n_batch"]) == (False, True, 2048)
    assert first["samples_ns"] == [2_000_000_000, 2_500_000_001, 2_100_000_000]
    assert first["cpu_info"] == 'A "fast" CPU'
    assert second["samples_ts"] == [8000.0]
    lines = render(flat(ROW, DEEP), "jsonl").splitlines()
    assert [json.loads(line) for line in lines] == [first, second]
    assert '"samples_ns": [ 10000000 ],"samples_ts": [ 8000 ]}' in lines[1]


def test_csv_and_sql_are_read_back_by_their_own_readers() -> None:
    rows = list(csv.DictReader(io.StringIO(render(flat(ROW), "csv"))))
    assert list(rows[0]) == LLAMA_BENCH_FIELDS
    assert (rows[0]["cpu_info"], rows[0]["avg_ns"], rows[0]["repack"]) == ('A "fast" CPU', "2200000000", "1")
    database = sqlite3.connect(":memory:")
    database.executescript(render(flat(ROW, msgspec.structs.replace(DEEP, build_number=None)), "sql"))
    found = database.execute(
        "select model_filename, n_prompt, typeof(avg_ts), build_number from llama_bench"
    ).fetchall()
    database.close()
    assert found == [("it's.gguf", 512, "real", 1), ("it's.gguf", 64, "real", None)]


def test_an_unknown_format_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match="xml") as caught:
        render([], "xml")
    assert "jsonl" in caught.value.hint
    assert set(FORMATS) == {"md", "json", "jsonl", "csv", "sql"}


def test_tests_come_in_llama_benchs_order_and_empty_ones_not_at_all() -> None:
    options = BenchOptions(
        prompt_tokens=(0, 16), generate_tokens=(4,), pairs=((8, 2),), depths=(0, 32), kv_types=("f16", "q8_0"),
        threads=(1,),
    )  # fmt: skip
    listed = [(test.kv_type, test.n_depth, test.n_prompt, test.n_gen) for test in planned(options)]
    assert listed == [
        (kind, depth, *pair) for kind in ("f16", "q8_0") for depth in (0, 32) for pair in ((16, 0), (0, 4), (8, 2))
    ]


@pytest.mark.native
def test_a_real_run_has_a_row_per_test_with_every_sample(embedded_gguf: Path) -> None:
    heard: list[tuple[str, int, int]] = []
    options = BenchOptions(
        prompt_tokens=(40,), generate_tokens=(3,), depths=(0, 33), n_batch=16, n_ubatch=16, threads=(1,), repetitions=2
    )
    result = bench(embedded_gguf, options, lambda *said: heard.append(said))
    assert [row.test for row in result.rows] == ["pp40", "tg3", "pp40 @ d33", "tg3 @ d33"]
    assert all(len(row.samples_ns) == 2 and min(row.samples_ns) > 0 for row in result.rows)
    assert heard == [(row.test, 2 * n + k, 8) for n, row in enumerate(result.rows) for k in (1, 2)]
    row = result.rows[0]
    assert (row.model_type, row.model_n_params, row.n_threads) == ("llama ?B F16", 4_196_608, 1)
    assert row.build_commit == commit() != ""
    assert result.load_s > 0


@pytest.mark.native
def test_the_processor_is_among_the_devices() -> None:
    assert any(device.kind == "cpu" and device.description for device in devices())
