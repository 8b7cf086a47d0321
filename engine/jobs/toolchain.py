"""Service: llama.cpp's own converter is installed, from a file or through pip, whose settings the engine has."""

from __future__ import annotations

import asyncio
from pathlib import Path

from lathe.engine.jobs.rag_stores import home_of
from lathe.engine.jobs.services import ServiceContext
from lathe.engine.jobs.values import Outcome
from lathe.engine.steps import ToolchainStep


async def run(step: ToolchainStep, context: ServiceContext) -> Outcome:
    """Install."""
    from lathe.engine.toolchain import store

    root = (await home_of(context)).toolchain
    offline = next(bool(one.value) for one in await context.workbench.settings() if one.key == "general.offline")
    source = Path(step.source) if step.source else None
    await context.progress("installing the converter", 0)
    made = await asyncio.to_thread(
        store.install, root, source=source, version=step.version, sha256=step.sha256, offline=offline, force=step.force
    )
    context.log(f"{len(made.files)} files of {store.DISTRIBUTION} {made.version}")
    return Outcome(figures={"version": made.version, "files": len(made.files), "source_sha256": made.source_sha256})
