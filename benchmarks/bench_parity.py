"""`lathe bench` beside llama-bench: the same tests on the same file in turns, tokens per second of each.

    python benchmarks/bench_parity.py [--prompt 256] [--generate 64] [--rounds 7] [--threads 1] [MODEL...]

Each round runs both tools once with their own warm-up; the ratio is that of the medians. With `--processor-time` the
processor milliseconds of one repetition are compared instead (a run of many repetitions less a run of one), which other
work on the machine disturbs least.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from _peers import embedded_model, peer, run, table
from lathe.engine.measure.bench import BenchOptions, bench
from lathe.engine.native import tiles
from lathe.quantize.plan import QuantizeOptions
from lathe.quantize.quantizer import quantize_gguf


def main() -> None:
    """Print one row per model and test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--generate", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--processor-time", action="store_true")
    arguments = parser.parse_args()
    if (tool := peer("llama-bench")) is None:
        return
    with tempfile.TemporaryDirectory() as name:
        if arguments.processor_time:
            _processor_time(arguments, arguments.models or _variants(Path(name)), tool)
            return
        rows = []
        for model in arguments.models or _variants(Path(name)):
            ours: dict[str, list[float]] = {}
            theirs: dict[str, list[float]] = {}
            for _ in range(arguments.rounds):
                _collect(ours, _ours(model, arguments))
                _collect(theirs, _theirs(model, arguments, tool))
            for test, samples in ours.items():
                mine, peers = statistics.median(samples), statistics.median(theirs[test])
                rows.append((model.stem, test, f"{mine:.1f}", f"{peers:.1f}", f"{mine / peers:.3f}"))
        table(("model", "test", "lathe, tokens/s", "llama-bench, tokens/s", "ratio"), rows)


_OURS = """\
import sys
from pathlib import Path
from lathe.engine.measure.bench import BenchOptions, bench
prompt, generate, threads, repetitions = map(int, sys.argv[2:])
bench(Path(sys.argv[1]), BenchOptions(
    prompt_tokens=(prompt,), generate_tokens=(generate,), threads=(threads,), repetitions=repetitions))
"""
_REPETITIONS = 30


def _processor_time(arguments: argparse.Namespace, models: list[Path], tool: Path) -> None:
    """Print processor milliseconds of one repetition."""
    rows = []
    for model in models:
        for prompt, generate in ((arguments.prompt, 0), (0, arguments.generate)):
            numbers = [str(prompt), str(generate), str(arguments.threads)]
            ours = [sys.executable, "-c", _OURS, str(model), *numbers]
            theirs = [str(tool), "-m", str(model), "-p", numbers[0], "-n", numbers[1], "-t", numbers[2], "--repack",
                      str(int(tiles.work())), "-r"]  # fmt: skip
            pairs = [(_one(ours), _one(theirs)) for _ in range(arguments.rounds)]
            mine, peers = (statistics.median(side) for side in zip(*pairs, strict=True))
            test = f"pp{prompt}" if prompt else f"tg{generate}"
            rows.append((model.stem, test, f"{mine:.2f}", f"{peers:.2f}", f"{peers / mine:.3f}"))
    table(("model", "test", "lathe, processor ms", "llama-bench, processor ms", "speed"), rows)


def _one(command: list[str]) -> float:
    many, one = (_used([*command, str(count)]) for count in (_REPETITIONS + 1, 1))
    return 1000 * (many - one) / _REPETITIONS


def _used(command: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _variants(folder: Path) -> list[Path]:
    source = embedded_model(folder)
    quantized = folder / "stdlib-4m-Q4_K_M.gguf"
    quantize_gguf(source, quantized, QuantizeOptions(type="Q4_K_M"))
    return [source, quantized]


def _ours(model: Path, arguments: argparse.Namespace) -> dict[str, list[float]]:
    options = BenchOptions(
        prompt_tokens=(arguments.prompt,),
        generate_tokens=(arguments.generate,),
        threads=(arguments.threads,),
        repetitions=3,
    )
    return {row.test: list(row.samples_ts) for row in bench(model, options).rows}


def _theirs(model: Path, arguments: argparse.Namespace, tool: Path) -> dict[str, list[float]]:
    # both sides compute with the same kernels: without repacking where this build's tiles are broken
    done = run([tool, "-m", model, "-p", str(arguments.prompt), "-n", str(arguments.generate), "-r", "3",
                "-t", str(arguments.threads), "--repack", str(int(tiles.work())), "-o", "json"])  # fmt: skip
    rows = json.loads(done.stdout)
    return {f"pp{row['n_prompt']}" if row["n_prompt"] else f"tg{row['n_gen']}": row["samples_ts"] for row in rows}


def _collect(into: dict[str, list[float]], samples: dict[str, list[float]]) -> None:
    for test, values in samples.items():
        into.setdefault(test, []).extend(values)


if __name__ == "__main__":
    main()
