"""One row of a benchmark: llama-bench's fields, in its order, so that rows of both can be read together.

Pure. Invariant: `BenchRow.fields()` has exactly llama-bench's names; what this build does not tell is `None`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

Field = str | int | float | bool | None


class BenchRow(msgspec.Struct, frozen=True, kw_only=True):
    """A test and its samples."""

    build_commit: str
    build_number: int | None = None
    cpu_info: str = ""
    gpu_info: str = ""
    backends: str = "CPU"
    model_filename: str
    model_type: str
    model_size: int
    model_n_params: int
    n_batch: int = 2048
    n_ubatch: int = 512
    n_threads: int
    cpu_mask: str = "0x0"
    cpu_strict: bool = False
    poll: int = 50
    type_k: str = "f16"
    type_v: str = "f16"
    n_gpu_layers: int = -1
    n_cpu_moe: int = 0
    split_mode: str = "layer"
    main_gpu: int = 0
    no_kv_offload: bool = False
    flash_attn: int = -1
    devices: str = "auto"
    tensor_split: str = "0.00"
    tensor_buft_overrides: str = "none"
    load_mode: str = "auto"
    lazy_mode: str = "auto"
    embeddings: bool = False
    no_op_offload: int = 0
    no_host: bool = False
    repack: bool = True
    fit_target: int = 0
    fit_min_ctx: int = 0
    n_prompt: int
    n_gen: int
    n_depth: int = 0
    n_parallel: int = 1
    """Sequences at once; llama-bench has no such field, so it is written only where it is not 1."""
    test_time: str
    """UTC, RFC 3339."""
    samples_ns: tuple[int, ...]
    """One per repetition."""

    @property
    def test(self) -> str:
        """`pp512`, `tg128`, `pp512+tg128`, with ` @ d1024` at a depth."""
        parts = ([f"pp{self.n_prompt}"] if self.n_prompt else []) + ([f"tg{self.n_gen}"] if self.n_gen else [])
        at_once = f" x{self.n_parallel}" if self.n_parallel > 1 else ""
        return "+".join(parts) + (f" @ d{self.n_depth}" if self.n_depth else "") + at_once

    @property
    def samples_ts(self) -> tuple[float, ...]:
        """Tokens per second of each repetition."""
        tokens = self.n_parallel * (self.n_prompt + self.n_gen)
        return tuple(1e9 * tokens / sample for sample in self.samples_ns)

    @property
    def avg_ts(self) -> float:
        """Mean tokens per second."""
        return sum(self.samples_ts) / len(self.samples_ts)

    @property
    def stddev_ts(self) -> float:
        """Sample standard deviation of the tokens per second."""
        return _deviation(self.samples_ts)

    def fields(self) -> dict[str, Field]:
        """Every field that llama-bench writes, but the samples."""
        left_out = {"samples_ns"} | ({"n_parallel"} if self.n_parallel == 1 else set())
        own: dict[str, Field] = {name: getattr(self, name) for name in self.__struct_fields__ if name not in left_out}
        return own | {
            "avg_ns": sum(self.samples_ns) // len(self.samples_ns),
            "stddev_ns": _deviation_ns(self.samples_ns),
            "avg_ts": self.avg_ts,
            "stddev_ts": self.stddev_ts,
        }

    def flat(self) -> dict[str, Field]:
        """As a job's result carries it: the samples as text."""
        return self.fields() | {"samples_ns": ", ".join(map(str, self.samples_ns))}

    @classmethod
    def from_flat(cls, row: dict[str, Field]) -> BenchRow:
        """Undo `flat`."""
        own = {name: row[name] for name in cls.__struct_fields__ if name in row}
        samples = tuple(int(sample) for sample in str(row["samples_ns"]).split(","))
        return msgspec.convert(own | {"samples_ns": samples}, cls)


def _deviation_ns(samples: Sequence[int]) -> int:
    """Sample standard deviation in llama-bench's integer arithmetic."""
    if len(samples) < 2:
        return 0
    count, mean = len(samples), sum(samples) // len(samples)
    squares = sum(sample * sample for sample in samples)
    return math.isqrt(max(0, squares // (count - 1) - mean * mean * count // (count - 1)))


def _deviation(values: Sequence[float]) -> float:
    """Sample standard deviation, in llama-bench's order of operations."""
    if len(values) < 2:
        return 0.0
    count, mean = len(values), sum(values) / len(values)
    squares = sum(value * value for value in values)
    return math.sqrt(max(0.0, squares / (count - 1) - mean * mean * count / (count - 1)))
