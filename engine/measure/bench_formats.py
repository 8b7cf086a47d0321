"""Benchmark rows as text, in llama-bench's formats: md, json, jsonl, csv, sql.

Pure. Invariant: the same row gives the same bytes as llama-bench prints for it, so that its readers read ours.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import msgspec
from lathe.engine.errors import UsageError
from lathe.engine.measure.bench_rows import BenchRow, Field

_INTEGERS = {
    "build_number", "n_batch", "n_ubatch", "n_threads", "poll", "model_size", "model_n_params", "n_gpu_layers",
    "main_gpu", "n_prompt", "n_gen", "n_depth", "avg_ns", "stddev_ns", "no_op_offload", "n_cpu_moe", "fit_target",
    "fit_min_ctx", "flash_attn", "n_parallel",
}  # fmt: skip
_BOOLS = {"no_kv_offload", "cpu_strict", "embeddings", "no_host", "repack"}
_FLOATS = {"avg_ts", "stddev_ts"}

_WIDTHS = {
    "model": -30, "t/s": 20, "size": 10, "params": 10, "n_gpu_layers": 3, "n_threads": 7, "n_batch": 7, "n_ubatch": 8,
    "type_k": 6, "type_v": 6, "split_mode": 6, "load_mode": 10, "flash_attn": 3, "devices": -12, "test": 15,
    "no_op_offload": 4, "no_host": 4, "repack": 3,
}  # fmt: skip
"""Of Markdown columns; negative is left-aligned."""
_TITLES = {
    "n_gpu_layers": "ngl", "split_mode": "sm", "n_threads": "threads", "no_kv_offload": "nkvo", "flash_attn": "fa",
    "load_mode": "lm", "embeddings": "embd", "no_op_offload": "nopo", "no_host": "noh", "repack": "rpk",
    "devices": "dev", "tensor_split": "ts", "tensor_buft_overrides": "ot", "fit_target": "fitt", "fit_min_ctx": "fitc",
}  # fmt: skip
_WHEN_UNUSUAL = ("n_cpu_moe", "poll", "n_batch", "n_ubatch", "type_k", "type_v", "main_gpu", "split_mode",
                 "no_kv_offload", "flash_attn", "devices", "tensor_split", "tensor_buft_overrides", "load_mode",
                 "lazy_mode", "embeddings", "no_op_offload", "no_host", "repack")  # fmt: skip
"""Columns of the Markdown table that appear where a value differs from llama-bench's default."""


def render(rows: Sequence[dict[str, Field]], style: str) -> str:
    """Write the rows of a bench job's outcome in one of `FORMATS`."""
    try:
        write = FORMATS[style]
    except KeyError:
        raise UsageError(f"no benchmark format {style!r}", hint=f"one of {', '.join(FORMATS)}") from None
    return write([BenchRow.from_flat(row) for row in rows])


def _json(rows: Sequence[BenchRow]) -> str:
    blocks = []
    for row in rows:
        lines = [f'    "{name}": {_json_value(name, value)}' for name, value in row.fields().items()]
        lines += [f'    "{name}": [ {values} ]' for name, values in _samples(row).items()]
        blocks.append("  {\n" + ",\n".join(lines) + "\n  }")
    return "[\n" + ",\n".join(blocks) + "\n]\n"


def _jsonl(rows: Sequence[BenchRow]) -> str:
    lines = []
    for row in rows:
        fields = "".join(f'"{name}": {_json_value(name, value)}, ' for name, value in row.fields().items())
        samples = ",".join(f'"{name}": [ {values} ]' for name, values in _samples(row).items())
        lines.append(f"{{{fields}{samples}}}\n")
    return "".join(lines)


def _csv(rows: Sequence[BenchRow]) -> str:
    lines = [",".join(rows[0].fields())] if rows else []
    for row in rows:
        cells = (_plain(value).replace('"', '""') for name, value in row.fields().items())
        lines.append(",".join(f'"{cell}"' for cell in cells))
    return "".join(f"{line}\n" for line in lines)


def _sql(rows: Sequence[BenchRow]) -> str:
    if not rows:
        return ""
    names = list(rows[0].fields())
    columns = ",\n".join(f"  {name} {_sql_type(name)}" for name in names)
    text = f"CREATE TABLE IF NOT EXISTS llama_bench (\n{columns}\n);\n\n"
    for row in rows:
        cells = (
            "NULL" if value is None else "'" + _plain(value).replace("'", "''") + "'"
            for name, value in row.fields().items()
        )
        text += f"INSERT INTO llama_bench ({', '.join(names)}) VALUES ({', '.join(cells)});\n"  # noqa: S608 - escaped
    return text


def _markdown(rows: Sequence[BenchRow]) -> str:
    columns = _columns(rows)
    head = "|" + "".join(f" {_aligned(_TITLES.get(name, name), _width(name))} |" for name in columns)
    rule = "|" + "".join(f" {'-' * (abs(_width(name)) - 1)}{':' if _width(name) > 0 else '-'} |" for name in columns)
    lines = [head, rule]
    lines += ["|" + "".join(f" {_aligned(_cell(row, name), _width(name))} |" for name in columns) for row in rows]
    build = f"{rows[0].build_commit} ({_plain(rows[0].build_number) or '?'})" if rows else "?"
    return "\n".join(lines) + f"\n\nbuild: {build}\n"


def _columns(rows: Sequence[BenchRow]) -> list[str]:
    on_cpu = all(row.backends == "CPU" for row in rows)
    columns = ["model", "size", "params", "backend"]
    columns += [] if on_cpu else ["n_gpu_layers"]
    columns += ["n_threads"] if on_cpu or len({row.n_threads for row in rows}) > 1 else []
    usual = {field.name: field.default for field in msgspec.structs.fields(BenchRow)}
    columns += [name for name in _WHEN_UNUSUAL if any(getattr(row, name) != usual[name] for row in rows)]
    return [*columns, "test", "t/s"]


def _cell(row: BenchRow, name: str) -> str:
    match name:
        case "model":
            return row.model_type
        case "size":
            gib = row.model_size / 1024**3
            return f"{gib:.2f} GiB" if gib >= 1 else f"{row.model_size / 1024**2:.2f} MiB"
        case "params":
            billions = row.model_n_params / 1e9
            return f"{billions:.2f} B" if billions >= 1 else f"{row.model_n_params / 1e6:.2f} M"
        case "backend":
            return row.backends
        case "test":
            return row.test
        case "t/s":
            return f"{row.avg_ts:.2f} ± {row.stddev_ts:.2f}"
        case _:
            return _plain(getattr(row, name))


def _aligned(text: str, width: int) -> str:
    return text.ljust(-width) if width < 0 else text.rjust(width)


def _width(name: str) -> int:
    if name in _WIDTHS:
        return _WIDTHS[name]
    width = max(len(name), 10)
    return width if name in _INTEGERS | _BOOLS | _FLOATS else -width


def _samples(row: BenchRow) -> dict[str, str]:
    return {
        "samples_ns": ", ".join(map(str, row.samples_ns)),
        "samples_ts": ", ".join(f"{sample:g}" for sample in row.samples_ts),
    }


def _json_value(name: str, value: Field) -> str:
    if value is None:
        return "null"
    if name in _BOOLS:
        return "true" if value else "false"
    if name in _INTEGERS | _FLOATS:
        return _plain(value)
    return json.dumps(str(value), ensure_ascii=False)


def _plain(value: Field) -> str:
    """A value as C++ prints it."""
    match value:
        case None:
            return ""
        case bool():
            return str(int(value))
        case float():
            return f"{value:f}"
        case _:
            return str(value)


def _sql_type(name: str) -> str:
    return "REAL" if name in _FLOATS else "INTEGER" if name in _INTEGERS | _BOOLS else "TEXT"


FORMATS: dict[str, Callable[[Sequence[BenchRow]], str]] = {
    "md": _markdown, "json": _json, "jsonl": _jsonl, "csv": _csv, "sql": _sql,
}  # fmt: skip
