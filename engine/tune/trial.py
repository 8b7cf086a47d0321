"""One way to run one file, timed in a process of its own: `python -m lathe.engine.tune.trial`.

Invariant: the peak memory reported is of a process that did nothing but load the file and run it, and a way that
makes llama.cpp crash costs that way alone.
"""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path

import msgspec


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """How a file is run."""

    kv_type: str = "f16"
    """Empty where there is no KV cache."""
    threads: int
    batch: int = 512
    """Tokens computed together when a prompt or texts are read."""
    gpu_layers: int = 0


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """What to time."""

    files: tuple[str, ...]
    """In the order of the shards."""
    way: Way
    prompt_tokens: int
    generate_tokens: int
    text_tokens: int = 0
    """Of each text that an embedder reads; 0: prompt and generation."""
    repetitions: int = 3


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """What came out."""

    prompt_tokens_per_s: float
    """Or of texts, where nothing is generated."""
    tokens_per_s: float | None
    load_s: float
    peak_bytes: int
    """Main memory of the process at its highest."""


def run(trial: Trial) -> Timing:
    """Time a way in a process of its own; raises CrashedError where it crashes."""
    from lathe.engine.jobs.helper import ask

    return ask(__name__, trial, Timing, role=f"the trial of {Path(trial.files[0]).name}")


def _measure(trial: Trial) -> Timing:
    import time

    from lathe.engine.measure.bench import BenchOptions, time_model
    from lathe.engine.native.llama import LlamaModel

    way, files = trial.way, [Path(file) for file in trial.files]
    options = BenchOptions(
        prompt_tokens=(trial.prompt_tokens,),
        generate_tokens=(trial.generate_tokens,),
        n_batch=way.batch,
        n_ubatch=way.batch,
        kv_types=(way.kv_type,),
        threads=(way.threads,),
        repetitions=trial.repetitions,
        gpu_layers=way.gpu_layers,
        text_tokens=trial.text_tokens,
    )
    started = time.monotonic()
    with LlamaModel(files[0], gpu_layers=way.gpu_layers, shards=files if len(files) > 1 else ()) as model:
        load_s = time.monotonic() - started
        prompt, *generation = time_model(model, options)
    return Timing(
        prompt_tokens_per_s=prompt.avg_ts,
        tokens_per_s=generation[0].avg_ts if generation else None,
        load_s=load_s,
        peak_bytes=_peak_bytes(),
    )


def _peak_bytes() -> int:
    """Linux keeps `ru_maxrss` over exec, so it may be the parent's; VmHWM is this process's own."""
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s*(\d+)", status.read_text())):
        return int(found[1]) * 1024
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest if sys.platform == "darwin" else highest * 1024


if __name__ == "__main__":
    from lathe.engine.jobs import helper

    helper.serve(Trial, _measure)
