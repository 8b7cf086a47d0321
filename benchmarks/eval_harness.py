"""Log-likelihoods beside lm-evaluation-harness's own backends, on the same weights: agreement and speed.

Two peers: its Hugging Face backend (torch, float32), and its `gguf` backend driving llama-cpp-python's own server.
Items are multiple choice over names that the embedded model's training did not see, and held-out texts for the rolling
likelihood; all backends get the very same requests of the harness, in alternating rounds, and the best round of each
counts. Beside wall time stands the processor time of all processes of a side, which the machine's other work disturbs
least; the ratio is of that.

Needs lm_eval, torch, transformers and accelerate; for the server also fastapi, sse-starlette, starlette-context<0.4 and
pydantic-settings (`llama-cpp-python[server]`), without which that column is left out.

    python benchmarks/eval_harness.py [--items 100] [--texts 40] [--rounds 3] [--threads 1]
                                      [--shots 5] [--flash] [--no-server]
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import importlib.util
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
CONTEXT = 1024


def _requests(items: int, texts: int, shots: int) -> tuple[list[Any], list[Any], list[int]]:
    from lathe.engine.evals import suite
    from lathe.engine.evals.shipped import SHIPPED
    from lm_eval.api.instance import Instance

    loaded = suite.load(SHIPPED / "stdlib.yaml", limit=max(items, texts))
    choices, sizes = [], []
    asked = [item for item in loaded.items if item.kind == "choice"][:items]
    for item in asked:
        # Other examples for each item, as the harness draws them: no two items share their beginning.
        others = random.Random(item.case).sample([other for other in asked if other is not item], shots)
        solved = "".join(
            f"Q: {other.messages[0].content}\nA: {other.continuations[other.gold[0]]}\n\n" for other in others
        )
        context = f"{solved}Q: {item.messages[0].content}\nA:"
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


@contextlib.contextmanager
def _server(model: Path, options: argparse.Namespace) -> Iterator[Any]:
    """lm_eval's `gguf` backend on llama-cpp-python's server; None where that is not installed."""
    if not options.server:
        yield None
        return
    if any(importlib.util.find_spec(name) is None for name in ("fastapi", "sse_starlette", "starlette_context")):
        print("llama-cpp-python's server is not installed: its column is left out")
        yield None
        return
    from lm_eval.models.gguf import GGUFLM

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    threads = str(options.threads)
    command = [sys.executable, "-m", "llama_cpp.server", "--model", str(model), "--host", "127.0.0.1",
               "--port", str(port), "--n_ctx", str(CONTEXT), "--logits_all", "true", "--n_threads", threads,
               "--n_threads_batch", threads, "--verbose", "false"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(120):
            with contextlib.suppress(OSError):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                connection.request("GET", "/v1/models")
                connection.getresponse().read()
                break
            time.sleep(0.5)
        yield GGUFLM(base_url=f"http://127.0.0.1:{port}")
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    """Print agreement and speed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--texts", type=int, default=40)
    parser.add_argument("--shots", type=int, default=0, help="solved examples before each item")
    parser.add_argument("--flash", action="store_true", help="flash attention in Lathe")
    parser.add_argument("--no-server", dest="server", action="store_false", help="leave out llama-cpp-python's server")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of all; on a shared machine more wait for one another")
    options = parser.parse_args()
    import torch
    from lathe.engine.embedded import CHECKPOINT
    from lathe.engine.evals.harness import Bridge, make_lm
    from lathe.engine.paths import Home
    from lathe.engine.worker.messages import LoadOptions
    from lathe.quantize.convert import convert_checkpoint
    from lm_eval.models.huggingface import HFLM

    torch.set_num_threads(options.threads)
    choices, rolling, sizes = _requests(options.items, options.texts, options.shots)
    with tempfile.TemporaryDirectory() as folder:
        gguf = Path(folder) / "float32.gguf"
        convert_checkpoint(CHECKPOINT, gguf, outtype="f32")
        theirs = HFLM(pretrained=str(CHECKPOINT), dtype=torch.float32, device="cpu", batch_size=16, max_length=1023)
        with Bridge(Home(Path(folder) / "home")) as bridge, _server(gguf, options) as server:
            # llama.cpp's flash attention on CPU rounds to 16 bits, which costs two digits of agreement and saves time.
            chosen = LoadOptions(
                context=CONTEXT, slots=8, kv_type="f32", flash_attention=options.flash, threads=options.threads
            )
            ours = make_lm(bridge, str(gguf), chosen)
            times: dict[str, list[float]] = {}
            spent: dict[str, list[float]] = {}
            answers: dict[str, Any] = {}
            backends = {"lathe": ours, "hf": theirs} | ({"server": server} if server else {})
            for _ in range(options.rounds):
                for name, lm in backends.items():
                    for kind, work in (("choice", choices), ("rolling", rolling)):
                        if name == "server" and kind == "rolling":
                            continue  # the harness's gguf backend has none
                        began, before = time.perf_counter(), _processor_time()
                        method = lm.loglikelihood if kind == "choice" else lm.loglikelihood_rolling
                        answers[f"{name} {kind}"] = method(work)
                        times.setdefault(f"{name} {kind}", []).append(time.perf_counter() - began)
                        spent.setdefault(f"{name} {kind}", []).append(_processor_time() - before)
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
    print("\n| requests | through | s | processor s | requests per processor s | Lathe's beside it |")
    print("|---|---|---:|---:|---:|---:|")
    names = {"lathe": "Lathe", "hf": "lm_eval's HF backend", "server": "llama-cpp-python's server"}
    for kind, count in (("choice", len(choices)), ("rolling", len(rolling))):
        mine = min(spent[f"lathe {kind}"])
        for name, shown in names.items():
            if f"{name} {kind}" in times:
                wall, cpu = min(times[f"{name} {kind}"]), min(spent[f"{name} {kind}"])
                print(f"| {count} {kind} | {shown} | {wall:.2f} | {cpu:.2f} | {count / cpu:.1f} | {cpu / mine:.2f} x |")


def _processor_time() -> float:
    """Seconds that this process and its children have computed."""
    import psutil

    me = psutil.Process()
    total = 0.0
    for process in (me, *me.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            used = process.cpu_times()
            total += used.user + used.system
    return total


if __name__ == "__main__":
    main()
