"""Conversion beside llama.cpp's own converter: speed, peak memory, and the golden files of the tests.

    python benchmarks/convert.py [--megabytes 2048] [--runs 3]     time and memory on a synthetic Llama in bfloat16
    python benchmarks/convert.py --golden [--write]                compare, or write, tests/golden/convert/*.json

The official converter runs from LATHE_LLAMA_CPP with the Python of LATHE_CONVERT_PYTHON, which must have torch,
transformers and gguf. It refuses tokenizers whose fingerprint it does not know: there the benchmark tells it the name.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden" / "convert"
OUTTYPES = ("f16", "bf16", "q8_0")
sys.path.insert(0, str(ROOT / "tests"))

OUTPUTS = """
import json, sys
import torch, transformers
found = {}
for folder in sys.argv[1:]:
    config = json.load(open(folder + "/config.json"))
    architecture = config["architectures"][0]
    if not hasattr(transformers, architecture) or "vision_config" in config or architecture == "Gemma3TextModel":
        continue  # its code would come with it; only a part was converted; llama.cpp wants six layers of it
    maker = getattr(transformers, architecture)
    model = maker.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    tokens = [(7 + 37 * place) % config["vocab_size"] for place in range(16)]
    with torch.no_grad():
        result = model(torch.tensor([tokens]), attention_mask=torch.ones(1, 16, dtype=torch.long))
    if not hasattr(result, "logits"):
        row = result.last_hidden_state[0, 0]
    else:
        row = result.logits[0] if result.logits.ndim == 2 else result.logits[0, -1]
    best = row.topk(min(8, len(row)))
    values = [[int(place), round(float(value), 4)] for place, value in zip(best.indices, best.values)]
    found[folder.rsplit("/", 1)[1]] = {"tokens": tokens, "largest": values}
print(json.dumps(found))
"""
"""What transformers computes of each checkpoint: the largest values of the last (encoders: the first) position."""
PEAK = """
import os, re
with open("/proc/self/status") as status, open(os.environ["PEAK_FILE"], "w") as peak:
    peak.write(re.search(r"VmHWM:\\s*(\\d+)", status.read())[1])
"""
"""At a child's end: its own peak, which `ru_maxrss` would mix with that of the process that started it (Linux)."""
OFFICIAL = (
    """
import os, runpy, sys
source = os.environ["LATHE_LLAMA_CPP"]
sys.path.insert(0, source)
from conversion import base
base.TextModel.get_vocab_base_pre = lambda self, tokenizer: os.environ["PRE"]
sys.argv = ["convert_hf_to_gguf.py", *sys.argv[1:]]
runpy.run_path(os.path.join(source, "convert_hf_to_gguf.py"), run_name="__main__")
"""
    + PEAK
)
OURS = (
    """
import sys
from pathlib import Path
from lathe.quantize.convert import convert_checkpoint
convert_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]), outtype=sys.argv[3], force=True)
"""
    + PEAK
)


def run(command: list[str], pre: str = "default") -> tuple[float, int]:
    """Run a child; return seconds and its peak resident bytes."""
    with tempfile.NamedTemporaryFile() as peak:
        environment = os.environ | {"PRE": pre, "HF_HUB_OFFLINE": "1", "PEAK_FILE": peak.name}
        began = time.monotonic()
        done = subprocess.run(command, env=environment, capture_output=True, check=False)
        seconds = time.monotonic() - began
        if done.returncode:
            raise SystemExit(done.stderr.decode()[-2000:])
        return seconds, int(peak.read()) * 1024


def official(source: Path, output: Path, outtype: str, pre: str = "default") -> tuple[float, int]:
    """Convert with llama.cpp's converter."""
    python = os.environ["LATHE_CONVERT_PYTHON"]
    return run([python, "-c", OFFICIAL, str(source), "--outfile", str(output), "--outtype", outtype], pre)


def ours(source: Path, output: Path, outtype: str) -> tuple[float, int]:
    """Convert with Lathe."""
    return run([sys.executable, "-c", OURS, str(source), str(output), outtype])


def golden(write: bool, only: list[str]) -> int:
    """Derive the golden files from the official converter and transformers; report those that differ."""
    from lathe.engine.embedded import CHECKPOINT
    from support.families import RECIPES
    from support.gguf_digest import digest

    differing = 0
    with tempfile.TemporaryDirectory() as folder:
        sources = {name: recipe.write(Path(folder) / name) for name, recipe in RECIPES.items()}
        for name, source in (sources | {CHECKPOINT.name: CHECKPOINT}).items():
            if only and name not in only:
                continue
            found: dict[str, object] = {}
            for outtype in OUTTYPES if name in RECIPES else ("f16",):
                output = Path(folder) / f"{name}.gguf"
                official(source, output, outtype, "gpt-2" if name == CHECKPOINT.name else "default")
                result = digest(output)
                result["metadata"].pop("general.file_type")
                found.setdefault("metadata", result["metadata"])
                found[outtype] = result["tensors"]
            differing += _settle(name, _pretty(found), write)
        command = [os.environ["LATHE_CONVERT_PYTHON"], "-c", OUTPUTS, *map(str, sources.values())]
        done = subprocess.run(command, capture_output=True, check=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
        differing += _settle("outputs", _pretty({"outputs": json.loads(done.stdout)}), write)
    return 0 if write else min(differing, 1)


def _settle(name: str, text: str, write: bool) -> bool:
    """Compare a golden file with what was found, or replace it; return whether they differed."""
    path = GOLDEN / f"{name}.json"
    same = path.is_file() and path.read_text() == text
    if write:
        path.write_text(text)
    print(f"{name:14} {'same' if same else 'written' if write else 'DIFFERENT'}", flush=True)
    return not same


def _pretty(found: dict[str, object]) -> str:
    """One line per fact, so that a change can be read."""
    parts = []
    for part, facts in found.items():
        assert isinstance(facts, dict)
        lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in sorted(facts.items()))
        parts.append(f" {json.dumps(part)}: {{\n{lines}\n }}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def synthetic(folder: Path, megabytes: int) -> Path:
    """Write a Llama of random bfloat16 weights, a shard per four layers."""
    from support.families import RECIPES

    width, feed, heads, vocabulary = 2048, 8192, 32, 32_000
    per_layer = 2 * (4 * width * width + 3 * width * feed)
    layers = max(1, ((megabytes << 20) - 4 * vocabulary * width) // per_layer)
    recipe = RECIPES["llama3"]
    config = dict(recipe.config) | {
        "hidden_size": width,
        "intermediate_size": feed,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": width // heads,
        "vocab_size": vocabulary,
        "tie_word_embeddings": False,
    }
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, width),
        "lm_head.weight": (vocabulary, width),
        "model.norm.weight": (width,),
    }
    for layer in range(layers):
        base = f"model.layers.{layer}"
        shapes |= {f"{base}.self_attn.{part}_proj.weight": (width, width) for part in "qkvo"}
        shapes |= {f"{base}.mlp.{part}_proj.weight": (feed, width) for part in ("gate", "up")}
        shapes[f"{base}.mlp.down_proj.weight"] = (width, feed)
        shapes |= {f"{base}.{name}_layernorm.weight": (width,) for name in ("input", "post_attention")}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    for name, content in recipe.files().items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    header: dict[str, object] = {}
    offset = 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    random = np.random.default_rng(0)
    with (folder / "model.safetensors").open("wb") as file:
        text = json.dumps(header).encode()
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            values = random.standard_normal(int(np.prod(shape)), np.float32) * np.float32(0.02)
            file.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())
    return folder


def speed(megabytes: int, runs: int) -> int:
    """Print time and peak memory of both converters, alternating."""
    from support.gguf_digest import digest

    compare = "LATHE_LLAMA_CPP" in os.environ and "LATHE_CONVERT_PYTHON" in os.environ
    if not compare:
        print("(the official converter is left out: set LATHE_LLAMA_CPP and LATHE_CONVERT_PYTHON)")
    with tempfile.TemporaryDirectory() as folder:
        source = synthetic(Path(folder) / "synthetic", megabytes)
        size = sum(path.stat().st_size for path in source.iterdir())
        print("| type | converter | seconds | MB/s | peak RSS MB | ratio of medians |\n|---|---|---|---|---|---|")
        for outtype in ("bf16", "f16", "q8_0"):
            mine, theirs = Path(folder) / "ours.gguf", Path(folder) / "official.gguf"
            times: dict[str, list[tuple[float, int]]] = {"lathe": [], "llama.cpp": []}
            for _ in range(runs):
                times["lathe"].append(ours(source, mine, outtype))
                if compare:
                    times["llama.cpp"].append(official(source, theirs, outtype, "llama-bpe"))
            medians = {name: statistics.median(run[0] for run in found) for name, found in times.items() if found}
            for name, found in times.items():
                if found:
                    peak = max(run[1] for run in found)
                    ratio = f"{medians['llama.cpp'] / medians['lathe']:.1f}x" if compare and name == "lathe" else ""
                    rate = size / medians[name] / 1e6
                    print(f"| {outtype} | {name} | {medians[name]:.2f} | {rate:.0f} | {peak / 1e6:.0f} | {ratio} |")
            if compare and digest(mine)["tensors"] != digest(theirs)["tensors"]:
                raise SystemExit(f"the two converters differ at {outtype}")
    return 0


def main() -> int:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--golden", action="store_true")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="golden files to look at")
    parser.add_argument("--megabytes", type=int, default=2048)
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    return golden(given.write, given.only) if given.golden else speed(given.megabytes, given.runs)


if __name__ == "__main__":
    sys.exit(main())
