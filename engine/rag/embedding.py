"""Embedders: text in, unit vectors out, through the model workers.

    texts --prefix, cut to the model's length--> sorted by length --> requests of similar lengths --> vectors in order
Invariant: vectors come back in the order of the texts, and an `Embedder` says exactly which model made them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from lathe.engine.errors import DataError, UnavailableError
from lathe.engine.generation import EmbedRequest
from lathe.engine.rag.profiles import profile_of
from lathe.engine.rag.splitting import Count
from lathe.engine.rag.together import together
from lathe.engine.rag.tokens import fit, local_count
from lathe.store.rag.values import EmbedderIdentity

if TYPE_CHECKING:
    import numpy as np
    from lathe.engine.workbench import ModelDetails, Workbench

    Matrix = np.ndarray[Any, np.dtype[np.float32]]
    Vector = np.ndarray[Any, np.dtype[np.float32]]

REQUEST_TEXTS = 32
"""Texts per request to the worker: enough to fill its batches, few enough to be cancelled soon."""
IN_FLIGHT = 2
"""Requests under way, so that the worker finds the next one when it has finished one."""
_SPECIAL = 2
"""Special tokens around a text: one before and one after, as nearly all embedders have them."""
Role = Literal["query", "passage"]


class Embedder(Protocol):
    """What turns texts into vectors of one kind."""

    @property
    def identity(self) -> EmbedderIdentity: ...

    @property
    def count(self) -> Count:
        """Its tokenizer; blocking, callable from any thread."""

    @property
    def reserved(self) -> int:
        """Tokens of the longest input that a passage's text cannot have."""

    async def embed(self, texts: Sequence[str], role: Role) -> Matrix:
        """Vectors in the order of the texts, float32, one row each."""


class WorkbenchEmbedder:
    """An embedder that runs in a model worker; made by `open_embedder`."""

    def __init__(
        self, workbench: Workbench, model: str, identity: EmbedderIdentity, count: Count, prefixes: dict[Role, int]
    ) -> None:
        self._workbench = workbench
        self._model = model
        self._identity = identity
        self._count = count
        self._prefix_tokens = prefixes

    @property
    def identity(self) -> EmbedderIdentity:
        """Which model it is."""
        return self._identity

    @property
    def count(self) -> Count:
        """Its tokenizer."""
        return self._count

    @property
    def reserved(self) -> int:
        """Special tokens and the prefix of passages."""
        return _SPECIAL + self._prefix_tokens["passage"]

    async def embed(self, texts: Sequence[str], role: Role) -> Matrix:
        """Embed texts, those of similar length together."""
        import numpy as np

        cut = await asyncio.to_thread(self._prepare, texts, role)
        order = sorted(range(len(cut)), key=lambda i: len(cut[i]), reverse=True)
        matrix = np.empty((len(cut), self._identity.dimensions), np.float32)
        slots = asyncio.Semaphore(IN_FLIGHT)

        async def one(rows: list[int]) -> None:
            async with slots:
                request = EmbedRequest(model=self._model, texts=tuple(cut[row] for row in rows), client="rag")
                answer = await self._workbench.embed(request)
            if answer.dimensions != self._identity.dimensions:
                raise DataError(f"{self._identity.name} gave {answer.dimensions} dimensions instead of "
                                f"{self._identity.dimensions}")  # fmt: skip
            matrix[rows] = np.frombuffer(answer.vectors, "<f4").reshape(answer.rows, answer.dimensions)

        async with together() as group:
            for first in range(0, len(order), REQUEST_TEXTS):
                group.create_task(one(order[first : first + REQUEST_TEXTS]))
        return matrix

    def _prepare(self, texts: Sequence[str], role: Role) -> list[str]:
        """Prefix texts and cut those that the model cannot take; the model itself would refuse them."""
        prefix = self._identity.query_prefix if role == "query" else self._identity.passage_prefix
        room = self._identity.max_tokens - _SPECIAL - self._prefix_tokens[role]
        counts = self._count(texts)
        kept = [text if n <= room else fit(text, room, self._count) for text, n in zip(texts, counts, strict=True)]
        # A model has nothing to say about no tokens; white space alone is embedded as a full stop.
        return [prefix + (text if text.strip() else ".") for text in kept]


async def open_embedder(workbench: Workbench, reference: str, *, name: str | None = None) -> WorkbenchEmbedder:
    """Load a model and find out what there is to know about it as an embedder.

    Raises:
        UnavailableError: it gives no embeddings. LatheError: it cannot be loaded.
    """
    import numpy as np

    details = await workbench.model(reference)
    probe = await workbench.embed(EmbedRequest(model=reference, texts=("dimensions",), client="rag"))
    if probe.dimensions < 2 or not np.frombuffer(probe.vectors, "<f4").any():
        raise UnavailableError(f"{reference} gives no embeddings", hint="choose an embedding model")
    path = Path(details.entry.path)
    folder = path if await asyncio.to_thread(path.is_dir) else path.parent if path.suffix == ".onnx" else None
    names = (details.entry.name, details.card.name or "")
    profile = profile_of(names, folder)
    context = details.card.context_length or 512
    identity = EmbedderIdentity(
        name=name or details.entry.name,
        kind=_kind(details),
        sha256=await _sha256(details),
        dimensions=probe.dimensions,
        max_tokens=min(profile.max_tokens or context, context),
        pooling=details.card.pooling or "model",
        query_prefix=profile.query_prefix,
        passage_prefix=profile.passage_prefix,
    )
    count = await asyncio.to_thread(local_count, path, details.card.tokenizer)
    count = count or _asking(workbench, reference)
    # On another thread, because counting may have to wait for the worker, and with it for this loop.
    query, passage = await asyncio.to_thread(count, [identity.query_prefix, identity.passage_prefix])
    return WorkbenchEmbedder(workbench, reference, identity, count, {"query": query, "passage": passage})


def _asking(workbench: Workbench, reference: str) -> Count:
    """A counter that asks the worker; for tokenizers that are not built here."""
    loop = asyncio.get_running_loop()

    async def lengths(texts: Sequence[str]) -> list[int]:
        return [len(tokens) for tokens in await asyncio.gather(*(workbench.tokenize(reference, t) for t in texts))]

    def count(texts: Sequence[str]) -> list[int]:
        return asyncio.run_coroutine_threadsafe(lengths(texts), loop).result()

    return count


def _kind(details: ModelDetails) -> Literal["gguf", "onnx", "sentence-transformers", "scripted"]:
    if details.entry.path.startswith("scripted:"):
        return "scripted"
    match details.entry.format:
        case "gguf":
            return "gguf"
        case "onnx":
            return "onnx"
        case _:
            return "sentence-transformers"


async def _sha256(details: ModelDetails) -> str:
    """The hash of the model's bytes: from the catalogue, else computed."""
    entry = details.entry
    if entry.sha256 is not None:
        return entry.sha256
    from lathe.engine.jobs.outputs import model_sha256

    return await asyncio.to_thread(model_sha256, entry)
