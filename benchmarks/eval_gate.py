"""Does the default gate stop a damaged quant, and let an identical pair pass?

The embedded model at F16 is the baseline. Asked of the gate: Q8_0 (sound), Q8_0 with one layer at Q2_K without an
importance matrix (damaged, each layer in turn), and the baseline's own questions again, many times, nothing cached.

    python benchmarks/eval_gate.py [--limit 300] [--repeats 100] [--repeat-limit 4]
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

from lathe.engine.connect import open_workbench
from lathe.engine.embedded import CHECKPOINT
from lathe.engine.errors import revive
from lathe.engine.jobs.values import Job
from lathe.engine.paths import Home
from lathe.engine.steps import ConvertStep, EvalStep, GateStep, QuantizeStep, Step
from lathe.engine.workbench import Workbench
from lathe.engine.worker.messages import LoadOptions

LAYERS = 4
ONE_THREAD = LoadOptions(context=1024, slots=8, threads=1)
"""On a machine with other work, threads that wait for one another cost tenfold; the model is tiny."""


async def _run(workbench: Workbench, step: Step) -> Job:
    job = await workbench.wait((await workbench.submit(step)).id)
    if job.failure is not None:
        raise revive(job.failure)
    return job


async def _model(workbench: Workbench, step: Step) -> str:
    job = await _run(workbench, step)
    assert job.outcome is not None
    return job.outcome.artefacts[0].path


async def _evaluate(workbench: Workbench, model: str, limit: int, cache: bool = True) -> dict[str, object]:
    job = await _run(workbench, EvalStep(suite="stdlib", model=model, limit=limit, cache=cache, options=ONE_THREAD))
    assert job.outcome is not None
    return dict(job.outcome.figures)


async def _gate(workbench: Workbench, run: object, baseline: object) -> tuple[bool, dict[str, object]]:
    job = await _run(workbench, GateStep(of=str(run), baseline=str(baseline)))
    assert job.outcome is not None
    return bool(job.outcome.figures["passed"]), dict(job.outcome.figures)


async def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--repeat-limit", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        async with open_workbench(Home(Path(folder))) as workbench:
            base = await _model(workbench, ConvertStep(model=str(CHECKPOINT), outtype="f16", name="base"))
            reference = await _evaluate(workbench, base, options.limit)
            print("| model | perplexity | acc_norm | worse by [95 %] | broken | gate |")
            print("|---|---:|---:|---:|---:|---|")
            print(f"| F16 (baseline) | {reference['perplexity']:.3f} | {reference['acc_norm']:.3f} | | | |")
            sound = await _model(workbench, QuantizeStep(model=base, type="Q8_0", name="sound"))
            models = {"Q8_0": sound}
            for layer in range(LAYERS):
                step = QuantizeStep(
                    model=base, type="Q8_0", name=f"damaged-{layer}", tensor_types={rf"blk\.{layer}\.": "q2_k"}
                )
                models[f"Q8_0, layer {layer} at Q2_K"] = await _model(workbench, step)
            for name, model in models.items():
                figures = await _evaluate(workbench, model, options.limit)
                passed, against = await _gate(workbench, figures["run"], reference["run"])
                low, high = against["delta.text.perplexity.low"], against["delta.text.perplexity.high"]
                print(
                    f"| {name} | {figures['perplexity']:.3f} | {figures['acc_norm']:.3f} | {low:+.3f} to {high:+.3f} | "
                    f"{against['broken']} | {'passes' if passed else '**stopped**'} |",
                    flush=True,
                )
            began = time.monotonic()
            first = await _evaluate(workbench, base, options.repeat_limit, cache=False)
            verdicts = []
            for _ in range(options.repeats):
                again = await _evaluate(workbench, base, options.repeat_limit, cache=False)
                verdicts.append((await _gate(workbench, again["run"], first["run"]))[0])
            seconds = time.monotonic() - began
            print(f"\nIdentical pair: {sum(verdicts)} of {len(verdicts)} repeats pass ({seconds:.0f} s).")


if __name__ == "__main__":
    asyncio.run(main())
