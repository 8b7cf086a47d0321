"""Log-likelihoods beside lm-evaluation-harness's Hugging Face backend: agreement and speed, on the same weights.

Needs lm_eval, torch, transformers and accelerate. Items are multiple choice over names that the embedded model's
training did not see, and held-out texts for the rolling likelihood; both backends get the very same requests, in
alternating rounds, and the best round of each counts: the machine's other work disturbs both alike.

    python benchmarks/eval_harness.py [--items 100] [--rounds 3]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


def _requests(items: int, texts: int) -> tuple[list[Any], list[Any], list[int]]:
    from lathe.engine.evals import suite
    from lathe.engine.evals.shipped import SHIPPED
    from lm_eval.api.instance import Instance

    loaded = suite.load(SHIPPED / "stdlib.yaml", limit=max(items, texts))
    choices, sizes = [], []
    for item in [item for item in loaded.items if item.kind == "choice"][:items]:
        context = f"Q: {item.messages[0].content}\nA:"
        sizes.append(len(item.continuations))
        for index, text in enumerate(item.continuations):
            choices.append(
                Instance(request_type="loglikelihood", doc={}, arguments=(context, f" {text}"), idx=index,
                         metadata=(None, None, None))
            )  # fmt: skip
    rolling = [
        Instance(request_type="loglikelihood_rolling", doc={}, arguments=(item.context,), idx=0,
                 metadata=(None, None, None))
        for item in [item for item in loaded.items if item.kind == "perplexity"][:texts]
    ]  # fmt: skip
    return choices, rolling, sizes


def _best(likelihoods: list[float], sizes: list[int]) -> list[int]:
    found, start = [], 0
    for size in sizes:
        part = likelihoods[start : start + size]
        found.append(part.index(max(part)))
        start += size
    return found


def main() -> None:
    """Print agreement and speed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--texts", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of both; on a shared machine more wait for one another")
    options = parser.parse_args()
    import torch
    from lathe.engine.embedded import CHECKPOINT
    from lathe.engine.evals.harness import Bridge, make_lm
    from lathe.engine.paths import Home
    from lathe.engine.worker.messages import LoadOptions
    from lathe.quantize.convert import convert_checkpoint
    from lm_eval.models.huggingface import HFLM

    torch.set_num_threads(options.threads)
    choices, rolling, sizes = _requests(options.items, options.texts)
    with tempfile.TemporaryDirectory() as folder:
        gguf = Path(folder) / "float32.gguf"
        convert_checkpoint(CHECKPOINT, gguf, outtype="f32")
        theirs = HFLM(pretrained=str(CHECKPOINT), dtype=torch.float32, device="cpu", batch_size=16, max_length=1023)
        with Bridge(Home(Path(folder) / "home")) as bridge:
            # llama.cpp's flash attention on CPU rounds to 16 bits, which costs two digits of agreement.
            exact = LoadOptions(context=1024, slots=8, kv_type="f32", flash_attention=False, threads=options.threads)
            ours = make_lm(bridge, str(gguf), exact)
            times: dict[str, list[float]] = {}
            answers: dict[str, Any] = {}
            for _ in range(options.rounds):
                for name, lm in (("lathe", ours), ("hf", theirs)):
                    for kind, work in (("choice", choices), ("rolling", rolling)):
                        began = time.perf_counter()
                        method = lm.loglikelihood if kind == "choice" else lm.loglikelihood_rolling
                        answers[f"{name} {kind}"] = method(work)
                        times.setdefault(f"{name} {kind}", []).append(time.perf_counter() - began)
    our = [value for value, _ in answers["lathe choice"]]
    their = [value for value, _ in answers["hf choice"]]
    same = sum(a == b for a, b in zip(_best(our, sizes), _best(their, sizes), strict=True))
    greedy = sum(a[1] == b[1] for a, b in zip(answers["lathe choice"], answers["hf choice"], strict=True))
    choice_gap = max(abs(a - b) for a, b in zip(our, their, strict=True))
    roll_gap = max(abs(a - b) for a, b in zip(answers["lathe rolling"], answers["hf rolling"], strict=True))
    print("| compared with lm_eval's HF backend (float32) | |\n|---|---:|")
    print(f"| same choice | {same} of {len(sizes)} |")
    print(f"| same greedy flag | {greedy} of {len(choices)} |")
    print(f"| largest difference of a choice's log-probability | {choice_gap:.2e} |")
    print(f"| largest difference of a text's log-probability | {roll_gap:.2e} |")
    print("\n| items | Lathe s | HF s | Lathe items/s | ratio |\n|---|---:|---:|---:|---:|")
    for kind, count in (("choice", len(choices)), ("rolling", len(rolling))):
        mine, other = min(times[f"lathe {kind}"]), min(times[f"hf {kind}"])
        print(f"| {count} {kind} | {mine:.2f} | {other:.2f} | {count / mine:.1f} | {other / mine:.2f} |")


if __name__ == "__main__":
    main()
