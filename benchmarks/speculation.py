"""Guesses ahead: tokens per second without them, with prompt lookup, and with a draft model; one stream, greedy.

    python benchmarks/speculation.py [--layers 64] [--threads 1] [--rounds 5] [--tokens 128]

The target is the embedded model made deeper by layers that add nothing: it says the same and costs what a larger model
costs, so the draft (the embedded model itself) agrees as seldom or as often as a real pair would at its best. `code`
asks to repeat a text with small changes, `prose` for new text. The texts of all three ways must be equal.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import struct
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from _peers import embedded_model, table

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from lathe.engine.embedded import CHECKPOINT
from lathe.engine.generation import Sampling
from lathe.quantize.convert import convert_checkpoint
from lathe.quantize.safetensors import SafetensorsFile
from support.worker_child import WorkerChild, worker_child

PROMPTS = {
    "code": "".join(f"    parser.add_argument('--{name}', type=int, default=0, help='the {name}')\n"
                    for name in ("width", "height", "depth", "length", "count")),
    "prose": "The history of the library begins with",
}  # fmt: skip
_NOTHING = ("o_proj", "down_proj")
"""Matrices whose zeros make a layer pass its input on."""


def deeper(folder: Path, layers: int) -> Path:
    """The embedded checkpoint with so many layers, as GGUF F16."""
    source = folder / "checkpoint"
    shutil.copytree(CHECKPOINT, source)
    config = json.loads((CHECKPOINT / "config.json").read_text())
    known, config["num_hidden_layers"] = config["num_hidden_layers"], layers
    (source / "config.json").write_text(json.dumps(config))
    with SafetensorsFile(CHECKPOINT / "model.safetensors") as file:
        tensors = {name: np.asarray(file.read(name)) for name in file.tensors}
    first = {name: value for name, value in tensors.items() if name.startswith("model.layers.0.")}
    for layer in range(known, layers):
        for name, value in first.items():
            empty = any(part in name for part in _NOTHING)
            tensors[name.replace(".0.", f".{layer}.", 1)] = np.zeros_like(value) if empty else value
    header, offset = {}, 0
    for name, value in tensors.items():
        header[name] = {"dtype": "BF16", "shape": value.shape, "data_offsets": [offset, offset + value.nbytes]}
        offset += value.nbytes
    text = json.dumps(header).encode()
    with (source / "model.safetensors").open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for value in tensors.values():
            out.write(value.tobytes())
    return convert_checkpoint(source, folder / "deeper.gguf", outtype="f16").output


def timed(child: WorkerChild, prompt: str, tokens: int) -> tuple[float, str, float | None]:
    """Tokens per second after the first, the text, and which part of the guesses was right."""
    greedy = Sampling(temperature=0, ignore_eos=True)
    got = child.answer(child.generate(prompt=prompt, max_tokens=tokens, sampling=greedy))
    usage, timing = got.last.usage, got.last.timing
    assert usage is not None
    assert timing is not None
    right = usage.accepted_tokens / usage.draft_tokens if usage.draft_tokens else None
    return (tokens - 1) / timing.decode_s, got.text(), right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("layers", 64), ("threads", 1), ("rounds", 5), ("tokens", 128)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model, draft = deeper(folder, given.layers), embedded_model(folder)
        ways = {"plain": None, "lookup": "lookup", "draft model": str(draft)}
        speeds: dict[tuple[str, str], list[float]] = {}
        rights: dict[tuple[str, str], float | None] = {}
        texts: dict[str, set[str]] = {}
        options = {"threads": given.threads, "slots": 1, "context": 512}
        for _ in range(given.rounds):
            for way, named in ways.items():
                with worker_child(model, folder / "log", **options, draft=named) as child:
                    child.ready()
                    for kind, prompt in PROMPTS.items():
                        speed, text, right = timed(child, prompt, given.tokens)
                        speeds.setdefault((kind, way), []).append(speed)
                        rights[kind, way] = right
                        texts.setdefault(kind, set()).add(text)
                time.sleep(0.2)
        rows = []
        for (kind, way), samples in sorted(speeds.items(), key=lambda one: (one[0][0], list(ways).index(one[0][1]))):
            middle, right = statistics.median(samples), rights[kind, way]
            plain = statistics.median(speeds[kind, "plain"])
            rows.append(
                (kind, way, f"{middle:.1f}", f"{middle / plain:.2f}x", "-" if right is None else f"{right:.0%}")
            )
        table(("text", "way", "tokens/s", "beside plain", "guesses right"), rows)
        print("texts equal:", all(len(found) == 1 for found in texts.values()))


if __name__ == "__main__":
    main()
