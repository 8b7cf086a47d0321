"""Which code runs which step: the one table that joins `steps` to work.

A kind runs either in a child process (`child`: "module:function" called as `run(step, context)`) or, when all native
work already happens in model workers, as a coroutine in the engine (`service`). Resolved lazily, so that listing kinds
imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import msgspec
from lathe.engine import steps
from lathe.engine.jobs.values import Lane


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """How one kind of step runs."""

    target: str
    """`module:function` below `lathe.engine.jobs`."""
    lane: Lane = "cpu"
    service: bool = False
    reusable: bool = True
    """The step and the files it names determine the result; False where it also depends on folders or a store."""

    def load(self) -> Callable[..., Any]:
        """Import the code."""
        module, _, function = self.target.partition(":")
        loaded: Callable[..., Any] = getattr(import_module(f"lathe.engine.jobs.{module}"), function)
        return loaded


KINDS: dict[type, Kind] = {
    steps.ScanStep: Kind(target="scan:run", lane="io"),
    steps.VerifyStep: Kind(target="verify:run", lane="io"),
    steps.ConvertStep: Kind(target="convert:run"),
    steps.QuantizeStep: Kind(target="quantize:run"),
    steps.ToolchainStep: Kind(target="toolchain:run", service=True, lane="io", reusable=False),
    steps.OnnxQuantizeStep: Kind(target="onnx_quantize:run"),
    steps.PerplexityStep: Kind(target="perplexity:run"),
    steps.KldStep: Kind(target="kld:run"),
    steps.ImatrixStep: Kind(target="imatrix:run"),
    steps.ImatrixMergeStep: Kind(target="imatrix:run_merge", lane="io"),
    steps.TuneStep: Kind(target="tune:run"),
    steps.BenchStep: Kind(target="bench:run"),
    steps.ServeStep: Kind(target="serve:run", service=True),
    steps.GenerateStep: Kind(target="generate:run", service=True),
    # They may wait for a conversion of the default embedder, so they must not hold the lane that it needs.
    steps.RagBuildStep: Kind(target="rag_build:run", service=True, lane="io", reusable=False),
    steps.RagReembedStep: Kind(target="rag_reembed:run", service=True, reusable=False),
    steps.RagQueryStep: Kind(target="rag_query:run", service=True, lane="io", reusable=False),
    steps.RagAskStep: Kind(target="rag_ask:run", service=True, reusable=False),
    steps.RagEvalStep: Kind(target="rag_eval:run", service=True, lane="io", reusable=False),
    steps.EvalStep: Kind(target="eval:run", service=True, reusable=False),
    steps.GateStep: Kind(target="eval_gate:run", service=True, lane="io", reusable=False),
    steps.JudgeStep: Kind(target="eval_judge:run", service=True, reusable=False),
    steps.HarnessStep: Kind(target="eval_harness:run", service=True, reusable=False),
    steps.BenchServedStep: Kind(target="bench_served:run", service=True, reusable=False),
    steps.RagGoldenStep: Kind(target="rag_golden:run", service=True, lane="io", reusable=False),
    steps.RagExploreStep: Kind(target="rag_explore:run", service=True, lane="io", reusable=False),
    steps.RagVerifyStep: Kind(target="rag_verify:run", service=True, lane="io", reusable=False),
}

MODEL_FIELDS = ("model", "base", "draft_model", "embedder", "reranker")
"""Fields of steps that name models; resolved by the engine before the step runs."""


def kind_of(step: steps.Step) -> Kind:
    """The kind that runs a step."""
    return KINDS[type(step)]


def name_of(step: steps.Step) -> str:
    """The step's tag, as plans write it after `run:`."""
    return str(type(step).__struct_config__.tag)


def references(step: steps.Step) -> tuple[str, ...]:
    """Every model the step names."""
    found = (getattr(step, field, None) for field in MODEL_FIELDS)
    return tuple(reference for reference in found if isinstance(reference, str) and reference)


def title_of(step: steps.Step, names: Mapping[str, str] = {}) -> str:
    """One line for the queue: what the step does to what; `names` are the registered names of its references."""
    subject = " ".join(names.get(named) or named.rstrip("/").rsplit("/", 1)[-1] for named in references(step))
    match step:
        case steps.ConvertStep(to=to, outtype=outtype):
            return f"{subject} -> {to} {outtype}"
        case steps.QuantizeStep(type=kind):
            return f"{subject} -> {kind}"
        case steps.ToolchainStep(version=version):
            return version or "as installed"
        case steps.OnnxQuantizeStep(mode=mode):
            return f"{subject} -> {mode}"
        case steps.ImatrixMergeStep(output=output):
            return output.rsplit("/", 1)[-1]
        case steps.ScanStep(roots=roots):
            return ", ".join(root.rstrip("/").rsplit("/", 1)[-1] or root for root in roots) or "standard places"
        case steps.EvalStep(suite=suite):
            return f"{suite.rsplit('/', 1)[-1]} on {subject}"
        case steps.JudgeStep(of=of, baseline=baseline):
            return f"{of} against {baseline}, judged by {subject}"
        case steps.HarnessStep(tasks=tasks):
            return f"{', '.join(tasks)} on {subject}"
        case steps.GateStep(of=of, baseline=baseline):
            return f"{of} against {baseline}" if baseline else of
        case steps.RagEvalStep(store=store, beir=beir):
            return store or (beir or "").rstrip("/").rsplit("/", 1)[-1]
        case steps.RagBuildStep(store=store) | steps.RagReembedStep(store=store) | steps.RagQueryStep(store=store):
            return store
        case steps.RagAskStep(store=store) | steps.RagGoldenStep(store=store):
            return store
        case steps.RagExploreStep(store=store) | steps.RagVerifyStep(store=store):
            return store
        case _:
            return subject
