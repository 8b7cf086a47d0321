"""lm-evaluation-harness's own command against a running `lathe serve`: log-likelihood tasks over echo and logprobs.

The task is the embedded suite's multiple choice, written as a task of the harness; `lathe eval` runs the same items in
process. Both must come to the same accuracies: what travels over HTTP is what the model computed. llama-server refuses
`echo`, so there is no such column for it.

Needs lm_eval with its `api` extra in the environment that runs this.

    python benchmarks/http_lm_eval.py MODEL.gguf [--items 200] [--concurrent 4]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OPENAI_API_KEY": "none"}
TASK = """\
task: stdlib_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
target_delimiter: ""
metric_list:
  - {{metric: acc}}
  - {{metric: acc_norm}}
"""


def write_task(folder: Path, items: int) -> None:
    """The suite's multiple choice as a task of the harness."""
    from lathe.engine.evals import suite
    from lathe.engine.evals.shipped import SHIPPED

    loaded = suite.load(SHIPPED / "stdlib.yaml", limit=items)
    rows = [
        {
            "question": f"Q: {item.messages[0].content}\nA:",
            "choices": [f" {text}" for text in item.continuations],
            "gold": item.gold[0],
        }
        for item in loaded.items
        if item.kind == "choice"
    ][:items]
    data = folder / "items.json"
    data.write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    (folder / "stdlib_choice.yaml").write_text(TASK.format(data=data), "utf-8")


@contextlib.contextmanager
def served(model: Path, home: Path) -> Iterator[str]:
    """A server for the model; yields its base URL."""
    lathe = [sys.executable, "-m", "lathe.tui.main", "--home", str(home)]
    command = [*lathe, "serve", str(model), "--port", "0", "--no-token", "--threads", "1", "--detach", "--json"]
    made = subprocess.run(command, check=True, capture_output=True, text=True)
    try:
        yield json.loads(made.stdout)["server"]["url"]
    finally:
        subprocess.run([*lathe, "engine", "stop"], check=False, capture_output=True)


def in_process(folder: Path, url: str, name: str) -> tuple[float, float, float]:
    """Accuracies over `/v1/score`, one request an item: what the model says without the harness between."""
    import httpx2

    right = right_norm = 0
    rows = [json.loads(line) for line in (folder / "items.json").read_text("utf-8").splitlines()]
    began = time.perf_counter()
    with httpx2.Client(base_url=url, timeout=60) as client:
        for row in rows:
            body = {"model": name, "context": row["question"], "continuations": row["choices"]}
            scores = [score["logprob"] for score in client.post("/v1/score", json=body).json()["data"]]
            lengths = [len(text) for text in row["choices"]]
            best = max(range(len(scores)), key=scores.__getitem__)
            norm = max(range(len(scores)), key=lambda place: scores[place] / lengths[place])
            right += best == row["gold"]
            right_norm += norm == row["gold"]
    return right / len(rows), right_norm / len(rows), time.perf_counter() - began


def main() -> None:
    """Run both and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--concurrent", type=int, default=4)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_task(folder, given.items)
        with served(given.model.absolute(), folder / "home") as url:
            import httpx2

            name = httpx2.get(f"{url}/v1/models").json()["data"][0]["id"]
            arguments = (
                f"model={name},base_url={url}/v1/completions,tokenizer_backend=remote,"
                f"num_concurrent={given.concurrent},max_retries=1"
            )
            out = folder / "out"
            began = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "lm_eval", "--model", "local-completions", "--model_args", arguments, "--tasks",
                 "stdlib_choice", "--include_path", str(folder), "--output_path", str(out)],
                check=True, stdout=sys.stderr,
            )  # fmt: skip
            seconds = time.perf_counter() - began
            (report,) = out.rglob("results_*.json")
            found = json.loads(report.read_text("utf-8"))["results"]["stdlib_choice"]
            acc, acc_norm, own_seconds = in_process(folder, url, name)
    print("| way | acc | acc_norm | seconds |\n|---|---|---|---|")
    print(
        f"| `lm_eval --model local-completions` (echo and logprobs) | {found['acc,none']:.4f} | "
        f"{found['acc_norm,none']:.4f} | {seconds:.1f}, start included |"
    )
    print(f"| `/v1/score`, one request an item | {acc:.4f} | {acc_norm:.4f} | {own_seconds:.1f} |")


if __name__ == "__main__":
    main()
